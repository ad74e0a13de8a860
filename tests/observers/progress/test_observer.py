from __future__ import annotations

import dataclasses
import io
import math
import re
from typing import Any

import pytest
from rich.console import Console

from kdbench.hookspecs import hookimpl
from kdbench.observers.progress import ProgressObserver
from kdbench.observers.progress.text import clock_time, in_columns, time_left
from kdbench.results import Cost, DataUsed, Environment, EpochRecord, TeacherRecord, TeacherResult
from kdbench.status import Status

METHODS_30 = [f"method_{number:02}" for number in range(30)]


def plain(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=width)


def terminal() -> Console:
    environment = {"TERM": "xterm"}
    return Console(
        file=io.StringIO(), force_terminal=True, width=80, height=40, color_system=None, _environ=environment
    )


def output(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def train(run: Any, trials: list[Any], epochs: int, clock: Any, seconds: float = 2.0) -> None:
    for one in trials:
        run.begin(one)
    for epoch in range(1, epochs + 1):
        clock.advance(seconds)
        for one in trials:
            run.epoch(one, epoch, seconds=seconds / len(trials), metrics={"top1": min(99.0, 80.0 + epoch)})
            if epoch == epochs:
                run.finish(one)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "00:00"), (41.4, "00:41"), (125, "02:05"), (3661, "1:01:01"), (-3, "00:00")]
)
def test_clock_time(seconds: float, shown: str) -> None:
    assert clock_time(seconds) == shown


def test_clock_time_unknown() -> None:
    assert clock_time(None) == "--:--"


def test_time_left() -> None:
    assert time_left([]) == "--:-- left"
    assert time_left([41.0]) == "00:41 left"
    assert time_left([41.0, 123.0]) == "00:41 left (02:03 in all)"
    assert time_left([41.0, 41.0]) == "00:41 left"


def test_columns_align_and_fit() -> None:
    groups = {"resnet8": [f"{name} 93.1" for name in METHODS_30], "vgg8": ["none 90.0"]}
    lines = in_columns(groups, 80)
    assert max(map(len, lines)) <= 80
    assert len(lines) == 8 + 1
    assert " ".join(" ".join(lines).split()).count("93.1") == 30
    starts = {[match.start() for match in re.finditer("method_", line)][1] for line in lines[:7]}
    assert len(starts) == 1
    assert lines[0].startswith("  resnet8  method_00")
    assert lines[8].startswith("  vgg8")


def test_a_cell_wider_than_the_screen_has_its_own_line() -> None:
    assert in_columns({"a": ["x" * 30, "y"]}, 20) == ["  a  " + "x" * 30, "     y"]


def test_no_cells_no_lines() -> None:
    assert in_columns({}, 80) == []


def test_plain_lines_of_a_cohort(pretend: Any, trial: Any, clock: Any) -> None:
    console = plain()
    trials = [trial(label, epochs=5) for label in ("none", "kd")]
    run = pretend(trials, ProgressObserver(console, clock))
    run.start()
    train(run, trials, 5, clock)
    run.end()
    assert output(console) == [
        "resnet20:resnet8, seed 0  main 1/5  00:08 left  none 81.0  kd 81.0",
        "resnet20:resnet8, seed 0  main 2/5  00:06 left  none 82.0  kd 82.0",
        "resnet20:resnet8, seed 0  main 3/5  00:04 left  none 83.0  kd 83.0",
        "resnet20:resnet8, seed 0  main 4/5  00:02 left  none 84.0  kd 84.0",
        "resnet20:resnet8, seed 0  main 5/5  00:00 left  none 85.0  kd 85.0",
        "tiny: 2 pending in 00:10",
    ]


