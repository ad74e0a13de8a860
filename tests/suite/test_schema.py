"""What a suite may say: each rule, and the words for breaking it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from kdbench.recipe import Recipe
from kdbench.suite.load import pair_recipe
from kdbench.suite.schema import Data, MethodTable, Pair, Suite, TeacherTable

OK = [
    "name=a-b_c.2",
    "cost=an hour",
    "seeds=[7]",
    "data.train_limit=128",
    "data.validation=100",
    "data.validation=0.1",
    "recipe.lr=1",
    "recipe.clip_grad_norm=5",
    "recipe.ema_decay=0.999",
    "recipe.augmentation=[]",
    'recipe.augmentation=[{name="mixup"},{name="cutmix",alpha=0.5},{name="random_resized_crop",scale=[0.5,1]}]',
    "recipe.precision=tf32",
    "recipe.drops=[0.5,0.99]",
    "recipe.drops=[0.01]",
    "recipe.warmup_epochs=10",
    "seeds=[9223372036854775807]",
    "recipe.warmup_epochs=0",
    "teachers.resnet20={expected_top1=97.5,tolerance=0.5}",
    "teachers.resnet20.seed=0",
    "teacher_seeds=with_seeds",
    "teachers.resnet20.weights=a.pth",
    'teachers.resnet20.weights=["a.pth","b.pth"]',
    'methods=[{name="kd"},{name="kd",label="kd2",temperature=2.0}]',
    "checkpoint_every=1",
]
NOK = {
    "name=a b": ["name: must match pattern '^[A-Za-z0-9][A-Za-z0-9_.-]*$', got 'a b'"],
    "name=../up": ["name: must match pattern '^[A-Za-z0-9][A-Za-z0-9_.-]*$', got '../up'"],
    "name=3": ["name: must be a string, got 3"],
    "nme=x": ["nme: unknown key; did you mean 'name'?"],
    "question=": ["question: must not be empty"],
    "seeds=[]": ["seeds: needs at least 1, got []"],
    "seeds=[1,1]": ["seeds: each seed once, got [1, 1]"],
    "seeds=[-1]": ["seeds[0]: must be at least 0, got -1"],
    "seeds=[9223372036854775808]": ["seeds: must fit 64 bits, got 9,223,372,036,854,775,808"],
    "teachers.resnet20.seed=-1": ["teachers.resnet20.seed: must be at least 0, got -1"],
    "teacher_seeds=own": ["teacher_seeds: must be 'with_seeds' or 'single', got 'own'"],
    "teacher_seed=single": ["teacher_seed: unknown key; did you mean 'teacher_seeds'?"],
    "teachers.resnet20.seed=3": [
        "teachers.resnet20.seed: is not used: teachers have the seeds of their students; remove it, or set "
        'teacher_seeds = "single"'
    ],
    'teachers.resnet20.weights=["a.pth"]': [
        "teachers.resnet20.weights: needs as many files as there are seeds (2), got 1"
    ],
    'teachers.resnet20.weights=["a.pth","a.pth"]': [
        "teachers.resnet20.weights: 'a.pth' occurs twice; a teacher of each seed needs its own weights"
    ],
    'teachers.resnet20.weights=["a.pth",1]': [
        "teachers.resnet20.weights: must be a string, or a list of strings (one for each seed), got ['a.pth', 1]"
    ],
    "teachers.resnet20.weights=[]": [
        "teachers.resnet20.weights: must not be empty",
        "teachers.resnet20.weights: needs as many files as there are seeds (2), got 0",
    ],
    "teachers.resnet20.weights=3": [
        "teachers.resnet20.weights: must be a string, or a list of strings (one for each seed), got 3"
    ],
    "seeds=[true]": ["seeds[0]: must be a whole number, got True"],
    "seeds=3": ["seeds: must be a list, got 3"],
    "checkpoint_every=0": ["checkpoint_every: must be positive, got 0"],
    "plugins=loss.py": ["plugins: must be a list, got 'loss.py'"],
    "plugins=[1]": ["plugins[0]: must be a string, got 1"],
    "data=digits": ["data: must be a table, got 'digits'"],
    "data={}": ["data.name: is required"],
    "data.train_limit=0": ["data.train_limit: must be positive, got 0"],
    "data.test_limit=2.5": ["data.test_limit: must be a whole number, got 2.5"],
    "data.validation=-1": ["data.validation: must be a whole number of images or a share between 0 and 1, got -1"],
    "data.validation=1.0": ["data.validation: must be a whole number of images or a share between 0 and 1, got 1.0"],
    "data.validation=true": ["data.validation: must be a whole number of images or a share between 0 and 1, got True"],
    "data.validation=half": [
        "data.validation: must be a whole number of images or a share between 0 and 1, got 'half'"
    ],
    "recipe=3": ["recipe: must be a table, got 3"],
    "recipe={}": ["recipe.epochs: is required"],
    "recipe.epoch=3": ["recipe.epoch: unknown key; did you mean 'epochs'?"],
    "recipe.epochs=0": ["recipe.epochs: must be positive, got 0"],
    'recipe.epochs="3"': ["recipe.epochs: must be a whole number, got '3'"],
    "recipe.epochs=2020-01-02": ["recipe.epochs: must be a whole number, got '2020-01-02'"],
    "recipe.lr=0": ["recipe.lr: must be positive, got 0"],
    "recipe.lr=inf": ["recipe.lr: must be a finite number, got inf"],
    "recipe.lr=nan": ["recipe.lr: must be a finite number, got nan"],
    "recipe.momentum=1.0": ["recipe.momentum: must be less than 1, got 1.0"],
    "recipe.nesterov=1": ["recipe.nesterov: must be true or false, got 1"],
    "recipe.optimizer=adam": ["recipe.optimizer: optimizer 'adam' is not registered; did you mean 'adamw'?"],
    "recipe.precision=fp16": ["recipe.precision: must be 'auto', 'float32', 'tf32' or 'bf16', got 'fp16'"],
    "recipe.schedule=cosine": ["recipe: drops belong to schedule = 'steps', not to 'cosine'"],
    "recipe.drops=[5,10]": ["recipe: drops must come before epoch 10, got [5, 10]"],
    "recipe.drops=[8,5]": ["recipe: drops must rise, got [8, 5]"],
    "recipe.drops=[5,5]": ["recipe: drops must rise, got [5, 5]"],
    "recipe.drops=[0.5,8]": ["recipe: drops must be all whole epochs or all fractions below 1, got [0.5, 8]"],
    "recipe.drops=[0.8,0.5]": ["recipe: drops must rise, got [0.8, 0.5]"],
    "recipe.drops=[5.0]": ["recipe.drops[0]: must be a whole number of epochs or a fraction between 0 and 1, got 5.0"],
    "recipe.drops=[0]": ["recipe.drops[0]: must be a whole number of epochs or a fraction between 0 and 1, got 0"],
    "recipe.min_lr=0.1": ["recipe: min_lr must be at most lr, 0.05, got 0.1"],
    "pairs.0.recipe={lr=0.01,min_lr=0.02}": ["pairs[0].recipe: min_lr must be at most lr, 0.01, got 0.02"],
    'recipe.augmentation=[{name="random_resized_crop",scale=[0.5,0.2]}]': [
        "recipe.augmentation[0].scale: must be two shares above 0 and up to 1 that do not descend, got [0.5, 0.2]"
    ],
    'recipe.augmentation=[{name="random_resized_crop",scale=[0.5,1.5]}]': [
        "recipe.augmentation[0].scale: must be two shares above 0 and up to 1 that do not descend, got [0.5, 1.5]"
    ],
    'recipe.augmentation=[{name="randaugment",num_ops=101}]': [
        "recipe.augmentation[0].num_ops: must be at most 100, got 101"
    ],
    "recipe.augmentation=crop": ["recipe.augmentation: must be a list, got 'crop'"],
    "recipe.augmentation=[4]": ["recipe.augmentation[0]: must be a table, got 4"],
    'recipe.optimizer={name="sgd",momentum=1.0}': ["recipe.optimizer.momentum: must be less than 1, got 1.0"],
    'recipe.optimizer={name="adamw",beta=0.9}': ["recipe.optimizer.beta: unknown setting; did you mean 'betas'?"],
    'recipe.schedule={name="linear"}': [
        "recipe: drops belong to schedule = 'steps', not to 'linear'",
        "recipe.schedule.name: schedule 'linear' is not registered; known: constant, cosine, steps; "
        "load local files with -p, or with plugins in the suite",
    ],
    "recipe.augmentation=[{padding=4}]": ["recipe.augmentation[0].name: is required"],
    'recipe.augmentation=[{name="crp"}]': [
        "recipe.augmentation[0].name: augmentation 'crp' is not registered; did you mean 'crop'?"
    ],
    "recipe.augmentation.crop.pad=4": ["recipe.augmentation[0].pad: unknown setting; did you mean 'padding'?"],
    "recipe.augmentation.flip.p=2": ["recipe.augmentation[1].p: must be at most 1, got 2"],
    "recipe.selection=validation": [
        "recipe.selection: 'validation' needs data.validation, the images to cut from the training set"
    ],
    "recipe.selection=best": ["recipe.selection: must be 'last' or 'validation', got 'best'"],
    "pairs=[]": ["pairs: needs at least 1, got []"],
    "pairs.0.techer=x": ["pairs[0].techer: unknown key; did you mean 'teacher'?"],
    "pairs.0.recipe.epoch=1": ["pairs[0].recipe.epoch: unknown key; did you mean 'epochs'?"],
    "pairs.0.recipe.epochs=5": ["pairs[0].recipe: drops must come before epoch 5, got [5, 8]"],
    'pairs.0.recipe.augmentation=[{name="flip",q=1}]': ["pairs[0].recipe.augmentation[0].q: unknown setting; known: p"],
    "pairs.0.recipe.selection=validation": [
        "pairs[0].recipe.selection: 'validation' needs data.validation, the images to cut from the training set"
    ],
    "pairs.0.methods={kdd={}}": ["pairs[0].methods.kdd: is not a method of this suite; did you mean 'kd'?"],
    "pairs.0.methods.kd=3": ["pairs[0].methods.kd: must be a table, got 3"],
    'pairs=[{teacher="resnet20",student="resnet8"},{teacher="resnet20",student="resnet8"}]': [
        "pairs: 'resnet20:resnet8' occurs twice"
    ],
    "methods=[]": ["methods: needs at least 1, got []"],
    "methods=[{}]": ["methods[0].name: is required"],
    'methods=[{name="kd"},{name="kd",temperature=2.0}]': ["methods: 'kd' occurs twice; give each its own label"],
    'methods=[{name="kd"},{name="none",label="kd"}]': ["methods: 'kd' occurs twice; give each its own label"],
    'methods.kd.label="a\\u001bb"': ["methods[1].label: must be printable, without spaces at its ends, got 'a\\x1bb'"],
    "methods.kd.temperature=1e20": ["methods.kd.temperature: must be at most 1e+19 in magnitude, got 1e+20"],
    'question="a\\u001bb"': ["question: must not contain control characters, got 'a\\x1bb'"],
    "teachers.resnet20.sed=1": ["teachers.resnet20.sed: unknown key; did you mean 'seed'?"],
    "teachers.resnet20.expected_top1=101": ["teachers.resnet20.expected_top1: must be at most 100, got 101"],
    "teachers.resnet20.recipe.lr=0": ["teachers.resnet20.recipe.lr: must be positive, got 0"],
    "teachers.resnet21={}": ["teachers.resnet21: no pair has this teacher; did you mean 'resnet20'?"],
    # A teacher may be called like a table of the file.
    "teachers.data={sed=1}": [
        "teachers.data.sed: unknown key; did you mean 'seed'?",
        "teachers.data: no pair has this teacher; known: resnet20",
    ],
}


@pytest.mark.parametrize("override", OK)
def test_ok(open_small: Callable[..., Suite], override: str) -> None:
    assert isinstance(open_small(override), Suite)


@pytest.mark.parametrize(("override", "problems"), NOK.items(), ids=NOK)
def test_nok(problems_of: Callable[..., list[str]], override: str, problems: list[str]) -> None:
    assert problems_of(override) == problems


def test_values_arrive(open_small: Callable[..., Suite]) -> None:
    suite = open_small()
    assert (suite.name, suite.question, suite.seeds) == ("small", "Does it work?", (0, 1))
    assert suite.recipe.drops == (5, 8)
    assert [augmentation.name for augmentation in suite.recipe.augmentation] == ["crop", "flip"]
    assert suite.methods[1].settings == {"temperature": 2.0}
    assert suite.methods[1].shown == "kd"
    assert suite.pairs[0].name == "resnet20:resnet8"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), "with_seeds"),
        (("seeds=[5]",), "single"),
        (("teacher_seeds=single",), "single"),
        (("seeds=[5]", "teacher_seeds=with_seeds"), "with_seeds"),
    ],
)
def test_several_seeds_have_a_teacher_each_by_default(open_small, overrides: tuple[str, ...], expected: str) -> None:
    assert open_small(*overrides).teacher_seeds == expected


def test_a_single_teacher_may_have_a_seed_but_no_list_of_weights(open_small, problems_of) -> None:
    assert open_small("teacher_seeds=single", "teachers.resnet20.seed=3").teacher("resnet20").seed == 3
    assert open_small("seeds=[1]", "teachers.resnet20.seed=3").teacher_seeds == "single"
    assert problems_of("teacher_seeds=single", 'teachers.resnet20.weights=["a.pth","b.pth"]') == [
        'teachers.resnet20.weights: is a list, one for each seed; give one file, or set teacher_seeds = "with_seeds"'
    ]


def test_drops_as_fractions_are_rounded_down_to_whole_epochs() -> None:
    def epochs(of: int, *drops: float) -> tuple[int, ...]:
        return Recipe(epochs=of, drops=drops).drop_epochs

    assert epochs(240, 0.625, 0.75, 0.875) == (150, 180, 210)
    assert epochs(60, 0.625, 0.75, 0.875) == (37, 45, 52)
    assert epochs(100, 0.29, 0.57, 0.58) == (29, 57, 58)  # 0.29 * 100 is below 29 in binary
    # Two at one epoch are one drop; before the first epoch there is none.
    assert epochs(3, 0.625, 0.75, 0.875) == (1, 2)
    assert epochs(2, 0.3, 0.6, 0.9) == (1,)
    assert epochs(1, 0.3, 0.6, 0.9) == ()
    assert epochs(9, 5, 8) == (5, 8)
    assert Recipe(epochs=240, drops=(0.625, 0.75)).resolved() == Recipe(epochs=240, drops=(150, 180))


def test_fractions_follow_the_epochs_of_a_pair(open_small: Callable[..., Suite]) -> None:
    suite = open_small("recipe.drops=[0.5,0.8]", "pairs.0.recipe.epochs=20")
    assert pair_recipe(suite, {}).drops == (5, 8)
    assert pair_recipe(suite, suite.pairs[0].recipe).drops == (10, 16)


def test_too_many_trials_are_refused() -> None:
    methods = tuple(MethodTable(name="kd", label=f"kd{i}") for i in range(251))
    with pytest.raises(ValidationError, match=r"defines 50,200 trials; at most 50,000 are allowed; split the suite"):
        Suite(
            name="x",
            question="?",
            data=Data(name="digits"),
            recipe=Recipe(epochs=1),
            pairs=(Pair(teacher="resnet20", student="resnet8"),),
            methods=methods,
            seeds=tuple(range(200)),
        )


def test_own_settings_are_what_the_schema_does_not_know() -> None:
    assert Data.model_validate({"name": "x", "train_limit": 3, "root": "there"}).settings == {"root": "there"}
    assert MethodTable.model_validate({"name": "kd", "label": "a", "temperature": 2}).settings == {"temperature": 2}
    assert MethodTable(name="kd", label="a").shown == "a"


def test_a_teachers_model_defaults_to_its_name() -> None:
    suite = Suite(
        name="x",
        question="?",
        data=Data(name="digits"),
        recipe=Recipe(epochs=1),
        pairs=(Pair(teacher="big", student="resnet8"), Pair(teacher="resnet20", student="resnet8")),
        methods=(MethodTable(name="kd"),),
        seeds=(0,),
        teachers={"big": TeacherTable(model="resnet56", seed=4)},
    )
    assert suite.teacher("big") == TeacherTable(model="resnet56", seed=4)
    assert suite.teacher("resnet20") == TeacherTable(model="resnet20", seed=0)


def test_suites_do_not_change() -> None:
    recipe = Recipe(epochs=1)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.epochs = 2  # type: ignore[misc]
