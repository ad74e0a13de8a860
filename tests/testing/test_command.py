"""``kdbench check`` on the command line."""

from __future__ import annotations

import json
import sys

import pytest

from kdbench.cli import main

SOUND = """
from kdbench.method import Method


class Sound(Method):
    needs_teacher = False

    def forward(self, student, teacher, batch):
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}
"""
TWO = (
    SOUND
    + """

class Summed(Method):
    def forward(self, student, teacher, batch):
        return {"ce": (batch.cross_entropy(student.logits) * len(batch.labels), 1.0)}
"""
)


@pytest.fixture
def check(monkeypatch, capsys):
    """Run ``kdbench check``; gives (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["kdbench", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return exit_.value.code, captured.out, captured.err

    return run


@pytest.fixture
def plugin(tmp_path):
    def write(text):
        path = tmp_path / "losses.py"
        path.write_text(text)
        return path

    return write


def test_a_table_of_questions_and_answers(check, plugin):
    code, out, _ = check(plugin(SOUND), "--pair", "resnet20:resnet8")
    assert code == 0
    assert "sound, losses.py local, on resnet20:resnet8" in out
    assert "Does every stage return named, finite, scalar terms?" in out
    assert "the method uses no teacher" in out
    assert "26 passed, 2 skipped" in out


def test_a_failure_is_exit_code_1(check, plugin):
    code, out, _ = check(plugin(TWO), "--pair", "resnet20:resnet8")
    assert code == 1
    assert "failed: batch-growth: main: term 'ce' grows as B^1.00 with B images; average over the batch (summed)" in out
    assert "skipped: adapter-gradient: the method has no parameters to train (sound, summed)" in out
    assert "2 methods: " in out
    assert "1 failed" in out


def test_json(check, plugin):
    code, out, _ = check(plugin(TWO), "--pair", "resnet20:resnet8", "--json")
    report = json.loads(out)
    assert code == 1
    assert report["passed"] is False
    assert [method["method"] for method in report["methods"]] == ["sound", "summed"]
    [row] = [row for row in report["methods"][1]["checks"] if row["status"] == "failed"]
    assert row["check"] == "batch-growth"


def test_methods_that_need_settings_are_listed(check):
    code, out, _ = check("combine", "--set", 'methods=[{name="kd"}, {name="pkt"}]', "--pair", "resnet20:resnet8")
    assert code == 0
    assert "main: ce, kd.kd, pkt.pkt" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vdi"], "no method, model or package is called 'vdi'; did you mean 'vid'?"),
        (["combine"], "combine: methods: is required"),
        (["kd", "--set", "temperature=0"], "kd: temperature: must be positive, got 0"),
        (["kd", "--pair", "resnet20"], "--pair resnet20: must be TEACHER:STUDENT"),
        (["nowhere.py"], "plugin file nowhere.py: not found"),
    ],
)
def test_nok(arguments, message, check):
    code, _, err = check(*arguments)
    assert code == 2
    assert message in err


NETS = """
from kdbench.hookspecs import ModelSpec, hookimpl
from kdbench.models.base import TappedModel


@hookimpl
def kdbench_models():
    return [ModelSpec("mine", f"{__name__}:build")]


def build(*, classes, image_shape):
    return TappedModel()
"""


def test_a_model_by_its_name(check):
    code, out, _ = check("resnet8")
    assert code == 0
    assert "resnet8, kdbench" in out
    assert "on 3x32x32, 3x64x64" in out
    assert "Do taps keep the values they are recorded with?" in out
    assert "14 passed" in out


def test_the_models_of_a_plugin_file(check, plugin):
    code, out, _ = check(plugin(NETS), "--json")
    report = json.loads(out)
    assert code == 1
    assert (report["passed"], report["methods"]) == (False, [])
    [model] = report["models"]
    assert (model["model"], model["image_shapes"], model["refused"]) == ("mine", ["3x32x32", "3x64x64"], {})
    [failed] = [row for row in model["checks"] if row["status"] == "failed"]
    assert failed["check"] == "contract"
    assert failed["reason"].startswith("family must name the architecture's family, such as 'resnet', got None")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--set", "width=2"), "--set width: 'resnet8' is a model; only methods have settings here"),
        (
            ("--pair", "resnet8:resnet8"),
            "--pair resnet8:resnet8: 'resnet8' is a model; --pair is for methods only",
        ),
    ],
)
def test_nok_options_of_methods_for_a_model(option, message, check):
    code, _, err = check("resnet8", *option)
    assert code == 2
    assert message in " ".join(err.split())
