"""Time, memory and size of a report: of a synthetic results folder of 13 pairs, 13 methods, 5 seeds, 240 epochs and
10,000 test images.

``python benchmarks/report.py`` builds the folder in a temporary place and renders it in a process of its own, so that
the peak memory is that of the report alone. ``--folder DIR`` keeps the folder, and uses it again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

METHODS = ("none", "kd", "vid", "rkd", "pkt", "ab", "ft", "fitnet", "at", "sp", "cc", "crd", "reviewkd")
IMAGES = 10_000
FIRST_STAGES = {"ab": ("boundaries",), "ft": ("paraphraser",)}


def build(folder: Path, pairs: int, methods: int, seeds: int, epochs: int) -> None:
    """Write a results folder with the records and folders that the tests of the report use."""
    suite = _runs()(folder, "benchmark", data="cifar100")
    draw = random.Random(0)
    for pair in range(pairs):
        teacher, student = f"teacher{pair}", f"student{pair}"
        suite.teacher(teacher, 76.0)
        for index, label in enumerate(METHODS[:methods]):
            best = 69.0 + 0.25 * index + draw.gauss(0, 0.3)
            for seed in range(seeds):
                right = np.array([draw.random() for _ in range(IMAGES)]) < (best + draw.gauss(0, 0.3)) / 100
                last = 100 * int(right.sum()) / IMAGES
                curve = [
                    round(last - 55 * math.exp(-6 * epoch / epochs) + draw.gauss(0, 0.4), 2)
                    for epoch in range(1, epochs)
                ]
                suite.done(
                    teacher, student, label, seed, last, curve=[*curve, last], stages=FIRST_STAGES.get(label, ()),
                    terms=("ce",) if label == "none" else ("ce", label), cost={"seconds": 100.0 + 9 * index + seed},
                    correct=right,
                )  # fmt: skip
    suite.write()


def _runs() -> Any:
    place = Path(__file__).parents[1] / "tests" / "report" / "conftest.py"
    spec = importlib.util.spec_from_file_location("report_conftest", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.Runs


def measure(folder: Path, plots: bool) -> dict[str, float]:
    """Render the report once in this process."""
    start = time.perf_counter()
    from kdbench.report.render import render
    from kdbench.results import SuiteFolder

    with tempfile.TemporaryDirectory() as report:
        page = render(SuiteFolder(folder, "benchmark"), Path(report), plots=plots)
        return {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time(),
            # KiB on Linux.
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "page_mb": page.stat().st_size / 1e6,
        }


def main() -> None:
    """Build the folder, render it in a process of its own, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pairs", 13), ("methods", 13), ("seeds", 5), ("epochs", 240)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="keep the results in this folder, and use them if they exist")
    parser.add_argument("--no-plots", action="store_true", help="without figures")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        sys.stdout.write(json.dumps(measure(given.folder, not given.no_plots)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if not (folder / "benchmark" / "plan.json").is_file():
            build(folder, given.pairs, given.methods, given.seeds, given.epochs)
        command = [sys.executable, __file__, "--measure", "--folder", str(folder)]
        command += ["--no-plots"] if given.no_plots else []
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    sys.stdout.write(
        "{seconds:.1f} s ({cpu_seconds:.1f} s of CPU), {peak_mib:.0f} MiB, page {page_mb:.2f} MB\n".format(**found)
    )


if __name__ == "__main__":
    main()
