"""Optimisers, schedules and augmentations of third parties, from the suite's file to the results."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from kdbench.errors import DataError, SuiteError
from kdbench.run import open_suite

PLUGIN = '''
import torch
from kdbench.hookspecs import AugmentationSpec, OptimizerSpec, ScheduleSpec, hookimpl


def signed(groups, *, lr, weight_decay, beta: float = 0.9):
    """Steps of the sign of the momentum."""
    return Signed(groups, dict(lr=lr, beta=beta))


class Signed(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["beta"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(mean.sign(), alpha=-group["lr"])


def halves(progress, *, epochs, warmup_epochs, lr, every: int = 1):
    """Half the rate after each ``every`` epochs."""
    return lr * 0.5 ** (progress // every)


def darken(images, draws, *, most: float = 0.5):
    """Scale each image by a random factor."""
    factor = 1 - most * torch.rand(len(images), 1, 1, 1, generator=draws.device, device=images.device)
    return (images * factor).to(torch.uint8)


@hookimpl
def kdbench_optimizers():
    return [OptimizerSpec("signed", "parts:signed")]


@hookimpl
def kdbench_schedules():
    return [ScheduleSpec("halves", "parts:halves")]


@hookimpl
def kdbench_augmentations():
    return [AugmentationSpec("darken", "parts:darken")]
'''
RECIPE = """
[recipe]
epochs = 3
optimizer = { name = "signed", beta = 0.8 }
lr = 0.001
schedule = { name = "halves", every = 2 }
augmentation = ["flip", { name = "darken", most = 0.25 }]
"""


@pytest.fixture
def suite(write_suite, tmp_path):
    def write(*methods, plugin=PLUGIN, recipe=RECIPE):
        (tmp_path / "parts.py").write_text(plugin)
        path = write_suite(*methods, plugins=("parts.py",))
        path.write_text(path.read_text().replace("[recipe]\nepochs = 3\n", recipe))
        return path

    return write


def test_parts_of_a_local_plugin_train_and_identify_the_trial(suite, run, tmp_path):
    results = run(suite("none", "kd"))
    assert [trial.status for trial in results.plan.trials] == ["done", "done"]
    for trial in results.plan.trials:
        folder = results.folder.trial(trial.id)
        assert [record.lr for record in folder.epochs] == pytest.approx([0.001, 0.001, 0.0005])
        recipe = folder.description.recipe
        assert recipe["optimizer"] == {"name": "signed", "beta": 0.8}
        assert recipe["augmentation"] == [{"name": "flip", "p": 0.5}, {"name": "darken", "most": 0.25}]
        assert folder.description.part_sources.keys() == {"optimizer", "schedule", "augmentation.darken"}
        assert (folder.path / "source/optimizer/parts.py").is_file()
    ids = {trial.id for trial in results.plan.trials}
    # Defaults written out are the same recipe; other settings and another source are not.
    same = open_suite(suite("none", "kd", recipe=RECIPE.replace('"flip"', '{ name = "flip", p = 0.5 }'))).plan
    assert {trial.id for trial in same.trials} == ids
    other = open_suite(suite("none", "kd", recipe=RECIPE.replace("0.8", "0.7"))).plan
    assert not ids & {trial.id for trial in other.trials}
    edited = open_suite(suite("none", "kd", plugin=PLUGIN.replace("mean.sign()", "mean.tanh()"))).plan
    assert not ids & {trial.id for trial in edited.trials}


def test_alone_and_in_company_a_student_has_the_same_bits_under_foreign_parts(suite, run, tmp_path):
    both = run(suite("none", "kd"))
    alone = run(suite("kd"), output="alone")
    (kd,) = alone.plan.trials
    weights = [load_file(results.folder.trial(kd.id).weights) for results in (both, alone)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize("name", ["timm:lamb", "timm:lion"])
def test_optimisers_of_timm_and_transforms_of_torchvision_go_by_their_names(suite, run, name):
    jitter = '{ name = "torchvision:RandomInvert", options = { p = 0.5 } }'
    results = run(suite("none", recipe=f'[recipe]\nepochs = 1\noptimizer = "{name}"\naugmentation = [{jitter}]\n'))
    (trial,) = results.plan.trials
    assert trial.status == "done"
    description = results.folder.trial(trial.id).description
    assert (description.recipe["optimizer"], description.part_sources) == (name, {})


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ('optimizer = "timm:lambb"', r"recipe\.optimizer: optimizer 'timm:lambb' .*lambb"),
        ('optimizer = "sined"', r"recipe\.optimizer: optimizer 'sined' is not registered; did you mean 'signed'\?"),
        ('optimizer = { name = "signed", bet = 1 }', r"recipe\.optimizer\.bet: unknown setting; did you mean 'beta'\?"),
        ('augmentation = ["torchvision:Invert"]', r"recipe\.augmentation\[0\]: augmentation 'torchvision:Invert' "),
    ],
)
def test_parts_that_do_not_exist_are_refused_when_the_suite_is_planned(suite, recipe, message):
    with pytest.raises(SuiteError, match=message):
        _ = open_suite(suite("none", recipe=f"[recipe]\nepochs = 1\n{recipe}\n")).plan


def test_an_optimiser_that_fails_costs_its_own_trials_and_says_where(suite, run):
    broken = PLUGIN.replace("for group in self.param_groups", "raise ValueError('no step')\n        for group in ()")
    path = suite("none", "kd", plugin=broken)
    path.write_text(path.read_text() + '[teachers.resnet8.recipe]\noptimizer = "sgd"\n')
    results = run(path)
    assert [trial.status for trial in results.plan.trials] == ["failed", "failed"]
    assert all(trial.reason.startswith("ValueError: no step (parts.py, line ") for trial in results.plan.trials)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raise KeyError('factor')", "'darken': KeyError: 'factor' (parts.py, line "),
        (
            "return images[:1]",
            "'darken': must return images of the input's dtype and shape, got torch.uint8 (1, 1, 8, 8)",
        ),
        (
            "torch.set_default_dtype(torch.float64); return images",
            "'darken': it changed global state: torch's default dtype (torch.float32 → torch.float64)",
        ),
    ],
)
def test_an_augmentation_that_fails_is_named_when_the_suite_is_planned(suite, run, what, message):
    broken = PLUGIN.replace("    factor = 1", f"    {what}\n    factor = 1")
    with pytest.raises(SuiteError) as error:
        _ = open_suite(suite("none", plugin=broken)).plan
    assert f"recipe.augmentation[1]: augmentation {message}" in str(error.value)
    assert torch.get_default_dtype() is torch.float32


def test_an_augmentation_that_fails_in_the_middle_of_a_run_ends_it(suite, run):
    broken = PLUGIN.replace("    factor = 1", "    assert len(images) == 2, 'only two'\n    factor = 1")
    with pytest.raises(DataError, match=r"^augmentation 'darken': AssertionError: only two \(parts\.py, line \d+\)$"):
        run(suite("none", plugin=broken))
