"""Golden vectors: results of the losses' reference implementations in float64, compared on any device.

The files are described in ``tests/golden/README.md``. None of them is made by the code that it tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from kdbench.method import Batch, Method, Output
from kdbench_methods.ab import staged_boundary_loss
from kdbench_methods.at import attention_loss
from kdbench_methods.cc import correlation_loss
from kdbench_methods.deit import DeiT
from kdbench_methods.dist import relation_losses
from kdbench_methods.dkd import decoupled_losses
from kdbench_methods.easytransfer import EasyTransfer, summed_squares
from kdbench_methods.fsp import flow_loss
from kdbench_methods.ft import channel_factor, factor_loss, full_factor
from kdbench_methods.kd import KD, soft_target_loss
from kdbench_methods.nst import selectivity_loss
from kdbench_methods.pairing import pool_to_smaller
from kdbench_methods.pkt import pkt_loss
from kdbench_methods.rkd import angle_loss, distance_loss
from kdbench_methods.sp import similarity_loss
from kdbench_methods.vid import TeacherMap

Case: TypeAlias = Mapping[str, Tensor]
"""The tensors of a file by name; ``in_X`` for which it has a ``grad_X`` are leaves."""
Pairs: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]
"""By name: the computed and the expected value."""

# The wheel has the vectors inside the package, a checkout has them in the tests.
PLACES = (Path(__file__).parent / "golden_vectors", Path(__file__).parents[2] / "tests" / "golden")


def _two(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Case], Tensor]:
    """Apply a loss of student and teacher."""
    return lambda case: loss(case["in_student"], case["in_teacher"])


def _stages(loss: Callable[[list[Tensor], list[Tensor]], Tensor]) -> Callable[[Case], Tensor]:
    """Apply a loss of three stages of both."""
    return lambda case: loss([case[f"in_s{i}"] for i in range(3)], [case[f"in_t{i}"] for i in range(3)])


def _whole(method: Method) -> Callable[[Case], Tensor]:
    """The total loss of a method, from logits and labels."""

    def total(case: Case) -> Tensor:
        taps = {"dist_logits": case["in_dist"]} if "in_dist" in case else {}
        student = Output(case["in_cls" if taps else "in_student"], taps)
        labels = case["in_target"]
        indices, start = torch.arange(len(labels), device=labels.device), torch.zeros((), device=labels.device)
        batch = Batch(labels, indices, start, start, torch.Generator(labels.device))
        terms = method.to(labels.device)(student, Output(case["in_teacher"]), batch)
        return torch.stack([value * weight for value, weight in terms.values()]).sum()

    return total


def _factors(case: Case) -> Tensor:
    s, t = pool_to_smaller(case["in_student"], case["in_teacher"])
    p1, p2 = int(case["p1"]), int(case["p2"])
    return factor_loss(channel_factor(s, p1), channel_factor(t, p1), p2)


def _decoupled(case: Case) -> Tensor:
    target_class, other_classes = decoupled_losses(case["in_student"], case["in_teacher"], case["in_target"], 4.0)
    return target_class + 8 * other_classes


LOSSES: dict[str, Callable[[Case], Tensor]] = {
    "ab_3stages": _stages(lambda s, t: 0.003 * staged_boundary_loss(s, t)),
    "at_stage": _two(attention_loss),
    "at_stage_pool": _two(attention_loss),
    "cc_after_embedding": _two(correlation_loss),
    "deit_akida_hard": _whole(DeiT(distillation="probabilities", teacher_smoothing=0.1, alpha=0.9)),
    "deit_akida_soft": _whole(DeiT(distillation="soft", reduction="batchmean", alpha=0.9)),
    "deit_hard": _whole(DeiT()),
    "deit_soft_tau1_batchmean": _whole(DeiT(distillation="soft", reduction="batchmean")),
    "deit_soft_tau1_numel": _whole(DeiT(distillation="soft")),
    "deit_soft_tau3_batchmean": _whole(DeiT(distillation="soft", tau=3.0, reduction="batchmean")),
    "deit_soft_tau3_numel": _whole(DeiT(distillation="soft", tau=3.0)),
    "dist_T4": _two(lambda s, t: torch.stack(relation_losses(s, t, 4.0)).sum()),
    "dkd_T4_a1_b8": _decoupled,
    "easytransfer_kld_as_meant": _whole(EasyTransfer(loss="kld")),
    "easytransfer_mse": _two(summed_squares),
    "easytransfer_xent": _whole(EasyTransfer(loss="xent")),
    "fsp": _stages(flow_loss),
    "ft_p1_2_p2_1": _factors,
    "ft_p1_2_p2_1_pool": _factors,
    "ft_p1_2_p2_2": _factors,
    "ft_paper_l1": _two(lambda s, t: factor_loss(full_factor(s), full_factor(t))),
    "kd_kl_T4": _two(lambda s, t: soft_target_loss(s, t, T=4.0)),
    "kd_total_T4_ce0.1_kl0.9": _whole(KD()),
    "keras_distiller_alpha.1_T3": _whole(KD(ce_weight=0.1, kd_weight=0.9, temperature=3.0)),
    "nst_stage_pool": _two(selectivity_loss),
    "pkt_a": _two(pkt_loss),
    "pkt_b": _two(pkt_loss),
    "rkd_a_w25_50": _two(lambda s, t: 25 * distance_loss(s, t) + 50 * angle_loss(s, t)),
    "rkd_angle_only": _two(angle_loss),
    "rkd_b_w25_50": _two(lambda s, t: 25 * distance_loss(s, t) + 50 * angle_loss(s, t)),
    "rkd_distance_only": _two(distance_loss),
    "sp": _two(similarity_loss),
}
PREDICTIONS = ("vid_same", "vid_student_larger", "vid_teacher_larger")
"""Cases of a loss with its parameters."""


def cases(device: torch.device) -> Iterator[tuple[str, Pairs]]:
    """Every case with its ``loss`` and ``gradient of ..``: computed on ``device``, and from the file."""
    for name, loss in LOSSES.items():
        case = _read(name, device)
        yield name, _compare(case, loss(case), {})
    for name in PREDICTIONS:
        case = _read(name, device)
        predictor = TeacherMap(6, 12, 5.0).double().to(device)
        predictor.load_state_dict({key[2:]: value for key, value in case.items() if key.startswith("p_")})
        loss_value = predictor(case["in_student"], case["in_teacher"])
        yield name, _compare(case, loss_value, dict(predictor.named_parameters()))


def _read(name: str, device: torch.device) -> Case:
    folder = next((place for place in PLACES if place.is_dir()), PLACES[0])
    with np.load(folder / f"{name}.npz") as file:
        case = {key: torch.from_numpy(np.array(file[key])).to(device) for key in file.files}
    for key in case:
        if key.startswith("grad_"):
            case[f"in_{key[5:]}"].requires_grad_()
    return case


def _compare(case: Case, loss: Tensor, parameters: Mapping[str, Tensor]) -> Pairs:
    loss.backward()  # type: ignore[no-untyped-call]
    pairs = {"loss": (loss.detach(), case["loss"])}
    for key, expected in case.items():
        kind, _, name = key.partition("_")
        leaf = {"grad": case.get(f"in_{name}"), "gradp": parameters.get(name)}.get(kind)
        if kind in {"grad", "gradp"}:
            found = leaf.grad if leaf is not None and leaf.grad is not None else torch.full_like(expected, torch.nan)
            pairs[f"gradient of {name}"] = found, expected
    return pairs
