"""A loss is edited: ``plan`` says why its trial is pending, ``runs`` lists both trials, ``diff`` shows the edit."""

from __future__ import annotations

import json

import pytest

from kdbench.errors import ResultsError
from kdbench.results.compare import compare
from kdbench.results.listing import list_trials

LOSS = """
from kdbench.method import Method

class Mine(Method):
    name = "mine"

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, student, teacher, batch):
        return {"ce": (batch.cross_entropy(student.logits), self.weight)}
"""


def test_an_edited_loss_from_plan_to_diff(write_suite, run, kdbench, tmp_path):
    loss = tmp_path / "loss.py"
    loss.write_text(LOSS)
    suite = write_suite("mine", plugins=("loss.py",))
    (first,) = run(suite, overrides=["recipe.epochs=1"]).plan.trials
    loss.write_text(LOSS.replace("self.weight)}", "2 * self.weight)}"))
    suite.write_text(suite.read_text() + "weight = 3.0\n")

    planned = kdbench("plan", suite, "--set", "recipe.epochs=1")
    assert "pending: new settings (weight); new source" in planned.stdout, planned.stderr
    (second,) = run(suite, overrides=["recipe.epochs=1"]).plan.trials
    output = tmp_path / "runs"
    rows = {row["id"]: row for row in list_trials(output, (), lambda method: {"weight": 1.0})}
    assert [(rows[t.id]["status"], rows[t.id]["settings"], rows[t.id]["planned"]) for t in (first, second)] == [
        ("done", {}, False),
        ("done", {"weight": 3.0}, True),
    ]
    assert rows[first.id]["source"] != rows[second.id]["source"]
    size = sum(path.stat().st_size for path in (output / "tiny" / first.id).rglob("*") if path.is_file())
    assert rows[first.id]["bytes"] == size

    listed = kdbench("runs", "tiny")
    assert listed.returncode == 0, listed.stderr
    assert first.id in listed.stdout
    assert "weight=3.0" in listed.stdout

    shown = kdbench("diff", first.id, second.id)
    assert shown.returncode == 0, shown.stderr
    assert "settings\n  weight: 1.0 -> 3.0\n" in shown.stdout
    assert '-        return {"ce": (batch.cross_entropy(student.logits), self.weight)}\n' in shown.stdout
    assert '+        return {"ce": (batch.cross_entropy(student.logits), 2 * self.weight)}\n' in shown.stdout
    as_json = json.loads(kdbench("diff", first.id, second.id, "--json").stdout)["differences"]
    assert as_json["settings"] == {"weight": [1.0, 3.0]}
    assert set(as_json["source"]) == {"fingerprint"}
    assert list(as_json["code"]) == ["method/loss.py"]
    assert {"recipe", "data", "teacher"} & set(as_json) == set()

    same = compare(output / "tiny" / first.id, output / "tiny" / first.id)
    assert same == {}
    refused = kdbench("runs", "tinny")
    assert refused.returncode == 2
    assert "contains no results of suite tinny; suites: tiny" in refused.stderr
    with pytest.raises(ResultsError) as error:
        list_trials(tmp_path / "none", (), lambda method: {})
    assert str(error.value) == f"{tmp_path / 'none'}: no such results folder; name it with --output"
