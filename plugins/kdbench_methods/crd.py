"""Contrastive representation distillation: contrast an image's two embeddings with those of other classes.

Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, https://arxiv.org/abs/1910.10699
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from kdbench.method import (
    Batch,
    DataSignature,
    Fraction,
    Incompatible,
    Method,
    NonNegative,
    Output,
    Positive,
    PositiveInt,
    Signature,
    Terms,
)
from kdbench_methods.numerics import unit


def contrastive_loss(log_x: Float[Tensor, " batch"], log_x_k: Float[Tensor, "batch K"], n: int) -> Float[Tensor, ""]:
    """-[ log(x / (x + K/n)) + sum_k log(K/n / (x_k + K/n)) ], averaged over the batch.

    In log space, as log(a / (a + b)) = -softplus(log b - log a): no overflow, and no constant is needed.

    Args:
        log_x: log of exp(v . m / tau) / Z for the image's row m of the memory.
        log_x_k: the same for K rows of other classes.
        n: number of training images; noise has probability 1/n each.

    Reference: https://arxiv.org/abs/1910.10699, equations 17 to 19
    """
    log_noise = math.log(log_x_k.shape[1] / n)
    return (F.softplus(log_noise - log_x) + F.softplus(log_x_k - log_noise).sum(1)).mean()


class OtherClasses(nn.Module):
    """Draws training images that are not of a given class, uniformly and with replacement.

    The images are sorted by class. Those that are not of class c then form two ranges, before and after c's;
    a uniform position in them is drawn and shifted past c's range, so that no shape depends on the labels.
    """

    order: Tensor
    start: Tensor
    count: Tensor

    def __init__(self, data: DataSignature) -> None:
        super().__init__()
        n, classes = data.n_train, data.classes
        if data.labels is None:  # a plan only needs shapes
            order = torch.zeros(n, dtype=torch.long)
            count = torch.zeros(classes, dtype=torch.long)
            self.fewest = n - n // classes
        else:
            order = data.labels.argsort(stable=True)
            count = torch.bincount(data.labels, minlength=classes)
            self.fewest = n - int(count.max())
        self.register_buffer("order", order)
        self.register_buffer("count", count)
        self.register_buffer("start", count.cumsum(0) - count)

    def forward(self, labels: Int[Tensor, " batch"], k: int, generator: torch.Generator) -> Int[Tensor, "batch k"]:
        """Indices of ``k`` images for each label."""
        count, start = self.count[labels][:, None], self.start[labels][:, None]
        size = (len(labels), k)
        # The bias of the modulo is below n / 2^62.
        draw = torch.randint(2**62, size, generator=generator, device=labels.device)
        position = draw % (len(self.order) - count)
        return self.order[torch.where(position < start, position, position + count)]


class CRD(Method):
    """Contrast of each network's embeddings with a memory of the other's; negatives are of other classes."""

    paper = "Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699"
    reads = frozenset({"logits", "embedding"})
    expected_failures: Mapping[str, str] = {"state": "two memories of embeddings change with every step"}

    memory_student: Tensor
    memory_teacher: Tensor
    log_z: Tensor
    started: Tensor
    embedded_student: Tensor | None
    embedded_teacher: Tensor | None

    def __init__(
        self,
        *,
        ce_weight: NonNegative = 1.0,
        crd_weight: NonNegative = 0.8,
        negatives: PositiveInt = 16384,
        temperature: Positive = 0.07,
        momentum: Fraction = 0.5,
        width: PositiveInt = 128,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.crd_weight = crd_weight
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.width = width

    def setup(self, student: Signature, teacher: Signature, data: DataSignature) -> None:
        """Build linear layers and memories of ``n_train`` rows; limit K to the number of images of other classes."""
        for network in (student, teacher):
            network.require("embedding", "crd", "an embedding")
        self.embed_student = nn.Linear(student.taps["embedding"].shape[0], self.width)
        self.embed_teacher = nn.Linear(teacher.taps["embedding"].shape[0], self.width)
        self.other_classes = OtherClasses(data)
        if self.other_classes.fewest < 1:
            raise Incompatible("crd needs images of two classes or more")
        self.negatives = min(self.negatives, self.other_classes.fewest)
        bound = math.sqrt(3 / self.width)
        for name in ("memory_student", "memory_teacher"):
            self.register_buffer(name, (2 * torch.rand(data.n_train, self.width) - 1) * bound)
        self.register_buffer("log_z", torch.zeros(2))
        self.register_buffer("started", torch.tensor(False))
        # Embeddings of the forward pass, for the memories. They exist only during a step, so they are not saved.
        for name in ("embedded_student", "embedded_teacher"):
            self.register_buffer(name, None, persistent=False)

    def embeddings(self, student: Output, teacher: Output) -> tuple[Tensor, Tensor]:
        """Unit embeddings of both networks, each (B, width)."""
        s = unit(self.embed_student(student.embedding), dim=1)
        return s, unit(self.embed_teacher(teacher.embedding.detach()), dim=1)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """``ce`` and ``crd``."""
        s, t = self.embeddings(student, teacher)
        self.embedded_student, self.embedded_teacher = s.detach(), t.detach()
        negatives = self.other_classes(batch.labels, self.negatives, batch.generator)
        rows = torch.cat([batch.indices[:, None], negatives], dim=1)
        # Scores with the whole memory need less space than K gathered rows for every image.
        scores = torch.stack(
            [
                (s @ self.memory_teacher.T).gather(1, rows),
                (t @ self.memory_student.T).gather(1, rows),
            ]
        )
        log_x = scores / self.temperature
        log_x = log_x - self._normaliser(log_x.detach())[:, None, None]
        n = len(self.memory_student)
        crd = contrastive_loss(log_x[0, :, 0], log_x[0, :, 1:], n) + contrastive_loss(
            log_x[1, :, 0], log_x[1, :, 1:], n
        )
        return {"ce": (batch.cross_entropy(student.logits), self.ce_weight), "crd": (crd, self.crd_weight)}

    def _normaliser(self, log_x: Float[Tensor, "2 batch rows"]) -> Float[Tensor, 2]:
        """log Z: n times the mean of the first batch, then constant; computed without a read of the device."""
        flat = log_x.flatten(1)
        first = flat.logsumexp(1) + math.log(len(self.memory_student) / flat.shape[1])
        log_z = torch.where(self.started, self.log_z, first)
        self.log_z.copy_(log_z)
        self.started.fill_(True)
        return log_z

    def after_step(self, student: Output, teacher: Output, batch: Batch) -> None:
        """Update the batch's rows of both memories with the embeddings of the forward pass.

        The optimiser has changed the linear layers since then; as in the study's code, the loss's embeddings are used.
        """
        for memory, v in (
            (self.memory_student, self.embedded_student),
            (self.memory_teacher, self.embedded_teacher),
        ):
            if v is None:
                raise RuntimeError("crd: after_step must follow forward, whose embeddings it stores")
            row = self.momentum * memory[batch.indices] + (1 - self.momentum) * v
            memory[batch.indices] = unit(row, dim=1).to(memory.dtype)
        self.embedded_student = self.embedded_teacher = None
