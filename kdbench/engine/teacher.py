"""The teacher: trained once with the suite's recipe, or loaded. Its folder is named by the hash of its plan."""

from __future__ import annotations

from collections.abc import Callable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from kdbench.data.feed import Feed
from kdbench.engine.cohort import Listener, Lockstep
from kdbench.engine.device import Precision
from kdbench.engine.evaluate import classified, collect, measure
from kdbench.engine.fold import folded
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.learner import Learner
from kdbench.engine.progress import now
from kdbench.engine.student import NETWORK, PARTS
from kdbench.errors import TrialError
from kdbench.isolation import contained
from kdbench.method import Batch, Method, Output, Terms
from kdbench.metrics import HEADLINE
from kdbench.models.base import TappedModel, signature
from kdbench.models.weights import weights_sha256, write_weights
from kdbench.parts import Parts
from kdbench.results import Cost, DataUsed, Environment, TeacherFolder, TeacherRecord, TeacherUsed, write_correct
from kdbench.seeding import derive
from kdbench.status import Status
from kdbench.suite.plan import TeacherPlan
from kdbench.suite.schema import Engine


class FromLabels(Method):
    """The training of a teacher: cross-entropy with the labels."""

    needs_teacher = False

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """Cross-entropy."""
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}


def build_seeded(build: Callable[[], TappedModel], seed: int, *purpose: object) -> TappedModel:
    """A newly initialised network; its weights depend only on seed and purpose."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, *purpose))
        return build()


def train(
    plan: TeacherPlan,
    parts: Parts,
    build: Callable[[], TappedModel],
    image_shape: tuple[int, int, int],
    feed: Feed,
    folder: TeacherFolder,
    device: torch.device,
    listener: Listener,
    *,
    data: DataUsed,
    environment: Environment,
    checkpoint_every: int,
    stop: Callable[[], bool],
    overdue: Callable[[], bool] = lambda: False,
    engine: Engine | None = None,
    foreign: bool = True,
) -> None:
    """Train a teacher to the end, or resume its training; the result is written to ``folder``."""

    def make() -> Learner:
        network = build_seeded(build, plan.seed, "teacher", plan.model)
        known = signature(network, plan.model, image_shape)
        return Learner(
            identifier=plan.key,
            network=network,
            student=known,
            teacher=known,
            method=FromLabels(),
            recipe=parts.recipe,
            parts=parts,
            seed=plan.seed,
            folder=folder,
            device=device,
            steps_per_epoch=feed.steps_per_epoch,
            made_with={
                "data": data.fingerprint,
                "precision": Precision.choose(parts.recipe.precision, device).name,
            },
            foreign={*([NETWORK] if foreign else []), *parts.foreign} & PARTS,
        )

    folder.begin(TeacherRecord.of(plan))
    learner = make()
    try:
        learner.resume()
    except Exception:  # noqa: BLE001 - a checkpoint that does not fit may fail in any way
        folder.checkpoint.unlink(missing_ok=True)
        learner = make()
    folder.write_epochs(learner.progress.records)
    Lockstep(
        [learner],
        feed,
        None,
        listener,
        data=data,
        environment=environment,
        checkpoint_every=checkpoint_every,
        stop=stop,
        overdue=overdue,
        engine=engine,
    ).run()
    if learner.error is not None:
        failure = folder.error
        why = failure.reason if failure is not None else learner.error
        raise TrialError(f"teacher {plan.shown} failed: {why}") from learner.error
    result = folder.result
    if result is None or not result.done:
        epoch = result.epoch if result else "?"
        raise TrialError(f"teacher {plan.shown} diverged in epoch {epoch}; lower its recipe.lr")


def measure_given(
    plan: TeacherPlan,
    network: TappedModel,
    feed: Feed,
    folder: TeacherFolder,
    precision: Precision,
    data: DataUsed,
    environment: Environment,
) -> None:
    """Evaluate given weights, and store them with the result in the form of a trained teacher."""
    precision.prepare(deterministic=bool(environment.deterministic))
    with contained(f"teacher {plan.shown}"):
        network.to(precision.device).to(memory_format=torch.channels_last).eval()
        logits, labels = collect(lambda images: network(images)["logits"], feed.evaluate("test"))
        metrics = measure(logits, labels)
    folder.begin(TeacherRecord.of(plan))
    state = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
    write_weights(folder.weights, state, folder.check)
    write_correct(folder.correct, classified(logits, labels).cpu().numpy(), folder.check)
    folder.finish(
        id=plan.key,
        status=Status.DONE,
        epoch=0,
        metrics=metrics,
        cost=Cost(seconds=0.0, teacher_seconds=0.0, extra_epochs=0),
        data=data,
        environment=environment,
        finished=now(),
    )


def load(
    plan: TeacherPlan,
    build: Callable[[], TappedModel],
    image_shape: tuple[int, int, int],
    folder: TeacherFolder,
    device: torch.device,
    fingerprint: str,
    *,
    foreign: bool = True,
) -> FrozenTeacher | None:
    """The teacher in ``folder``; None if it is missing, damaged, diverged, or was trained on other data."""
    result = folder.result
    if result is None or folder.damage(thorough=True):
        return None
    if not result.done or result.data.fingerprint != fingerprint:
        return None
    network = build()
    try:
        network.load_state_dict(load_file(folder.weights))
    except (SafetensorError, RuntimeError, OSError):
        return None
    known = signature(network, plan.model, image_shape)
    network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    digest = weights_sha256(network)
    if result.sha256 is None:
        folder.finish(**{**dict(result), "sha256": digest})
    elif result.sha256 != digest:
        return None
    if not foreign:
        network = folded(network, image_shape)
    used = TeacherUsed(
        key=plan.key, sha256=digest, top1=result.metrics[HEADLINE], seconds=result.cost.seconds, seed=plan.seed
    )
    return FrozenTeacher(network, known, used, foreign)
