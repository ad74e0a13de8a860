from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_example.measures import brier
from kdbench_example.training import brightness, signum

from kdbench.data.augment import Draws


def test_signum_steps_along_the_sign_of_the_momentum() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = signum([{"params": [weight], "weight_decay": 0.5}], lr=0.1, weight_decay=0.5, beta=0.75)
    expected, momentum = np.array([1.0, -2.0]), np.zeros(2)
    for gradient in (np.array([3.0, -1.0]), np.array([-0.5, 2.0])):
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        momentum = 0.75 * momentum + 0.25 * gradient
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * np.sign(momentum)
    assert weight.detach().numpy() == pytest.approx(expected)


def test_brightness_scales_each_image_by_its_own_factor() -> None:
    draws = Draws(torch.Generator().manual_seed(0), np.random.default_rng(0))
    changed = brightness(torch.full((200, 1, 2, 2), 200, dtype=torch.uint8), draws, most=0.5)
    assert changed.dtype == torch.uint8
    assert (changed == changed[:, :, :1, :1]).all()
    values = changed[:, 0, 0, 0]
    assert 100 <= values.min() < 110
    assert 190 < values.max() <= 200


def test_the_brier_score_is_that_of_a_loop() -> None:
    logits, labels = np.random.default_rng(0).normal(size=(7, 4)), [0, 1, 2, 3, 0, 1, 2]
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        exponentials = np.exp(row)
        for k, value in enumerate(exponentials / exponentials.sum()):
            total += (value - (k == label)) ** 2
    assert brier(torch.tensor(logits), torch.tensor(labels)).item() == pytest.approx(total / 7)
