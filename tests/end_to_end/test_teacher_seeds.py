"""A teacher for each seed, or one for all: what is trained, and from what each student learns."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

SEEDS = "seeds=[0, 1]"
SHORT = [SEEDS, "recipe.epochs=1"]


def students(results):
    """Label and seed -> (the teacher's seed and weights, the student's weights)."""
    found = {}
    for trial in results.plan.trials:
        place = results.folder.trial(trial.id)
        used = place.result.teacher
        found[trial.label, trial.seed] = used.seed, used.sha256, load_file(place.weights)
    return found


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def teachers(output: Path) -> dict[int, str]:
    """Seed -> SHA-256 of the weights."""
    folders = [path for path in (output / "_teachers").iterdir() if (path / "result.json").exists()]
    seeds = [json.loads((path / "teacher.json").read_text())["seed"] for path in folders]
    assert len(set(seeds)) == len(seeds)
    prints = [json.loads((path / "result.json").read_text())["sha256"] for path in folders]
    return dict(zip(seeds, prints, strict=True))


def test_each_student_learns_from_the_teacher_of_its_seed_or_all_from_one(write_suite, run, watch, tmp_path):
    suite = write_suite("none", "kd")
    own = students(run(suite, overrides=SHORT))
    assert watch.heard.count(("teacher started", "resnet8")) == 2
    trained = teachers(tmp_path / "runs")
    assert sorted(trained) == [0, 1]
    assert trained[0] != trained[1]
    assert {key: used[:2] for key, used in own.items()} == {
        (label, seed): (seed, trained[seed]) for label in ("none", "kd") for seed in (0, 1)
    }

    one = students(run(suite, output="single", overrides=[*SHORT, "teacher_seeds=single"]))
    assert watch.heard.count(("teacher started", "resnet8")) == 1
    assert teachers(tmp_path / "single") == {0: trained[0]}
    assert {used[:2] for used in one.values()} == {(0, trained[0])}

    # The student of seed 0 has the same teacher in both, and is the same, bit by bit.
    for label in ("none", "kd"):
        assert equal(own[label, 0][2], one[label, 0][2])
    # Initial weights and the order of images depend on the student's seed, not on its teacher: a student that does
    # not learn from the teacher is the same with any.
    assert equal(own["none", 1][2], one["none", 1][2])
    assert not equal(own["kd", 1][2], one["kd", 1][2])


def test_teachers_are_shared_by_pairs_and_found_again(write_suite, run, watch, tmp_path):
    suite = write_suite(
        "kd", more='[[pairs]]\nteacher = "resnet8"\nstudent = "resnet14"\nrecipe = { batch_size = 32 }\n'
    )
    results = run(suite, overrides=SHORT)
    assert not results.missing
    # Four cohorts, two teachers; each is announced once, though the second pair loads both again.
    assert [heard[0] for heard in watch.heard if heard[0].startswith("teacher")] == [
        "teacher started", "teacher finished", "teacher started", "teacher finished",
    ]  # fmt: skip
    assert len(teachers(tmp_path / "runs")) == 2
    run(suite, overrides=[*SHORT, "seeds=[0, 1, 2]"])
    assert watch.heard.count(("teacher started", "resnet8")) == 1
    assert sorted(teachers(tmp_path / "runs")) == [0, 1, 2]


def test_weights_for_each_seed(write_suite, run, watch, tmp_path):
    trained = run(write_suite("none"), output="first", overrides=SHORT)
    for teacher in trained.plan.teachers:
        source = trained.folder.teacher(teacher.key).weights
        (tmp_path / f"{teacher.seed}.safetensors").write_bytes(source.read_bytes())
    prints = teachers(tmp_path / "first")
    # In the other order: the list is in the order of the seeds.
    given = ['teachers.resnet8.weights=["1.safetensors", "0.safetensors"]', *SHORT]
    found = students(run(write_suite("kd"), overrides=given))
    assert {key: used[:2] for key, used in found.items()} == {("kd", 0): (0, prints[1]), ("kd", 1): (1, prints[0])}
    shared = run(write_suite("kd"), output="shared", overrides=["teachers.resnet8.weights=0.safetensors", *SHORT])
    assert {used[:2] for used in students(shared).values()} == {(0, prints[0])}
    assert shared.folder.plan.shared_teachers == ("resnet8",)
    assert trained.folder.plan.shared_teachers == ()


def test_one_that_is_not_as_expected_is_named_with_its_seed(write_suite, run, tmp_path):
    suite = write_suite("none", more="[teachers.resnet8]\nexpected_top1 = 99.9\ntolerance = 0.05\n")
    warnings: list[str] = []
    run(suite, overrides=SHORT, allow_teacher_mismatch=True, warn=warnings.append)
    assert [warning.partition(" reaches")[0] for warning in warnings] == [
        f"teacher resnet8, seed {seed}:" for seed in (0, 1)
    ]
    [page] = [path.read_text() for path in (tmp_path / "reports").glob("*/index.html")]
    for seed in (0, 1):
        assert f"teacher resnet8, seed {seed}: reaches" in page
        assert f'<th scope="row">resnet8, seed {seed}</th>' in page


def test_the_plan_names_each_teacher_and_its_cost(write_suite, run, kdbench):
    suite = write_suite("none")
    options = [part for override in SHORT for part in ("--set", override)]
    before = kdbench("plan", suite, *options).stdout
    # 96 images in batches of 64: two steps an epoch.
    assert "teacher resnet8, seeds 0, 1: to be trained\n" in before
    assert "to do: 4 steps of 2 teachers, time unknown\nto do: 4 steps of students, time unknown\n" in before
    single = kdbench("plan", suite, *options, "--set", "teacher_seeds=single").stdout
    assert "teacher resnet8: to be trained\nto do: 2 steps of 1 teacher, time unknown\n" in single
    run(suite, overrides=SHORT)
    after = kdbench("plan", suite, "--set", "seeds=[0,1,2]", "--set", "recipe.epochs=1").stdout.splitlines()
    assert after[-5].startswith("teacher resnet8, seed 0: measured ")
    assert after[-4].startswith("teacher resnet8, seed 1: measured ")
    assert after[-3] == "teacher resnet8, seed 2: to be trained"
    assert after[-2].startswith("to do: 2 steps of 1 teacher, about ")
    assert after[-2].endswith(" by the results on cpu")
    listed = json.loads(kdbench("plan", suite, *options, "--json").stdout)["teachers"]
    assert [(row["name"], row["seed"]) for row in listed] == [("resnet8", 0), ("resnet8", 1)]


def test_two_workers_train_a_teacher_each(write_suite, run, tmp_path):
    results = run(write_suite("kd"), overrides=SHORT, jobs=2)
    assert not results.missing
    assert sorted(teachers(tmp_path / "runs")) == [0, 1]
    assert {(seed, used[0]) for (_, seed), used in students(results).items()} == {(0, 0), (1, 1)}
