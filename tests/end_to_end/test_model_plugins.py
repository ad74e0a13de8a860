"""Networks from a plugin file that do not keep the contract, and what the command line answers."""

from __future__ import annotations

import pytest

SUITE = """
name = "mine"
question = "Which?"
seeds = [0]
plugins = ["nets.py"]

[data]
name = "digits"

[recipe]
epochs = 1

[[pairs]]
teacher = "resnet8"
student = "mine"

[[methods]]
name = "kd"
"""
HEADER = """
import torch
from torch import nn
from kdbench.hookspecs import ModelSpec, hookimpl
from kdbench.models.base import SIGNED, TappedModel


@hookimpl
def kdbench_models():
    return [ModelSpec("mine", f"{__name__}:build")]


class Tapped(TappedModel):
    family, taps, head, classifier = "linear", {"embedding": SIGNED, "logits": SIGNED}, ("fc",), "fc"

    def __init__(self, image_shape, classes):
        super().__init__()
        self.fc = nn.Linear(image_shape[0] * image_shape[1] * image_shape[2], classes)

    def forward(self, images, reads=()):
        embedding = images.flatten(1)
        taps = {"embedding": embedding, "logits": self.fc(embedding)}
        return {name: tap for name, tap in taps.items() if name in {"logits", *reads}}

"""
SOUND = (
    HEADER
    + """
def build(*, classes, image_shape):
    return Tapped(image_shape, classes)
"""
)
PLAIN = (
    HEADER
    + """
def build(*, classes, image_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""
)
NO_HEAD = (
    HEADER
    + """
def build(*, classes, image_shape):
    network = Tapped(image_shape, classes)
    network.head, network.classifier = "fc", "classifier"
    return network
"""
)
NO_EMBEDDING = (
    HEADER
    + """
class Mine(Tapped):
    def forward(self, images, reads=()):
        return super().forward(images)


def build(*, classes, image_shape):
    return Mine(image_shape, classes)
"""
)
BARE = (
    HEADER
    + """
class Mine(Tapped):
    def forward(self, images, reads=()):
        return super().forward(images)["logits"]


def build(*, classes, image_shape):
    return Mine(image_shape, classes)
"""
)
MORE_CLASSES = (
    HEADER
    + """
def build(*, classes, image_shape):
    return Tapped(image_shape, 1000)
"""
)


@pytest.fixture
def suite(tmp_path):
    def write(plugin):
        (tmp_path / "nets.py").write_text(plugin)
        (tmp_path / "mine.toml").write_text(SUITE)
        return "mine.toml"

    return write


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (
            PLAIN,
            "model 'mine' of nets.py: its builder must return a kdbench.models.base.TappedModel, got Sequential "
            "(docs/writing-a-model.md)",
        ),
        (
            NO_HEAD,
            "model 'mine' of nets.py: head must be a tuple of names of submodules, got 'fc'; classifier must be the "
            "name of a submodule, got 'classifier' (docs/writing-a-model.md)",
        ),
        (NO_EMBEDDING, "model 'mine': forward must return a tensor for tap 'embedding', got nothing"),
        (BARE, "model 'mine': forward must return a dictionary of taps, got Tensor"),
        (MORE_CLASSES, "model 'mine': gives 1000 logits for 10 classes"),
    ],
    ids=["plain", "no head", "no embedding", "bare logits", "more classes"],
)
def test_planning_refuses_a_network_that_does_not_keep_the_contract(plugin, message, suite, kdbench):
    done = kdbench("plan", suite(plugin))
    assert done.returncode == 2
    assert " ".join(done.stderr.split()) == f"kdbench: mine.toml: {message}"


def test_planning_accepts_one_that_does(suite, kdbench):
    done = kdbench("plan", suite(SOUND))
    assert done.returncode == 0, done.stderr
    assert "(1 pending)" in done.stdout
