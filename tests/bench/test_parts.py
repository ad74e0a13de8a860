"""The run of parts: their time, their failures, an interruption. The parts are made up."""

from __future__ import annotations

import json

import pytest
import torch

from kdbench.bench.findings import Findings
from kdbench.bench.parts import PARTS, Part, chosen, measure
from kdbench.discovery import discover
from kdbench.errors import KdbenchError, ResultsError

CPU = torch.device("cpu")


def adds(session):
    session.add("thing", {"seconds": session.budget.left}, [1.0], "s")


def fails(session):
    session.add("thing", {}, [1.0], "s")
    raise ValueError("no good")


def stops(session):
    session.add("thing", {}, [1.0], "s")
    raise KeyboardInterrupt


def run(path, clock, *actions):
    parts = [Part(f"p{number}", action, 1.0, "") for number, action in enumerate(actions)]
    findings = Findings(path)
    measure(CPU, discover(), findings, seconds=60.0, parts=parts, clock=clock)
    return findings


def test_parts_divide_the_time(tmp_path, clock):
    def slow(session):
        adds(session)
        clock.now += 40

    findings = run(tmp_path / "b.json", clock, adds, slow, adds)
    assert [(row.part, row.settings["seconds"]) for row in findings.rows] == [("p0", 20), ("p1", 30), ("p2", 20)]
    assert findings.complete
    assert findings.machine["torch"] == torch.__version__.partition("+")[0]


def test_a_part_that_fails_says_so_and_the_others_are_measured(tmp_path, clock):
    findings = run(tmp_path / "b.json", clock, fails, adds)
    assert [row.part for row in findings.rows] == ["p0", "p1"]
    [entry] = findings.left_out
    assert (entry.part, entry.name, entry.failed) == ("p0", "p0", True)
    assert entry.reason.startswith("ValueError: no good")
    assert findings.complete


def test_an_interruption_loses_nothing(tmp_path, clock):
    path = tmp_path / "b.json"
    with pytest.raises(KeyboardInterrupt):
        run(path, clock, adds, stops, adds)
    written = json.loads(path.read_text())
    assert [row["part"] for row in written["rows"]] == ["p0", "p1"]
    assert written["complete"] is False


def test_a_full_disk_ends_the_run(tmp_path, clock):
    def full(session):
        raise ResultsError("disk full")

    with pytest.raises(ResultsError, match="disk full"):
        run(tmp_path / "b.json", clock, full, adds)


def test_parts_are_selected_by_name():
    assert [part.name for part in chosen(())] == [part.name for part in PARTS]
    assert [part.name for part in PARTS][:2] == ["machine", "correctness"]
    assert [part.name for part in chosen(["data", "machine"])] == ["machine", "data"]
    with pytest.raises(KdbenchError, match=r"^--only loss: there is no such part; did you mean 'losses'\?$"):
        chosen(["loss"])
    with pytest.raises(
        KdbenchError,
        match=r"^--only zzz: there is no such part; known: cohorts, correctness, data, kernels, layout, losses, "
        r"machine, pairs$",
    ):
        chosen(["zzz"])


def test_every_part_says_what_it_measures():
    assert all(part.summary and part.share > 0 for part in PARTS)