def test_later_cohorts_are_counted_in_all(pretend: Any, trial: Any, clock: Any) -> None:
    console = plain()
    first, second = [[trial(label, seed=seed, epochs=3) for label in ("none", "kd")] for seed in (0, 1)]
    run = pretend([*first, *second], ProgressObserver(console, clock))
    run.start()
    train(run, first, 3, clock)
    heads = [line for line in output(console) if "main" in line]
    assert heads == [
        "resnet20:resnet8, seed 0  main 1/3  00:04 left (00:10 in all)",
        "resnet20:resnet8, seed 0  main 2/3  00:02 left (00:08 in all)",
        "resnet20:resnet8, seed 0  main 3/3  00:00 left (00:06 in all)",
    ]
    train(run, second, 3, clock)
    assert output(console)[-1] == "resnet20:resnet8, seed 1  main 3/3  00:00 left  none 83.0  kd 83.0"


def test_trials_that_were_not_chosen_are_not_waited_for(pretend: Any, trial: Any, clock: Any) -> None:
    console = plain()
    kd, other = trial("kd", epochs=3), trial("kd", seed=1, epochs=3)
    run = pretend([kd, other], ProgressObserver(console, clock))
    run.info = dataclasses.replace(run.info, chosen=frozenset({kd.id}))
    run.start()
    train(run, [kd], 3, clock)
    assert not [line for line in output(console) if "in all" in line]


def test_long_cohorts_get_ten_lines(pretend: Any, trial: Any, clock: Any) -> None:
    console = plain()
    kd = trial("kd", epochs=240)
    run = pretend([kd], ProgressObserver(console, clock))
    run.start()
    train(run, [kd], 240, clock)
    epochs = [int(found[1]) for line in output(console) if (found := re.search(r"main (\d+)/240", line))]
    assert epochs == list(range(24, 241, 24))


def test_slow_epochs_get_a_line_each(pretend: Any, trial: Any, clock: Any) -> None:
    console = plain()
    kd = trial("kd", epochs=240)
    run = pretend([kd], ProgressObserver(console, clock))
    run.start()
    train(run, [kd], 24, clock, seconds=61.0)
    assert len(output(console)) == 24
    assert "main 1/240  4:02:59 left" in output(console)[0]


def test_thirty_methods_and_two_students_fit_80_columns(pretend: Any, trial: Any, clock: Any) -> None:
    console = plain()
    trials = [trial(label, student=s, epochs=1) for s in ("resnet8", "vgg8") for label in METHODS_30]
    run = pretend(trials, ProgressObserver(console, clock))
    run.start()
    train(run, trials, 1, clock)
    lines = output(console)
    assert lines[0] == "resnet20, seed 0  main 1/1  00:00 left"
    assert len(lines) == 1 + 8 + 8
    assert max(map(len, lines)) <= 80
    assert sum(line.count(" 81.0") for line in lines) == 60


def test_stages_before_the_main_one(pretend: Any, trial: Any, clock: Any) -> None:
    console = plain()
    none, ab = trial("none", epochs=2), trial("ab", epochs=2)
    run = pretend([none, ab], ProgressObserver(console, clock))
    run.start()
    run.begin(none)
    run.begin(ab)
    for epoch in (1, 2, 3):
        clock.advance(45.0)
        run.epoch(ab, epoch, stage="boundary", seconds=45.0)
    clock.advance(10.0)
    run.epoch(none, 1, seconds=4.0)
    run.epoch(ab, 1, seconds=5.0)
    assert output(console) == [
        "resnet20:resnet8, seed 0  boundary 2  --:-- left  none -  ab -",
        "resnet20:resnet8, seed 0  main 1/2  00:09 left  none 91.0  ab 91.0",
    ]


def test_failure_and_divergence_are_shown_without_waiting(pretend: Any, trial: Any, clock: Any) -> None:
    console = plain(width=120)
    none, kd, rkd = trials = [trial(label, epochs=2) for label in ("none", "kd", "rkd")]
    run = pretend(trials, ProgressObserver(console, clock))
    run.start()
    for one in trials:
        run.begin(one)
    run.epoch(none, 1)
    run.epoch(kd, 1, train_loss=math.inf, metrics={"top1": math.nan})
    run.finish(kd, status=Status.DIVERGED)
    run.fail(rkd, "no tap [bold]'x'[/bold]\nat all")
    run.epoch(none, 2)
    assert output(console) == [
        "failed rkd on resnet20:resnet8, seed 0: no tap [bold]'x'[/bold] at all",
        "resnet20:resnet8, seed 0  main 1/2  00:00 left  none 91.0  kd diverged  rkd failed",
        "resnet20:resnet8, seed 0  main 2/2  00:00 left  none 92.0  kd diverged  rkd failed",
    ]


