"""Is the method's state registered, and restored after saving, loading and pickling?"""

from __future__ import annotations

import dataclasses
import functools
import pickle as pickle_module
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.method import DataSignature, Method, Signature
from kdbench.testing.bench import Inputs
from kdbench.testing.subject import CheckFailed, Step, Subject, rewound


def registered(subject: Subject) -> str | None:
    """Is every tensor a registered parameter or buffer? One in a plain list is not moved, trained or saved."""
    method = subject.method()
    for _ in subject.steps(subject.bench.made_up(), method):
        hidden = list(_hidden(method))
        if hidden:
            remedy = "use nn.Parameter, register_buffer, nn.ModuleList or nn.ParameterList"
            raise CheckFailed(f"{', '.join(hidden)}: {remedy}")
    return None


def _hidden(root: nn.Module) -> Iterator[str]:
    known = {id(module) for module in root.modules()}
    for prefix, module in root.named_modules():
        for key, value in vars(module).items():
            if key not in {"_parameters", "_buffers", "_modules"}:
                yield from _held(value, f"{prefix}.{key}" if prefix else key, known)


def _held(value: Any, where: str, known: set[int]) -> Iterator[str]:
    if isinstance(value, Tensor):
        yield f"{where} contains a tensor of shape {tuple(value.shape)}"
    elif isinstance(value, nn.Module):
        if id(value) not in known and any(True for _ in (*value.parameters(), *value.buffers())):
            yield f"{where} contains a {type(value).__name__} with parameters"
    elif not isinstance(value, Signature | DataSignature):  # facts, kept for their shapes
        for key, item in _items(value):
            yield from _held(item, f"{where}[{key!r}]", known)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, list | tuple | set | frozenset):
        return enumerate(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    if isinstance(value, functools.partial):
        return [*enumerate(value.args), *value.keywords.items()]
    return ()


def round_trip(subject: Subject) -> str | None:
    """Does the state dictionary restore the complete state in a new method, as a checkpoint requires?"""
    method, other = subject.prepared(seed=0), subject.prepared(seed=1)
    for number in (1, 2):
        _one_step(subject, method, number)
    try:
        other.load_state_dict(method.state_dict())
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise CheckFailed(f"a new method cannot load the state dictionary: {problem}") from error
    inputs = subject.bench.made_up()
    _assert_same(_main(subject, method, inputs), _main(subject, other, inputs), "with its state loaded into a new one")
    return f"{len(method.state_dict())} tensors" if method.state_dict() else "it has no state"


def pickle(subject: Subject) -> str | None:
    """Can it be pickled, and does the copy compute the same?"""
    inputs = subject.bench.made_up()
    method = subject.method()
    try:
        copy = pickle_module.loads(pickle_module.dumps(method))
    except Exception as error:
        raise CheckFailed(f"cannot be pickled: {error}") from error
    _assert_same(_all(subject, method, inputs), _all(subject, copy, inputs), "after pickling")
    return None


def seed(subject: Subject) -> str | None:
    """Does the same seed give the same adapters, values and gradients, to the bit?"""
    runs = []
    for _ in range(2):
        method = subject.method(seed=7)
        initial = {f"the initial {name}": value.detach().clone() for name, value in method.state_dict().items()}
        runs.append({**initial, **_all(subject, method, subject.bench.made_up())})
    _assert_same(runs[0], runs[1], "with the same seed")
    return None


def state(subject: Subject) -> str | None:
    """Is the loss of a batch independent of earlier batches? (Statistics of batch normalisation may differ.)"""
    method = subject.prepared()
    first = _main(subject, method, subject.bench.made_up())
    for number in (1, 2):
        _one_step(subject, method, number)
    _assert_same(first, _main(subject, method, subject.bench.made_up()), "after other batches")
    return None


def _one_step(subject: Subject, method: Method, number: int) -> None:
    """A step of the main stage, without the optimiser."""
    inputs = subject.bench.made_up(seed=number)
    subject.main_step(method, inputs)
    subject.after_step(method, inputs)


def _main(subject: Subject, method: Method, inputs: Inputs) -> dict[str, Tensor]:
    """The main stage's terms and gradients, and the prediction."""
    found = _found(subject.main_step(method, rewound(inputs)))
    method.eval()
    return {**found, "what it predicts": method.predict(subject.main_outputs(method, inputs)[0]).detach()}


def _all(subject: Subject, method: Method, inputs: Inputs) -> dict[str, Tensor]:
    """The terms and gradients of every stage."""
    steps = subject.steps(rewound(inputs), method)
    return {name: value for step in steps for name, value in _found(step).items()}


def _found(step: Step) -> dict[str, Tensor]:
    terms = {f"{step.stage}: term '{name}'": value.detach() for name, (value, _) in step.terms.items()}
    gradients = step.gradients() if step.loss.requires_grad else {}
    return {**terms, **{f"{step.stage}: the gradient at {k}": g for k, g in gradients.items() if g is not None}}


def _assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], when: str) -> None:
    for name, value in ours.items():
        if name not in theirs or not torch.equal(value, theirs[name]):
            raise CheckFailed(f"{name} differs {when}")
