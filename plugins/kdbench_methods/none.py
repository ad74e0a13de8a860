"""The baseline: the student learns from the labels alone."""

from __future__ import annotations

from kdbench.method import Batch, Method, Output, Terms


class NoDistillation(Method):
    """Cross-entropy to the labels: what every gain is measured against."""

    reads = frozenset({"logits"})
    needs_teacher = False

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Terms:
        """``ce``."""
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}
