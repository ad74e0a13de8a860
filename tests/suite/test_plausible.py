"""Values that mean nothing for the suite's images: refused or remarked upon by ``plan``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kdbench import cli
from kdbench.errors import SuiteError
from kdbench.run import open_suite

SUITE = """
name = "small"
question = "Does it work?"
seeds = [0]
data = { name = "digits", train_limit = 100 }
recipe = { epochs = 4 }
methods = [{ name = "none" }]

[[pairs]]
teacher = "resnet20"
student = "resnet8"
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SUITE)
    return path


def step(name: str, key: str, value: int) -> str:
    return f'augmentation=[{{name="flip"}},{{name="{name}",{key}={value}}}]'


@pytest.mark.parametrize(
    ("name", "key"),
    [("crop", "padding"), ("shift", "pixels"), ("cutout", "size"), ("random_resized_crop", "size")],
)
def test_lengths_above_the_images_side_are_refused(suite: Path, name: str, key: str) -> None:
    # The digits are 8 x 8 pixels.
    assert open_suite(suite, overrides=[f"recipe.{step(name, key, 8)}"]).plan.trials
    what = "must be at most 8, the side of the images in pixels, got 9"
    for place, written in (
        ("recipe", "recipe"),
        ("pairs.0.recipe", "pairs[0].recipe"),
        ("teachers.resnet20.recipe", "teachers.resnet20.recipe"),
    ):
        with pytest.raises(SuiteError) as caught:
            _ = open_suite(suite, overrides=[f"{place}.{step(name, key, 9)}"]).plan
        assert caught.value.problems == (f"{suite}: {written}.augmentation[1].{key}: {what}",)


def test_an_inherited_length_is_named_by_its_file(suite: Path) -> None:
    suite.write_text(SUITE.replace("epochs = 4", 'epochs = 4, augmentation = [{ name = "crop", padding = 9 }]'))
    child = suite.with_name("child.toml")
    child.write_text("extends = 'small.toml'\n")
    with pytest.raises(SuiteError, match=rf"^{suite}: recipe\.augmentation\[0\]\.padding: must be at most 8"):
        _ = open_suite(child).plan


def test_remarks(suite: Path) -> None:
    def remarks(*overrides: str) -> list[str]:
        return [remark.removeprefix(f"{suite}: ") for remark in open_suite(suite, overrides=overrides).remarks]

    assert remarks("recipe.batch_size=100", "recipe.warmup_epochs=3") == []
    few = "101 is above the number of training images, 100: an epoch is one step"
    assert remarks("recipe.batch_size=101") == [f"recipe.batch_size: {few}"]
    assert remarks("pairs.0.recipe.batch_size=101") == [f"pairs[0].recipe.batch_size: {few}"]
    # Images that are cut off for validation are not trained on.
    assert "training images, 90:" in remarks("recipe.batch_size=95", "data.validation=10")[0]
    long = "the warm-up (4 epochs) is not shorter than the training (4): the learning rate rises to the end"
    assert remarks("recipe.warmup_epochs=4") == [f"recipe.warmup_epochs: {long}"]
    assert remarks("recipe.warmup_epochs=4", "recipe.epochs=9", "teachers.resnet20.recipe.epochs=4") == [
        f"teachers.resnet20.recipe.warmup_epochs: {long}"
    ]


def test_plan_shows_remarks_as_warnings(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kdbench", "plan", str(suite), "--set", "recipe.warmup_epochs=5"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    shown = capsys.readouterr().err
    assert f"kdbench: {suite}: recipe.warmup_epochs: the warm-up (5 epochs) is not shorter than the" in shown
