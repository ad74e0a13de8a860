"""The metrics that kdbench measures of a student, and what a table needs to show them. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

HEADLINE = "top1"
"""The metric that methods are ranked by."""


@dataclass(frozen=True)
class Metric:
    """A number that is measured of a student on a split.

    ``target`` is ``package.module:function``, imported when something is measured. It is called with ``logits`` (N, C)
    and ``labels`` (N,), and with ``teacher_logits`` (N, C) where ``needs_teacher``; it returns a scalar tensor, or
    None where the metric is not defined, as top-5 with five classes or fewer.
    """

    name: str
    target: str
    heading: str
    """Of a table's column, without the unit."""
    unit: str = ""
    digits: int = 2
    """After the decimal point."""
    higher_is_better: bool | None = None
    """None where neither is."""
    is_share: bool = False
    """``target`` gives the share of images for which something holds. It is kept in percent, as a count of images by
    their number: float32 would make equal counts differ."""
    needs_teacher: bool = False
    low: float = float("-inf")
    """Smaller values are impossible: a file that holds one is damaged."""
    high: float = float("inf")
    summary: str = ""

    @property
    def column(self) -> str:
        """The heading with its unit."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading


def _share(name: str, heading: str, summary: str, *, needs_teacher: bool = False) -> Metric:
    return Metric(
        name,
        f"kdbench.engine.measures:{name}",
        heading,
        unit="%",
        higher_is_better=None if needs_teacher else True,
        is_share=True,
        needs_teacher=needs_teacher,
        low=0.0,
        high=100.0,
        summary=summary,
    )


# Rounding may take a likelihood or a calibration error a little beyond its bounds.
METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        _share("top1", "top-1", "Share of images that are classified correctly."),
        _share("top5", "top-5", "Share of images whose label is among the five largest logits; from six classes on."),
        Metric(
            "nll",
            "kdbench.engine.measures:nll",
            "NLL",
            unit="nats",
            digits=3,
            higher_is_better=False,
            low=-1e-3,
            summary="Negative log-likelihood of the labels.",
        ),
        Metric(
            "ece",
            "kdbench.engine.measures:ece",
            "ECE",
            digits=3,
            higher_is_better=False,
            low=0.0,
            high=1.001,
            summary="Expected calibration error, 15 bins (Guo 2017, https://arxiv.org/abs/1706.04599).",
        ),
        _share(
            "agreement",
            "agreement",
            "Share of images for which student and teacher predict the same class.",
            needs_teacher=True,
        ),
        Metric(
            "kl_to_teacher",
            "kdbench.engine.measures:kl_to_teacher",
            "KL to teacher",
            unit="nats",
            digits=3,
            needs_teacher=True,
            summary="KL divergence of the student's distribution from the teacher's, KL(teacher ‖ student).",
        ),
    )
}
"""In the order of the tables' columns."""


def problems(values: Mapping[str, float]) -> Iterator[str]:
    """What is impossible among measured values; NaN, which a diverged student gives, is possible."""
    for name, value in values.items():
        metric = METRICS.get(name)
        if metric is not None and (value < metric.low or value > metric.high):
            yield f"{name}: must be between {metric.low:g} and {metric.high:g}, got {value:g}"
