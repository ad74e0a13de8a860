"""What the distribution offers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import kdbench_methods
from kdbench_methods import METHODS

GOLDEN = Path(__file__).parents[2] / "golden"


def test_the_hook_offers_every_method_once():
    names = [spec.name for spec in kdbench_methods.kdbench_methods()]
    assert names == [spec.name for spec in METHODS]
    assert len(set(names)) == len(names)
    assert {"none", "kd", "vid", "rkd", "pkt", "ab", "ft", "deit"} <= set(names)


def test_listing_loads_no_torch():
    code = "import sys, kdbench_methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


def test_every_golden_vector_is_used():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    unused = [path.stem for path in sorted(GOLDEN.glob("*.npz")) if f'"{path.stem}"' not in tests]
    assert unused == []
