"""A machine that computes wrongly is found out, and one that computes rightly passes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from kdbench import selftest
from kdbench.cli import app
from kdbench.discovery import discover
from kdbench.errors import PluginError
from kdbench.hookspecs import GoldenSpec, hookimpl
from kdbench.selftest import Agreement, Trained
from kdbench.status import Status

CPU = torch.device("cpu")
RIGHT = Agreement("right", 1e-16, 1e-15)
LEARNT = Trained("a:b", "kd", Status("done"), "", 90.0)
SKIPPED = Trained("a:b", "ab", Status("skipped"), "ab needs pre-activation taps; b has none")


# ---- differences


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ([2.0, 1.0], [2.0, 1.0], 0.0),
        ([2.0, 1.5], [2.0, 1.0], 0.25),
        ([-1.0, 0.0], [-4.0, 0.0], 0.75),
        ([0.0, 0.1], [0.0, 0.0], 0.1),
        ([float("nan"), 1.0], [2.0, 1.0], float("inf")),
        ([float("inf"), 1.0], [2.0, 1.0], float("inf")),
        ([2.0], [2.0, 1.0], float("inf")),
    ],
)
def test_deviation(found: list[float], expected: list[float], difference: float) -> None:
    assert selftest.deviation(torch.tensor(found), torch.tensor(expected)) == pytest.approx(difference)


@pytest.mark.parametrize(("loss", "gradient", "passed"), [(1e-9, 1e-9, True), (2e-9, 0, False), (0, 2e-9, False)])
def test_what_counts_as_rounding(loss: float, gradient: float, passed: bool) -> None:
    assert Agreement("case", loss, gradient).passed is passed


# ---- golden vectors


def offering(target: str) -> SimpleNamespace:
    return SimpleNamespace(kdbench_golden=hookimpl(lambda: [GoldenSpec("mine", target)]))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that offers a case with a wrong gradient, and one that raises."""

    def cases(device: torch.device) -> Iterator[tuple[str, dict[str, tuple[Tensor, Tensor]]]]:
        one = torch.ones(2, dtype=torch.float64, device=device)
        yield "wrong", {"loss": (one.sum(), one.sum()), "gradient of a": (one, one), "gradient of b": (2 * one, one)}

    def broken(device: torch.device) -> Iterator[tuple[str, dict[str, tuple[Tensor, Tensor]]]]:
        yield from {}.items()
        raise FileNotFoundError("a.npz")

    monkeypatch.setitem(sys.modules, "planted", SimpleNamespace(cases=cases, broken=broken))


def test_the_first_party_vectors_agree() -> None:
    agreements = list(selftest.compare_golden(discover(), CPU))
    assert {"kd_kl_T4", "ab_3stages", "vid_same", "pkt_b"} <= {agreement.case for agreement in agreements}
    assert all(agreement.passed for agreement in agreements)


@pytest.mark.usefixtures("planted")
def test_vectors_of_any_plugin_are_compared() -> None:
    registry = discover()
    registry.manager.register(offering("planted:cases"))
    [wrong] = [a for a in selftest.compare_golden(registry, CPU) if a.case == "wrong"]
    assert wrong == Agreement("wrong", 0.0, 1.0)
    assert not wrong.passed


@pytest.mark.usefixtures("planted")
def test_vectors_that_cannot_be_computed() -> None:
    registry = discover()
    registry.manager.register(offering("planted:broken"))
    with pytest.raises(PluginError, match=r"^golden vectors of 'mine': FileNotFoundError: a\.npz$"):
        list(selftest.compare_golden(registry, CPU))


# ---- training


def test_trains_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    smaller = ("recipe.epochs=1", "recipe.warmup_epochs=0", "pairs.1.recipe.warmup_epochs=0")
    less = ("data.train_limit=64", "data.test_limit=50", "methods.ab.boundary_epochs=1")
    monkeypatch.setattr(selftest, "SHORTENED", ("seeds=[0]", *smaller, *less, "methods.ft.paraphraser_epochs=1"))
    outcomes = selftest.train_shortened("cpu")
    assert list(tmp_path.iterdir()) == []
    assert [(o.pair, o.method) for o in outcomes] == [
        (pair, method)
        for pair in ("resnet20:resnet8", "resnet20:deit_micro")
        for method in ("none", "kd", "vid", "rkd", "pkt", "ab", "ft", "deit")
    ]
    states = {(o.pair, o.method): o.status for o in outcomes}
    assert {key for key, state in states.items() if state == "skipped"} == {
        ("resnet20:deit_micro", "vid"),
        ("resnet20:deit_micro", "ab"),
    }
    # One step teaches nothing: that is no pass.
    assert not any(o.passed for o in outcomes)


@pytest.mark.parametrize(
    ("status", "top1", "passed"),
    [("done", 75.0, True), ("done", 74.9, False), ("diverged", None, False), ("failed", None, False)],
)
def test_what_counts_as_learnt(status: str, top1: float | None, passed: bool) -> None:
    assert Trained("a:b", "kd", Status(status), "", top1).passed is passed


@pytest.mark.parametrize(
    ("golden", "trained", "passed"),
    [
        ([RIGHT], [LEARNT, SKIPPED], True),
        ([RIGHT], [SKIPPED], False),
        ([], [LEARNT], False),
        ([RIGHT, Agreement("wrong", 1.0, 0.0)], [LEARNT], False),
        ([RIGHT], [LEARNT, Trained("a:b", "ft", Status("diverged"), "in epoch 2")], False),
    ],
)
def test_all_is_well_only_if_it_was_looked_at(golden: list[Agreement], trained: list[Trained], passed: bool) -> None:
    assert selftest.passed(golden, trained) is passed


# ---- the command


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Trained]:
    """What the training seems to come to; the list may be changed."""
    outcomes = [LEARNT, SKIPPED]
    monkeypatch.setattr(selftest, "train_shortened", lambda *_: outcomes)
    return outcomes


def test_the_command_prints_tables_and_succeeds(found: list[Trained]) -> None:
    result = CliRunner().invoke(app, ["selftest", "--device", "cpu"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert any("kd_kl_T4" in line and "passed" in line for line in lines)
    assert any("ab needs pre-activation taps; b has none" in line and "skipped" in line for line in lines)
    assert lines[-1] == "35 of 35 golden vectors agree within 1e-09; 1 of 1 students reach 75 %, 1 skipped"


def test_the_command_fails_where_anything_does(found: list[Trained]) -> None:
    found.append(Trained("a:b", "ft", Status("diverged"), "in epoch 2"))
    result = CliRunner().invoke(app, ["selftest", "--device", "cpu", "--json"])
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["device"] == "cpu"
    assert content["passed"] is False
    assert all(agreement["passed"] for agreement in content["golden"])
    assert content["trained"][-1] == {
        "pair": "a:b",
        "method": "ft",
        "status": "diverged",
        "reason": "in epoch 2",
        "top1": None,
        "passed": False,
    }
