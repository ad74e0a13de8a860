"""The built-in distillation losses: one file per method, registered through the same hooks as those of plugins.

This module does not import torch: a method is imported when it is trained, not when it is listed.
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

# Formulations of other systems, with separate names; the same classes with other settings where these are equivalent.
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
        summary="EasyTransfer's distillation: cross-entropy of the student at T = 1 with the softened teacher.",
    ),
    MethodSpec(
        "kd/easytransfer-kld",
        "kdbench_methods.easytransfer:EasyTransfer",
        presets={"loss": "kld"},
        reference=EASY_TRANSFER,
        summary="EasyTransfer's KL(student || teacher), with the misplaced parenthesis of the released code corrected.",
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
        summary="DeiT's loss without distillation: only the class head learns and predicts.",
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
        summary="Akida's hard DeiT: cross-entropy with the teacher's smoothed probabilities; its alpha is 1 - alpha.",
    ),
    MethodSpec(
        "ft/paper",
        "kdbench_methods.ft:FT",
        presets={"ft_weight": 500.0, "factor": "full", "batch_norm": False, "reconstruction": "l1"},
        summary="Factor transfer as in the authors' code: whole factors, L1, no batch normalisation.",
    ),
    MethodSpec(
        "ab/paper",
        "kdbench_methods.ab:AB",
        presets={"main": "soft-targets", "temperature": 3.0},
        summary="Activation boundaries as in the authors' code: the main stage uses only soft targets, no labels.",
    ),
    MethodSpec(
        "rkd/distance",
        "kdbench_methods.rkd:RKD",
        presets={"angle_weight": 0.0},
        summary="Only the distance term of RKD.",
    ),
    MethodSpec(
        "rkd/angle",
        "kdbench_methods.rkd:RKD",
        presets={"distance_weight": 0.0},
        summary="Only the angle term of RKD.",
    ),
)

# More losses, and their combination.
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
        summary="Contrastive representation distillation combined with soft targets.",
    ),
    MethodSpec("combine", "kdbench_methods.combine:Combine"),
)

METHODS = CLASSIC + VARIANTS + FURTHER


@hookimpl
def kdbench_methods() -> list[MethodSpec]:
    """All methods of this package."""
    return list(METHODS)


@hookimpl
def kdbench_golden() -> list[GoldenSpec]:
    """The golden vectors for the tests of the losses."""
    return [GoldenSpec("kdbench-methods", "kdbench_methods.golden:cases")]
