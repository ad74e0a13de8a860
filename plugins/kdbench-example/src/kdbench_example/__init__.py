"""A distribution of one distillation loss. Listing it imports no torch: the loss is named, not imported."""

from __future__ import annotations

from kdbench.hookspecs import MethodSpec, hookimpl


@hookimpl
def kdbench_methods() -> list[MethodSpec]:
    """Offer the loss."""
    return [MethodSpec("standardised-kd", "kdbench_example.standardised_kd:StandardisedKD")]
