"""What a suite's teachers and trials are called depends on its images, not on where they are stored."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdbench.run import open_suite

SUITE = """
name = "pets"
question = "Which?"
seeds = [0]
{plugins}
[data]
name = "{data}"
root = "{root}"
{settings}

[recipe]
epochs = 1
batch_size = 4

[[pairs]]
teacher = "resnet8"
student = "resnet8"

[[methods]]
name = "kd"
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))


def write_images(root: Path, seed: int) -> Path:
    """Two classes of uncompressed images: equal names and sizes in bytes, whatever the pixels."""
    random = np.random.default_rng(seed)
    for folder, count in (("train/cat", 3), ("train/dog", 3), ("test/cat", 2), ("test/dog", 2)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            path = root / folder / f"{number}.bmp"
            Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
            os.utime(path, (1_000_000_000, 1_000_000_000))
    return root


def write_suite(path: Path, root: Path, data: str = "image_folder", settings: str = "", plugin: str = "") -> Path:
    plugins = f'plugins = ["{plugin}"]' if plugin else ""
    path.write_text(SUITE.format(root=root, data=data, settings=settings, plugins=plugins))
    return path


def names(suite: Path) -> tuple[str, str]:
    """The teacher's key and the trial's id."""
    plan = open_suite(suite).plan
    [teacher], [trial] = plan.teachers, plan.trials
    return teacher.key, trial.id


@pytest.mark.parametrize(
    ("data", "settings"), [("image_folder", ""), ("image_folder", "size = 8"), ("imagenet", 'test = "test"\nsize = 32')]
)
def test_other_pixels_are_another_data_set(tmp_path: Path, data: str, settings: str) -> None:
    one = names(write_suite(tmp_path / "one.toml", write_images(tmp_path / "one", 1), data, settings))
    two = names(write_suite(tmp_path / "two.toml", write_images(tmp_path / "two", 2), data, settings))
    assert one[0] != two[0]
    assert one[1] != two[1]


def test_a_data_set_keeps_its_names_where_it_is_moved_or_copied(tmp_path: Path) -> None:
    root = write_images(tmp_path / "one", 1)
    before = names(write_suite(tmp_path / "one.toml", root))
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    assert names(write_suite(tmp_path / "copy.toml", tmp_path / "copy")) == before
    shutil.move(root, tmp_path / "elsewhere")
    assert names(write_suite(tmp_path / "moved.toml", tmp_path / "elsewhere")) == before


def test_pixels_changed_in_place_make_another_teacher_and_trial(
    tmp_path: Path, kdbench: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    root = write_images(tmp_path / "one", 1)
    suite = write_suite(tmp_path / "one.toml", root)

    def row() -> Mapping[str, Any]:
        done = kdbench("plan", suite, "--json")
        assert done.returncode == 0, done.stderr
        [trial] = json.loads(done.stdout)["trials"]
        return trial

    run = kdbench("run", suite, "--tracking-uri", "none", "--device", "cpu")
    assert run.returncode == 0, run.stderr
    before = row()
    assert before["status"] == "done"
    image = root / "train" / "cat" / "0.bmp"
    content = image.read_bytes()
    image.write_bytes(content[:-48] + bytes(48))
    changed = row()
    assert (changed["status"], changed["id"] != before["id"]) == ("pending", True)
    run = kdbench("run", suite, "--tracking-uri", "none", "--device", "cpu")
    assert run.returncode == 0, run.stderr
    assert len(list((tmp_path / "runs" / "_teachers").glob("*/result.json"))) == 2
    image.write_bytes(content)
    assert row() == before


PROGRAM = """
import sys
opened = []
sys.addaudithook(lambda event, details: opened.append(str(details[0])) if event == "open" else None)
from kdbench.cli import main
sys.argv = ["kdbench", "plan", sys.argv[1], "--json"]
try:
    main()
finally:
    print(sum(name.endswith(".bmp") for name in opened), file=sys.stderr)
"""


def test_a_second_plan_reads_no_image_again(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "one.toml", write_images(tmp_path / "one", 1), settings="size = 8")

    def images_opened() -> int:
        program = [sys.executable, "-c", PROGRAM, str(suite)]
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=True)
        return int(done.stderr.splitlines()[-1])

    assert images_opened() == 10
    assert images_opened() == 0


PLUGIN = """
from kdbench.data.base import DataFacts
from kdbench.hookspecs import DatasetSpec, hookimpl


class Mine:
    def __init__(self, *, root: str) -> None:
        pass

    def facts(self):
        return DataFacts(classes=2, image_shape=(3, 32, 32), n_train=6, n_test=4, content="{content}")


@hookimpl
def kdbench_datasets():
    return [DatasetSpec("mine", f"{{__name__}}:Mine")]
"""


@pytest.mark.parametrize(("content", "equal"), [("", False), ("a hash", True)])
def test_the_root_identifies_a_data_set_that_does_not_identify_its_content(
    tmp_path: Path, content: str, equal: bool
) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN.format(content=content))
    one, two = (
        names(write_suite(tmp_path / f"{root}.toml", Path(root), "mine", plugin="mine.py")) for root in ("a", "b")
    )
    assert (one == two) is equal


FAULTY = """
import sys
import numpy as np
import torch
from kdbench.data.base import Arrays, DataFacts, Split
from kdbench.hookspecs import DatasetSpec, hookimpl


class Mine:
    def __init__(self, *, root: str) -> None:
        self.root = root

    def facts(self):
        if self.root == "facts":
            raise KeyError("sizes")
        if self.root == "exit":
            sys.exit(0)
        if self.root == "dtype":
            torch.set_default_dtype(torch.float64)
        return DataFacts(classes=2, image_shape=(3, 32, 32), n_train=6, n_test=4, mean=(0.5,) * 3, std=(0.2,) * 3)

    def load(self):
        if self.root == "load":
            raise ValueError("no such shard")
        if self.root == "base":
            raise GeneratorExit("stopped")
        if self.root == "grad":
            torch.set_grad_enabled(False)
        splits = [Split(np.zeros((n, 3, 32, 32), np.uint8), np.arange(n, dtype=np.int64) % 3) for n in (6, 4)]
        return Arrays(*splits, "hash")


@hookimpl
def kdbench_datasets():
    return [DatasetSpec("mine", f"{__name__}:Mine")]
"""


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("facts", "data set 'mine': facts() failed: KeyError: 'sizes' (mine.py, line 15)"),
        ("exit", "data set 'mine': facts() failed: SystemExit: 0 (mine.py, line 17)"),
        (
            "dtype",
            "data set 'mine': facts() changed global state: torch's default dtype (torch.float32 → torch.float64)",
        ),
        ("load", "data set 'mine': load() failed: ValueError: no such shard (mine.py, line 24)"),
        ("base", "data set 'mine': load() raised GeneratorExit: stopped"),
        ("grad", "data set 'mine': load() changed global state: grad mode (True → False)"),
        ("labels", "data set 'mine': load(): the train split has labels 0 to 2, but the 2 classes are 0 to 1"),
    ],
)
def test_a_data_set_that_fails_or_contradicts_itself_is_an_error(
    root: str, message: str, tmp_path: Path, kdbench: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "mine.py").write_text(FAULTY)
    suite = write_suite(tmp_path / "mine.toml", Path(root), "mine", plugin="mine.py")
    done = kdbench("run", suite, "--tracking-uri", "none", "--device", "cpu")
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
