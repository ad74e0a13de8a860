"""Does the method have the form that the engine requires?"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from kdbench.data.feed import Minibatch
from kdbench.discovery import settings as settings_of
from kdbench.engine.learner import Learner
from kdbench.engine.stages import STUDENT, through
from kdbench.method import Incompatible, Method
from kdbench.recipe import Recipe
from kdbench.results import MAIN, TrialFolder
from kdbench.testing.bench import BATCH_SIZE, CLASSES
from kdbench.testing.subject import CheckFailed, CheckSkipped, Step, Subject, rewound


def settings(subject: Subject) -> str | None:
    """Are settings keyword-only and annotated, are values out of range rejected, and do accepted values work?"""
    cls = subject.examinee.method_class
    if cls.__init__ is Method.__init__:
        return "it has no settings"
    hints = typing.get_type_hints(cls.__init__, include_extras=True)
    unlimited = []
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise CheckFailed(f"{name} must be a keyword-only argument (after a *), so that a suite's table can set it")
        if name not in hints:
            raise CheckFailed(f"{name} has no annotation; Positive, Fraction .. of kdbench.method give it a range")
        if parameter.default is not parameter.empty and settings_of.resolve(cls, {name: parameter.default})[1]:
            raise CheckFailed(f"{name}: its default {parameter.default!r} is out of its range")
        for value in _out_of_range(hints[name]):
            if not _is_refused(subject, name, value):
                raise CheckFailed(f"{name} = {value!r} is accepted, though {hints[name]} excludes it")
        for value in _on_the_edge(hints[name]):
            if not _is_refused(subject, name, value):
                _assert_works(subject, name, value)
        if hints[name] in (int, float):
            unlimited.append(name)
    return f"accepted without a range: {', '.join(unlimited)}" if unlimited else None


def _is_refused(subject: Subject, name: str, value: Any) -> bool:
    """Whether the annotation or the constructor rejects a value."""
    given = {**subject.examinee.settings, name: value}
    if settings_of.resolve(subject.examinee.method_class, given)[1]:
        return True
    try:
        subject.examinee.method_class(**given)
    except (ValueError, TypeError):
        return True
    return False


def _assert_works(subject: Subject, name: str, value: Any) -> None:
    given = {**subject.examinee.settings, name: value}
    changed = Subject(replace(subject.examinee, settings=given), subject.bench)
    try:
        wrong = [step.stage for step in changed.steps(subject.bench.made_up()) if not step.loss.isfinite()]
    except Incompatible:
        return
    except (ArithmeticError, RuntimeError, ValueError) as error:
        raise CheckFailed(f"{name} = {value!r} is accepted, and then fails: {error}; give it a range") from error
    if wrong:
        raise CheckFailed(f"{name} = {value!r} is accepted, and the loss is then not finite; give it a range")


def _limits(annotation: Any) -> list[Any]:
    """The bounds in an annotation, at any depth."""
    metadata = getattr(annotation, "__metadata__", ())
    found = [item for item in metadata if isinstance(item, Gt | Ge | Lt | Le)]
    for part in typing.get_args(annotation):
        found += _limits(part)
    return found


def _out_of_range(annotation: Any) -> Iterator[Any]:
    """Values that the annotation excludes: outside each bound, not in a Literal, a text instead of a number."""
    for limit in _limits(annotation):
        if isinstance(limit, Gt):
            yield limit.gt
        elif isinstance(limit, Ge):
            yield limit.ge - 1  # type: ignore[operator]
        elif isinstance(limit, Lt):
            yield limit.lt
        else:
            yield limit.le + 1
    if typing.get_origin(annotation) is Literal:
        yield "no such choice"
    base = typing.get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    if base in (int, float, bool):
        yield "a text"


def _on_the_edge(annotation: Any) -> Iterator[Any]:
    """Allowed values at which losses often fail: the bounds of the annotation, or 0 and -1 if it has none."""
    for limit in _limits(annotation):
        if isinstance(limit, Ge):
            yield limit.ge
        elif isinstance(limit, Le):
            yield limit.le
    if annotation in (int, float):
        yield annotation(0)
        yield annotation(-1)


def terms(subject: Subject) -> str | None:
    """Does every stage return named, finite, scalar terms?"""
    names = []
    for step in _with_and_without_teacher(subject):
        _finite_terms(step)
        names.append(f"{step.stage}: {', '.join(step.terms)}")
    return "; ".join(dict.fromkeys(names))


def _with_and_without_teacher(subject: Subject) -> Iterator[Step]:
    inputs = subject.bench.real()
    yield from subject.steps(inputs)
    if not subject.method().needs_teacher:
        # A suite with only such methods runs no teacher; forward then receives None for it.
        yield from subject.steps(rewound(inputs), with_teacher=False)


def _finite_terms(step: Step) -> None:
    assert step.loss.ndim == 0  # raises CheckFailed if the terms have no scalar sum
    for name, (value, weight) in step.terms.items():
        if not value.isfinite():
            raise CheckFailed(f"{step.stage}: term '{name}' is {value.item()}")
        if not math.isfinite(float(weight)):
            raise CheckFailed(f"{step.stage}: the weight of term '{name}' is {float(weight)}")


def training(subject: Subject) -> str | None:
    """Can the engine train one step of every stage, and does the step change the student?"""
    bench = subject.bench
    network, teacher = bench.network(bench.student_name), bench.network(bench.teacher_name).eval()
    method = subject.method()
    names = [stage.name for stage in method.stages()]
    if len({*names, MAIN}) <= len(names):
        raise CheckFailed(f"stages need different names, none of them '{MAIN}': {', '.join(names)}")
    learner = Learner(
        identifier="check",
        network=network,
        student=bench.student,
        teacher=bench.teacher,
        method=method,
        recipe=Recipe(epochs=1, batch_size=BATCH_SIZE, lr=0.01),
        seed=0,
        folder=TrialFolder(Path("nowhere")),  # nothing is written without a call of save
        device=torch.device("cpu"),
        steps_per_epoch=1,
    )
    batch = bench.batch()
    minibatch = Minibatch(bench.images(), batch.labels, batch.indices)
    trainer = learner.trainer
    # One step per stage, for any number of epochs.
    for phase in through(trainer):
        trainer.begin_epoch()
        with torch.no_grad():
            shown = teacher(minibatch.images, phase.teacher_reads)
        before = _copy(network)
        trainer.step(0, minibatch, shown)
        unchanged = all(torch.equal(old, new) for old, new in zip(before, _copy(network), strict=True))
        if not all(p.isfinite().all() for p in trainer.modules.parameters()):
            raise CheckFailed(f"{phase.name}: parameters are not finite after one step")
        if unchanged and STUDENT & {*phase.trains}:
            raise CheckFailed(f"{phase.name}: one step does not change the student")
    return "stages: " + ", ".join([*names, MAIN])


def _copy(network: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def labels(subject: Subject) -> str | None:
    """If the loss uses labels, do label smoothing and mixed labels affect it?"""
    inputs = subject.bench.made_up()
    other = (inputs.batch.labels + 1) % CLASSES
    usual = _losses(subject)
    stages = [stage for stage, value in _losses(subject, labels=other).items() if value != usual[stage]]
    if not stages:
        raise CheckSkipped("the loss does not depend on the labels")
    mixed = _losses(subject, mixed_labels=other, mix=torch.tensor(0.5))
    smoothed = _losses(subject, label_smoothing=0.2)
    for stage in stages:
        for what, changed in (("mixed labels", mixed), ("label smoothing", smoothed)):
            if changed[stage] == usual[stage]:
                raise CheckFailed(f"{stage}: {what} have no effect; use batch.cross_entropy(logits) for the labels")
            if not math.isfinite(changed[stage]):
                raise CheckFailed(f"{stage}: with {what} the loss is {changed[stage]}")
    return None


def _losses(subject: Subject, **batch: Any) -> dict[str, float]:
    inputs = rewound(subject.bench.made_up(), **batch)
    return {step.stage: step.loss.item() for step in subject.steps(inputs)}


def predict(subject: Subject) -> str | None:
    """Does it predict finite logits (B, C) using only parts of the student?"""
    inputs = subject.bench.made_up()
    method = subject.prepared()
    for part in method.part_of_student:
        try:
            method.get_submodule(part)
        except AttributeError:
            raise CheckFailed(f"part_of_student names '{part}', which is not a submodule of the method") from None
    method.eval()
    student, _ = subject.main_outputs(method, inputs)
    logits = method.predict(student)
    if not isinstance(logits, Tensor) or logits.shape != (BATCH_SIZE, CLASSES):
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise CheckFailed(f"predict must return logits of shape {(BATCH_SIZE, CLASSES)}, got {what}")
    if not logits.isfinite().all():
        raise CheckFailed("predict returns logits that are not finite")
    own = {name: p for name, p in method.named_parameters() if not name.startswith(tuple(method.part_of_student))}
    strangers = _used(logits, own)
    if strangers:
        raise CheckFailed(f"predict uses {', '.join(strangers)}, which is not in part_of_student")
    later = replace(inputs, student={k: v.flip(0) for k, v in inputs.student.items()})
    if not torch.allclose(method.predict(subject.main_outputs(method, later)[0]).flip(0), logits, rtol=1e-4, atol=1e-4):
        raise CheckFailed("the prediction for an image depends on the other images of the batch")
    return f"part of the student: {', '.join(method.part_of_student)}" if method.part_of_student else None


def _used(logits: Tensor, parameters: dict[str, torch.nn.Parameter]) -> list[str]:
    recording = {name: p for name, p in parameters.items() if p.requires_grad}
    if not recording or not logits.requires_grad:
        return []
    found = torch.autograd.grad(logits.sum(), list(recording.values()), allow_unused=True)
    return [name for name, gradient in zip(recording, found, strict=True) if gradient is not None]
