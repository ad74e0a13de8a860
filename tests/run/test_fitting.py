"""How many workers a GPU can take: from numbers that a GPU would have given."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kdbench.errors import KdbenchError
from kdbench.run import fitting

GIB = 2**30


class Folder:
    def __init__(self, **peaks):
        self.peaks = peaks

    def trial(self, name):
        if name not in self.peaks:
            return SimpleNamespace(recorded=None)
        data = SimpleNamespace(n_train=600, n_test=424, image_shape=(3, 32, 32))
        return SimpleNamespace(
            recorded=SimpleNamespace(cost=SimpleNamespace(peak_memory_bytes=self.peaks[name]), data=data)
        )


def plan(*cohorts):
    made = [[SimpleNamespace(id=name, pair=pair) for name, pair in cohort] for cohort in cohorts]
    return SimpleNamespace(
        trials=[trial for cohort in made for trial in cohort], cohorts=[SimpleNamespace(trials=one) for one in made]
    )


STUDY = plan([("a", "p"), ("b", "p")], [("c", "q"), ("d", "q"), ("e", "r")])
IMAGES = 1024 * 3 * 32 * 32


@pytest.mark.parametrize(
    ("peaks", "needed"),
    [
        ({}, None),
        ({"a": None, "c": None}, None),
        # b as a; c, d and e as the largest of all
        ({"a": GIB}, 3 * GIB),
        # d as c, which is of its pair; e as a
        ({"a": 4 * GIB, "c": GIB}, 8 * GIB),
        ({"a": 4 * GIB, "c": GIB, "e": GIB}, 8 * GIB),
        ({"a": GIB, "b": 2 * GIB, "c": GIB, "d": 3 * GIB, "e": GIB}, 5 * GIB),
    ],
)
def test_the_largest_cohort_counts(peaks, needed):
    found = fitting.cohort_bytes(STUDY, Folder(**peaks))
    assert found == (None if needed is None else needed + IMAGES)


@pytest.mark.parametrize(
    ("needed", "free", "jobs"), [(3 * GIB, 40 * GIB, 9), (3 * GIB, 41 * GIB, 9), (100 * GIB, 80 * GIB, 1)]
)
def test_as_many_as_fit(needed, free, jobs):
    assert fitting.jobs_that_fit(needed, free) == jobs


def test_auto_says_what_it_chose(monkeypatch):
    said = []
    monkeypatch.setattr(fitting, "free_bytes", lambda devices: 40 * GIB)
    devices = ["cuda:0", "cuda:1"]
    assert fitting.workers("auto", devices, STUDY, Folder(), said.append) == 1
    assert fitting.workers("auto", devices, STUDY, Folder(a=GIB), said.append) == 8
    assert fitting.workers(3, devices, STUDY, Folder(a=GIB), said.append) == 3
    assert said == [
        "--jobs auto: no trial of this suite has been measured on a GPU yet; one worker for each device",
        "--jobs auto: 8 workers for each device (a cohort needs up to 3.0 GiB, 40.0 GiB are free)",
    ]


def test_without_a_gpu_the_error_says_what_to_do():
    with pytest.raises(KdbenchError, match=r"^jobs: auto is for CUDA devices of this machine, not cpu$"):
        fitting.workers("auto", ["cpu"], STUDY, Folder(), print)
    with pytest.raises(KdbenchError, match=r"^jobs: must be a number or auto, got many$"):
        fitting.workers("many", ["cuda:0"], STUDY, Folder(), print)


def test_the_free_memory_that_cannot_be_asked_for(monkeypatch):
    monkeypatch.setattr(fitting, "_ASK", "raise SystemExit('CUDA driver is gone')")
    with pytest.raises(KdbenchError, match=r"unknown \(CUDA driver is gone\); pass a number$"):
        fitting.free_bytes(["cuda:0"])
    monkeypatch.setattr(fitting, "_ASK", "import sys; print(*(len(name) for name in sys.argv[1:]))")
    assert fitting.free_bytes(["cuda:0", "cuda:10"]) == 6
