from __future__ import annotations

import json

import numpy as np
import pytest

from kdbench.bench.findings import EQUAL, Findings, LeftOut, Row
from kdbench.errors import ResultsError

VALUES = [3.0, 1.0, 10.0, 2.0]


def test_a_row_has_the_median_and_the_quartiles():
    row = Row.of("pairs", "steps", {"pair": "a:b"}, VALUES, "steps/s")
    assert (row.value, row.n, row.unit) == (np.median(VALUES), 4, "steps/s")
    assert row.spread == pytest.approx(np.quantile(VALUES, [0.25, 0.75]))


@pytest.mark.parametrize("values", [[2.0], [1.0, 3.0]])
def test_one_or_two_values_have_no_quartiles(values):
    row = Row.of("pairs", "steps", {}, values, "steps/s")
    assert (row.value, row.n, row.spread) == (2.0, len(values), None)


def test_the_file_is_complete_after_every_entry(tmp_path):
    heard: list[object] = []
    findings = Findings(tmp_path / "b.json", {"minutes": 1.0}, listener=heard.append)

    def written():
        return json.loads(findings.path.read_text())

    findings.describe({"torch": "2.11"})
    assert written()["machine"] == {"torch": "2.11"}
    findings.add(Row.of("data", "decoding", {"side": 64}, VALUES, "images/s"))
    assert written()["rows"] == [
        {
            "part": "data",
            "name": "decoding",
            "settings": {"side": 64},
            "value": 2.5,
            "unit": "images/s",
            "n": 4,
            "spread": [1.75, 4.75],
        }
    ]
    findings.leave_out("data", "streaming", {}, "no time")
    entry = {"part": "data", "name": "streaming", "settings": {}, "reason": "no time", "failed": False}
    assert written()["left_out"] == [entry]
    assert written()["complete"] is False
    assert not findings.failed
    findings.leave_out("pairs", "pairs", {}, "broken", failed=True)
    findings.finish()
    assert written()["complete"] is True
    assert findings.failed
    assert [type(entry) for entry in heard] == [Row, LeftOut, LeftOut]
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"file/b\.json: cannot be written"):
        Findings(tmp_path / "file" / "b.json").finish()


def test_a_comparison_that_is_unequal_fails_the_run():
    findings = Findings()
    findings.add(Row.of("correctness", "a = b", {}, [1.0], EQUAL), Row.of("pairs", "steps", {}, [0.0], "steps/s"))
    assert not findings.failed
    findings.add(Row.of("correctness", "a = b", {}, [0.0], EQUAL))
    assert findings.failed
