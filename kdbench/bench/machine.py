"""Part ``machine``: the bandwidth of a copy, and the rate of a large matrix product."""

from __future__ import annotations

from kdbench.bench.hardware import COPY_BYTES, MATRIX_SIDE, copy_rates
from kdbench.bench.session import Session

PRECISIONS = {"cpu": ("float32",), "cuda": ("float32", "tf32", "bf16")}


def measure(session: Session) -> None:
    """Measure memory and arithmetic."""
    kind = session.device.type
    rates = copy_rates(session.device, 0.3 * session.budget.left)
    session.add("copy bandwidth", {"bytes": COPY_BYTES[kind]}, [rate / 1e9 for rate in rates], "GB/s")
    for precision in PRECISIONS[kind]:
        if not session.budget.left:
            session.leave_out("matrix product", {"precision": precision}, "no time left for it; raise --minutes")
            continue
        rates = [rate / 1e12 for rate in session.matrix_rates(precision)]
        session.add("matrix product", {"precision": precision, "side": MATRIX_SIDE[kind]}, rates, "TFLOP/s")
