"""A stranger's distribution, from its sources to a row of the leaderboard, in an environment of its own."""

from __future__ import annotations

import csv
import json
import re
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "plugins" / "kdbench-example"
SUITE = """
name = "stranger"
question = "Does a stranger's loss train?"
seeds = [0]
metrics = ["brier"]
sections = ["leaders"]
figures = ["calibration"]

[data]
name = "digits"

[recipe]
epochs = 30
optimizer = { name = "signum", beta = 0.8 }
lr = 0.001
augmentation = ["brightness"]

[[pairs]]
teacher = "resnet8"
student = "resnet8"

[[methods]]
name = "none"
[[methods]]
name = "standardised-kd"
"""


def call(*command: str | Path, folder: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the example installed from its wheel."""
    folder = tmp_path_factory.mktemp("stranger")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", EXAMPLE]
    call(*build, folder=folder)
    [wheel] = (folder / "dist").iterdir()
    assert wheel.name == "kdbench_example-0.1.0-py3-none-any.whl"
    venv.create(folder / "venv", with_pip=False)
    inner = folder / "venv" / "bin" / "python"
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    # torch, kdbench and the rest come from here; their own .pth files are read, as an editable kdbench needs.
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "outer.pth").write_text("\n".join(lines) + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", inner]
    call(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, folder=folder)
    return inner


def test_it_is_listed_with_its_distribution_and_version(python: Path, tmp_path: Path) -> None:
    rows = json.loads(call(python, "-m", "kdbench", "list", "methods", "--json", folder=tmp_path))
    [row] = [row for row in rows if row["name"] == "standardised-kd"]
    assert row == {
        "name": "standardised-kd",
        "paper": "Sun et al., CVPR 2024, https://arxiv.org/abs/2403.01732",
        "summary": "Soft targets of standardised logits: the student need not match the teacher's scale.",
        "distribution": "kdbench-example",
        "version": "0.1.0",
        "settings": {
            "temperature": {"default": 2.0, "type": "float > 0"},
            "ce_weight": {"default": 0.1, "type": "float >= 0"},
            "kd_weight": {"default": 9.0, "type": "float >= 0"},
        },
        "reads": ["logits"],
    }
    assert {"none", "kd", "deit"} < {row["name"] for row in rows}


def test_it_is_not_here() -> None:
    # The environment is its own: what it has installed is not seen from this one.
    listed = json.loads(call(sys.executable, "-m", "kdbench", "list", "methods", "--json", folder=Path.cwd()))
    assert "standardised-kd" not in {row["name"] for row in listed}


def test_it_gets_a_row_in_the_leaderboard(python: Path, tmp_path: Path) -> None:
    suite = tmp_path / "stranger.toml"
    suite.write_text(SUITE)
    overrides = ["--set", "recipe.epochs=1", "--set", "data.train_limit=128", "--report-name", "stranger"]
    call(python, "-m", "kdbench", "run", suite, *overrides, "--tracking-uri", "none", folder=tmp_path)
    with (tmp_path / "reports" / "stranger" / "leaderboard.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"none", "standardised-kd"}
    row = rows["standardised-kd"]
    assert (row["teacher"], row["student"], row["n"], row["diverged"]) == ("resnet8", "resnet8", "1", "0")
    assert 0 < float(row["top1_mean"]) <= 100
    [trial] = (tmp_path / "runs" / "stranger").glob("*standardised_kd*/trial.json")
    content = json.loads(trial.read_text())
    assert content["plugin"] == {"distribution": "kdbench-example", "version": "0.1.0"}
    # Installed source is identified by what it does, not by its version; it is stored with the trial.
    assert re.fullmatch(r"[0-9a-f]{64}", content["fingerprint"])
    assert [path.name for path in trial.parent.glob("source/method/**/standardised_kd.py")] == ["standardised_kd.py"]
    assert content["settings"] == {"temperature": 2.0, "ce_weight": 0.1, "kd_weight": 9.0}
    assert content["recipe"]["optimizer"] == {"name": "signum", "beta": 0.8}
    assert content["recipe"]["augmentation"] == [{"name": "brightness", "most": 0.2}]
    assert content["part_sources"].keys() == {"optimizer", "augmentation.brightness"}
    assert [path.name for path in trial.parent.glob("source/optimizer/**/training.py")] == ["training.py"]
    assert 0 < float(row["brier_mean"]) < 2
    page = (tmp_path / "reports" / "stranger" / "index.html").read_text()
    leader = max(rows.values(), key=lambda row: float(row["top1_mean"]))["label"]
    assert f"<li>resnet8 → resnet8: {leader}</li>" in page
    assert "Brier score against accuracy" in page
    assert (tmp_path / "reports" / "stranger" / "plots" / "calibration.svg").is_file()


@pytest.mark.parametrize("kind", ["optimizers", "augmentations", "metrics", "sections", "figures"])
def test_its_other_parts_are_listed(python: Path, tmp_path: Path, kind: str) -> None:
    rows = json.loads(call(python, "-m", "kdbench", "list", kind, "--json", folder=tmp_path))
    names = {"optimizers": "signum", "augmentations": "brightness", "metrics": "brier", "sections": "leaders"}
    [row] = [row for row in rows if row["name"] == names.get(kind, "calibration")]
    assert (row["distribution"], row["version"]) == ("kdbench-example", "0.1.0")
    assert row["summary"]


def test_its_own_tests_pass(python: Path, tmp_path: Path) -> None:
    cache = ["-p", "no:cacheprovider", "--basetemp", tmp_path / "pytest"]
    told = call(python, "-m", "pytest", "-q", *cache, EXAMPLE, folder=tmp_path)
    assert "passed" in told
