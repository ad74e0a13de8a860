"""Does the gradient reach all trained parameters, and nothing else?"""

from __future__ import annotations

from torch import Tensor

from kdbench.results import MAIN
from kdbench.testing.subject import CheckFailed, CheckSkipped, Subject


def student_gradient(subject: Subject) -> str | None:
    """Does a gradient reach the student in every stage that trains it?"""
    reached = []
    for step in subject.steps(subject.bench.made_up()):
        if not step.trains_student or step.student is None:
            continue
        gradients = {name: g for name, g in step.gradients().items() if name.startswith("student's ")}
        taps = [name.removeprefix("student's ") for name, gradient in gradients.items() if _any(gradient)]
        if not taps:
            raise CheckFailed(f"{step.stage}: no gradient reaches the student; is its output detached?")
        reached.append(f"{step.stage}: {', '.join(taps)}")
    return "; ".join(reached)


def adapter_gradient(subject: Subject) -> str | None:
    """Does a gradient reach every parameter that the method trains?"""
    trained: dict[str, bool] = {}
    for step in subject.steps(subject.bench.made_up(16)):
        gradients = step.gradients()
        for name in step.trained:
            found = gradients[name] is not None
            if not found and step.stage != MAIN:
                raise CheckFailed(f"{step.stage}: no gradient reaches {name}, which the stage trains")
            trained[name] = trained.get(name, False) or found
    if not trained:
        raise CheckSkipped("the method has no parameters to train")
    missed = [name for name, found in trained.items() if not found]
    if missed:
        raise CheckFailed(f"no gradient reaches {', '.join(missed)}")
    return f"{len(trained)} parameters"


def teacher_gradient(subject: Subject) -> str | None:
    """Does no gradient reach the teacher?"""
    if not subject.method().needs_teacher:
        raise CheckSkipped("the method uses no teacher")
    inputs = subject.bench.made_up(teacher_records=True)
    for step in subject.steps(inputs):
        assert step.teacher is not None
        gradients = step.gradients({"logits": step.teacher.logits, **step.teacher.taps})
        reached = [name for name, gradient in gradients.items() if gradient is not None]
        if reached:
            raise CheckFailed(f"{step.stage}: a gradient reaches the teacher's {', '.join(reached)}; detach them")
    return None


def outputs_unchanged(subject: Subject) -> str | None:
    """Are the networks' outputs and the batch unchanged? The students of a cohort share the teacher's outputs."""
    inputs = subject.bench.made_up()
    method = subject.method()
    tensors = {
        f"the {who}'s {name}": tap for who in ("student", "teacher") for name, tap in getattr(inputs, who).items()
    }
    tensors |= {
        f"the batch's {name}": getattr(inputs.batch, name) for name in ("labels", "indices", "epoch", "progress")
    }
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for _ in subject.steps(inputs, method):
        _assert_unchanged(tensors, before, "forward")
    subject.after_step(method, inputs)
    _assert_unchanged(tensors, before, "after_step")
    method.eval()
    method.predict(subject.main_outputs(method, inputs)[0])
    _assert_unchanged(tensors, before, "predict")
    return None


def _assert_unchanged(now: dict[str, Tensor], before: dict[str, Tensor], where: str) -> None:
    changed = [name for name, tensor in now.items() if not tensor.equal(before[name])]
    if changed:
        raise CheckFailed(f"{where} writes to {', '.join(changed)}")


def _any(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.ne(0).any())
