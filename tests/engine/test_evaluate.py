"""Against scikit-learn, scipy and a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from kdbench.engine.evaluate import collect, measure
from kdbench.engine.measures import CALIBRATION_BINS


@pytest.fixture
def case():
    random = np.random.default_rng(0)
    logits, teacher = random.normal(0, 3, (400, 10)), random.normal(0, 3, (400, 10))
    return logits, teacher, random.integers(0, 10, 400)


def test_metrics_are_those_of_independent_libraries(case):
    logits, teacher, labels = case
    found = measure(torch.tensor(logits).float(), torch.tensor(labels), torch.tensor(teacher).float())
    probabilities, of_teacher = softmax(logits, 1), softmax(teacher, 1)
    assert found == pytest.approx(
        {
            "top1": 100 * accuracy_score(labels, logits.argmax(1)),
            "top5": 100 * top_k_accuracy_score(labels, logits, k=5),
            "nll": log_loss(labels, probabilities, labels=range(10)),
            "ece": calibration_error(probabilities, labels),
            "agreement": 100 * accuracy_score(teacher.argmax(1), logits.argmax(1)),
            "kl_to_teacher": entropy(of_teacher, probabilities, axis=1).mean(),
        },
        rel=1e-4,
    )


def calibration_error(probabilities, labels):
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    error = 0.0
    for k in range(CALIBRATION_BINS):
        inside = (confidence > k / CALIBRATION_BINS) & (confidence <= (k + 1) / CALIBRATION_BINS)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return error


def test_logits_that_look_like_probabilities_are_still_logits():
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    confidence = softmax([0.0, 1.0])[1]
    assert measure(logits, torch.tensor([1, 1]))["ece"] == pytest.approx(1 - confidence, rel=1e-5)


def test_few_classes_have_no_top5_and_no_teacher_no_agreement():
    assert set(measure(torch.eye(5), torch.arange(5))) == {"top1", "nll", "ece"}


def test_collect_keeps_order_and_needs_no_gradient():
    weight = torch.ones(1, requires_grad=True)
    batches = [(torch.full((2, 3), float(i)), torch.tensor([i, i])) for i in range(3)]
    logits, labels = collect(lambda images: (images * weight).half(), batches)
    assert logits[:, 0].tolist() == labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert logits.dtype == torch.float32
    assert not logits.requires_grad


def test_shares_are_counts_of_images_in_percent():
    labels = torch.zeros(500, dtype=torch.long)
    logits = torch.nn.functional.one_hot((torch.arange(500) >= 474).long() * 7, 10).float()
    found = measure(logits, labels, teacher_logits=logits.roll(1, 0))
    assert found["top1"] == 94.8
    assert found["agreement"] == 99.6
