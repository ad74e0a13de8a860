from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from kdbench.engine.learner import Learner
from kdbench.engine.optimizer import make_optimizer, with_momentum
from kdbench.engine.teacher import FromLabels
from kdbench.method import DataSignature
from kdbench.models.base import signature
from kdbench.models.deit import deit
from kdbench.models.resnet import resnet
from kdbench.models.timm import build as timm_network
from kdbench.models.torchvision import build as torchvision_network
from kdbench.parts import Parts
from kdbench.recipe import Recipe
from kdbench.results import TrialFolder, TrialRecord


def test_adamw_spares_biases_norms_and_what_is_named_and_sgd_does_not():
    layers = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    parameters = {**dict(layers.named_parameters()), "token": nn.Parameter(torch.zeros(1, 1, 2))}
    parameters["wide.bias"] = nn.Parameter(torch.zeros(1, 2))
    recipe = Recipe(epochs=1, optimizer="adamw", weight_decay=0.1)
    groups = make_optimizer(Parts.of(recipe), parameters, 0.1, {"token", "of another network"}).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.1), (5, 0.0)]
    assert groups[0]["params"] == [layers[0].weight]
    recipe = Recipe(epochs=1, weight_decay=0.1)
    (group,) = make_optimizer(Parts.of(recipe), parameters, 0.1, {"token"}).param_groups
    assert (len(group["params"]), group["weight_decay"], group["momentum"]) == (6, 0.1, 0.9)


class Adapted(FromLabels):
    """A method with a layer, whose weight decays."""

    def setup(self, student, teacher, data):
        self.adapter = nn.Linear(3, 3)


@pytest.fixture
def groups(tmp_path):
    """``groups(network, optimizer)``: names of the parameters of a learner that decay, and of those that do not."""

    def make(network, optimizer):
        known = signature(network, "net", (3, 32, 32))
        method = Adapted()
        method.setup(known, known, DataSignature(10, 4))
        folder = TrialFolder(tmp_path)
        folder.begin(TrialRecord(id="a", teacher="t", student="s", method="m", label="m", seed=0))
        learner = Learner(
            identifier="a",
            network=network,
            student=known,
            teacher=known,
            method=method,
            recipe=Recipe(epochs=1, optimizer=optimizer, weight_decay=0.1),
            seed=0,
            folder=folder,
            device=torch.device("cpu"),
            steps_per_epoch=1,
        )
        names = {id(p): name for name, p in learner.trainer.modules.named_parameters()}
        found = {0.1: set(), 0.0: set()}
        for group in learner.trainer.optimizer.param_groups:
            found[group["weight_decay"]] |= {names[id(p)] for p in group["params"]}
        return found[0.1], found[0.0]

    return make


NETWORKS = {
    "deit": lambda: deit(classes=10, image_shape=(3, 32, 32), embed_dim=24, depth=4, num_heads=2),
    "timm:vit": lambda: timm_network(name="vit_tiny_patch16_224", classes=10, image_shape=(3, 32, 32)),
    "timm:swin": lambda: timm_network(name="swin_tiny_patch4_window7_224", classes=10, image_shape=(3, 32, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_learner_decays_what_timm_decays(groups, name):
    network = NETWORKS[name]()
    inner = network.network
    theirs = param_groups_weight_decay(inner, 0.1, no_weight_decay_list=inner.no_weight_decay())
    names = {id(p): f"network.network.{name}" for name, p in inner.named_parameters()}
    by_decay = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in theirs}
    decayed, spared = groups(network, "adamw")
    assert decayed == by_decay[0.1] | {"method.adapter.weight"}
    assert spared == by_decay[0.0] | {"method.adapter.bias"}


@pytest.mark.parametrize(
    ("build", "tables"),
    [
        (NETWORKS["deit"], {"cls_token", "dist_token", "pos_embed"}),
        (NETWORKS["timm:vit"], {"cls_token", "pos_embed"}),
        (
            lambda: torchvision_network(name="swin_t", classes=10, image_shape=(3, 32, 32)),
            {
                f"features.{stage}.{block}.attn.relative_position_bias_table"
                for stage, blocks in ((1, 2), (3, 2), (5, 6), (7, 2))
                for block in range(blocks)
            },
        ),
        (lambda: resnet(depth=8, classes=10, image_shape=(3, 32, 32)), set()),
    ],
)
def test_tokens_and_position_tables_do_not_decay(groups, build, tables):
    """And under SGD, as the CRD recipe has it, everything does."""
    network = build()
    several = {name for name, p in network.named_parameters() if p.ndim > 1 and not name.endswith(".bias")}
    _, spared = groups(network, "adamw")
    assert {name.removeprefix("network.") for name in spared} & several == {f"network.{name}" for name in tables}
    decayed, spared = groups(network, "sgd")
    assert {f"network.{name}" for name in tables} <= {name.removeprefix("network.") for name in decayed}
    assert not spared


def test_torchvisions_vision_transformer_spares_its_token_and_positions():
    with torch.device("meta"):
        network = torchvision_network(name="vit_b_32", classes=10, image_shape=(3, 32, 32))
    assert network.no_weight_decay() == {"network.class_token", "network.encoder.pos_embedding"}


def test_a_parameter_that_joins_in_late_begins_with_no_momentum():
    """The fused SGD of torch fails there; the plain one is the reference."""
    found = [nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2)]
    expected = [nn.Parameter(p.detach().clone()) for p in found]
    fused = make_optimizer(Parts.of(Recipe(epochs=1, lr=0.1)), {"a": found[0], "b": found[1]}, 0.1)
    plain = torch.optim.SGD(expected, lr=0.1, momentum=0.9, weight_decay=5e-4, foreach=False)
    for step in range(4):
        for parameters in (found, expected):
            parameters[0].grad = torch.tensor([0.5, -1.0]) * (step + 1)
            parameters[1].grad = torch.tensor([1.0, 3.0]) if step >= 2 else None
        fused.step()
        plain.step()
    torch.testing.assert_close(found, expected)


def test_adamw_can_be_recorded_and_runs_without_a_recording(monkeypatch):
    """Torch refuses the former and warns of the latter, depending on an option and on the stream."""
    for recorded in (False, True):
        stream = SimpleNamespace(is_capturing=lambda recorded=recorded: recorded)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=True: torch.device("cuda"))
        monkeypatch.setattr(torch.accelerator, "current_stream", lambda *_, stream=stream: stream)
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda recorded=recorded: recorded)
        weight = nn.Parameter(torch.ones(2, 2))
        optimizer = make_optimizer(Parts.of(Recipe(epochs=1, optimizer="adamw")), {"weight": weight}, 0.1)
        weight.grad = torch.ones(2, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()
        assert weight.max() < 1


def test_dampening_does_not_reduce_the_first_gradient():
    """As in torch, whose momentum begins as the whole gradient."""
    found, expected = (nn.Parameter(torch.ones(2)) for _ in range(2))
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    for optimizer, weight in (
        (with_momentum(torch.optim.SGD([found], **options)), found),
        (torch.optim.SGD([expected], **options), expected),
    ):
        weight.grad = torch.ones(2)
        optimizer.step()
    assert torch.equal(found, expected)
