from __future__ import annotations

import re

import pytest

from kdbench.errors import KdbenchError, PluginError
from kdbench.testing.targets import find, parse_settings

LOSS = '''
from kdbench.method import Method, Positive


class Mine(Method):
    """Labels."""

    def __init__(self, *, weight: Positive = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, student, teacher, batch):
        return {"ce": (batch.cross_entropy(student.logits), self.weight)}
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(LOSS)
    return path


def test_a_method_by_name():
    [examinee] = find("kd").examinees
    assert examinee.name == "kd"
    assert examinee.settings == {"temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9}


def test_a_variant_keeps_its_presets():
    [examinee] = find("kd/keras").examinees
    assert examinee.settings["temperature"] == 3.0


def test_a_plugin_file(file):
    [examinee] = find(file, {"weight": 2.0}).examinees
    assert (examinee.name, examinee.settings) == ("mine", {"weight": 2.0})
    assert examinee.build().weight == 2.0


def test_a_distribution_is_all_its_methods_and_lists_those_that_need_settings():
    found = find("KDBench")
    assert {"none", "kd", "vid", "ft/paper", "crd+kd"} <= {examinee.name for examinee in found.examinees}
    assert found.not_checked == {"combine": "combine: methods: is required"}


def test_nok_unknown():
    with pytest.raises(PluginError) as error:
        find("vdi")
    assert str(error.value) == "no method, model or package is called 'vdi'; did you mean 'vid'?"


def test_nok_file_without_methods(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("")
    with pytest.raises(PluginError, match=r"empty\.py: contains no method"):
        find(path)


def test_nok_missing_file(tmp_path):
    with pytest.raises(PluginError, match=r"nowhere\.py: not found"):
        find(tmp_path / "nowhere.py")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "kd: temperature: must be positive, got 0.0"),
        ({"temprature": 1.0}, "kd: temprature: unknown setting; did you mean 'temperature'?"),
    ],
)
def test_nok_settings(settings, message):
    with pytest.raises(PluginError, match=re.escape(message)):
        find("kd", settings)


def test_settings_are_toml_or_text():
    given = ["temperature=2.5", "loss=mse", "labels = true", 'methods=[{name = "kd"}]', "pairs=a=b"]
    assert parse_settings(given) == {
        "temperature": 2.5,
        "loss": "mse",
        "labels": True,
        "methods": [{"name": "kd"}],
        "pairs": "a=b",
    }


@pytest.mark.parametrize("text", ["temperature", "=3"])
def test_nok_settings_without_key_or_value(text):
    with pytest.raises(KdbenchError, match=f"--set {text}: must be KEY=VALUE"):
        parse_settings([text])