def test_going_on_from_different_checkpoints(pretend: Any, trial: Any, clock: Any) -> None:
    console = plain()
    none, kd = trial("none", epochs=4), trial("kd", epochs=4)
    first = pretend([none, kd])
    first.begin(none)
    for epoch in (1, 2, 3):
        first.epoch(none, epoch)
    run = pretend([none, kd], ProgressObserver(console, clock))
    run.start()
    run.begin(none, kept=3)
    run.begin(kd)
    for epoch in (1, 2, 3):
        clock.advance(2.0)
        run.epoch(kd, epoch)
    clock.advance(4.0)
    run.epoch(none, 4)
    run.epoch(kd, 4)
    # none waits, with the accuracy that it had, until kd has caught up.
    assert output(console) == [
        "resnet20:resnet8, seed 0  main 1/4  00:08 left  none 93.0  kd 91.0",
        "resnet20:resnet8, seed 0  main 2/4  00:06 left  none 93.0  kd 92.0",
        "resnet20:resnet8, seed 0  main 3/4  00:04 left  none 93.0  kd 93.0",
        "resnet20:resnet8, seed 0  main 4/4  00:00 left  none 94.0  kd 94.0",
    ]


def test_skipped_is_said_once_for_all_seeds(pretend: Any, trial: Any, clock: Any) -> None:
    console = plain()
    trials = [trial("ab", seed=seed, status="skipped") for seed in (0, 1, 2)]
    run = pretend(trials, ProgressObserver(console, clock))
    run.start()
    for one in trials:
        run.hook.kdbench_trial_skipped(trial=one, reason="ab needs pre-activation taps", run=run.info)
    run.end()
    assert output(console) == [
        "skipped ab on resnet20:resnet8: ab needs pre-activation taps",
        "tiny: 3 skipped",
    ]


def teach(run: Any, clock: Any, epochs: int) -> None:
    teacher = TeacherRecord(name="resnet20", key="k", model="resnet20", epochs=epochs)
    run.hook.kdbench_teacher_started(teacher=teacher, run=run.info)
    for epoch in range(1, epochs + 1):
        clock.advance(3.0)
        record = EpochRecord(epoch=epoch, stage="main", train_loss=1.0, metrics={"top1": 90.0 + epoch}, seconds=3.0)
        run.hook.kdbench_teacher_epoch_finished(teacher=teacher, record=record, run=run.info)
    result = TeacherResult(
        id="k",
        status=Status.DONE,
        epoch=epochs,
        metrics={"top1": 98.25},
        cost=Cost(seconds=3.0, teacher_seconds=0.0, extra_epochs=0),
        data=DataUsed(name="digits", fingerprint="f"),
        environment=Environment(device="cpu"),
        finished="2026-01-01T00:00:00+00:00",
    )
    run.hook.kdbench_teacher_finished(teacher=teacher, result=result, run=run.info)


def test_teachers_of_one_name_are_shown_with_their_seeds(pretend: Any, trial: Any, clock: Any) -> None:
    console = plain()
    trials = []
    for seed in (0, 1):
        one = trial("kd", seed=seed)
        trials.append(
            dataclasses.replace(one, teacher=dataclasses.replace(one.teacher, seed=seed, is_one_of_several=True))
        )
    run = pretend(trials, ProgressObserver(console, clock))
    run.start()
    record = TeacherRecord.of(trials[1].teacher)
    run.hook.kdbench_teacher_started(teacher=record, run=run.info)
    run.hook.kdbench_teacher_finished(teacher=record, result=None, run=run.info)
    assert output(console) == ["teacher resnet20, seed 1: ready"]


