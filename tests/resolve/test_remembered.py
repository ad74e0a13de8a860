"""Answers of earlier plans are used for the same question only, and a cache in any state costs time only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.opening import open_suite
from kdbench.resolve import remembered
from kdbench.resolve.remembered import Remembered

LOSS = """
from kdbench.method import Incompatible, Method

class Picky(Method):
    name = "picky"

    def setup(self, student, teacher, data):
        if {condition}:
            raise Incompatible("picky: {reason}")

    def forward(self, student, teacher, batch):
        return {{"ce": (batch.cross_entropy(student.logits), 1.0)}}
"""
SUITE = """
extends = "digits"
plugins = ["picky.py"]
methods = [{ name = "picky" }]
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reasons(tmp_path: Path) -> Callable[..., set[str]]:
    """Why a plan skips trials, for a loss that is written anew under another name."""

    def plan(condition: str, reason: str, *overrides: str) -> set[str]:
        folder = tmp_path / reason
        folder.mkdir(exist_ok=True)
        (folder / "picky.py").write_text(LOSS.format(condition=condition, reason=reason))
        (folder / "suite.toml").write_text(SUITE)
        return {trial.reason for trial in open_suite(folder / "suite.toml", overrides=overrides).plan.trials}

    return plan


def test_an_edited_loss_is_asked_again(reasons: Callable[..., set[str]]) -> None:
    assert reasons("True", "first") == {"picky: first"}
    assert reasons("True", "second") == {"picky: second"}
    assert reasons("False", "third") == {""}


def test_the_data_and_each_network_are_part_of_the_question(reasons: Callable[..., set[str]]) -> None:
    few = "data.n_train < 200"
    assert reasons(few, "few") == {""}
    assert reasons(few, "few", "data.train_limit=100") == {"picky: few"}
    assert reasons("'deit' in student.model", "tokens") == {"", "picky: tokens"}
    shallow = "teacher.model == 'resnet8'"
    assert reasons(shallow, "shallow") == {""}
    assert reasons(shallow, "shallow", "teachers.resnet20.model=resnet8") == {"picky: shallow"}


def test_a_known_answer_is_not_computed_again() -> None:
    first = Remembered()
    assert first({"question": 1}, lambda: "yes") == "yes"
    first.save()
    assert Remembered()({"question": 1}, lambda: pytest.fail("computed again")) == "yes"
    assert Remembered()({"question": 2}, lambda: "no") == "no"


def test_other_code_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Remembered()
    first({"question": 1}, lambda: "yes")
    first.save()
    monkeypatch.setattr(remembered.kdbench, "__version__", "9.9")
    assert Remembered()({"question": 1}, lambda: "no") == "no"


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[1]", b'{"a": {}}'])
def test_a_damaged_cache_is_replaced(cache: Path, content: bytes) -> None:
    def ask() -> str:
        known = Remembered()
        answer = known({"question": 1}, lambda: "yes")
        known.save()
        return answer

    ask()
    [file] = (cache / "plans").glob("*.json")
    file.write_bytes(content)
    assert ask() == "yes"
    assert Remembered()({"question": 1}, lambda: pytest.fail("not written")) == "yes"


def test_a_cache_that_cannot_be_written_costs_time_only(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    known = Remembered()
    assert known({"question": 1}, lambda: "yes") == "yes"
    known.save()


def test_the_latest_answers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST", 2)
    known = Remembered()
    for question in range(3):
        known({"question": question}, lambda: "yes")
    known.save()
    again = Remembered()
    assert [again({"question": number}, lambda: "asked") for number in (0, 1, 2)] == ["asked", "yes", "yes"]
