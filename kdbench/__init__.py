"""kdbench: a plugin-based benchmark for knowledge distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.run import Results as Results
    from kdbench.run import run_suite as run_suite

__all__ = ["Results", "__version__", "run_suite"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazy, so that `kdbench --help` and `import kdbench` load no torch.
    if name in {"run_suite", "Results"}:
        from kdbench import run

        return getattr(run, name)
    raise AttributeError(f"module 'kdbench' has no attribute {name!r}")
