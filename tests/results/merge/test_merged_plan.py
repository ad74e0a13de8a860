"""The plan of merged results: that of all where they agree, else the newest."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from kdbench.results import PlanRecord, SuiteFolder
from kdbench.results.merge.merged_plan import merge_plans
from kdbench.status import Status
from kdbench.suite.plan import PROTOCOL

METHODS = ("none", "kd", "vid")
PAIRS = (("big", "small"), ("big", "tiny"))


def plan(day: int, methods=METHODS, seeds=(0, 1), pairs=PAIRS, **changes) -> PlanRecord:
    rows = [
        {"id": f"{t}-{s}-{m}-{n}", "teacher": t, "student": s, "method": m, "label": m, "seed": n}
        for t, s in pairs
        for m in methods
        for n in seeds
    ]
    suite = {
        "name": "x", "question": "?", "data": {"name": "digits"}, "recipe": {"epochs": 3}, "baselines": ["none", "kd"],
        "pairs": [{"teacher": t, "student": s} for t, s in pairs], "seeds": list(seeds),
        "methods": [{"name": m, "label": ""} for m in methods], **changes.pop("suite", {}),
    }  # fmt: skip
    content = {
        "protocol": PROTOCOL, "suite": suite, "path": "x.toml", "trials": rows,
        "teachers": [{"name": "big", "key": "k"}], "updated": f"2026-01-{day:02}T00:00:00+00:00",
    }  # fmt: skip
    return PlanRecord.model_validate(content | changes)


def merged(*plans: PlanRecord):
    return merge_plans("x", [(Path(f"lab{number}"), one) for number, one in enumerate(plans)])


def rows(found: PlanRecord) -> list[tuple[str, str, int]]:
    return [(row.student, row.label, row.seed) for row in found.trials]


def test_equal_plans_stay_but_for_dates_and_states():
    found = merged(plan(1), plan(3), plan(2))
    assert found.remarks == ()
    assert found.plan == plan(3)


def test_methods_pairs_and_seeds_are_united_in_report_order():
    plans = (
        plan(1, ("none", "kd"), (2, 3), PAIRS[:1]),
        plan(2, ("none", "vid"), (0, 1), PAIRS),
        plan(3, ("none", "kd", "vid"), (0,), PAIRS[1:]),
    )
    found = merged(*plans)
    assert found.remarks == ()
    assert found.plan.suite["seeds"] == [0, 1, 2, 3]
    assert [row["name"] for row in found.plan.suite["methods"]] == ["none", "kd", "vid"]
    assert [row["student"] for row in found.plan.suite["pairs"]] == ["small", "tiny"]
    assert {row.id for row in found.plan.trials} == {row.id for one in plans for row in one.trials}
    order = [(s, m, n) for _, s in PAIRS for m in METHODS for n in range(4)]
    assert rows(found.plan) == [row for row in order if row in rows(found.plan)]
    assert merged(found.plan, *plans).plan == found.plan


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_trials_and_seeds_do_not_depend_on_the_order_of_the_folders(order):
    plans = [plan(1, seeds=(4, 5)), plan(2, seeds=(0, 1)), plan(3, seeds=(2, 3))]
    found = merged(*(plans[index] for index in order)).plan
    assert found == merged(*plans).plan


DIFFERENT = {
    "recipe": {"suite": {"recipe": {"epochs": 4}}},
    "baselines": {"suite": {"baselines": ["kd"]}},
    "data": {"suite": {"data": {"name": "cifar10"}}, "teachers": [{"name": "other", "key": "l"}]},
    "pairs": {"suite": {"pairs": [{"teacher": "big", "student": "small", "recipe": {"lr": 1.0}}]}},
    "methods": {"suite": {"methods": [{"name": "kd", "label": "", "temperature": 8.0}]}},
    "teachers": {"teachers": [{"name": "big", "key": "other"}]},
}


@pytest.mark.parametrize("key", DIFFERENT)
def test_plans_that_contradict_each_other_are_not_mixed(key):
    newest = plan(9, ("none",), **DIFFERENT[key])
    found = merged(plan(1), newest, plan(2))
    assert found.plan == newest
    assert found.remarks == (
        f"x: the plans of lab1 and lab0, lab2 differ in {key}; plan.json is the newest, that of lab1 "
        "(2026-01-09T00:00:00+00:00)",
    )


def test_one_name_of_two_trials_and_two_names_of_one_are_contradictions():
    row = {"teacher": "big", "student": "small", "method": "none", "label": "none", "seed": 0}
    one = plan(1, trials=[{**row, "id": "a"}])
    assert "the ids of trials" in merged(one, plan(2, trials=[{**row, "id": "b"}])).remarks[0]
    assert "the names of trials" in merged(one, plan(2, trials=[{**row, "id": "a", "label": "x"}])).remarks[0]


def test_another_folder_of_the_same_images_is_no_contradiction():
    plans = [plan(day, suite={"data": {"name": "image_folder", "root": f"/home/{day}"}}) for day in (1, 2)]
    found = merged(*plans)
    assert (found.remarks, found.plan.suite["data"]["root"]) == ((), "/home/2")


def test_what_changes_no_trial_is_that_of_the_newest_and_lists_are_united():
    one = plan(
        1, suite={"question": "Old?", "plugins": ["a.py"], "teachers": {"big": {"expected_top1": 1}}},
        plugins=["p.py"], metrics=[{"name": "m"}],
    )  # fmt: skip
    two = plan(
        2, suite={"question": "New?", "plugins": ["b.py"], "teachers": {"big": {"expected_top1": 2}}},
        plugins=["q.py"], metrics=[{"name": "m"}, {"name": "n"}],
    )  # fmt: skip
    found = merged(two, one)
    assert found.remarks == ()
    assert found.plan.suite["question"] == "New?"
    assert found.plan.suite["plugins"] == ["b.py", "a.py"]
    assert found.plan.suite["teachers"] == {"big": {"expected_top1": 2}}
    assert found.plan.plugins == ("q.py", "p.py")
    assert [metric.name for metric in found.plan.metrics] == ["m", "n"]


def test_overrides_that_only_one_machine_had_are_left_out_and_seeds_are_those_of_all():
    one = plan(1, seeds=(0, 1), overrides=["recipe.epochs=3", "seeds=[0,1]"])
    two = plan(2, seeds=(2,), overrides=["recipe.epochs=3", "seeds=[2]", "question=x"])
    assert merged(one, two).plan.overrides == ("recipe.epochs=3", "seeds=[0, 1, 2]")


def with_teachers(day: int, seeds, teacher_seeds: str, of_teachers=None, **changes) -> PlanRecord:
    """A plan with a teacher for each of the given seeds."""
    of_teachers = seeds if of_teachers is None else of_teachers
    return plan(
        day, seeds=seeds, suite={"teacher_seeds": teacher_seeds},
        teachers=[{"name": "big", "key": f"k{seed}", "seed": seed} for seed in of_teachers], **changes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "two", "united", "overrides"),
    [
        # Seed by seed, each machine has one teacher.
        (((0,), "single"), ((1, 2), "with_seeds"), "with_seeds", ()),
        (((1, 2), "with_seeds"), ((0,), "single"), "with_seeds", ()),
        (((0,), "single"), ((1,), "with_seeds"), "with_seeds", ()),
        (((0,), "single", (0,)), ((1,), "single", (0,)), "single", ("teacher_seeds=single",)),
        (((0,), "with_seeds"), ((1, 2), "single", (0,)), "single", ("teacher_seeds=single",)),
        (((0, 1), "with_seeds"), ((2, 3), "with_seeds"), "with_seeds", ()),
    ],
)
def test_teachers_of_several_machines_are_united(one, two, united, overrides):
    plans = [with_teachers(day, *given, overrides=[f"seeds={given[0]}"]) for day, given in ((1, one), (2, two))]
    found = merged(*plans)
    assert found.remarks == ()
    assert found.plan.suite["teacher_seeds"] == united
    assert found.plan.overrides[1:] == overrides
    assert found.plan.overrides[0] == f"seeds={found.plan.suite['seeds']}"
    seeds = {row.seed for given in plans for row in given.teachers}
    assert {row.seed for row in found.plan.teachers} == seeds
    assert len(found.plan.teachers) == len(seeds)


@pytest.mark.parametrize("teachers", [((0, 1), "with_seeds"), ((1,), "with_seeds")])
def test_one_teacher_for_all_and_one_for_each_seed_do_not_agree(teachers):
    found = merged(with_teachers(1, (2, 3), "single", (0,)), with_teachers(2, *teachers))
    assert found.plan == with_teachers(2, *teachers)
    assert "differ in teacher_seeds; plan.json is the newest" in found.remarks[0]


def test_seeds_in_an_order_of_their_own_stay_where_all_agree():
    seeds = [3, 1, 2]
    assert merged(plan(1, seeds=seeds), plan(2, seeds=seeds)).plan.suite["seeds"] == seeds


def test_skipped_trials_stay_skipped_and_states_are_those_of_the_folder(lab):
    from kdbench.results.merge import merge

    machine = lab("one")
    machine.train("none")
    machine.interrupt("kd")
    machine.planned("ab", status=Status.SKIPPED, reason="cannot read it")
    machine.write_plan()
    merge([machine.output], machine.output.parent / "all")
    found = SuiteFolder(machine.output.parent / "all", "small").plan
    assert [(row.label, row.status, row.reason) for row in found.trials] == [
        ("none", "done", ""), ("kd", "pending", ""), ("ab", "skipped", "cannot read it"),
    ]  # fmt: skip


def test_trials_that_the_newest_plan_does_not_name_are_merged_and_named(lab):
    from kdbench.recipe import Recipe
    from kdbench.results.merge import merge

    one, other = lab("one"), lab("two")
    old = one.train("kd")
    one.write_plan()
    other.day = 2
    other.train_teacher()
    other.recipe = Recipe(epochs=20)
    new = other.train("kd")
    other.write_plan()
    into = one.output.parent / "all"
    done = merge([one.output, other.output], into)
    assert done.complete
    assert done.remarks == [
        f"small: the plans of {other.output} and {one.output} differ in recipe, the ids of trials; plan.json is the "
        f"newest, that of {other.output} (2026-01-02T01:00:00+00:00)",
        f"{into / 'small'}: plan.json does not name 1 trial, which the report leaves out: {old.name}",
    ]
    assert [row.id for row in SuiteFolder(into, "small").plan.trials] == [new.name]
