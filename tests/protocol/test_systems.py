"""Other systems' formulations, probes among them, and combinations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def divergence(a, b, T):
    """KL(softmax(a/T) || softmax(b/T)), mean over the batch."""
    p, q = (a / T).softmax(1), (b / T).softmax(1)
    return (p * (p / q).log()).sum(1).mean()


def cross_entropy(p, s):
    return -(p * F.log_softmax(s, 1)).sum(1).mean()


class Keras:
    """alpha, .1, weights the labels; T = 3."""

    names = ("ce", "kd")

    def __init__(self, world):
        pass

    def loss(self, s, t, batch):
        terms = 0.1 * batch.ce(s), 0.9 * 9 * divergence(t["logits"], s["logits"], 3)
        return dict(zip(self.names, terms, strict=True))


class Akida(Keras):
    names = ("student_loss", "distillation_loss")


class SummedSquares(Keras):
    """Without labels; 1 / (B * C) scales gradients, in place of the learning rate."""

    def loss(self, s, t, batch):
        return {"mse": ((s["logits"] - t["logits"]) ** 2).sum() / 2 / (len(batch.labels) * 5)}


class CrossEntropy(Keras):
    """The student is not softened; T = 2."""

    def loss(self, s, t, batch):
        xent = cross_entropy((t["logits"] / 2).softmax(1), s["logits"])
        return {"ce": 0.3 * batch.ce(s), "xent": 0.7 * xent}


class Reverse(Keras):
    """KL(student || teacher), both at T = 2, as meant."""

    def loss(self, s, t, batch):
        return {"ce": 0.3 * batch.ce(s), "kld": 0.7 * divergence(s["logits"], t["logits"], 2)}


REFERENCES = {
    "kd/keras": Keras,
    "kd/akida": Akida,
    "kd/easytransfer-mse": SummedSquares,
    "kd/easytransfer-xent": CrossEntropy,
    "kd/easytransfer-kld": Reverse,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_losses_agree(agrees, name):
    agrees(name, REFERENCES[name])


PROBE_LOSSES = {
    "mse": lambda s, t: ((s - t) ** 2).sum(1).mean() / 2,
    "xent": lambda s, t: cross_entropy((t / 2).softmax(1), s),
    "kld": lambda s, t: divergence(s, t, 2),
}


@pytest.fixture
def probes(first_stage):
    """``probes(c_s, c_t)``: channels of the layers, the last (the logits) not counted."""

    def make(c_s, c_t, loss="mse", *, epochs=2, within="", stage="probes"):
        class Probes:
            trained = tuple(f"{within}student_probes.{i}.linear" for i in range(len(c_s)))

            def __init__(self, world):
                self.world = world
                self.students, self.teachers = (
                    [world.adapter(nn.Linear(c, 5), f"{within}{who}_probes.{i}.linear") for i, c in enumerate(channels)]
                    for who, channels in (("student", c_s), ("teacher", c_t))
                )

            def outputs(self, linears, taps):
                return [linear(taps[f"stage{i}"].mean((2, 3))) for i, linear in enumerate(linears, start=1)]

            def stages(self):
                yield stage, first_stage(epochs, self.world.lr, self.teachers, self.classify)

            def classify(self, s, t, batch):
                return {"ce": sum(batch.ce({"logits": z}) for z in self.outputs(self.teachers, t))}

            def loss(self, s, t, batch):
                with torch.no_grad():
                    theirs = [*self.outputs(self.teachers, t), t["logits"]]
                n_s, n_t = len(c_s), len(c_t)
                pairs = [
                    PROBE_LOSSES[loss](z, theirs[math.ceil(i * n_t / n_s)])
                    for i, z in enumerate(self.outputs(self.students, s))
                ]
                kd = 16 * divergence(t["logits"], s["logits"], 4)
                return {"ce": 0.1 * batch.ce(s), "kd": 0.9 * kd, "probes": sum(pairs)}

        return Probes

    return make


@pytest.mark.parametrize("loss", PROBE_LOSSES)
def test_probes(agrees, probes, loss):
    reference = probes((16, 32, 64), (64, 128, 256), loss)
    agrees("probes", reference, probe_loss=loss, probe_epochs=2)


@pytest.mark.parametrize(
    ("student", "c_s", "teacher", "c_t"),
    [
        ("resnet8", (16, 32, 64), "vgg8", (128, 256, 512, 512)),
        ("vgg8", (128, 256, 512, 512), "resnet8", (16, 32, 64)),
    ],
)
def test_probes_of_networks_of_different_depth(agrees, probes, student, c_s, teacher, c_t):
    """Layers 0, 2, 3 of four; and, for a deeper student, 0, 1, 2 and the teacher's logits."""
    pair = {"student": student, "teacher": teacher, "image_shape": (1, 16, 16)}
    agrees("probes", probes(c_s, c_t, epochs=1), **pair, epochs=1, probe_epochs=1)


def test_combine(agrees, probes):
    """Each member's weights and stages; the labels once, at the largest weight."""
    members = [{"name": "kd"}, {"name": "probes", "probe_epochs": 1}, {"name": "kd/easytransfer-xent"}]
    made = {"epochs": 1, "within": "members.probes.", "stage": "probes-probes"}

    class Combined(probes((16, 32, 64), (64, 128, 256), **made)):
        def loss(self, s, t, batch):
            terms = super().loss(s, t, batch)
            xent = cross_entropy((t["logits"] / 2).softmax(1), s["logits"])
            return {
                "ce": 0.3 * batch.ce(s),
                "kd.kd": 0.9 * 16 * divergence(t["logits"], s["logits"], 4),
                "probes.kd": terms["kd"],
                "probes.probes": terms["probes"],
                "kd/easytransfer-xent.xent": 0.7 * xent,
            }

    agrees("combine", Combined, methods=members)
