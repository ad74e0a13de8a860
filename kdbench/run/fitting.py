"""How many workers fit on one GPU, by the memory that earlier trials needed."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence

from kdbench.errors import KdbenchError
from kdbench.results import SuiteFolder
from kdbench.suite.plan import Plan
from kdbench.words import plural

LIBRARIES_BYTES = 2**30
"""What each process needs beside its tensors: CUDA's context, kernels, workspaces."""
USABLE = 0.9
"""Of the free memory: the allocator cannot use all of it."""
# In a process of its own: opening a GPU takes memory there until the process ends.
_ASK = "import sys, torch; print(*(torch.cuda.mem_get_info(name)[0] for name in sys.argv[1:]))"


def workers(
    jobs: int | str, devices: Sequence[str], plan: Plan, folder: SuiteFolder, warn: Callable[[str], None]
) -> int:
    """The number of workers for each device: ``jobs``, or for ``auto`` as many as fit; ``warn`` is told which.

    Raises :class:`KdbenchError` if ``jobs`` is neither, or ``devices`` are not all CUDA's.
    """
    if isinstance(jobs, int):
        return jobs
    if jobs != "auto":
        raise KdbenchError(f"jobs: must be a number or auto, got {jobs}")
    if not devices or not all(device.startswith("cuda") for device in devices):
        raise KdbenchError(f"jobs: auto is for CUDA devices of this machine, not {', '.join(devices) or 'an executor'}")
    needed = cohort_bytes(plan, folder)
    if needed is None:
        warn("--jobs auto: no trial of this suite has been measured on a GPU yet; one worker for each device")
        return 1
    free = free_bytes(devices)
    found = jobs_that_fit(needed, free)
    gigabytes = f"a cohort needs up to {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    warn(f"--jobs auto: {plural(found, 'worker')} for each device ({gigabytes})")
    return found


def free_bytes(devices: Sequence[str]) -> int:
    """The free memory of the CUDA device that has the least of it. Raises :class:`KdbenchError`."""
    asked = subprocess.run([sys.executable, "-c", _ASK, *devices], capture_output=True, text=True, check=False)
    try:
        return min(map(int, asked.stdout.split()))
    except ValueError:
        last = (asked.stderr.strip().splitlines() or ["no answer"])[-1]
        raise KdbenchError(
            f"jobs: the free memory of {', '.join(devices)} is unknown ({last}); pass a number"
        ) from None


def cohort_bytes(plan: Plan, folder: SuiteFolder) -> int | None:
    """An upper bound of the memory of the largest cohort of a plan; None if no trial was measured on a GPU.

    A trial that was not measured counts as the largest one of its pair, or of the suite.
    """
    images, peaks = 0, {}
    for trial in plan.trials:
        result = folder.trial(trial.id).recorded
        if result is not None and result.cost.peak_memory_bytes:
            peaks[trial.id] = result.cost.peak_memory_bytes
            data = result.data
            images = (data.n_train + data.n_test) * math.prod(data.image_shape or (0,))
    if not peaks:
        return None
    of_pair: dict[object, int] = {}
    for trial in plan.trials:
        of_pair[trial.pair] = max(of_pair.get(trial.pair, 0), peaks.get(trial.id, 0))
    largest = max(peaks.values())
    return images + max(
        sum(peaks.get(trial.id) or of_pair[trial.pair] or largest for trial in cohort.trials) for cohort in plan.cohorts
    )


def jobs_that_fit(needed: int, free: int) -> int:
    """How many processes that need so many bytes fit; at least 1."""
    return max(1, int(free * USABLE) // (needed + LIBRARIES_BYTES))
