"""Descriptions of all kinds of offers, without training."""

from __future__ import annotations

from typing import Any

from kdbench.discovery import Offer, Registry, searches_of
from kdbench.hookspecs import KINDS, FigureSpec, MethodSpec, MetricSpec, ModelSpec, SectionSpec
from kdbench.method import DataSignature, Method, Signature
from kdbench.models.base import from_offer, signature
from kdbench.models.shapes import without_draws
from kdbench.results import MAIN
from kdbench.words import plural

# Adapters depend on the networks; these two show them.
TEACHER, STUDENT = "resnet56", "resnet20"
CLASSES, IMAGE_SHAPE = 100, (3, 32, 32)


def describe_offer(offer: Offer[Any], registry: Registry) -> dict[str, Any]:
    """Everything of interest about one offer, as ``kdbench describe --json`` prints it."""
    kind = next(kind.name for kind in KINDS if kind.spec is type(offer.spec))
    row = {"kind": kind, **offer.to_json(), "provided_by": str(offer.provider)}
    if isinstance(offer.spec, MethodSpec):
        row.update(_method(offer, registry))
        row["tuned"] = {key: str(search) for key, search in searches_of(offer).items()}
    elif isinstance(offer.spec, ModelSpec):
        row.update(_model(offer))
    elif isinstance(offer.spec, MetricSpec):
        row.update(_metric(offer.spec))
    elif isinstance(offer.spec, SectionSpec):
        row.update(title=offer.spec.title, after=offer.spec.after)
    elif isinstance(offer.spec, FigureSpec):
        row.update(section=offer.spec.section)
    return row


def _metric(spec: MetricSpec) -> dict[str, Any]:
    better = {True: "higher", False: "lower", None: ""}[spec.higher_is_better]
    return {"column": spec.column, "better": better, "compared_with": "the teacher" if spec.needs_teacher else ""}


def _method(offer: Offer[Any], registry: Registry) -> dict[str, Any]:
    try:
        method: Method = offer.load()(**offer.spec.presets)
    except Exception:  # noqa: BLE001 - it has settings without defaults, and shows nothing before they are given
        return {}
    reads = {"needs_teacher": method.needs_teacher, "reads": sorted(method.reads)}
    if method.student_reads is not None:
        reads["student_reads"] = sorted(method.student_reads)
    if method.teacher_reads is not None:
        reads["teacher_reads"] = sorted(method.teacher_reads)
    try:
        teacher, student = (_signature(registry, name) for name in (TEACHER, STUDENT))
        with without_draws():
            method.setup(student, teacher, DataSignature(CLASSES, 50_000))
    except Exception as error:  # noqa: BLE001 - a plugin's setup may raise anything
        return {**reads, "adapters": {"none": f"setup failed: {error}"}}
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in method.named_children()}
    counts |= {name: p.numel() for name, p in method.named_parameters(recurse=False)}
    return {
        **reads,
        f"adapters_for_{TEACHER}_to_{STUDENT}": {name: f"{n:,} parameters" for name, n in counts.items() if n},
        "stages": {
            **{s.name: f"{plural(s.epochs, 'epoch')}, trains {', '.join(s.trains)}" for s in method.stages()},
            MAIN: "the recipe's epochs",
        },
        "expected_failures": dict(method.expected_failures),
    }


def _signature(registry: Registry, name: str) -> Signature:
    with without_draws():
        network = from_offer(registry.model(name), classes=CLASSES, image_shape=IMAGE_SHAPE)
        return signature(network, name, IMAGE_SHAPE)


def _model(offer: Offer[Any]) -> dict[str, Any]:
    with without_draws():
        network = from_offer(offer, classes=CLASSES, image_shape=IMAGE_SHAPE)
    known = signature(network, offer.spec.name, IMAGE_SHAPE)
    return {
        "family": known.family,
        f"parameters_at_{CLASSES}_classes": f"{sum(p.numel() for p in network.parameters()):,}",
        f"taps_at_{IMAGE_SHAPE[1]}_pixels": {
            name: f"{'x'.join(map(str, tap.shape))} {'nonnegative' if tap.nonnegative else 'signed'}"
            for name, tap in known.taps.items()
        },
    }
