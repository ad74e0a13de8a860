"""What public implementations stumble over, asked of every method that is registered here."""

from __future__ import annotations

import inspect
import pickle
from contextlib import nullcontext

import pytest
import torch
from kdbench_methods import METHODS

NAMES = [spec.name for spec in METHODS]
ALL_TAPS = frozenset({"stem", "stage*", "stage*/pre", "embedding", "logits", "dist_logits"})


def alike(x):
    return x


def one_zero_row(x):
    return torch.cat([torch.zeros_like(x[:1]), x[1:]])


def all_zero(x):
    return torch.zeros_like(x)


def duplicate_rows(x):
    return torch.cat([x[1:2], x[1:]])


def identical_rows(x):
    return x[:1].expand_as(x).clone()


def huge(x):
    return x * 1e4


def tiny(x):
    return x * 1e-8


def with_grad(out, reads, signature):
    """The taps a stage reads, as the engine hands them out."""
    names = signature.select({*reads, "logits"})
    return type(out)(out.logits, {name: out.taps[name] for name in names})


def losses(method, student, teacher, s, t, batch, total):
    """(loss, student's output or None) of each stage in order, ending with the main one."""
    for stage in method.stages():
        seen = with_grad(s, stage.reads, student) if stage.uses_student else None
        yield total(stage.loss(seen, with_grad(t, stage.reads, teacher), batch)), seen
        method.after_stage(stage.name)
    reads = method.reads if method.student_reads is None else method.student_reads
    seen = with_grad(s, reads, student)
    yield total(method(seen, with_grad(t, method.teacher_reads or method.reads, teacher), batch)), seen


@pytest.fixture
def pair(signature):
    return signature("student"), signature("teacher")


@pytest.fixture
def check(pair, data, build, output, make_batch, total):
    """Run all stages of a method on outputs changed by ``change``; loss and gradients must be finite."""

    def run(name, change=alike, size=6, dtype=torch.float32, largest=1e6):
        method = build(name, *pair, data)
        # Values as they come out of a network that runs in ``dtype``; the engine hands them out in float32.
        lower = lambda x: change(x).to(dtype).float()  # noqa: E731
        s = output(pair[0], ALL_TAPS, size, change=lower, grad=True)
        t = output(pair[1], ALL_TAPS, size, change=lower)
        for loss, seen in losses(method, *pair, s, t, make_batch(size), total):
            assert loss.shape == ()
            assert loss.isfinite()
            loss.backward()
            grads = [x.grad for x in (seen.taps.values() if seen else ())]
            grads += [p.grad for p in method.parameters()]
            for grad in (grad for grad in grads if grad is not None):
                assert grad.isfinite().all()
                assert grad.abs().max() < largest

    return run


@pytest.mark.parametrize("change", [one_zero_row, duplicate_rows])
@pytest.mark.parametrize("name", NAMES)
def test_rows_without_direction(name, change, check):
    check(name, change)


@pytest.mark.parametrize("change", [all_zero, identical_rows])
@pytest.mark.parametrize("name", NAMES)
def test_batches_without_variance(name, change, check):
    """An adapter's batch normalisation multiplies gradients by up to 316 a layer here: three of them, 3e7."""
    check(name, change, largest=1e10)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_small_batches(name, size, check):
    check(name, size=size)


@pytest.mark.parametrize("change", [huge, tiny])
@pytest.mark.parametrize("name", NAMES)
def test_scales(name, change, check):
    """A loss that does not change with scale has a gradient that grows as the scale falls: finite is all."""
    check(name, change, largest=float("inf"))


@pytest.mark.parametrize("change", [alike, one_zero_row, duplicate_rows])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_values_of_low_precision(name, dtype, change, check):
    check(name, change, dtype=dtype)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_student_and_every_adapter_and_never_the_teacher(
    name, pair, data, build, output, make_batch, total
):
    method = build(name, *pair, data)
    s = output(pair[0], ALL_TAPS, 16, grad=True)
    t = output(pair[1], ALL_TAPS, 16, grad=True)
    for loss, _ in losses(method, *pair, s, t, make_batch(16), total):
        loss.backward()
    assert s.logits.grad is not None
    assert s.logits.grad.abs().sum() > 0
    assert all(x.grad is None for x in t.taps.values())
    for parameter_name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_no_host_synchronisation(name, pair, data, build, output, make_batch, total, no_host_sync):
    method = build(name, *pair, data)
    s = output(pair[0], ALL_TAPS, grad=True)
    t = output(pair[1], ALL_TAPS)
    batch = make_batch()
    expected = "host-sync" in method.expected_failures
    with no_host_sync(), pytest.raises(Exception, match="_linalg_eigh") if expected else nullcontext():
        for loss, _ in losses(method, *pair, s, t, batch, total):
            loss.backward()
        with torch.no_grad():
            method.after_step(s, t, batch)
            method.predict(s)


def test_the_refusal_of_host_synchronisation_can_fail(no_host_sync):
    x = torch.randn(4)
    for read in (lambda: x.sum().item(), lambda: bool(x[0] > 0), lambda: x[x > 0], lambda: x.nonzero()):
        with no_host_sync(), pytest.raises(Exception, match=r"_local_scalar_dense|nonzero|mask"):
            read()


@pytest.mark.parametrize("name", NAMES)
def test_state_survives_a_round_trip_and_pickling(name, pair, data, build):
    method, other = build(name, *pair, data), build(name, *pair, data)
    other.load_state_dict(method.state_dict())
    copy = pickle.loads(pickle.dumps(method))
    for mine, theirs, third in zip(
        method.state_dict().values(), other.state_dict().values(), copy.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)
        assert torch.equal(mine, third)


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_hides_outside_the_state(name, pair, data, build):
    """A parameter or buffer in a plain list would be neither moved nor trained nor saved."""
    for module in build(name, *pair, data).modules():
        for key, value in vars(module).items():
            if key not in {"_parameters", "_buffers", "_modules"}:
                held = value if isinstance(value, (list, tuple)) else [value]
                assert not any(isinstance(item, (torch.Tensor, torch.nn.Module)) for item in held), key


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_numbers(name, pair, data, build, output, make_batch, total):
    values = []
    for _ in range(2):
        torch.manual_seed(1)
        method = build(name, *pair, data)
        s, t = output(pair[0], ALL_TAPS, grad=True), output(pair[1], ALL_TAPS)
        values.append([loss.item() for loss, _ in losses(method, *pair, s, t, make_batch(), total)])
    assert values[0] == values[1]


@pytest.mark.parametrize("name", NAMES)
def test_moves_to_the_meta_device(name, pair, data, build):
    """Planning builds methods there, without labels; nothing may ask for values."""
    with torch.device("meta"):
        method = build(name, *pair, type(data)(data.classes, data.n_train))
    assert {p.device.type for p in method.parameters()} <= {"meta"}


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_keywords_with_annotated_defaults(name, build, pair, data):
    method = build(name, *pair, data)
    parameters = inspect.signature(type(method)).parameters if "__init__" in vars(type(method)) else {}
    for parameter in parameters.values():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is not inspect.Parameter.empty or parameter.name == "methods"
        assert parameter.annotation is not inspect.Parameter.empty
    assert type(method).__doc__
    assert "https://" in type(method).paper or name in {"none", "combine", "crd+kd"}
