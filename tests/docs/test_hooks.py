"""The page on hooks names each with its signature, and its examples work."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from markupsafe import Markup

from kdbench import hookspecs
from kdbench.data.augment import Draws
from kdbench.discovery import discover
from kdbench.engine.optimizer import make_optimizer
from kdbench.engine.schedule import learning_rate
from kdbench.parts import Parts
from kdbench.recipe import Recipe
from kdbench.results import EpochRecord
from kdbench.run import run_suite

PAGE = "hooks.md"
HOOKS = {name: item for name, item in vars(hookspecs).items() if name.startswith("kdbench_")}


def signature(name):
    """A hook as its source has it."""
    found = inspect.signature(HOOKS[name])
    arguments = ", ".join(f"{key}: {parameter.annotation}" for key, parameter in found.parameters.items())
    return f"def {name}({arguments}) -> {found.return_annotation}"


def sections(text):
    """The text under each heading of the third level, by heading."""
    parts = re.split(r"^### (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_documented_with_its_signature(name, page):
    section = sections(page(PAGE))[name]
    assert f"```python\n{signature(name)}\n```" in section
    words = re.sub(r"```.*?```", "", section, flags=re.DOTALL).split()
    assert len(words) >= 5, "say what it is for"


def test_no_other_hook_is_documented(page):
    assert sections(page(PAGE)).keys() == HOOKS.keys()


@pytest.mark.parametrize(
    "name",
    ["MethodSpec", "ModelSpec", "DatasetSpec", "MetricSpec", "SectionSpec", "FigureSpec", "ExecutorSpec", "RunInfo"],
)
def test_the_fields_of_a_descriptor_are_documented(name, page):
    around = next(part for part in re.split(r"\n(?=#{2,3} )", page(PAGE)) if f"`{name}`" in part)
    for field in dataclasses.fields(getattr(hookspecs, name)):
        assert f"`{field.name}`" in around


@pytest.fixture
def examples(blocks, tmp_path):
    """Each example as a plugin file."""
    files = []
    for block in blocks(PAGE):
        if block.language == "python" and "@hookimpl" in block.text:
            files.append(tmp_path / f"example{len(files)}.py")
            files[-1].write_text(block.text)
    assert len(files) == 11
    return files


def test_the_examples_offer_what_they_say(examples):
    registry = discover(examples)
    assert registry.method("warm-kd").declared.settings["temperature"].default == 8.0
    network = registry.model("resnet26")
    assert network.load()(classes=3, image_shape=(3, 8, 8), **network.spec.presets).classifier
    data = registry.dataset("scans")
    assert data.load()(root="/nowhere", **data.spec.presets).size == 32


def test_the_examples_executor_runs_a_suite(examples, tmp_path):
    suite = {
        "name": "tiny",
        "question": "Does it run?",
        "seeds": [0, 1],
        "data": {"name": "digits", "train_limit": 96, "test_limit": 50},
        "recipe": {"epochs": 1},
        "pairs": [{"teacher": "resnet8", "student": "resnet8"}],
        "methods": [{"name": "none"}],
    }
    (file,) = (file for file in examples if "OneAfterAnother" in file.read_text())
    heard = []

    class Watch:
        @hookspecs.hookimpl
        def kdbench_trial_finished(self, trial, run):
            heard.append((trial.seed, run.worker))

    results = run_suite(
        suite,
        plugins=[file],
        executor={"name": "one-after-another", "reverse": True},
        device="cpu",
        output=tmp_path / "runs",
        report_dir=tmp_path / "reports",
        observers=[Watch()],
    )
    assert [trial.status for trial in results.plan.trials] == ["done", "done"]
    assert heard == [(1, 2), (0, 1)]


def test_the_parts_of_a_recipe_work_together(examples):
    registry = discover(examples)
    schedule = {"name": "polynomial", "power": 1.0}
    recipe = Recipe(epochs=4, lr=0.2, optimizer="rmsprop", schedule=schedule, augmentation=("noise",))
    parts = Parts.of(recipe, registry)
    assert list(parts.problems((3, 8, 8))) == []
    assert learning_rate(parts, 1.0) == pytest.approx(0.15)
    optimizer = make_optimizer(parts, {"weight": torch.nn.Parameter(torch.ones(2, 2))}, 0.2)
    assert isinstance(optimizer, torch.optim.RMSprop)
    draws = Draws(torch.Generator().manual_seed(0), np.random.default_rng(0))
    changed = parts.steps[0](torch.zeros(200, 3, 8, 8), draws)
    assert changed.std() == pytest.approx(0.1, rel=0.05)


def test_the_examples_metric_is_that_of_a_loop(examples):
    brier = discover(examples).find(hookspecs.MetricSpec, "brier").load()
    logits, labels = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]]), torch.tensor([2, 1])
    wanted = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(z) for z in row)
        wanted += sum((math.exp(z) / total - (k == label)) ** 2 for k, z in enumerate(row)) / 2
    assert brier(logits, labels).item() == pytest.approx(wanted)


def test_the_examples_section_and_figure_show_a_study(examples):
    cells = pd.DataFrame(
        {"pair": ["a:b", "a:b"], "label": ["<kd>", "none"], "rank": [1.0, 2.0], "n": [1, 0]}
        | {"adapter_parameters": [5, 0], "top1_mean": [70.0, None]}
    )
    study = SimpleNamespace(cells=cells, title=lambda pair: pair.replace(":", " → "))
    registry = discover(examples)
    wins = registry.find(hookspecs.SectionSpec, "wins")
    assert wins.load()(study) == Markup("<ul><li>a → b: &lt;kd&gt;</li></ul>")
    figure, caption = registry.find(hookspecs.FigureSpec, "adapters").load()(study)
    assert figure.axes[0].get_xlabel() == "parameters of adapters"
    assert caption.endswith(".")
    study.cells = cells[cells["n"] > 1]
    assert registry.find(hookspecs.FigureSpec, "adapters").load()(study) is None


def test_the_example_listens(examples, tmp_path):
    registry = discover(examples)
    registry.manager.hook.kdbench_epoch_finished(
        trial=SimpleNamespace(id="a-b-kd-seed0"),
        record=EpochRecord(stage="main", epoch=1, train_loss=1.0, seconds=1.0, metrics={"top1": 50.0}),
        run=SimpleNamespace(output=tmp_path),
    )
    with (tmp_path / "accuracy.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["a-b-kd-seed0", "main", "1", "50.0"]]
