"""Trials and cohorts: what decides an id, what shares a feed, what is skipped."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import SuiteError
from kdbench.recipe import Part, Recipe
from kdbench.results import TrialRecord
from kdbench.run import open_suite
from kdbench.status import Status
from kdbench.suite.plan import PROTOCOL, Origin, Plan, TeacherPlan, Trial, content_hash, count, feed_key
from kdbench.suite.schema import Suite

RECIPE = Recipe(epochs=10, drops=(5,))
TEACHER = TeacherPlan(
    name="big", model="resnet20", data={"name": "digits"}, recipe=RECIPE, weights=None, weights_sha256=None, seed=0
)
TRIAL = Trial(
    suite="small",
    data={"name": "digits", "train_limit": 128},
    teacher=TEACHER,
    student="resnet8",
    method="kd",
    label="kd",
    seed=1,
    settings={"temperature": 4.0},
    recipe=RECIPE,
    origin=Origin("kdbench", "1.0", "abc"),
)


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({**RECIPE.model_dump(), **changes})


# ---- identity


def test_content_hash_is_that_of_sorted_json() -> None:
    text = '{"a":[1,2.5],"b":{"c":null,"d":"x"}}'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert content_hash({"b": {"d": "x", "c": None}, "a": [1, 2.5]}) == expected[:16]
    assert content_hash({"a": (1, 2.5), "b": {"c": None, "d": "x"}}, 10) == expected[:10]


def test_an_id_is_readable_and_ends_in_the_hash_of_the_identity() -> None:
    identity = {
        "protocol": PROTOCOL,
        "data": {"name": "digits", "train_limit": 128},
        "teacher": TEACHER.key,
        "student": "resnet8",
        "student_source": "",
        "method": "kd",
        "settings": {"temperature": 4.0},
        "seed": 1,
        "recipe": RECIPE.model_dump(mode="json"),
        "fingerprint": "abc",
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    assert TRIAL.id == f"resnet20-resnet8-kd-seed1-{digest[:10]}"
    assert replace(TRIAL, label="soft").id == TRIAL.id


def test_an_id_is_a_folder_name() -> None:
    trial = replace(TRIAL, method="kd/keras (T=3)", student="timm:vit/tiny", teacher=replace(TEACHER, model="../up"))
    assert trial.id.startswith(".._up-timm_vit_tiny-kd_keras__T_3_-seed1-")
    assert Path(trial.id).name == trial.id


@pytest.mark.parametrize(
    "changes",
    [
        {"suite": "other"},
        {"label": "soft targets"},
        {"status": "done", "reason": "because"},
        {"teacher": replace(TEACHER, name="other name", expected_top1=97.0, tolerance=3.0)},
        {"origin": Origin("another", "2.0", "abc")},
        {"data": {"train_limit": 128, "name": "digits"}},
    ],
    ids=["suite", "label", "status", "names and expectations", "who says it", "order of keys"],
)
def test_what_does_not_change_the_hash(changes: dict[str, Any]) -> None:
    other = replace(TRIAL, **changes)
    assert other.id == TRIAL.id
    assert other.identity == TRIAL.identity


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"temperature": 5.0}},
        {"settings": {"temperature": 4.0, "weight": 1}},
        {"recipe": recipe(lr=0.1)},
        {"recipe": recipe(augmentation=(Part(name="crop", padding=4),))},
        {"seed": 2},
        {"origin": Origin("kdbench", "1.0", "abd")},
        {"data": {"name": "digits", "train_limit": 129}},
        {"student": "resnet14"},
        {"method": "kdbench:kd"},
        {"teacher": replace(TEACHER, model="resnet32")},
        {"teacher": replace(TEACHER, seed=1)},
        {"teacher": replace(TEACHER, recipe=recipe(lr=0.1))},
        {"teacher": replace(TEACHER, data={"name": "digits", "train_limit": 64})},
        {"teacher": replace(TEACHER, recipe=None, weights="IMAGENET1K_V1")},
        {"teacher": replace(TEACHER, recipe=None, weights="a.pth", weights_sha256="12")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_the_id(changes: dict[str, Any]) -> None:
    assert replace(TRIAL, **changes).id.rpartition("-")[2] != TRIAL.id.rpartition("-")[2]


def test_given_weights_are_known_by_their_content() -> None:
    here = replace(TEACHER, recipe=None, weights="here/a.pth", weights_sha256="12")
    there = replace(here, weights="there/b.pth")
    assert here.key == there.key
    assert replace(here, weights_sha256="13").key != here.key
    named = replace(here, weights="IMAGENET1K_V1", weights_sha256=None)
    assert named.key != replace(named, weights="IMAGENET1K_V2").key


def test_ids_are_the_same_in_every_process(suite_file: Path) -> None:
    program = (
        "from kdbench.run import open_suite\n"
        f"for trial in open_suite({str(suite_file)!r}).plan.trials: print(trial.id, trial.teacher.key)\n"
    )
    here = [f"{trial.id} {trial.teacher.key}" for trial in open_suite(suite_file).plan.trials]
    # Another order of sets and another working folder.
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    there = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        cwd=suite_file.parent,
    )
    assert there.stdout.splitlines() == here


def test_name_and_path_of_a_suite_change_no_id(suite_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "other.toml"
    other.parent.mkdir()
    other.write_text(suite_file.read_text().replace('name = "small"', 'name = "other"'))
    assert [t.id for t in open_suite(other).plan.trials] == [t.id for t in open_suite(suite_file).plan.trials]


def test_a_setting_written_out_is_the_default(suite_file: Path) -> None:
    plain = open_suite(suite_file, overrides=['methods=[{name="kd"}]']).plan.trials
    written = open_suite(suite_file, overrides=['methods=[{name="kd",temperature=4,ce_weight=0.1}]']).plan.trials
    other = open_suite(suite_file, overrides=['methods=[{name="kd",temperature=5}]']).plan.trials
    assert [t.id for t in plain] == [t.id for t in written]
    assert not {t.id for t in plain} & {t.id for t in other}


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ['methods=[{name="kd"},{name="none"},{name="kd",label="soft",temperature=4}]'],
            "methods: 'kd' and 'soft' are the same trial on resnet20:resnet8: method kd with equal settings; "
            "remove one, or change its settings",
        ),
        (
            [
                'pairs=[{teacher="resnet20",student="resnet8"},{teacher="big",student="resnet8"}]',
                'teachers={big={model="resnet20"}}',
                'methods=[{name="kd"}]',
            ],
            "pairs: 'resnet20:resnet8' and 'big:resnet8' are the same pair: teachers resnet20 and big are equal in all "
            "but name; remove one, or change its teacher",
        ),
    ],
    ids=["labels", "teachers"],
)
def test_trials_that_differ_in_names_alone_are_refused(suite_file: Path, overrides: list[str], problem: str) -> None:
    with pytest.raises(SuiteError) as caught:
        _ = open_suite(suite_file, overrides=overrides).plan
    assert caught.value.problems == (f"{suite_file}: {problem}",)


def test_the_path_of_the_data_changes_no_id(suite_file: Path, tmp_path: Path) -> None:
    from PIL import Image

    ids = []
    for root in (tmp_path / "here", tmp_path / "there"):
        for split in ("train", "test"):
            for name in ("cat", "dog"):
                (root / split / name).mkdir(parents=True)
                for i in range(3):
                    Image.new("RGB", (16, 16), (i, i, i)).save(root / split / name / f"{i}.png")
        overrides = [f'data={{name="image_folder",root="{root}"}}']
        ids.append([t.id for t in open_suite(suite_file, overrides=overrides).plan.trials])
    assert ids[0] == ids[1]


# ---- what a plan says


def test_order_of_trials_and_rows(suite_file: Path) -> None:
    plan = open_suite(suite_file).plan
    rows = [(t.teacher.name, t.student, t.method, t.seed) for t in plan.trials]
    assert rows == [("resnet20", "resnet8", method, seed) for method in ("none", "kd") for seed in (0, 1)]
    described = plan.describe()
    assert described["suite"] == "small"
    assert described["trials"][2] == {
        "id": plan.trials[2].id,
        "teacher": "resnet20",
        "student": "resnet8",
        "method": "kd",
        "label": "kd",
        "seed": 0,
        "status": "pending",
        "reason": "",
    }
    assert described["teachers"] == [
        {"name": "resnet20", "seed": seed, "model": "resnet20", "key": key, "weights": None, "epochs": 10}
        for seed, key in enumerate(plan.trials[seed].teacher.key for seed in (0, 1))
    ]
    assert described["cohorts"] == [
        {
            "teacher": "resnet20",
            "seed": seed,
            "epochs": 10,
            "batch_size": 64,
            "trials": [t.id for t in plan.trials if t.seed == seed],
        }
        for seed in (0, 1)
    ]
    json.dumps(described)


def test_settings_of_pairs_and_methods_meet(suite_file: Path) -> None:
    overrides = [
        'pairs=[{teacher="resnet20",student="resnet8"},'
        '{teacher="resnet20",student="resnet14",recipe={lr=0.01},methods={soft={temperature=8.0}}}]',
        'methods=[{name="kd"},{name="kd",label="soft",temperature=2.0,kd_weight=0.5}]',
        "seeds=[0]",
    ]
    trials = open_suite(suite_file, overrides=overrides).plan.trials
    found = {(t.student, t.label): (t.settings["temperature"], t.settings["kd_weight"], t.recipe.lr) for t in trials}
    assert found == {
        ("resnet8", "kd"): (4.0, 0.9, 0.05),
        ("resnet8", "soft"): (2.0, 0.5, 0.05),
        ("resnet14", "kd"): (4.0, 0.9, 0.01),
        ("resnet14", "soft"): (8.0, 0.5, 0.01),
    }
    assert {t.method for t in trials} == {"kd"}
    # One teacher, though two pairs have it.
    assert len({t.teacher.key for t in trials}) == 1


def test_teachers_are_named_once_in_the_order_of_pairs(suite_file: Path) -> None:
    pairs = ["resnet32", "resnet20", "resnet32"]
    students = ["resnet8", "resnet8", "resnet14"]
    text = ",".join(f'{{teacher="{t}",student="{s}"}}' for t, s in zip(pairs, students, strict=True))
    plan = open_suite(suite_file, overrides=[f"pairs=[{text}]"]).plan
    assert [(teacher.name, teacher.seed) for teacher in plan.teachers] == [
        ("resnet32", 0), ("resnet32", 1), ("resnet20", 0), ("resnet20", 1),
    ]  # fmt: skip
    assert len({trial.teacher.key for trial in plan.trials if trial.teacher.name == "resnet32"}) == 2
    for trial in plan.trials:
        assert (trial.teacher.seed, trial.teacher.shown) == (trial.seed, f"{trial.teacher.name}, seed {trial.seed}")
    single = open_suite(suite_file, overrides=[f"pairs=[{text}]", "teacher_seeds=single"]).plan
    assert [(teacher.shown, teacher.seed) for teacher in single.teachers] == [("resnet32", 0), ("resnet20", 0)]
    # The trials of seed 0 are the same.
    assert [t.id for t in single.trials if t.seed == 0] == [t.id for t in plan.trials if t.seed == 0]
    assert not {t.id for t in single.trials if t.seed == 1} & {t.id for t in plan.trials}


@pytest.mark.parametrize(
    ("overrides", "seeds"),
    [
        (["seeds=[3]"], [0]),
        (["seeds=[3]", "teachers.resnet20.seed=7"], [7]),
        (["seeds=[3]", "teacher_seeds=with_seeds"], [3]),
        (["seeds=[3,5]"], [3, 5]),
        (["seeds=[3,5]", "teacher_seeds=single", "teachers.resnet20.seed=7"], [7]),
    ],
)
def test_seeds_of_teachers(suite_file: Path, overrides: list[str], seeds: list[int]) -> None:
    teachers = open_suite(suite_file, overrides=overrides).plan.teachers
    assert [teacher.seed for teacher in teachers] == seeds
    assert [teacher.shown for teacher in teachers] == (
        [f"resnet20, seed {seed}" for seed in seeds] if len(seeds) > 1 else ["resnet20"]
    )


def test_given_weights_are_those_of_each_seed_or_of_all(suite_file: Path) -> None:
    def teachers(weights: str) -> dict[int, tuple[str, int, str]]:
        plan = open_suite(suite_file, overrides=[f"teachers.resnet20.weights={weights}"]).plan
        return {t.seed: (Path(t.teacher.weights or "").name, t.teacher.seed, t.teacher.shown) for t in plan.trials}

    for name in ("a", "b"):
        suite_file.with_name(f"{name}.pth").write_bytes(name.encode())
    assert teachers("b.pth") == dict.fromkeys((0, 1), ("b.pth", 0, "resnet20"))
    assert teachers('["b.pth","a.pth"]') == {0: ("b.pth", 0, "resnet20, seed 0"), 1: ("a.pth", 1, "resnet20, seed 1")}
    with pytest.raises(SuiteError) as caught:
        teachers('["b.pth","c.pth"]')
    missing = suite_file.with_name("c.pth")
    assert str(caught.value) == f"{suite_file}: teachers.resnet20.weights[1]: {missing}: no such file"
    missing.write_bytes(b"b")
    with pytest.raises(SuiteError) as caught:
        teachers('["b.pth","c.pth"]')
    assert str(caught.value) == (
        f"{suite_file}: teachers.resnet20.weights[1]: {missing}: has the content of {suite_file.with_name('b.pth')}; "
        "each seed needs other weights"
    )


def test_what_a_method_cannot_read_is_skipped_with_the_reason(suite_file: Path) -> None:
    overrides = [
        'pairs=[{teacher="resnet20",student="resnet8"},{teacher="resnet20",student="deit_micro"}]',
        'methods=[{name="kd"},{name="ab"}]',
    ]
    plan = open_suite(suite_file, overrides=overrides).plan
    states = {(t.student, t.label): (t.status, t.reason) for t in plan.trials}
    assert states == {
        ("resnet8", "kd"): ("pending", ""),
        ("resnet8", "ab"): ("pending", ""),
        ("deit_micro", "kd"): ("pending", ""),
        ("deit_micro", "ab"): ("skipped", "ab needs pre-activation taps; deit_micro has none"),
    }
    assert count(plan.trials) == {"pending": 6, "skipped": 2}
    trained = {identifier for cohort in plan.describe()["cohorts"] for identifier in cohort["trials"]}
    assert trained == {t.id for t in plan.trials if t.status == "pending"}


# ---- cohorts


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": recipe(lr=0.1)},
        {"recipe": recipe(optimizer="adamw", weight_decay=0.1, clip_grad_norm=1.0)},
        {"recipe": recipe(drops=(7,), drop_factor=0.5)},
        {"recipe": recipe(drops=(), schedule="cosine", warmup_epochs=2)},
        {"recipe": recipe(label_smoothing=0.1, ema_decay=0.9)},
        {"method": "rkd", "label": "rkd", "settings": {}},
        {"student": "resnet14"},
        {"suite": "other"},
    ],
    ids=str,
)
def test_what_shares_a_feed(changes: dict[str, Any]) -> None:
    assert feed_key(replace(TRIAL, **changes)) == feed_key(TRIAL)


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": recipe(batch_size=32)},
        {"recipe": recipe(epochs=11)},
        {"recipe": recipe(augmentation=(Part(name="crop", padding=4),))},
        {"recipe": recipe(precision="float32")},
        {"seed": 2},
        {"data": {"name": "digits"}},
        {"teacher": replace(TEACHER, model="resnet32")},
        {"teacher": replace(TEACHER, seed=1)},
    ],
    ids=str,
)
def test_what_splits_a_cohort(changes: dict[str, Any]) -> None:
    assert feed_key(replace(TRIAL, **changes)) != feed_key(TRIAL)


def test_cohorts_hold_every_trial_but_the_skipped_once(open_small: Callable[..., Suite]) -> None:
    slow = replace(TRIAL, label="slow", recipe=recipe(lr=0.001))
    large = replace(TRIAL, label="large", recipe=recipe(batch_size=128, epochs=20))
    skipped = replace(TRIAL, label="no", method="ab").with_status(Status.SKIPPED, "no taps")
    done = replace(TRIAL, label="done", method="rkd").with_status(Status.DONE)
    later = replace(TRIAL, seed=2)
    plan = Plan(open_small(), (TRIAL, later, slow, large, skipped, done))
    assert [[t.label for t in cohort.trials] for cohort in plan.cohorts] == [["kd", "slow", "done"], ["kd"], ["large"]]
    assert [(c.seed, c.epochs, c.batch_size) for c in plan.cohorts] == [(1, 10, 64), (2, 10, 64), (1, 20, 128)]
    assert plan.cohorts[0].name == "big, seed 1"
    fewer = plan.with_trials([skipped, later])
    assert [cohort.trials for cohort in fewer.cohorts] == [(later,)]


def test_cohorts_of_a_suite_with_a_slower_student(suite_file: Path) -> None:
    pairs = (
        'pairs=[{teacher="resnet20",student="resnet8"},'
        '{teacher="resnet20",student="resnet14",recipe={lr=0.01}},'
        '{teacher="resnet20",student="deit_micro",recipe={batch_size=32}}]'
    )
    plan = open_suite(suite_file, overrides=[pairs, "seeds=[0]"]).plan
    students = [sorted({t.student for t in cohort.trials}) for cohort in plan.cohorts]
    assert students == [["resnet14", "resnet8"], ["deit_micro"]]


def test_trial_json_contains_identity_and_names() -> None:
    content = TrialRecord.of(replace(TRIAL, label="soft")).to_json()
    assert content["suite"] == "small"
    assert content["teacher"] == "big"
    assert content["teacher_key"] == TEACHER.key
    assert content["label"] == "soft"
    assert content["plugin"] == {"distribution": "kdbench", "version": "1.0"}
    assert content["id"] == replace(TRIAL, label="soft").id
    assert content["format"] == 2
    assert content.items() >= json.loads(json.dumps({**TRIAL.identity, "teacher": "big"})).items()
    assert json.loads(json.dumps(content)) == content
