from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kdbench_methods.crd import CRD, OtherClasses, contrastive_loss

from kdbench.method import DataSignature, Incompatible, Output


def test_against_the_published_form():
    """Probabilities as the paper writes them, in a loop, not in log space."""
    x, x_k = torch.rand(4, dtype=torch.float64), torch.rand(4, 6, dtype=torch.float64)
    n, noise = 50, 6 / 50
    expected = np.mean(
        [
            -math.log(a / (a + noise)) - sum(math.log(noise / (b + noise)) for b in row)
            for a, row in zip(x.tolist(), x_k.tolist(), strict=True)
        ]
    )
    assert contrastive_loss(x.log(), x_k.log(), n).item() == pytest.approx(expected, rel=1e-9)


def test_gradient():
    inputs = torch.randn(3, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: contrastive_loss(a, b, 20), [x.requires_grad_() for x in inputs])


def test_does_not_overflow():
    loss = contrastive_loss(torch.tensor([-1e4]), torch.full((1, 3), 1e4), 100)
    assert loss.isfinite()


def test_negatives_are_of_other_classes_and_uniform():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 1, 0, 0, 2])
    sampler = OtherClasses(DataSignature(3, 10, labels))
    draws = sampler(torch.tensor([0, 1, 2]), 60_000, torch.Generator().manual_seed(0))
    for c, row in enumerate(draws):
        counts = torch.bincount(row, minlength=10)
        assert (counts[labels == c] == 0).all()
        others = counts[labels != c].double()
        # Five standard deviations of a uniform draw.
        assert (others - others.mean()).abs().max() < 5 * others.mean().sqrt()


@pytest.fixture
def pair(signature, data, output):
    """A method that was set up, and the outputs of a batch."""

    def make(seed=0, **settings):
        torch.manual_seed(seed)
        method = CRD(**settings)
        net = signature()
        method.setup(net, net, data)
        return method, output(net, CRD.reads), output(net, CRD.reads)

    return make


def test_the_whole_term_against_numpy(pair, make_batch):
    method, s, t = pair(negatives=7)
    batch = make_batch()
    negatives = method.other_classes(batch.labels, 7, torch.Generator().manual_seed(0)).numpy()

    def embed(layer, e):
        v = e.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        return v / np.linalg.norm(v, axis=1, keepdims=True)

    expected = 0.0
    for v, memory in (
        (embed(method.embed_student, s.embedding), method.memory_teacher.numpy()),
        (embed(method.embed_teacher, t.embedding), method.memory_student.numpy()),
    ):
        x = np.array(
            [[np.exp(v[i] @ memory[j] / 0.07) for j in [i, *negatives[i]]] for i in range(6)], dtype=np.float64
        )
        x /= x.mean() * 60
        noise = 7 / 60
        expected -= (np.log(x[:, 0] / (x[:, 0] + noise)) + np.log(noise / (x[:, 1:] + noise)).sum(1)).mean()
    value, weight = method(s, t, batch)["crd"]
    assert weight == 0.8
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_the_normaliser_is_fixed_from_the_first_batch(pair, output, signature, make_batch):
    method, s, t = pair()
    assert not method.started
    method(s, t, make_batch())
    first = method.log_z.clone()
    assert method.started
    assert (first != 0).all()
    other = output(signature(), CRD.reads)
    method(other, other, make_batch())
    assert torch.equal(method.log_z, first)


def test_memories_move_towards_the_embeddings_of_the_forward_pass(pair, make_batch):
    """Not towards those of the linear layers after the optimiser's step."""
    method, s, t = pair()
    before = [method.memory_student.clone(), method.memory_teacher.clone()]
    layers = [method.embed_student, method.embed_teacher]
    with torch.no_grad():
        v = [F.normalize(layer(net.embedding)) for layer, net in zip(layers, (s, t), strict=True)]
    method(s, t, make_batch())
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(-3).add_(0.1)
        method.after_step(s, t, make_batch())
    for memory, old, embedded in zip((method.memory_student, method.memory_teacher), before, v, strict=True):
        torch.testing.assert_close(memory[:6], F.normalize(0.5 * old[:6] + 0.5 * embedded))
        assert torch.equal(memory[6:], old[6:])


def test_what_is_kept_of_the_forward_pass_is_no_state(pair, make_batch):
    method, s, t = pair()
    keys = set(method.state_dict())
    method(s, t, make_batch())
    assert set(method.state_dict()) == keys
    with torch.no_grad():
        method.after_step(s, t, make_batch())
    with pytest.raises(RuntimeError, match=r"^crd: after_step must follow forward, whose embeddings it stores$"):
        method.after_step(s, t, make_batch())


def test_memories_start_uniform(pair):
    method, _, _ = pair()
    bound = math.sqrt(3 / 128)
    for memory in (method.memory_student, method.memory_teacher):
        assert memory.shape == (60, 128)
        assert memory.abs().max() <= bound
        assert memory.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_negatives_are_capped_by_the_smallest_choice(signature):
    method = CRD()
    net = signature()
    method.setup(net, net, DataSignature(10, 60, torch.tensor([0] * 50 + [1] * 10)))
    assert method.negatives == 10


def test_a_resumed_state_gives_the_same_numbers(pair, make_batch):
    method, s, t = pair()
    batch = make_batch()
    method(s, t, batch)
    with torch.no_grad():
        method.after_step(s, t, batch)
    resumed, _, _ = pair(seed=1)
    resumed.load_state_dict(method.state_dict())
    values = [m(s, t, make_batch())["crd"][0].item() for m in (method, resumed)]
    assert values[0] == values[1]


def test_refuses_a_single_class(signature):
    net = signature()
    with pytest.raises(Incompatible, match=r"^crd needs images of two classes or more$"):
        CRD().setup(net, net, DataSignature(10, 60, torch.zeros(60, dtype=torch.long)))


def test_refuses_a_network_without_an_embedding(signature, data):
    flat = type(signature())("flat", "mlp", 10, {})
    with pytest.raises(Incompatible, match=r"^crd needs an embedding; flat has none$"):
        CRD().setup(flat, signature(), data)


def test_a_dead_embedding_is_finite(pair, make_batch):
    method, s, t = pair()
    dead = Output(s.logits, {"embedding": torch.zeros_like(s.embedding)})
    assert method(dead, t, make_batch())["crd"][0].isfinite()
