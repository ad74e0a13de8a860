"""The baseline: the student learns only from the labels."""

from __future__ import annotations

from kdbench.method import Batch, Method, Output, Terms


class NoDistillation(Method):
    """Cross-entropy with the labels; the baseline for every gain."""

    reads = frozenset({"logits"})
    needs_teacher = False

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Terms:
        """``ce``."""
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}