def test_a_teacher(pretend: Any, trial: Any, clock: Any) -> None:
    console = plain()
    run = pretend([trial("kd")], ProgressObserver(console, clock))
    run.start()
    teach(run, clock, 2)
    assert output(console) == [
        "teacher resnet20  1/2  00:03 left  91.0",
        "teacher resnet20  2/2  00:00 left  92.0",
        "teacher resnet20: 98.25 % test accuracy",
    ]


def test_validation_accuracy_alone_is_shown_where_it_selects(pretend: Any, trial: Any, clock: Any) -> None:
    console = plain(width=120)
    trials = [validated(trial(label, epochs=2)) for label in ("none", "kd")]
    run = pretend(trials, ProgressObserver(console, clock))
    run.start()
    for epoch in (1, 2):
        recipe = trials[0].recipe.model_dump(mode="json")
        teacher = TeacherRecord(name="resnet20", key="k", model="resnet20", epochs=2, recipe=recipe)
        accuracy = {"metrics": {"top1": 95.0}, "validation": {"top1": 70.0 + epoch}}
        record = EpochRecord(epoch=epoch, stage="main", train_loss=1.0, seconds=3.0, **accuracy)
        if epoch == 1:
            run.hook.kdbench_teacher_started(teacher=teacher, run=run.info)
        run.hook.kdbench_teacher_epoch_finished(teacher=teacher, record=record, run=run.info)
    for one in trials:
        run.begin(one)
    for epoch in (1, 2):
        for one in trials:
            run.epoch(one, epoch, metrics={"top1": 95.0}, validation={"top1": 80.0 + epoch})
    assert output(console) == [
        "teacher resnet20  1/2  00:00 left  71.0",
        "teacher resnet20  2/2  00:00 left  72.0",
        "resnet20:resnet8, seed 0  main 1/2  validation accuracy  00:00 left  none 81.0  kd 81.0",
        "resnet20:resnet8, seed 0  main 2/2  validation accuracy  00:00 left  none 82.0  kd 82.0",
    ]


def test_after_a_resume_validation_accuracy_alone_is_shown(pretend: Any, trial: Any, clock: Any) -> None:
    kd, none = validated(trial("kd", epochs=3)), validated(trial("none", epochs=3))
    first = pretend([kd])
    first.begin(kd)
    first.epoch(kd, 1, metrics={"top1": 95.0}, validation={"top1": 81.0})
    console = plain(width=120)
    run = pretend([kd, none], ProgressObserver(console, clock))
    run.start()
    run.begin(kd, kept=1)
    run.begin(none)
    run.epoch(none, 1, metrics={"top1": 96.0}, validation={"top1": 82.0})
    assert [line.partition("left  ")[2] for line in output(console)] == ["kd 81.0  none 82.0"]


def validated(one: Any) -> Any:
    return dataclasses.replace(one, recipe=one.recipe.model_copy(update={"selection": "validation"}))


def test_interruption_is_said(pretend: Any, trial: Any, clock: Any) -> None:
    console = plain()
    kd = trial("kd")
    run = pretend([kd], ProgressObserver(console, clock))
    run.start()
    run.begin(kd)
    clock.advance(90)
    run.end(interrupted=True)
    assert output(console) == ["tiny: stopped early; 1 pending in 01:30"]


def test_trials_trained_in_this_run_are_counted_separately(pretend: Any, trial: Any, clock: Any) -> None:
    console = plain()
    before, now = trial("kd", status=Status.DONE), trial("vid", epochs=1)
    run = pretend([before, now], ProgressObserver(console, clock))
    run.start()
    run.begin(now)
    clock.advance(3)
    run.epoch(now, 1)
    run.finish(now)
    run.plan = run.plan.with_trials([before, now.with_status(Status.DONE)])
    run.end()
    assert output(console)[-1] == "tiny: 2 done; 1 trained now in 00:03"


