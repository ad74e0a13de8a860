"""Which trials a process takes: cohorts, parts, and halves of what kills processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.claims import CLAIMS, Claims, HeldError, Holder, Watch
from kdbench.claims.heartbeat import Heartbeat
from kdbench.recipe import Recipe
from kdbench.results import Cost, DataUsed, Environment, Failure, SuiteFolder, TrialRecord
from kdbench.results.equivalent import equivalents
from kdbench.results.state import with_results
from kdbench.run.work import MOST_DEATHS, Part, Work, failures_in
from kdbench.status import Status
from kdbench.suite.plan import Origin, Plan, TeacherPlan, Trial
from kdbench.suite.schema import Suite

RECIPE = Recipe(epochs=10, batch_size=64)
SUITE = Suite.model_validate(
    {
        "name": "s",
        "question": "?",
        "seeds": [0],
        "data": {"name": "digits"},
        "recipe": {"epochs": 10},
        "pairs": [{"teacher": "resnet20", "student": "resnet8"}],
        "methods": [{"name": "none"}],
    }
)


def teacher(name: str) -> TeacherPlan:
    return TeacherPlan(name, name, {"name": "digits"}, RECIPE, None, None, 0)


def trial(method: str, seed: int = 0, of: str = "resnet20") -> Trial:
    return Trial("s", {}, teacher(of), "resnet8", method, method, seed, {}, RECIPE, Origin("kdbench", "1", "1"))


SIX = [trial(f"m{number}") for number in range(6)]


class Process:
    """A process that takes work."""

    def __init__(
        self, output: Path, plan: Plan, parts: int, prepare: Callable[[TeacherPlan], None], *, retries: bool
    ) -> None:
        self.folder = SuiteFolder(output, "s")
        self.plan = plan
        workers = output / CLAIMS / "workers"
        workers.mkdir(parents=True, exist_ok=True)
        self.heartbeat = Heartbeat(workers)
        self.heartbeat.beat()
        claims = Claims(output, self.heartbeat, Watch(workers))
        chosen = [trial.id for trial in plan.trials]
        failures = failures_in(self.now(), self.folder) if retries else {}
        self.work = Work(
            claims, self.folder, chosen, failures, prepare, parts, lambda wanted: equivalents(self.folder, wanted)
        )

    def now(self) -> Plan:
        return with_results(self.plan, self.folder)

    def take(self) -> Part | None:
        return self.work.take(self.now())

    def methods(self) -> list[str]:
        part = self.take()
        return [trial.method for trial in part.trials] if part else []

    def die(self) -> None:
        self.heartbeat.path.unlink()


@pytest.fixture
def process(tmp_path) -> Callable[..., Process]:
    """``process(trials, parts=1, prepare=..., retries=True)``: another process on the same folder."""

    def make(
        trials: list[Trial],
        parts: int = 1,
        prepare: Callable[[TeacherPlan], None] = lambda _: None,
        *,
        retries: bool = True,
    ) -> Process:
        return Process(tmp_path, Plan(SUITE, tuple(trials)), parts, prepare, retries=retries)

    return make


def finish(folder: SuiteFolder, done: Trial) -> None:
    place = folder.trial(done.id)
    place.begin(TrialRecord.of(done))
    place.weights.write_bytes(b"")
    place.finish(
        id=done.id,
        status=Status.DONE,
        epoch=10,
        metrics={"top1": 90.0},
        cost=Cost(seconds=1.0, teacher_seconds=0.0, extra_epochs=0),
        data=DataUsed(name="digits", fingerprint="f"),
        environment=Environment(device="cpu"),
        finished="2026-01-01T00:00:00+00:00",
    )


def fail(folder: SuiteFolder, failed: Trial, message: str) -> None:
    place = folder.trial(failed.id)
    place.begin(TrialRecord.of(failed))
    when = "2026-01-01T00:00:00+00:00"
    place.fail(
        Failure(id=failed.id, stage="main", epoch=1, type="E", message=message, why=message, traceback="", when=when)
    )


def test_each_takes_the_next_cohort(process):
    trials = [trial(method, seed) for seed in range(2) for method in ("none", "kd")]
    first, second, third = (process(trials) for _ in range(3))
    part = first.take()
    assert [(t.method, t.seed) for t in part.trials] == [("none", 0), ("kd", 0)]
    assert [(t.method, t.seed) for t in second.take().trials] == [("none", 1), ("kd", 1)]
    assert third.take() is None
    assert third.work.elsewhere.keys() == {t.id for t in trials}
    part.release()
    assert [(t.method, t.seed) for t in third.take().trials] == [("none", 0), ("kd", 0)]


def test_a_cohort_is_divided_into_parts(process):
    assert [process(SIX, parts=4).methods() for _ in range(4)] == [["m0", "m1"], ["m2", "m3"], ["m4", "m5"], []]


def test_what_was_trained_since_the_plan_was_made_is_not_trained_again(process):
    first = process(SIX[:2])
    before = first.now()
    finish(first.folder, SIX[0])
    assert [t.method for t in first.work.take(before).trials] == ["m1"]


def test_a_teacher_in_training_elsewhere_is_left_for_another_one(process):
    holder = Holder("them", "gpu7", 12, "m", 60.0)

    def prepare(plan: TeacherPlan) -> None:
        if plan.name == "resnet20":
            raise HeldError(plan.key, holder)

    trials = [trial("kd"), trial("kd", of="resnet14")]
    one = process(trials, prepare=prepare)
    assert one.take().cohort.teacher.name == "resnet14"
    assert one.take() is None
    assert one.work.awaited == {"resnet20": holder}


def test_a_failed_trial_is_tried_again_once_by_all(process):
    fail(SuiteFolder(process(SIX).folder.output, "s"), SIX[0], "yesterday")
    first, second = process(SIX[:1]), process(SIX[:1])
    part = first.take()
    fail(first.folder, SIX[0], "today")
    part.release()
    assert [first.take(), second.take()] == [None, None]
    # A run that begins later tries again.
    assert process(SIX[:1]).methods() == ["m0"]


def test_one_that_fails_for_the_first_time_is_not_tried_again(process):
    first, second = process(SIX[:1]), process(SIX[:1])
    part = first.take()
    fail(first.folder, SIX[0], "today")
    part.release()
    assert [first.take(), second.take()] == [None, None]


def test_a_result_that_does_not_last_is_tried_three_times(process):
    one = process(SIX[:1])
    for _ in range(3):
        one.take().release()
    assert one.take() is None


def die_of(process, guilty: str) -> list[list[str]]:
    """Processes take and finish parts until one has given up; those that take ``guilty`` die. What each took."""
    taken = []
    while True:
        one = process(SIX, retries=False)
        while part := one.take():
            taken.append([t.method for t in part.trials])
            if guilty in taken[-1]:
                break
            for done in part.trials:
                finish(one.folder, done)
            part.release()
        if part is None:
            return taken
        if part.deaths:
            assert taken[-1] == [guilty]
            assert part.deaths >= MOST_DEATHS
            fail(one.folder, part.trials[0], "deadly")
            part.release()
            continue
        one.die()


def test_the_trial_that_kills_is_found_by_halves(process):
    assert die_of(process, "m3") == [
        ["m0", "m1", "m2", "m3", "m4", "m5"],
        ["m0", "m1", "m2", "m3", "m4", "m5"],
        ["m0", "m1", "m2"],
        ["m3", "m4", "m5"],
        ["m3", "m4"],
        ["m3"],
        ["m3"],
        ["m4"],
        ["m5"],
    ]


def test_a_lone_trial_that_kills_is_given_up_after_three_deaths(process, monkeypatch):
    monkeypatch.setitem(globals(), "SIX", SIX[:1])
    assert die_of(process, "m0") == [["m0"]] * 4


def test_deaths_between_which_an_epoch_was_finished_do_not_count(process, monkeypatch):
    epochs: list[int] = []
    monkeypatch.setattr("kdbench.results.TrialFolder.epochs", property(lambda folder: epochs))
    for epoch in range(6):
        epochs.append(epoch)
        one = process(SIX)
        assert len(one.take().trials) == 6
        one.die()


def test_stale_trials_are_added_unless_another_process_holds_them(process):
    first, second = process(SIX), process(SIX[:1])
    part = second.take()
    assert first.work.add(part, replace(SIX[1]))
    assert not process(SIX).work.add(part, SIX[1])
    assert part.claims.keys() == {SIX[0].id, SIX[1].id}


def test_trials_that_were_claimed_meanwhile_are_known_to_be_elsewhere(process):
    second = None

    def prepare(plan: TeacherPlan) -> None:
        # While this process loads the teacher, another one takes the cohort.
        nonlocal second
        second = process(SIX)
        assert len(second.take().trials) == 6

    first = process(SIX, prepare=prepare)
    assert first.take() is None
    assert first.work.elsewhere.keys() == {one.id for one in SIX}


BASELINES = [replace(trial("none", of=name), untaught=True) for name in ("resnet20", "resnet14", "resnet32")]
"""Of one student, with three teachers: their training is the same."""
SHARED = [one for baseline in BASELINES for one in (baseline, trial("kd", of=baseline.teacher.name))]


def taken(part: Part | None) -> list[tuple[str, str]]:
    return [(one.teacher.name, one.method) for one in part.trials] if part else []


def test_of_equal_trainings_one_is_trained_and_the_others_are_handed_out_when_it_has_ended(process):
    first, second = process(SHARED), process(SHARED)
    part = first.take()
    assert taken(part) == [("resnet20", "none"), ("resnet20", "kd")]
    others = [second.take(), second.take()]
    assert [taken(one) for one in others] == [[("resnet14", "kd")], [("resnet32", "kd")]]
    assert second.take() is None
    holder = second.work.elsewhere[BASELINES[0].id]
    assert second.work.shared == {"none on resnet20:resnet8, seed 0": holder}
    finish(first.folder, BASELINES[0])
    # Also while its cohort is still in training.
    assert [taken(second.take()) for _ in range(2)] == [[("resnet14", "none")], [("resnet32", "none")]]
    assert second.take() is None
    assert (second.work.shared, second.work.contested) == ({}, False)


def test_if_the_first_one_fails_the_next_is_trained(process):
    one = process(SHARED[::2])
    for number, name in enumerate(("resnet20", "resnet14", "resnet32")):
        part = one.take()
        assert taken(part) == [(name, "none")]
        fail(one.folder, BASELINES[number], "no")
        part.release()
    assert one.take() is None


def test_if_the_process_dies_that_trains_the_first_one_another_takes_over(process):
    first, second = process(SHARED[:2]), process(SHARED[2:])
    assert taken(first.take()) == [("resnet20", "none"), ("resnet20", "kd")]
    # Its plan, or its filters, do not contain the one in training, but the training is claimed, too.
    assert [taken(second.take()) for _ in range(2)] == [[("resnet14", "kd")], [("resnet32", "kd")]]
    assert second.take() is None
    assert list(second.work.shared) == ["none on resnet14:resnet8, seed 0"]
    first.die()
    assert taken(second.take()) == [("resnet14", "none")]
    assert second.take() is None


def test_one_that_has_begun_resumes_and_the_others_wait_for_it(process):
    one = process(SHARED[::2])
    place = one.folder.trial(BASELINES[2].id)
    place.begin(TrialRecord.of(BASELINES[2]))
    place.checkpoint.write_bytes(b"")
    assert taken(one.take()) == [("resnet32", "none")]
    # Even where another process has begun to train an equal one.
    process([BASELINES[0]]).take()
    other = process(SHARED[::2])
    assert other.take() is None
    assert other.work.shared


def test_what_ended_since_the_plan_was_made_is_looked_at_again(process):
    one = process(SHARED[::2])
    before = one.now()
    finish(one.folder, BASELINES[0])
    one.work._adoptable = lambda wanted: ()
    assert one.work.take(before) is None
    # The loop tries again, with a new plan.
    assert one.work.contested
    assert taken(one.take()) == [("resnet14", "none")]
