from __future__ import annotations

import numpy as np
import pytest
import torch
from kdbench_methods.none import NoDistillation
from scipy.special import log_softmax

from kdbench.method import Output


def test_is_the_mean_cross_entropy_to_the_labels(make_batch):
    logits = torch.randn(6, 10, dtype=torch.float64)
    batch = make_batch(6)
    [(value, weight)] = NoDistillation()(Output(logits), None, batch).values()
    expected = -np.mean(log_softmax(logits.numpy(), axis=1)[np.arange(6), batch.labels.numpy()])
    assert weight == 1.0
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_follows_the_recipes_smoothing_and_mixing(make_batch):
    logits = torch.randn(6, 10, dtype=torch.float64)
    mixed = (torch.arange(6) + 3) % 10
    batch = make_batch(6, mixed_labels=mixed, mix=torch.tensor(0.7, dtype=torch.float64), label_smoothing=0.1)
    target = np.zeros((6, 10))
    target[np.arange(6), np.arange(6)] += 0.7
    target[np.arange(6), mixed.numpy()] += 0.3
    target = 0.9 * target + 0.1 / 10
    expected = -np.mean(np.sum(target * log_softmax(logits.numpy(), axis=1), axis=1))
    value, _ = NoDistillation()(Output(logits), None, batch)["ce"]
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_needs_no_teacher():
    assert not NoDistillation.needs_teacher
