"""Recorded steps, on a tape: the emulation of a CUDA graph that a CPU has."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.engine.cohort import Interrupted, Lockstep
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.graphs.replayed import Replayed
from kdbench.engine.graphs.slots import FixedOutputs
from kdbench.engine.graphs.snapshot import Snapshot
from kdbench.engine.graphs.tape import Tape, Trace, record
from kdbench.engine.optimizer import make_optimizer
from kdbench.method import Method, NonNegative, Stage
from kdbench.parts import Parts
from kdbench.recipe import Recipe

EPOCHS = 4
FULL = 3
"""Batches of the usual size in an epoch; a smaller one follows."""


class Recorders:
    """Records on tapes, and counts tapes and replays."""

    def __init__(self) -> None:
        self.tapes = 0
        self.replays = 0

    def __call__(self, generators: Any) -> Any:
        def recorder(action: Callable[[], object]) -> Any:
            tape = record(action)
            self.tapes += 1
            return Counting(tape, self)

        return recorder


class Counting:
    def __init__(self, tape: Tape, counts: Recorders) -> None:
        self.tape, self.counts = tape, counts

    def replay(self) -> None:
        self.counts.replays += 1
        self.tape.replay()


class Distils(Method):
    """Two terms, one of which grows with the progress; an adapter; random numbers; a memory."""

    reads = frozenset({"logits", "embedding"})

    def __init__(self, *, weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def setup(self, student: Any, teacher: Any, data: Any) -> None:
        self.adapter = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Dropout(0.5))
        self.register_buffer("memory", torch.zeros(64))

    def hint(self, student: Any, teacher: Any, batch: Any) -> Tensor:
        noise = torch.randn(64, generator=batch.generator)
        return (self.adapter(student.embedding) - teacher.embedding + 0.1 * noise - self.memory).square().mean()

    def forward(self, student: Any, teacher: Any, batch: Any) -> Any:
        late = (batch.epoch >= 2) * batch.progress
        return {
            "ce": (batch.cross_entropy(student.logits), 1.0),
            "hint": (self.hint(student, teacher, batch), self.weight * late),
        }

    def after_step(self, student: Any, teacher: Any, batch: Any) -> None:
        self.memory.lerp_(student.embedding.mean(0), 0.1)


class InTwoStages(Distils):
    """A stage before the main one."""

    def stages(self) -> list[Stage]:
        return [Stage("first", self.first, EPOCHS, ("student.body", "adapter"), frozenset({"embedding"}))]

    def first(self, student: Any, teacher: Any, batch: Any) -> Any:
        return {"hint": (self.hint(student, teacher, batch), 1.0)}


def weights(tmp_path: Any, name: str) -> dict[str, Tensor]:
    return load_file(tmp_path / name / "student.safetensors")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def ours(teacher: FrozenTeacher) -> FrozenTeacher:
    """A teacher whose network comes with kdbench."""
    return FrozenTeacher(teacher.network, teacher.signature, teacher.used, foreign=False)


@pytest.fixture
def replayed(learner, train, heard, tmp_path) -> Callable[..., Recorders]:
    """Train a method without and with replays: weights, memories and records must be the same bits."""

    def check(make: Callable[[], Method], foreign: tuple[str, ...] = (), **recipe: Any) -> Recorders:
        recorders = Recorders()
        options = {"epochs": EPOCHS, "foreign": foreign, **recipe}
        plain, fast = (learner(make(), "a", name, **options) for name in ("executed", "replayed"))
        train(plain)
        train(fast, make_recorder=recorders)
        assert not heard.errors, heard.errors["a"].traceback
        assert equal(weights(tmp_path, "executed"), weights(tmp_path, "replayed"))
        assert equal(plain.trainer.modules.state_dict(), fast.trainer.modules.state_dict())
        kept = [[r.model_copy(update={"seconds": 0.0}) for r in one.progress.records] for one in (plain, fast)]
        assert kept[0] == kept[1]
        return recorders

    return check


RECIPES: dict[str, dict[str, Any]] = {
    "steps": {"drops": (1, 2)},
    "cosine": {"schedule": {"name": "cosine"}, "warmup_epochs": 1},
    "adamw": {"optimizer": {"name": "adamw"}, "lr": 1e-3},
    "average": {"ema_decay": 0.5},
    "clipped": {"clip_grad_norm": 0.1},
    "nesterov": {"nesterov": True, "label_smoothing": 0.1},
}


@pytest.mark.parametrize(
    ("recipe", "foreign"),
    [*((recipe, ()) for recipe in RECIPES.values()), (RECIPES["adamw"], ("network", "method"))],
    ids=[*RECIPES, "a plugin's"],
)
def test_replays_are_the_steps(replayed, recipe, foreign):
    counted = replayed(Distils, foreign, **recipe)
    # Of the student: three steps are executed, one is recorded, the smaller batches are executed.
    assert (counted.tapes, counted.replays) == (1, EPOCHS * FULL - 4)


def test_stages_have_recordings_of_their_own(replayed):
    counted = replayed(InTwoStages)
    assert (counted.tapes, counted.replays) == (2, 2 * (EPOCHS * FULL - 4))


def test_the_teacher_is_recorded_too(learner, feed, ours, heard, made_with, tmp_path):
    counted = Recorders()
    for name, options in {"executed": {}, "replayed": {"make_recorder": counted}}.items():
        one = learner(Distils(), "a", name, epochs=EPOCHS, foreign=())
        Lockstep([one], feed, ours, heard, checkpoint_every=1, **made_with, **options).run()
    assert equal(weights(tmp_path, "executed"), weights(tmp_path, "replayed"))
    assert (counted.tapes, counted.replays) == (2, 2 * (EPOCHS * FULL - 4))


def test_an_optimiser_that_takes_numbers_is_executed(replayed):
    counted = replayed(Distils, optimizer={"name": "timm:lion"}, lr=1e-3, drops=(1,))
    assert (counted.tapes, counted.replays) == (0, 0)


def test_mixed_batches(learner, feed, ours, heard, made_with, tmp_path):
    counted = Recorders()
    for name, options in {"executed": {}, "replayed": {"make_recorder": counted}}.items():
        one = learner(Distils(), "a", name, epochs=EPOCHS, foreign=())
        Lockstep([one], Mixed(feed), ours, heard, checkpoint_every=1, **made_with, **options).run()
    assert equal(weights(tmp_path, "executed"), weights(tmp_path, "replayed"))
    assert counted.replays == 2 * (EPOCHS * FULL - 4)


class Mixed:
    """A feed whose batches are mixed, each by another share."""

    def __init__(self, feed):
        self.feed = feed

    def __getattr__(self, name):
        return getattr(self.feed, name)

    def epoch(self, stage, epoch):
        for number, batch in enumerate(self.feed.epoch(stage, epoch)):
            yield replace(batch, mixed_labels=batch.labels.roll(1), mix=torch.tensor(0.2 * number))


def test_a_killed_training_ends_with_the_same_bits(learner, train, heard, tmp_path):
    train(learner(Distils(), "a", "whole", epochs=EPOCHS, foreign=(), optimizer={"name": "adamw"}, ema_decay=0.5))
    recipe = {"epochs": EPOCHS, "foreign": (), "optimizer": {"name": "adamw"}, "ema_decay": 0.5}
    counted = Recorders()
    with pytest.raises(Interrupted):
        train(learner(Distils(), "a", "killed", **recipe), make_recorder=counted, stop=lambda: True)
    again = learner(Distils(), "a", "killed", **recipe)
    assert again.resume()
    train(again, make_recorder=counted)
    assert counted.replays > FULL
    assert equal(weights(tmp_path, "whole"), weights(tmp_path, "killed"))


class Raises(Distils):
    """Fails at the sixth step that is executed."""

    steps = 0

    def forward(self, student, teacher, batch):
        self.steps += 1
        if self.steps == 6:
            raise ValueError("planted")
        return super().forward(student, teacher, batch)


class Diverges(Distils):
    """Is NaN from the second epoch on."""

    def forward(self, student, teacher, batch):
        terms = super().forward(student, teacher, batch)
        return {**terms, "nan": (torch.where(batch.epoch >= 1, torch.nan, terms["ce"][0]), 1.0)}


def test_members_that_leave_change_nothing_for_the_others(learner, train, heard, tmp_path):
    train(learner(Distils(), "a", "alone", epochs=EPOCHS, foreign=()))
    train(
        learner(Raises(), "r", epochs=EPOCHS, foreign=()),
        learner(Diverges(), "d", epochs=EPOCHS, foreign=()),
        learner(Distils(), "a", "company", epochs=EPOCHS, foreign=()),
        make_recorder=Recorders(),
    )
    assert heard.errors["r"].message == "planted"
    assert heard.results["d"].status == "diverged"
    assert heard.results["d"].epoch == 2
    assert equal(weights(tmp_path, "alone"), weights(tmp_path, "company"))


class Recorded:
    """A recording that something refers to."""

    def __init__(self, tape: Tape) -> None:
        self.replay = tape.replay


def test_members_that_leave_free_their_recordings(learner, train, heard):
    recorded: dict[int, weakref.ref[Recorded]] = {}
    living: list[set[int]] = []

    class Looks(Distils):
        def forward(self, student, teacher, batch):
            living.append({owner for owner, one in recorded.items() if one() is not None})
            return super().forward(student, teacher, batch)

    owners = count()

    def make_recorder(generators):
        owner = next(owners)

        def recorder(action):
            made = Recorded(record(action))
            recorded[owner] = weakref.ref(made)
            return made

        return recorder

    train(
        learner(Raises(), "r", epochs=EPOCHS, foreign=()),
        learner(Diverges(), "d", epochs=EPOCHS, foreign=()),
        learner(Looks(), "a", epochs=EPOCHS, foreign=()),
        make_recorder=make_recorder,
    )
    assert (heard.errors["r"].message, heard.results["d"].status) == ("planted", "diverged")
    # The steps of the first epoch; in the next, the recorded step, the compared one, before which one has failed, and
    # the smaller batch; then those of two epochs after the other has diverged.
    assert living == [set(), set(), set(), set(), {0, 1}, {1, 2}, {1, 2}, {2}, {2}, {2}, {2}]


def test_a_learner_without_memory_for_recordings_fails_alone(learner, train, heard):
    numbers = count()

    def make_recorder(generators):
        if next(numbers) == 0:
            raise torch.OutOfMemoryError("planted")
        return record

    train(learner(Distils(), "a", foreign=()), learner(Distils(), "b", foreign=()), make_recorder=make_recorder)
    assert heard.errors["a"].message == "out of memory on cpu; try a smaller recipe.batch_size"
    assert heard.results["b"].status == "done"


# ---- planted faults


class ReadsOnTheHost(Distils):
    def forward(self, student, teacher, batch):
        if batch.epoch.item() >= 2:
            return {"ce": (batch.cross_entropy(student.logits), 1.0), "hint": (student.logits.mean(), 0.0)}
        return super().forward(student, teacher, batch)


def test_a_step_that_reads_a_value_is_executed(replayed):
    assert replayed(ReadsOnTheHost).tapes == 0


class HostNumber(Distils):
    """Its weight is a number of the host, which a listener changes after the second epoch."""

    def forward(self, student, teacher, batch):
        terms = super().forward(student, teacher, batch)
        return {**terms, "ce": (terms["ce"][0], self.weight)}


@pytest.mark.parametrize("compared", [True, False])
def test_a_number_of_the_host_that_changes_is_seen_and_the_epoch_repeated(
    learner, train, heard, tmp_path, monkeypatch, compared
):
    """And it would be wrong if nobody compared."""
    if not compared:
        monkeypatch.setattr(
            Replayed, "_compare", lambda self, recording, minibatch, teacher: self._replay(recording, minibatch)
        )

    for name, options in {"executed": {}, "replayed": {"make_recorder": Recorders()}}.items():
        one = learner(HostNumber(), "a", name, epochs=EPOCHS, foreign=())

        def note(identifier, record, one=one):
            one.student.method.weight = 1.0 if record.epoch < 2 else 0.1

        monkeypatch.setattr(heard, "epoch", note)
        train(one, **options)
        assert [record.epoch for record in one.progress.records] == [1, 2, 3, 4]
    assert equal(weights(tmp_path, "executed"), weights(tmp_path, "replayed")) is compared


class CountsSteps(Distils):
    """Counts its steps on the host, from a number of the class, and changes a weight after five."""

    steps = 0

    def forward(self, student, teacher, batch):
        self.steps += 1
        terms = super().forward(student, teacher, batch)
        return {**terms, "ce": (terms["ce"][0], 1.0 if self.steps < 6 else 0.5)}


def test_a_repeated_epoch_is_counted_once(replayed):
    assert replayed(CountsSteps).tapes == 1


class Joins(Distils):
    """Its adapter is trained when it is told so."""

    late = False

    def forward(self, student, teacher, batch):
        terms = super().forward(student, teacher, batch)
        return terms if self.late else {**terms, "hint": (terms["ce"][0], 0.0)}


def test_what_the_optimiser_began_after_a_copy_is_removed(learner, feed, teacher):
    one = learner(Joins(), foreign=(), optimizer={"name": "adamw"})
    trainer, state = one.trainer, one.trainer.optimizer.state
    trainer.begin_epoch()
    first, second, *_ = feed.epoch("main", 0)
    with torch.no_grad():
        shown = teacher.network(first.images, ("logits", "embedding"))
    trainer.step(0, first, shown)
    copy = Snapshot(trainer)
    weight = one.student.network.get_parameter(next(name for name, _ in one.student.network.named_parameters()))
    moment = state[weight]["exp_avg"].clone()
    one.student.method.late = True
    trainer.step(1, second, shown)
    adapted = set(one.student.method.adapter.parameters())
    assert adapted <= state.keys()
    copy.restore()
    assert not adapted & state.keys()
    assert torch.equal(state[weight]["exp_avg"], moment)
    assert state[weight]["step"] == 1
    assert not one.student.method.late


def test_a_wrong_replay_is_seen_by_its_numbers(learner, train, heard, tmp_path):
    """One that leaves out an operation: as a graph that lost a kernel."""

    def make_recorder(generators):
        def recorder(action):
            tape = record(action)
            tape._kept = [one for one in tape._kept if "_fused_sgd_" not in str(one.function)]
            return tape

        return recorder

    train(learner(Distils(), "a", "executed", epochs=EPOCHS, foreign=()))
    train(learner(Distils(), "a", "replayed", epochs=EPOCHS, foreign=()), make_recorder=make_recorder)
    assert equal(weights(tmp_path, "executed"), weights(tmp_path, "replayed"))


def test_a_step_that_cannot_be_recorded_is_executed(learner, train, heard, tmp_path):
    def make_recorder(generators):
        def recorder(action):
            action()
            raise RuntimeError("operation not permitted when stream is capturing")

        return recorder

    train(learner(Distils(), "a", "executed", epochs=2, foreign=()))
    train(learner(Distils(), "a", "replayed", epochs=2, foreign=()), make_recorder=make_recorder)
    assert equal(weights(tmp_path, "executed"), weights(tmp_path, "replayed"))


class Taken:
    """Memory of a recording."""


def test_a_failed_recording_has_no_memory_when_the_step_is_executed(learner, train, heard):
    taken: list[weakref.ref[Taken]] = []
    kept_at_steps: list[bool] = []

    class Looks(Distils):
        def forward(self, student, teacher, batch):
            kept_at_steps.extend(one() is not None for one in taken)
            return super().forward(student, teacher, batch)

    def make_recorder(generators):
        def recorder(action):
            memory = Taken()
            taken.append(weakref.ref(memory))
            raise torch.OutOfMemoryError("planted")

        return recorder

    train(learner(Looks(), "a", epochs=2, foreign=()), make_recorder=make_recorder)
    assert heard.results["a"].executed.startswith("the step cannot be recorded: OutOfMemoryError: planted")
    assert kept_at_steps
    assert not any(kept_at_steps)


def test_a_teacher_that_cannot_be_recorded_is_executed(learner, feed, ours, heard, made_with, tmp_path):
    taken: list[weakref.ref[Taken]] = []
    kept: list[bool] = []

    def make_recorder(generators):
        def recorder(action):
            if generators:
                raise RuntimeError("planted")
            memory = Taken()
            taken.append(weakref.ref(memory))
            action()
            raise RuntimeError("planted")

        return recorder

    look = ours.network.register_forward_hook(lambda *_: kept.extend(one() is not None for one in taken))
    for name, options in {"executed": {}, "replayed": {"make_recorder": make_recorder}}.items():
        one = learner(Distils(), "a", name, foreign=())
        Lockstep([one], feed, ours, heard, checkpoint_every=1, **made_with, **options).run()
    look.remove()
    assert len(taken) == 1
    # In the recording, and never again.
    assert kept.count(True) == 1
    assert len(kept) > 2
    assert equal(weights(tmp_path, "executed"), weights(tmp_path, "replayed"))


@pytest.mark.parametrize("planted", [False, True])
def test_the_first_step_of_sgd_is_as_the_others(planted, monkeypatch):
    if planted:
        monkeypatch.setattr("kdbench.engine.optimizer.with_momentum", lambda optimizer: optimizer)
    weight = nn.Parameter(torch.ones(3))
    optimizer = make_optimizer(Parts.of(Recipe(epochs=1)), {"weight": weight}, 0.1)
    traces = []
    for _ in range(2):
        weight.grad = torch.ones(3)
        with Trace() as trace:
            optimizer.step()
        traces.append(trace)
    assert (traces[0].unlike(traces[1]) is not None) is planted


# ---- the tape


def test_a_tape_replays_on_new_inputs():
    x, total = torch.zeros(4, 3), torch.zeros(3)
    weight = torch.ones(3, 2, requires_grad=True)

    def action():
        weight.grad = None
        y = (x.t().reshape(3, 4).square().sum(1) @ weight).relu().sum()
        y.backward()
        total.add_(weight.grad.sum(1))

    tape = record(action)
    for value in (1.0, 2.0):
        x.fill_(value)
        tape.replay()
    # d/dw of relu(sum_i s_i w_ij), s_i = 4 value^2, summed over two columns.
    assert total.tolist() == [2 * 4 * (1.0 + 4.0)] * 3


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (lambda x: x.sum().item(), "the host reads"),
        (lambda x: x[x > 0], "the shape of its result"),
        (lambda x: x.nonzero(), "the shape of its result"),
        (lambda x: x + torch.tensor(2.0), "numbers of the host"),
        (lambda x: torch.linalg.svd(x), "its status"),
        (lambda x: x.to("meta"), "a copy between host and device"),
        (lambda x: torch.empty(3, 3, device="meta").copy_(x), "a copy between host and device"),
        (lambda x: x.double().copy_(x), None),
        (lambda x: x[torch.arange(2)], None),
    ],
)
def test_obstacles(action, reason):
    with Trace() as trace:
        action(torch.eye(3))
    assert (trace.obstacle is None) if reason is None else (reason in trace.obstacle)


@pytest.mark.parametrize(("value", "other"), [(torch.nan, None), (torch.inf, None), (0.5, 0.25), (0.0, -0.0)])
def test_numbers_of_two_steps(value, other):
    """Also those that are not equal to themselves are the same at both steps."""
    traces = []
    for number in (value, value if other is None else other):
        with Trace() as trace:
            torch.ones(3).masked_fill_(torch.ones(3) > 0, number)
        traces.append(trace)
    found = traces[0].unlike(traces[1])
    expected = None if other is None else f"aten.masked_fill_.Scalar gets {value} at one step, {other} at another"
    assert found == expected


def test_draws():
    with Trace() as trace:
        torch.ones(3).sum()
    assert not trace.draws
    with trace:
        torch.nn.functional.dropout(torch.ones(3), 0.5)
    assert trace.draws


def test_what_one_rounding_of_bf16_makes_is_alike_and_a_lost_update_is_not(learner):
    copy = Snapshot(learner(Distils(), foreign=()).trainer)
    before = copy.tensors["modules.method.adapter.0.weight"]

    def changed(by: float) -> dict[str, Tensor]:
        return {"modules.method.adapter.0.weight": before + by}

    assert copy.unlike(changed(0.1), changed(0.1 * (1 + 2**-8))) is None
    assert copy.unlike(changed(0.1), changed(0.0)) == "modules.method.adapter.0.weight differs by 1 of its change"
    assert copy.unlike(changed(0.1), changed(0.09)) == "modules.method.adapter.0.weight differs by 0.1 of its change"


class AlternatesOnTheHost(Distils):
    """Every second step has another operation."""

    steps = 0

    def forward(self, student, teacher, batch):
        self.steps += 1
        terms = super().forward(student, teacher, batch)
        return terms if self.steps % 2 else {**terms, "ce": (terms["ce"][0].exp().log(), 1.0)}


def test_steps_that_take_turns_are_executed(replayed):
    assert replayed(AlternatesOnTheHost).tapes == 0


@pytest.mark.parametrize("planted", [False, True])
def test_a_wrong_recording_of_the_teacher_is_seen_at_its_first_replay(planted):
    recordings = []

    def recorder(action):
        tape = record(action)
        if planted:
            tape._kept = [one for one in tape._kept if "mul" not in str(one.function)]
        recordings.append(Counting(tape, counts))
        return recordings[-1]

    counts = Recorders()
    outputs, images = FixedOutputs(recorder), torch.zeros(2, 3)
    for step in range(6):
        images.fill_(step)
        shown = outputs.show(images, (), lambda: {"logits": images * 2})
        assert torch.equal(shown["logits"], torch.full((2, 3), 2.0 * step))
    # The fourth pass is recorded; a wrong recording is replayed once.
    assert (len(recordings), counts.replays) == (1, 1 if planted else 2)
