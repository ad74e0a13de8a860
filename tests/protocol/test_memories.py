"""Contrastive distillation: when its memories move, and with what."""

from __future__ import annotations

import pytest
import torch
from torch import nn


def crd(within="", drawn=None):
    """``drawn``: how many negatives an image has."""

    class CRD:
        def __init__(self, world):
            self.world = world
            self.layers = [
                world.adapter(nn.Linear(c, 128), f"{within}embed_{who}")
                for c, who in ((64, "student"), (256, "teacher"))
            ]
            method = world.method.get_submodule(within.removesuffix("."))
            self.memories = [method.memory_student.clone(), method.memory_teacher.clone()]
            for memory in self.memories:
                assert memory.shape == (22, 128)
                assert memory.abs().max() <= (3 / 128) ** 0.5
            self.normalisers = None

        def contrast(self, s, t, batch):
            negatives = self.world.negatives.pop(0)
            K = negatives.shape[1]
            assert drawn == K
            # Of other classes.
            assert (self.world.labels[negatives] != batch.labels[:, None]).all()
            embedded = [layer(net["embedding"]) for layer, net in zip(self.layers, (s, t), strict=True)]
            self.embedded = [v / v.norm(dim=1, keepdim=True) for v in embedded]
            rows = torch.cat([batch.indices[:, None], negatives], 1)
            # Each network's embeddings with the other's memory.
            x = [
                ((v[:, None] * memory[rows]).sum(2) / 0.07).exp()
                for v, memory in zip(self.embedded, reversed(self.memories), strict=True)
            ]
            if self.normalisers is None:
                self.normalisers = [scores.mean().item() * 22 for scores in x]
            total = 0
            for scores, Z in zip(x, self.normalisers, strict=True):
                p, q = scores[:, 0] / Z, scores[:, 1:] / Z
                noise = K / 22
                total = total - ((p / (p + noise)).log() + (noise / (q + noise)).log().sum(1)).mean()
            return 0.8 * total

        def loss(self, s, t, batch):
            return {"ce": batch.ce(s), "crd": self.contrast(s, t, batch)}

        def after_step(self, batch):
            """The embeddings of the forward pass, before the optimiser moved the linear layers."""
            for memory, v in zip(self.memories, self.embedded, strict=True):
                row = 0.5 * memory[batch.indices] + 0.5 * v.detach()
                memory[batch.indices] = row / row.norm(dim=1, keepdim=True)

    return CRD


@pytest.mark.parametrize(("settings", "drawn"), [({"negatives": 7}, 7), ({}, 17)])
def test_crd(agrees, settings, drawn):
    """17 images at least are of other classes."""
    agrees("crd", crd(drawn=drawn), **settings)


def test_crd_and_kd(agrees):
    class Both(crd("members.crd.", drawn=17)):
        def loss(self, s, t, batch):
            p, q = ((net["logits"] / 4).softmax(1) for net in (s, t))
            kd = 16 * (q * (q / p).log()).sum(1).mean()
            return {"ce": batch.ce(s), "crd.crd": self.contrast(s, t, batch), "kd.kd": kd}

    agrees("crd+kd", Both)