def screen(console: Console) -> str:
    """What was written to a terminal, without its control sequences."""
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).replace("\r", "\n")


def test_a_terminal_gets_a_live_table_and_keeps_a_line_a_cohort(pretend: Any, trial: Any, clock: Any) -> None:
    console = terminal()
    cohorts = [[trial(label, seed=seed, epochs=30) for label in METHODS_30] for seed in (0, 1)]
    observer = ProgressObserver(console, clock)
    run = pretend([*cohorts[0], *cohorts[1]], observer)
    run.start()
    teach(run, clock, 2)
    for trials in cohorts:
        train(run, trials, 30, clock)
        assert observer._live is not None
        observer._live.refresh()
    run.end()
    text = screen(console)
    assert "cohort 1 of 2: resnet20:resnet8, seed 0  main 30/30" in text
    assert max(map(len, text.splitlines())) <= 80
    # What stays on the screen: the teacher's last line, and one table a cohort.
    stays = [line for line in text.splitlines() if line.startswith("resnet20:resnet8, seed")]
    assert stays == [
        "resnet20:resnet8, seed 0  main 30/30  00:00 left (01:00 in all)",
        "resnet20:resnet8, seed 1  main 30/30  00:00 left",
    ]
    assert observer._live is None
    observer.close()


def test_the_live_table_counts_down(clock: Any, pretend: Any, trial: Any) -> None:
    console = terminal()
    kd = trial("kd", epochs=10)
    observer = ProgressObserver(console, clock)
    run = pretend([kd], observer)
    run.start()
    run.begin(kd)
    clock.advance(10.0)
    run.epoch(kd, 1, seconds=10.0)
    assert observer._live is not None
    view = observer._live.renderable
    shown = Console(file=io.StringIO(), width=80)
    shown.print(view)
    clock.advance(30.0)
    shown.print(view)
    observer.close()
    assert output(shown) == [
        "resnet20:resnet8, seed 0  main 1/10  01:30 left",
        "  resnet8  kd 91.0",
        "resnet20:resnet8, seed 0  main 1/10  01:00 left",
        "  resnet8  kd 91.0",
    ]


def test_the_live_table_is_gone_when_others_end(clock: Any, pretend: Any, trial: Any) -> None:
    observer = ProgressObserver(terminal(), clock)
    seen: list[object] = []

    class Slow:
        @hookimpl
        def kdbench_suite_finished(self) -> None:
            seen.append(observer._live)

    kd = trial("kd")
    run = pretend([kd], Slow(), observer, Slow())
    run.start()
    run.begin(kd)
    assert observer._live is not None
    run.end()
    assert seen == [None, None]


def test_each_worker_has_a_lane(clock: Any, pretend: Any, trial: Any) -> None:
    console = terminal()
    first, second = trial("kd", epochs=10), trial("kd", seed=1, epochs=10)
    observer = ProgressObserver(console, clock)
    run = pretend([first, second], observer)
    run.start()
    workers = [dataclasses.replace(run.info, worker=number, device=f"cuda:{number - 1}") for number in (1, 2)]
    for one, run.info in zip((first, second), workers, strict=True):
        run.begin(one)
    clock.advance(10.0)
    for one, epoch, run.info in zip((first, second), (1, 1), workers, strict=True):
        run.epoch(one, epoch, seconds=10.0)
    clock.advance(10.0)
    run.info = workers[1]
    run.epoch(second, 2, seconds=10.0)
    assert observer._live is not None
    shown = Console(file=io.StringIO(), width=80)
    shown.print(observer._live.renderable)
    observer.close()
    # 80 and 90 seconds of work are left, for two workers at the same time.
    assert output(shown) == [
        "cohort 1 of 2: worker 1 (cuda:0)  resnet20:resnet8, seed 0  main 1/10  01:20 le…",
        "  resnet8  kd 91.0",
        "cohort 2 of 2: worker 2 (cuda:1)  resnet20:resnet8, seed 1  main 2/10  01:20 le…",
        "  resnet8  kd 92.0",
    ]
