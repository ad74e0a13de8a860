"""``kdbench merge`` and ``kdbench prune``: what they print, and their exit codes."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from kdbench import cli

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def made() -> ModuleType:
    """The folders of ``tests/results``."""
    spec = importlib.util.spec_from_file_location("made_results", HERE.parent / "results/conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kdbench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)

    def go(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kdbench", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), "\n".join(" ".join(line.split()) for line in out.splitlines()), err

    return go


@pytest.fixture
def machines(made: ModuleType) -> list[str]:
    """One has two trials; two has one of them, another seed with other numbers, a damaged and two unfinished ones."""
    one, two = made.Lab(Path("one")), made.Lab(Path("two"), torch_version="2.12.0")
    two.day = 2
    one.train("none")
    one.train("kd", top1=90.0)
    two.train("none")
    two.train("kd", top1=91.25)
    (two.train("vid") / "student.safetensors").write_bytes(b"x")
    two.interrupt("ft")
    two.fail("ab")
    for lab in (one, two):
        lab.write_plan()
    return ["one", "two"]


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_merge_shows_all_that_it_has_done(machines, kdbench, tmp_path):
    planned = kdbench("merge", *machines, "--into", "all", "--dry-run")
    assert (planned[0], (tmp_path / "all").exists()) == (1, False)
    assert "would copy 3 trials and 2 teachers to all; nothing was written" in planned[1]
    code, out, err = kdbench("merge", *machines, "--into", "all")
    assert (code, err) == (1, "")
    kd = next(path.name for path in Path("one/small").iterdir() if "-kd-" in path.name)
    vid = next(path.name for path in Path("two/small").iterdir() if "-vid-" in path.name)
    expected = [
        "folder finished copied same conflicts unusable",
        "one 2 2 0 0 0",
        "two 3 0 1 1 1",
        "The same numbers in two folders",
        "small 1 one: cpu, torch 2.11.0, Linux, 2026-01-01 two: cpu, torch 2.12.0, Linux, 2026-01-02",
        "Unusable trials, which were not copied",
        f"{vid} two/small student.safetensors does not match its checksum",
        "Conflicts",
        f"small/{kd} one, 2026-01-01 90.00 two, 2026-01-02 91.25 metrics (top1) torch: 2.11.0 / 2.12.0",
        "the other ones are in all/_conflicts/two; `kdbench diff` compares two folders of trials",
        "not copied: 1 unfinished trial",
        "not copied: 1 failed trial",
        "copied 3 trials and 2 teachers to all (0.0 MB)",
    ]
    lines = iter(out.splitlines())
    assert [line for line in expected if line not in lines] == []


def test_a_merge_without_conflicts_ends_with_0_also_when_repeated(machines, kdbench):
    for copied in ("2 trials and 1 teacher", "0 trials and 0 teachers"):
        code, out, err = kdbench("merge", "one", "--into", "all")
        assert (code, err) == (0, "")
        assert f"copied {copied} to all" in out
    assert kdbench("runs", "small", "--output", "all")[1].count("yes") == 2


def test_a_refused_merge_ends_with_2(machines, kdbench):
    code, _, err = kdbench("merge", "one", "--into", "one")
    assert (code, err) == (2, "kdbench: one: is one, or one of them contains the other; name another --into\n")


def test_students_of_another_teacher_are_shown_with_it(made, kdbench):
    one, two = made.Lab(Path("one")), made.Lab(Path("two"))
    one.train("none")
    two.train_teacher(weight=2.0)
    two.train("kd")
    code, out, _ = kdbench("merge", "one", "two", "--into", "all")
    assert code == 1
    lines = out.splitlines()
    key = one.teacher.key
    assert f"_teachers/{key} one, 2026-01-01 95.00 two, 2026-01-01 95.00 weights equal" in lines
    assert f"small/{two.trials[0].id} two, 2026-01-01 90.00 teacher" in lines


def test_a_merge_as_json(machines, kdbench):
    code, out, _ = kdbench("merge", *machines, "--into", "all", "--json")
    found = json.loads(out)
    assert code == 1
    assert [len(found[key]) for key in ("copied", "same", "conflicts", "unusable")] == [3, 1, 1, 1]
    (conflict,) = found["conflicts"]
    assert (conflict["kept"]["top1"], conflict["other"]["top1"], conflict["stored"]) == (
        90.0,
        91.25,
        "all/_conflicts/two",
    )
    assert conflict["other"]["environment"]["torch"] == "2.12.0"
    assert (found["unfinished"], found["failed"], found["dry_run"]) == (1, 1, False)


SUITE = """
name = "small"
question = "?"
seeds = [0]
[data]
name = "digits"
train_limit = 64
test_limit = 10
[recipe]
epochs = 1
[[pairs]]
teacher = "resnet8"
student = "resnet8"
[[methods]]
name = "none"
"""


def test_prune_shows_and_then_removes(made, kdbench):
    lab = made.Lab(Path("runs"))
    trial = lab.train("kd", trial={"settings": {"temperature": 8.0}})
    teacher = lab.folder.teacher(lab.teacher.key).path
    Path("small.toml").write_text(SUITE)
    size = sum(path.stat().st_size for folder in (trial, teacher) for path in folder.rglob("*")) / 1e6
    code, out, err = kdbench("prune", "small.toml")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "trial status top-1 date settings not planned because MB"
    assert lines[1].startswith(
        f"{trial.name} done 90.00 2026-01-01 00:01 temperature=8.0 teacher resnet20 is not in the"
    )
    assert f"{teacher.name} resnet20 2026-01-01 00:01 0.0" in lines
    assert lines[-1].endswith("MB; nothing was removed: add --yes")
    assert trial.exists()
    found = json.loads(kdbench("prune", "small.toml", "--json")[1])
    assert (found["removed"], found["trials"][0]["id"], found["teachers"][0]["key"]) == (
        False,
        trial.name,
        teacher.name,
    )
    code, out, _ = kdbench("prune", "small.toml", "--yes")
    assert (code, out.splitlines()[-1]) == (0, f"removed 1 trial and 1 teacher: freed {size:.1f} MB")
    assert (trial.exists(), teacher.exists()) == (False, False)
    assert (
        kdbench("prune", "small.toml")[1] == "nothing to remove: the plan names all trials, and all teachers are in use"
    )


def test_prune_needs_a_suite_with_results(kdbench):
    Path("small.toml").write_text(SUITE)
    assert kdbench("prune", "small.toml")[::2] == (
        2,
        "kdbench: runs/small: no results; name their folder with --output\n",
    )
