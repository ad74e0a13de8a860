"""What each shipped suite asks for, against the protocols that it follows, written out."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from kdbench.engine.schedule import learning_rate
from kdbench.errors import DataError
from kdbench.parts import Parts
from kdbench.results import SuiteFolder
from kdbench.results.cost import steps, teacher_steps, trained
from kdbench.run import Opened, open_suite
from kdbench.suite.load import pair_recipe, shipped
from kdbench.suite.plan import count

METHODS = ["none", "kd", "vid", "rkd", "pkt", "ab", "ft", "deit"]

# Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699, tables 1 and 2: pairs, their teachers' accuracies, and
# the learning rate of the mobile students; the recipe is in the paper's appendix and its code.
CRD_PAIRS = {
    ("wrn_40_2", "wrn_16_2"): 0.05,
    ("wrn_40_2", "wrn_40_1"): 0.05,
    ("resnet56", "resnet20"): 0.05,
    ("resnet110", "resnet20"): 0.05,
    ("resnet110", "resnet32"): 0.05,
    ("resnet32x4", "resnet8x4"): 0.05,
    ("vgg13", "vgg8"): 0.05,
    ("vgg13", "MobileNetV2"): 0.01,
    ("ResNet50", "MobileNetV2"): 0.01,
    ("ResNet50", "vgg8"): 0.05,
    ("resnet32x4", "ShuffleNetV1"): 0.01,
    ("resnet32x4", "ShuffleNetV2"): 0.01,
    ("wrn_40_2", "ShuffleNetV1"): 0.01,
}
CRD_TEACHERS = {
    "wrn_40_2": 75.61,
    "resnet56": 72.34,
    "resnet110": 74.31,
    "resnet32x4": 79.42,
    "vgg13": 74.64,
    "ResNet50": 79.34,
}
CRD_RECIPE = {
    "epochs": 240,
    "batch_size": 64,
    "optimizer": "sgd",
    "lr": 0.05,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
    "schedule": "steps",
    "drops": [150, 180, 210],
    "drop_factor": 0.1,
    "warmup_epochs": 0,
    "min_lr": 0.0,
    "label_smoothing": 0.0,
    "clip_grad_norm": None,
    "ema_decay": None,
    "drop_path": 0.0,
    "augmentation": [{"name": "crop", "padding": 4}, {"name": "flip", "p": 0.5}],
    "precision": "tf32",
    "selection": "last",
    "evaluate_every": 1,
}
CRD_SETTINGS = {
    "none": {},
    "kd": {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0},
    "vid": {"ce_weight": 1.0, "vid_weight": 1.0},
    "rkd": {"ce_weight": 1.0, "distance_weight": 25.0, "angle_weight": 50.0},
    "pkt": {"ce_weight": 1.0, "pkt_weight": 30000.0},
    "ab": {"boundary_epochs": 30, "margin": 1.0, "boundary_weight": 0.003, "main": "labels"},
    "ft": {"ce_weight": 1.0, "ft_weight": 200.0, "p1": 2, "p2": 1, "paraphraser_epochs": 30},
    "deit": {"distillation": "hard", "alpha": 0.5},
}


@pytest.fixture(scope="module")
def cifar100() -> Opened:
    return open_suite("cifar100")


# ---- cifar100


def test_cifar100_is_thirteen_pairs_by_eight_methods_by_five_seeds(cifar100: Opened) -> None:
    trials = cifar100.plan.trials
    found = [(t.teacher.name, t.student, t.label, t.seed) for t in trials]
    assert found == [(*pair, m, s) for pair, m, s in product(CRD_PAIRS, METHODS, range(5))]
    assert len({t.id for t in trials}) == 520
    assert count(trials) == {"pending": 520}
    assert steps(trials, 50_000) == 520 * 240 * 782 == 97_593_600


def test_cifar100_trains_the_baseline_of_a_student_with_two_teachers_once(cifar100: Opened, tmp_path: Path) -> None:
    training = trained(cifar100.plan.trials, SuiteFolder(tmp_path, "cifar100"))
    adopting = {trial.id: trial for trial in cifar100.plan.trials}.keys() - {trial.id for trial in training}
    found = {(t.teacher.name, t.student, t.label) for t in cifar100.plan.trials if t.id in adopting}
    # The later pair of each of these students in the study's tables; both have one learning rate.
    assert found == {
        ("resnet110", "resnet20", "none"),
        ("wrn_40_2", "ShuffleNetV1", "none"),
        ("ResNet50", "MobileNetV2", "none"),
        ("ResNet50", "vgg8", "none"),
    }
    assert len(adopting) == 4 * 5
    assert steps(training, 50_000) == 500 * 240 * 782 == 93_840_000


def test_cifar100_trains_each_teacher_once_with_each_seed_for_all_its_students(cifar100: Opened) -> None:
    plan = cifar100.plan
    assert {t.name: t.expected_top1 for t in plan.teachers} == CRD_TEACHERS
    assert sorted((t.name, t.seed) for t in plan.teachers) == sorted(product(CRD_TEACHERS, range(5)))
    assert all(trial.teacher.seed == trial.seed for trial in plan.trials)
    assert teacher_steps(plan.teachers, 50_000) == 30 * 240 * 782 == 5_630_400
    for teacher in plan.teachers:
        assert teacher.recipe is not None
        assert teacher.recipe.model_dump(mode="json") == CRD_RECIPE
        assert teacher.tolerance == 1.5
    found = {(c.teacher.name, c.seed): {(t.student, t.label) for t in c.trials} for c in plan.cohorts}
    assert found == {
        (name, seed): {(s, m) for (t, s), m in product(CRD_PAIRS, METHODS) if t == name}
        for name, seed in product(CRD_TEACHERS, range(5))
    }
    assert len(plan.cohorts) == 30


def test_cifar100_follows_the_recipe_to_the_letter(cifar100: Opened) -> None:
    for trial in cifar100.plan.trials:
        expected = {**CRD_RECIPE, "lr": CRD_PAIRS[trial.teacher.name, trial.student]}
        assert trial.recipe.model_dump(mode="json") == expected, trial.id
        assert trial.settings.items() >= CRD_SETTINGS[trial.label].items(), trial.id
        assert trial.data["name"] == "cifar100"


# ---- what follows from it


def test_the_screen_is_one_pair_under_the_studys_own_teacher(cifar100: Opened) -> None:
    plan = open_suite("cifar100-screen").plan
    assert [(t.pair, t.label, t.seed) for t in plan.trials] == [("resnet32x4:resnet8x4", m, 0) for m in METHODS]
    [teacher] = plan.teachers
    assert teacher == next(t for t in cifar100.plan.teachers if (t.name, t.seed) == ("resnet32x4", 0))
    for trial in plan.trials:
        assert trial.recipe.model_dump(mode="json") == {**CRD_RECIPE, "epochs": 60, "drops": [37, 45, 52]}
    first = {t.label: t.settings.get("boundary_epochs", t.settings.get("paraphraser_epochs")) for t in plan.trials}
    assert (first["ab"], first["ft"]) == (8, 8)


def test_cifar10_has_the_same_recipe() -> None:
    plan = open_suite("cifar10").plan
    pairs = ["resnet56:resnet20", "resnet20:resnet8"]
    assert [(t.pair, t.label, t.seed) for t in plan.trials] == list(product(pairs, METHODS, range(3)))
    assert count(plan.trials) == {"pending": 48}
    for trial in plan.trials:
        assert trial.recipe.model_dump(mode="json") == {**CRD_RECIPE, "precision": "auto"}
        assert trial.data["name"] == "cifar10"


def test_cifar10_takes_an_image_folder_instead(photographs: Path) -> None:
    overrides = ["data.name=image_folder", f"data.root={photographs}", "data.size=32"]
    opened = open_suite("cifar10", overrides=overrides)
    assert count(opened.plan.trials) == {"pending": 48}
    assert opened.resolver.facts.classes == 2


def test_tiny_imagenet_takes_as_many_steps_as_cifar100(tiny_photographs: Path) -> None:
    opened = open_suite("tiny-imagenet-32", overrides=[f"data.root={tiny_photographs}"])
    assert opened.resolver.facts.image_shape == (3, 32, 32)
    pairs = {
        "resnet56:resnet20": 0.05,
        "wrn_40_2:wrn_16_2": 0.05,
        "resnet32x4:resnet8x4": 0.05,
        "vgg13:vgg8": 0.05,
        "resnet32x4:ShuffleNetV2": 0.01,
    }
    trials = opened.plan.trials
    assert [(t.pair, t.label, t.seed) for t in trials] == list(product(pairs, METHODS, range(3)))
    assert count(trials) == {"pending": 120}
    for trial in trials:
        changes = {"lr": pairs[trial.pair], "epochs": 120, "drops": [75, 90, 105]}
        assert trial.recipe.model_dump(mode="json") == {**CRD_RECIPE, **changes}
    assert 0 <= 240 * 782 - steps(trials[:1], 100_000) < 782


# ---- imagenet


def test_imagenet_trains_two_convolutional_pairs_and_a_transformer(photographs: Path) -> None:
    plan = open_suite("imagenet", overrides=[f"data.root={photographs}"]).plan
    pairs = {
        "torchvision:resnet34:torchvision:resnet18": ("IMAGENET1K_V1", 73.31),
        "torchvision:resnet50:torchvision:mobilenet_v2": ("IMAGENET1K_V1", 76.13),
        "timm:regnety_160.deit_in1k:timm:deit_tiny_distilled_patch16_224": ("timm", 82.9),
    }
    assert [(t.pair, t.label, t.seed) for t in plan.trials] == [(p, m, 0) for p, m in product(pairs, METHODS)]
    assert [(t.weights, t.expected_top1) for t in plan.teachers] == list(pairs.values())
    assert all(teacher.recipe is None for teacher in plan.teachers)
    assert [(t.student, t.label, t.reason) for t in plan.trials if t.status == "skipped"] == [
        (
            "timm:deit_tiny_distilled_patch16_224",
            "ab",
            "ab needs pre-activation taps; timm:deit_tiny_distilled_patch16_224 has none",
        )
    ]
    convolutional = {
        **CRD_RECIPE,
        "epochs": 100,
        "batch_size": 256,
        "lr": 0.1,
        "weight_decay": 1e-4,
        "drops": [30, 60, 90],
        "augmentation": [
            {"name": "random_resized_crop", "size": 224, "scale": [0.08, 1.0]},
            {"name": "flip", "p": 0.5},
        ],
        "precision": "auto",
    }
    # Touvron et al. 2021, table 9; the rate is 5e-4 * batch / 512.
    transformer = {
        **convolutional,
        "epochs": 300,
        "batch_size": 1024,
        "optimizer": "adamw",
        "lr": 5e-4 * 1024 / 512,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "drops": [],
        "warmup_epochs": 5,
        "min_lr": 1e-5,
        "label_smoothing": 0.1,
        "ema_decay": 0.99996,
        "drop_path": 0.1,
        "augmentation": [
            *convolutional["augmentation"],
            {"name": "randaugment", "num_ops": 2, "magnitude": 27},
            {"name": "random_erasing", "p": 0.25},
            {"name": "mixup", "alpha": 0.8},
            {"name": "cutmix", "alpha": 1.0},
        ],
    }
    for trial in plan.trials:
        expected = transformer if trial.student.startswith("timm:") else convolutional
        assert trial.recipe.model_dump(mode="json") == expected
    soft = {t.label: t.settings for t in plan.trials}["kd"]
    assert soft.items() >= {"temperature": 1.0, "ce_weight": 0.5, "kd_weight": 0.5}.items()
    trained = [trial for trial in plan.trials if trial.status == "pending"]
    assert steps(trained, 1_281_167) == 16 * 500_500 + 7 * 375_600


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("imagenet", "data.root: data/imagenet: no such folder; set it to the folder that contains train/ and"),
        (
            "tiny-imagenet-32",
            "data.root: data/tiny-imagenet-200: no such folder; set it to the folder that contains",
        ),
    ],
)
def test_folders_that_are_not_there(suite: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        _ = open_suite(suite).plan
    assert str(caught.value).startswith(f"{shipped()[suite]}: {message}")


@pytest.mark.parametrize("epochs", [1, 2, 3, 10])
@pytest.mark.parametrize("name", shipped())
def test_every_suite_can_be_cut_to_a_few_epochs(name: str, epochs: int) -> None:
    suite = open_suite(name, overrides=[f"recipe.epochs={epochs}"]).suite
    recipes = [pair_recipe(suite, pair.recipe) for pair in suite.pairs]
    assert any(recipe.epochs == epochs for recipe in recipes)
    for recipe in recipes:
        assert all(isinstance(drop, int) and 0 < drop < recipe.epochs for drop in recipe.drops)
        # The engine's own schedule takes every step of it.
        rates = [learning_rate(Parts.of(recipe), step / 2) for step in range(2 * recipe.epochs)]
        assert all(0 < rate <= recipe.lr for rate in rates)


def test_fractions_and_the_epochs_they_stand_for_give_the_same_trials(tmp_path: Path) -> None:
    def ids(drops: str) -> list[str]:
        overrides = [f"recipe.{key}" for key in ("schedule=steps", "epochs=60", f"drops={drops}")]
        overrides.append("teachers.resnet20.recipe.epochs=60")
        return [trial.id for trial in open_suite("digits", overrides=overrides).plan.trials]

    assert ids("[0.625, 0.75, 0.875]") == ids("[37, 45, 52]")
    assert ids("[0.625, 0.75]") != ids("[37, 45, 52]")
