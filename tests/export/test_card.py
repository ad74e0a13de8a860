"""The model card says what the student is, and is what the Hub reads."""

from __future__ import annotations

import shutil

import pytest
from huggingface_hub import ModelCard

from kdbench.export import export_trial
from kdbench.results import write_json
from kdbench.results.files import read_json


@pytest.fixture
def card(exported):
    """``card("resnet8 deit", "onnx")``: the text beside the exported file."""

    def read(name, form="safetensors"):
        return exported(name, form).card.read_text(encoding="utf-8")

    return read


def cells(text):
    """The rows of the card's two-column tables."""
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}


def test_the_front_matter_is_the_hubs(card, trained):
    result = trained.trials["resnet8 deit"].result
    data = ModelCard(card("resnet8 deit")).data
    assert data.model_name == trained.path("resnet8 deit").name
    assert data.library_name == "kdbench"
    assert data.tags == ["knowledge-distillation", "deit"]
    (accuracy,) = data.eval_results
    assert (accuracy.dataset_name, accuracy.dataset_split) == ("digits", "test")
    assert accuracy.metric_value == result.top1


def test_the_card_lists_accuracy_teacher_data_and_recipe(card, trained):
    folder = trained.trials["resnet8 deit"]
    text, result, trial = card("resnet8 deit"), folder.result, folder.description
    told = cells(text)
    assert told["top-1"] == f"{result.top1:.2f} %"
    assert told["teacher"] == f"resnet14 (`resnet14`), {result.teacher.top1:.2f} % top-1"
    assert told["the teacher's weights"] == f"SHA-256 `{result.teacher.sha256}`"
    assert told["data"] == "digits, 66 training images"
    assert told["the data's fingerprint"] == f"SHA-256 `{result.data.fingerprint}`"
    assert told["seed"] == "0"
    assert told["method"] == f"`deit` of {trial.plugin.distribution} {trial.plugin.version}"
    assert told["paper"] == "Touvron et al., ICML 2021, https://arxiv.org/abs/2012.12877"
    assert told["`alpha`"] == "`0.5`"
    assert told["`distillation`"] == "`hard`"
    assert {f"`{key}`" for key in trial.recipe} <= told.keys()
    assert told["`label_smoothing`"] == "`0.1`"
    assert (told["mean"], told["std"]) == ("0.30476", "0.37582")
    assert "(batch, 1, 8, 8)" in text
    assert f"selected on the validation split ({result.validation_top1:.2f} % there)" in text
    assert "None" not in text


def test_the_card_names_the_last_epoch(trained, tmp_path):
    place = shutil.copytree(trained.path("resnet8 vid"), tmp_path / "trial")
    write_json(place / "result.json", read_json(place / "result.json") | {"selection": "last"})
    text = export_trial(place, "torch", tmp_path).card.read_text()
    assert "Results of the last epoch, 1 of 1; no epoch was selected on the test images." in text


def test_the_card_names_the_predicting_parts(card):
    assert "computed by the method `deit` from the network's embedding and logits and its own dist_head." in card(
        "resnet8 deit"
    )
    assert "computed by the method `deit` from the network's logits and dist_logits." in card("deit_micro deit")
    assert "Output: logits, float32, shape (batch, 10).\n" in card("resnet8 vid")


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        ("safetensors", "student = load_student("),
        ("torch", "torch.load("),
        ("onnx", "onnxruntime.InferenceSession("),
    ],
)
def test_how_to_load_it_is_shown(form, shown, card):
    assert shown in card("resnet8 vid", form)


def test_only_a_plain_student_is_offered_as_a_teacher(card):
    hint = 'with `model = "resnet8"` and `weights = '
    assert hint in card("resnet8 vid")
    assert hint not in card("resnet8 deit")
