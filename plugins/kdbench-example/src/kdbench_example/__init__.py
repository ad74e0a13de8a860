"""A distribution with one of each thing that plugins offer. Listing them imports no torch: they are named."""

from __future__ import annotations

from kdbench.hookspecs import (
    AugmentationSpec,
    FigureSpec,
    MethodSpec,
    MetricSpec,
    OptimizerSpec,
    SectionSpec,
    hookimpl,
)


@hookimpl
def kdbench_methods() -> list[MethodSpec]:
    """Offer a loss."""
    return [MethodSpec("standardised-kd", "kdbench_example.standardised_kd:StandardisedKD")]


@hookimpl
def kdbench_optimizers() -> list[OptimizerSpec]:
    """Offer an optimiser."""
    reference = "Bernstein et al., signSGD, ICML 2018, https://arxiv.org/abs/1802.04434"
    return [OptimizerSpec("signum", "kdbench_example.training:signum", reference=reference)]


@hookimpl
def kdbench_augmentations() -> list[AugmentationSpec]:
    """Offer an augmentation."""
    return [AugmentationSpec("brightness", "kdbench_example.training:brightness")]


@hookimpl
def kdbench_metrics() -> list[MetricSpec]:
    """Offer a metric."""
    target = "kdbench_example.measures:brier"
    reference = "Brier 1950, https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2"
    return [
        MetricSpec(
            "brier", target, reference=reference, heading="Brier score", higher_is_better=False, low=0.0, high=2.0
        )
    ]


@hookimpl
def kdbench_report_sections() -> list[SectionSpec]:
    """Offer a section of the report."""
    return [SectionSpec("leaders", "kdbench_example.page:leaders", title="Highest means", after="verdict")]


@hookimpl
def kdbench_figures() -> list[FigureSpec]:
    """Offer a figure of the report."""
    return [FigureSpec("calibration", "kdbench_example.page:calibration", section="leaders")]
