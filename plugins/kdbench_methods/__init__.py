"""The distillation losses that come with kdbench: one file a method, offered like anybody's.

This module loads no torch: a method is imported when it is trained, not when it is listed.
"""

from __future__ import annotations

from kdbench.hookspecs import GoldenSpec, MethodSpec, hookimpl

EASY_TRANSFER = "Alibaba EasyTransfer, 2020, https://github.com/alibaba/EasyTransfer"
AKIDA = "BrainChip Akida models, https://doc.brainchipinc.com"

# The baseline and the classic seven.
CLASSIC = (
    MethodSpec("none", "kdbench_methods.none:NoDistillation"),
    MethodSpec("kd", "kdbench_methods.kd:KD"),
    MethodSpec("vid", "kdbench_methods.vid:VID"),
    MethodSpec("rkd", "kdbench_methods.rkd:RKD"),
    MethodSpec("pkt", "kdbench_methods.pkt:PKT"),
    MethodSpec("ab", "kdbench_methods.ab:AB"),
    MethodSpec("ft", "kdbench_methods.ft:FT"),
    MethodSpec("deit", "kdbench_methods.deit:DeiT"),
)

# Other systems' formulations under their own names: the same classes with other settings where that is the truth.
VARIANTS = (
    MethodSpec(
        "kd/keras",
        "kdbench_methods.kd:KD",
        presets={"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 3.0},
        reference="Keras example, 2020, https://keras.io/examples/vision/knowledge_distillation",
        summary="Keras's Distiller: its alpha, .1, weights the labels (ce_weight); T = 3.",
    ),
    MethodSpec("kd/akida", "kdbench_methods.akida:AkidaDistiller", reference=AKIDA),
    MethodSpec("kd/easytransfer-mse", "kdbench_methods.easytransfer:SummedSquares", reference=EASY_TRANSFER),
    MethodSpec(
        "kd/easytransfer-xent",
        "kdbench_methods.easytransfer:EasyTransfer",
        presets={"loss": "xent"},
        reference=EASY_TRANSFER,
        summary="EasyTransfer's distillation: cross-entropy of the student at T = 1 to the teacher softened.",
    ),
    MethodSpec(
        "kd/easytransfer-kld",
        "kdbench_methods.easytransfer:EasyTransfer",
        presets={"loss": "kld"},
        reference=EASY_TRANSFER,
        summary="EasyTransfer's distillation by KL(student || teacher), as meant: the released line is misplaced.",
    ),
    MethodSpec("probes", "kdbench_methods.probes:Probes", reference=EASY_TRANSFER),
    MethodSpec(
        "deit/soft",
        "kdbench_methods.deit:DeiT",
        presets={"distillation": "soft"},
        summary="DeiT's soft distillation, divided by batch and classes as in the released code.",
    ),
    MethodSpec(
        "deit/hard",
        "kdbench_methods.deit:DeiT",
        presets={"distillation": "hard"},
        summary="DeiT's hard distillation: the second head learns the teacher's decisions.",
    ),
    MethodSpec(
        "deit/none",
        "kdbench_methods.deit:DeiT",
        presets={"distillation": "none"},
        summary="DeiT's loss without distillation: the class head alone learns and predicts.",
    ),
    MethodSpec(
        "deit/akida-soft",
        "kdbench_methods.deit:DeiT",
        presets={"distillation": "soft", "reduction": "batchmean", "alpha": 0.9},
        reference=AKIDA,
        summary="Akida's soft DeiT: its alpha, .1, weights the labels (1 - alpha here); averaged over the batch.",
    ),
    MethodSpec(
        "deit/akida-hard",
        "kdbench_methods.deit:DeiT",
        presets={"distillation": "probabilities", "teacher_smoothing": 0.1, "alpha": 0.9},
        reference=AKIDA,
        summary="Akida's hard DeiT: cross-entropy to the teacher's smoothed probabilities; its alpha is 1 - alpha.",
    ),
    MethodSpec(
        "ft/paper",
        "kdbench_methods.ft:FT",
        presets={"ft_weight": 500.0, "factor": "full", "batch_norm": False, "reconstruction": "l1"},
        summary="Factor transfer as its authors released it: whole factors, L1, no batch normalisation.",
    ),
    MethodSpec(
        "ab/paper",
        "kdbench_methods.ab:AB",
        presets={"main": "soft-targets", "temperature": 3.0},
        summary="Activation boundaries as its authors released it: then soft targets alone, no labels.",
    ),
    MethodSpec(
        "rkd/distance",
        "kdbench_methods.rkd:RKD",
        presets={"angle_weight": 0.0},
        summary="RKD's distances alone.",
    ),
    MethodSpec(
        "rkd/angle",
        "kdbench_methods.rkd:RKD",
        presets={"distance_weight": 0.0},
        summary="RKD's angles alone.",
    ),
)

# Further losses of the field, and their combination.
FURTHER = (
    MethodSpec("fitnet", "kdbench_methods.fitnet:FitNet"),
    MethodSpec("at", "kdbench_methods.at:AT"),
    MethodSpec("sp", "kdbench_methods.sp:SP"),
    MethodSpec("cc", "kdbench_methods.cc:CC"),
    MethodSpec("nst", "kdbench_methods.nst:NST"),
    MethodSpec("fsp", "kdbench_methods.fsp:FSP"),
    MethodSpec("kdsvd", "kdbench_methods.kdsvd:KDSVD"),
    MethodSpec("crd", "kdbench_methods.crd:CRD"),
    MethodSpec("ofd", "kdbench_methods.ofd:OFD"),
    MethodSpec("reviewkd", "kdbench_methods.reviewkd:ReviewKD"),
    MethodSpec("dkd", "kdbench_methods.dkd:DKD"),
    MethodSpec("dist", "kdbench_methods.dist:DIST"),
    MethodSpec(
        "crd+kd",
        "kdbench_methods.combine:Combine",
        presets={"methods": [{"name": "crd"}, {"name": "kd", "ce_weight": 0.0, "kd_weight": 1.0}]},
        reference="Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699",
        summary="Contrastive representation distillation and soft targets together.",
    ),
    MethodSpec("combine", "kdbench_methods.combine:Combine"),
)

METHODS = CLASSIC + VARIANTS + FURTHER


@hookimpl
def kdbench_methods() -> list[MethodSpec]:
    """All of the above."""
    return list(METHODS)


@hookimpl
def kdbench_golden() -> list[GoldenSpec]:
    """The golden vectors that the losses are tested with."""
    return [GoldenSpec("kdbench-methods", "kdbench_methods.golden:cases")]
