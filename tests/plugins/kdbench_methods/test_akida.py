from __future__ import annotations

import pytest
import torch
from kdbench_methods.akida import AkidaDistiller, prediction_loss

from kdbench.method import Output


def test_golden_at_its_defaults(golden, tolerance, make_batch, total):
    """Akida's distiller has the formula of Keras's, and its defaults."""
    case = golden("keras_distiller_alpha.1_T3")
    [s] = case.leaves("in_student")
    terms = AkidaDistiller()(Output(s), Output(case["in_teacher"]), make_batch(labels=case["in_target"]))
    case.check(total(terms), tolerance[torch.float64])


def test_logs_the_unweighted_losses_by_the_distillers_names(make_batch):
    s, t = torch.randn(2, 6, 10, dtype=torch.float64)
    batch = make_batch()
    terms = AkidaDistiller(alpha=0.25, distillation_loss="mse")(Output(s), Output(t), batch)
    assert {name: weight for name, (_, weight) in terms.items()} == {
        "student_loss": 0.25,
        "distillation_loss": 0.75,
    }
    torch.testing.assert_close(terms["student_loss"][0], torch.nn.functional.cross_entropy(s, batch.labels))
    assert terms["distillation_loss"][0].item() == pytest.approx(((s - t) ** 2).mean().item())


def test_mean_absolute_difference():
    s, t = torch.randn(2, 6, 10, dtype=torch.float64)
    assert prediction_loss(s, t, "mae", 1.0).item() == pytest.approx(abs(s.numpy() - t.numpy()).mean())


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_gradient(loss):
    s, t = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: prediction_loss(s, t, loss, 3.0), s.requires_grad_())
