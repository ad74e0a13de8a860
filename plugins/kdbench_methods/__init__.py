"""The built-in distillation losses: one file per method, registered through the same hooks as those of plugins.

This module does not import torch: a method is imported when it is trained, not when it is listed.
"""

from __future__ import annotations

from kdbench.hookspecs import GoldenSpec, MethodSpec, Search, hookimpl

EASY_TRANSFER = "Alibaba EasyTransfer, 2020, https://github.com/alibaba/EasyTransfer"
AKIDA = "BrainChip Akida models, https://doc.brainchipinc.com"

# What `kdbench tune` tries: weights within a factor of ten of the published ones, temperatures of the usual range.
TEMPERATURE = Search(low=1.0, high=16.0, log=True)
KD = {"temperature": TEMPERATURE, "kd_weight": Search.around(0.9, 10)}
RKD = {"distance_weight": Search.around(25.0, 10), "angle_weight": Search.around(50.0, 10)}
AB = {"boundary_weight": Search.around(0.003, 10), "margin": Search.around(1.0, 4)}
SHARE = Search(low=0.05, high=0.95)

# The baseline and the classic seven.
CLASSIC = (
    MethodSpec("none", "kdbench_methods.none:NoDistillation"),
    MethodSpec("kd", "kdbench_methods.kd:KD", search=KD),
    MethodSpec("vid", "kdbench_methods.vid:VID", search={"vid_weight": Search.around(1.0, 10)}),
    MethodSpec("rkd", "kdbench_methods.rkd:RKD", search=RKD),
    MethodSpec("pkt", "kdbench_methods.pkt:PKT", search={"pkt_weight": Search.around(30_000.0, 10)}),
    MethodSpec("ab", "kdbench_methods.ab:AB", search=AB),
    MethodSpec("ft", "kdbench_methods.ft:FT", search={"ft_weight": Search.around(200.0, 10)}),
    MethodSpec("deit", "kdbench_methods.deit:DeiT", search={"alpha": SHARE}),
)

# Formulations of other systems, with separate names; the same classes with other settings where these are equivalent.
VARIANTS = (
    MethodSpec(
        "kd/keras",
        "kdbench_methods.kd:KD",
        presets={"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 3.0},
        search=KD,
        reference="Keras example, 2020, https://keras.io/examples/vision/knowledge_distillation",
        summary="Keras's Distiller: its alpha, .1, weights the labels (ce_weight); T = 3.",
    ),
    MethodSpec(
        "kd/akida",
        "kdbench_methods.akida:AkidaDistiller",
        search={"alpha": SHARE, "temperature": TEMPERATURE},
        reference=AKIDA,
    ),
    MethodSpec("kd/easytransfer-mse", "kdbench_methods.easytransfer:SummedSquares", reference=EASY_TRANSFER),
    MethodSpec(
        "kd/easytransfer-xent",
        "kdbench_methods.easytransfer:EasyTransfer",
        presets={"loss": "xent"},
        search={"task_balance": SHARE, "temperature": TEMPERATURE},
        reference=EASY_TRANSFER,
        summary="EasyTransfer's distillation: cross-entropy of the student at T = 1 with the softened teacher.",
    ),
    MethodSpec(
        "kd/easytransfer-kld",
        "kdbench_methods.easytransfer:EasyTransfer",
        presets={"loss": "kld"},
        search={"task_balance": SHARE, "temperature": TEMPERATURE},
        reference=EASY_TRANSFER,
        summary="EasyTransfer's KL(student || teacher), with the misplaced parenthesis of the released code corrected.",
    ),
    MethodSpec("probes", "kdbench_methods.probes:Probes", reference=EASY_TRANSFER),
    MethodSpec(
        "deit/soft",
        "kdbench_methods.deit:DeiT",
        presets={"distillation": "soft"},
        search={"alpha": SHARE},
        summary="DeiT's soft distillation, divided by batch and classes as in the released code.",
    ),
    MethodSpec(
        "deit/hard",
        "kdbench_methods.deit:DeiT",
        presets={"distillation": "hard"},
        search={"alpha": SHARE},
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
        search={"alpha": SHARE},
        reference=AKIDA,
        summary="Akida's soft DeiT: its alpha, .1, weights the labels (1 - alpha here); averaged over the batch.",
    ),
    MethodSpec(
        "deit/akida-hard",
        "kdbench_methods.deit:DeiT",
        presets={"distillation": "probabilities", "teacher_smoothing": 0.1, "alpha": 0.9},
        search={"alpha": SHARE},
        reference=AKIDA,
        summary="Akida's hard DeiT: cross-entropy with the teacher's smoothed probabilities; its alpha is 1 - alpha.",
    ),
    MethodSpec(
        "ft/paper",
        "kdbench_methods.ft:FT",
        presets={"ft_weight": 500.0, "factor": "full", "batch_norm": False, "reconstruction": "l1"},
        search={"ft_weight": Search.around(500.0, 10)},
        summary="Factor transfer as in the authors' code: whole factors, L1, no batch normalisation.",
    ),
    MethodSpec(
        "ab/paper",
        "kdbench_methods.ab:AB",
        presets={"main": "soft-targets", "temperature": 3.0},
        search=AB,
        summary="Activation boundaries as in the authors' code: the main stage uses only soft targets, no labels.",
    ),
    MethodSpec(
        "rkd/distance",
        "kdbench_methods.rkd:RKD",
        presets={"angle_weight": 0.0},
        search={"distance_weight": RKD["distance_weight"]},
        summary="Only the distance term of RKD.",
    ),
    MethodSpec(
        "rkd/angle",
        "kdbench_methods.rkd:RKD",
        presets={"distance_weight": 0.0},
        search={"angle_weight": RKD["angle_weight"]},
        summary="Only the angle term of RKD.",
    ),
)

# More losses, and their combination.
FURTHER = (
    MethodSpec("fitnet", "kdbench_methods.fitnet:FitNet", search={"hint_weight": Search.around(100.0, 10)}),
    MethodSpec("at", "kdbench_methods.at:AT", search={"at_weight": Search.around(1000.0, 10)}),
    MethodSpec("sp", "kdbench_methods.sp:SP", search={"sp_weight": Search.around(3000.0, 10)}),
    MethodSpec("cc", "kdbench_methods.cc:CC", search={"cc_weight": Search.around(0.02, 10)}),
    MethodSpec("nst", "kdbench_methods.nst:NST", search={"nst_weight": Search.around(50.0, 10)}),
    MethodSpec("fsp", "kdbench_methods.fsp:FSP", search={"fsp_weight": Search.around(1.0, 10)}),
    MethodSpec("kdsvd", "kdbench_methods.kdsvd:KDSVD", search={"kdsvd_weight": Search.around(1.0, 10)}),
    MethodSpec(
        "crd",
        "kdbench_methods.crd:CRD",
        search={"crd_weight": Search.around(0.8, 10), "temperature": Search.around(0.07, 4)},
    ),
    MethodSpec("ofd", "kdbench_methods.ofd:OFD", search={"ofd_weight": Search.around(0.001, 10)}),
    MethodSpec("reviewkd", "kdbench_methods.reviewkd:ReviewKD", search={"review_weight": Search.around(1.0, 10)}),
    MethodSpec(
        "dkd",
        "kdbench_methods.dkd:DKD",
        search={"alpha": Search.around(1.0, 4), "beta": Search.around(8.0, 10), "temperature": TEMPERATURE},
    ),
    MethodSpec(
        "dist",
        "kdbench_methods.dist:DIST",
        search={"inter_weight": Search.around(2.0, 10), "intra_weight": Search.around(2.0, 10)},
    ),
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
