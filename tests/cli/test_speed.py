"""``kdbench bench`` with parts that are made up."""

from __future__ import annotations

import json
import sys

import pytest

from kdbench import cli
from kdbench.bench import parts
from kdbench.bench.parts import Part


def adds(session):
    session.add("thing", {"size": 3}, [1.5], "s")


def fails(session):
    raise ValueError("no good")


def stops(session):
    adds(session)
    raise KeyboardInterrupt


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """``run(action, ...)``: exit code, standard output and error, and what is in the file."""

    def make(*actions, arguments=()):
        made = [Part(f"p{number}", action, 1.0, "") for number, action in enumerate(actions)]
        monkeypatch.setattr(parts, "chosen", lambda only: made)
        out = tmp_path / "b.json"
        monkeypatch.setattr(sys, "argv", ["kdbench", "bench", "--device", "cpu", "--out", str(out), *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr(), json.loads(out.read_text())

    return make


def test_rows_are_printed_and_written(run):
    code, out, err, written = run(adds, arguments=["--minutes", "0.5"])
    assert (code, err) == (0, "")
    assert "thing" in out
    assert "size 3" in out
    assert written["conditions"] == {"device": "cpu", "minutes": 0.5, "parts": ["p0"]}
    assert written["complete"] is True


def test_json_is_that_of_the_file(run):
    code, out, _, written = run(adds, arguments=["--json"])
    del written["checksum"]
    assert (code, json.loads(out)) == (0, written)


def test_a_failed_part_gives_1(run):
    code, out, _, written = run(fails, adds)
    assert code == 1
    assert "failed: ValueError: no good" in out
    assert len(written["rows"]) == 1


def test_ctrl_c_gives_130_and_keeps_the_rows(run):
    code, out, err, written = run(adds, stops, adds)
    assert code == 130
    assert out.count("thing") == 2
    assert "interrupted; " in err
    assert "has the results so far" in err
    assert [row["part"] for row in written["rows"]] == ["p0", "p1"]
    assert written["complete"] is False


def test_an_unknown_part_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kdbench", "bench", "--only", "pair"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "--only pair: there is no such part; did you mean 'pairs'?" in " ".join(capsys.readouterr().err.split())
