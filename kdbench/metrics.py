"""The metrics that kdbench measures of every student, and what a table needs to show them. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kdbench.hookspecs import MetricSpec

HEADLINE = "top1"
"""The metric that methods are ranked by."""


def _share(name: str, heading: str, summary: str, *, needs_teacher: bool = False) -> MetricSpec:
    return MetricSpec(
        name,
        f"kdbench.engine.measures:{name}",
        heading=heading,
        unit="%",
        digits=2,
        higher_is_better=None if needs_teacher else True,
        is_share=True,
        needs_teacher=needs_teacher,
        low=0.0,
        high=100.0,
        summary=summary,
    )


# Rounding may take a likelihood or a calibration error a little beyond its bounds.
METRICS: Mapping[str, MetricSpec] = {
    metric.name: metric
    for metric in (
        _share("top1", "top-1", "Share of images that are classified correctly."),
        _share("top5", "top-5", "Share of images whose label is among the five largest logits; from six classes on."),
        MetricSpec(
            "nll",
            "kdbench.engine.measures:nll",
            heading="NLL",
            unit="nats",
            higher_is_better=False,
            low=-1e-3,
            summary="Negative log-likelihood of the labels.",
        ),
        MetricSpec(
            "ece",
            "kdbench.engine.measures:ece",
            heading="ECE",
            higher_is_better=False,
            low=0.0,
            high=1.001,
            reference="Guo 2017, https://arxiv.org/abs/1706.04599",
            summary="Expected calibration error, 15 bins.",
        ),
        _share(
            "agreement",
            "agreement",
            "Share of images for which student and teacher predict the same class.",
            needs_teacher=True,
        ),
        MetricSpec(
            "kl_to_teacher",
            "kdbench.engine.measures:kl_to_teacher",
            heading="KL to teacher",
            unit="nats",
            needs_teacher=True,
            summary="KL divergence of the student's distribution from the teacher's, KL(teacher ‖ student).",
        ),
    )
}
"""In the order of the tables' columns. Offered to others by ``kdbench.engine.builtin``."""


def problems(values: Mapping[str, float]) -> Iterator[str]:
    """What is impossible among measured values; NaN, which a diverged student gives, is possible."""
    for name, value in values.items():
        metric = METRICS.get(name)
        if metric is not None and (value < metric.low or value > metric.high):
            yield f"{name}: must be between {metric.low:g} and {metric.high:g}, got {value:g}"
