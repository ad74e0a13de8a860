"""Does the loss depend on the batch's order and size?"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from kdbench.method import Batch
from kdbench.testing.bench import BATCH_SIZE, Inputs
from kdbench.testing.subject import CheckFailed, CheckSkipped, Step, Subject, relative_difference

TOLERANCE = 1e-3
"""Relative tolerance; float32 sums in another order differ by less, any real dependence by more."""
GROWS = 0.5
"""A mean over the batch has exponent 0 (or below), a sum has 1."""


def batch_order(subject: Subject) -> str | None:
    """Is the loss independent of the order of the images in a batch?"""
    inputs = subject.bench.made_up()
    order = torch.randperm(BATCH_SIZE, generator=torch.Generator().manual_seed(1))
    state = inputs.batch.generator.get_state()
    method = subject.method()
    usual = [_values_and_gradients(step) for step in subject.steps(inputs, method)]
    if not inputs.batch.generator.get_state().equal(state):
        raise CheckSkipped("the method draws random numbers for each image, which depend on the order")
    shuffled = zip(subject.steps(_taken(inputs, order)), usual, strict=True)
    for step, (values, gradients) in shuffled:
        other_values, other_gradients = _values_and_gradients(step)
        for name, value in values.items():
            difference = relative_difference(value, other_values[name])
            if difference > TOLERANCE:
                raise CheckFailed(
                    f"{step.stage}: term '{name}' changes by {difference:.1%} with the order of the batch"
                )
        for name, gradient in gradients.items():
            if relative_difference(gradient[order], other_gradients[name]) > TOLERANCE * 10:
                raise CheckFailed(f"{step.stage}: the gradient at {name} changes with the order of the batch")
    return None


def batch_growth(subject: Subject) -> str | None:
    """Are all terms independent of the batch size (means over the batch, not sums)?"""
    sizes = (BATCH_SIZE, 4 * BATCH_SIZE)
    inputs = subject.bench.made_up()
    repeated = _taken(inputs, torch.arange(BATCH_SIZE).repeat(sizes[1] // sizes[0]))
    grown, exponents = [], []
    for small, large in zip(subject.steps(inputs), subject.steps(repeated), strict=True):
        for name in small.terms:
            exponent = _exponent(small.terms[name][0], large.terms[name][0], sizes)
            exponents.append(f"{name} {exponent:+.2f}")
            if exponent > GROWS:
                grown.append(f"{small.stage}: term '{name}' grows as B^{exponent:.2f}")
    if grown:
        raise CheckFailed(f"{'; '.join(grown)} with B images; average over the batch")
    return "exponent of B: " + ", ".join(exponents)


def _exponent(small: Tensor, large: Tensor, sizes: tuple[int, int]) -> float:
    a, b = abs(small.item()), abs(large.item())
    # The growth of terms close to zero is not defined.
    if a < 1e-12 or b < 1e-12:
        return 0.0
    return math.log(b / a) / math.log(sizes[1] / sizes[0])


def _taken(inputs: Inputs, rows: Tensor) -> Inputs:
    """The inputs with ``rows`` of their batch."""
    batch: Batch = replace(
        inputs.batch,
        labels=inputs.batch.labels[rows],
        indices=inputs.batch.indices[rows],
        generator=torch.Generator().manual_seed(inputs.batch.generator.initial_seed()),
    )
    student = {name: tap.detach()[rows].requires_grad_().clone() for name, tap in inputs.student.items()}
    return Inputs(student, {name: tap[rows] for name, tap in inputs.teacher.items()}, batch)


def _values_and_gradients(step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    values = {name: value.detach() for name, (value, _) in step.terms.items()}
    gradients = step.gradients() if step.loss.requires_grad else {}
    return values, {name: g for name, g in gradients.items() if g is not None and name.startswith("student's ")}
