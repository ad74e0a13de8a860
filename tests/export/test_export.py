"""What is exported is the student that was measured, whole and alone."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import onnx
import pytest
import scipy.special
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from kdbench.errors import ExportError, PluginError, ResultsError
from kdbench.export import export_trial, formats, load_student
from kdbench.models.resnet import resnet
from kdbench.models.weights import load_weights, weights_sha256
from kdbench.results import TrialFolder, write_json
from kdbench.results.files import read_json

FORMS = ("safetensors", "torch", "onnx")
LOGITS_TOLERANCE = 1e-4
"""What an ONNX program is promised to be within."""
STUDENTS = ("resnet8 vid", "resnet8 deit", "deit_micro deit", "resnet8 both", "deit_micro both", "resnet8 halves")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", STUDENTS)
def test_the_file_reproduces_the_measured_accuracy_and_likelihood(
    form, name, trained, exported, test_images, predict, tolerance
):
    result = trained.trials[name].result
    images, labels = test_images
    mean, std = (np.array(getattr(result.data, key), np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    logits = predict(exported(name, form).file)((images - mean) / std)
    assert logits.dtype == np.float32
    nll = -scipy.special.log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean()
    assert (logits.argmax(1) == labels).mean() * 100 == pytest.approx(result.top1)
    allowed = tolerance[torch.float32] if form != "onnx" else LOGITS_TOLERANCE
    assert nll == pytest.approx(result.metrics["nll"], rel=allowed)


@pytest.mark.parametrize("name", ["resnet8 vid", "deit_micro deit"])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_onnx_program_takes_any_batch_and_gives_the_same_logits(name, batch, exported, predict):
    images = np.random.default_rng(batch).standard_normal((batch, 1, 8, 8), dtype=np.float32)
    given, expected = (predict(exported(name, form).file)(images) for form in ("onnx", "safetensors"))
    assert given.shape == (batch, 10)
    np.testing.assert_allclose(given, expected, rtol=LOGITS_TOLERANCE, atol=LOGITS_TOLERANCE)


def test_an_onnx_program_contains_its_description(trained, exported):
    model = onnx.load(exported("resnet8 deit", "onnx").file)
    onnx.checker.check_model(model, full_check=True)
    (images,), (logits,) = model.graph.input, model.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    sizes = [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim]
    assert sizes == ["batch", 1, 8, 8]
    facts = json.loads({p.key: p.value for p in model.metadata_props}["kdbench"])
    assert facts["trial"] == trained.path("resnet8 deit").name


def test_adapters_stay_behind(trained, exported):
    file = exported("resnet8 vid", "safetensors").file
    result = trained.trials["resnet8 vid"].result
    weights = load_file(file)
    network = resnet(depth=8, classes=10, image_shape=(1, 8, 8))
    assert result.cost.adapter_parameters > 0
    assert weights.keys() == network.state_dict().keys()
    own = {name for name, _ in network.named_parameters()}
    assert sum(weights[name].numel() for name in own) == result.cost.student_parameters
    assert sum(p.numel() for p in load_student(file).parameters()) == result.cost.student_parameters


def test_the_second_head_comes_along_and_predicts_by_half(trained, exported):
    file = exported("resnet8 deit", "safetensors").file
    weights = load_file(file)
    added = {name: weights.pop(name) for name in ("method.dist_head.weight", "method.dist_head.bias")}
    network = resnet(depth=8, classes=10, image_shape=(1, 8, 8)).eval()
    network.load_state_dict(weights)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = network(images, ("embedding",))
        second = out["embedding"] @ added["method.dist_head.weight"].T + added["method.dist_head.bias"]
    torch.testing.assert_close(load_student(file)(images), (out["logits"] + second) / 2)
    result = trained.trials["resnet8 deit"].result
    assert sum(p.numel() for p in load_student(file).parameters()) == result.cost.student_parameters


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_weights_of_a_plain_student_load_into_the_network_as_a_teachers_would(form, trained, exported):
    file = exported("resnet8 vid", form).file
    network = resnet(depth=8, classes=10, image_shape=(1, 8, 8))
    load_weights(network, file)
    kept = load_file(trained.path("resnet8 vid") / "student.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


def test_the_torch_file_holds_weights_and_plain_facts(trained, exported):
    path = trained.path("deit_micro deit")
    content = torch.load(exported("deit_micro deit", "torch").file, weights_only=True)
    assert content.keys() == {"state_dict", "facts"}
    facts = content["facts"]
    assert facts["trial"] == path.name
    assert facts["sha256"] == weights_sha256(load_file(path / "student.safetensors"))
    assert (facts["mean"], facts["std"]) == ([0.30476], [0.37582])
    student = facts["student"]
    assert (student["model"], student["classes"], student["image_shape"]) == ("deit_micro", 10, [1, 8, 8])
    with safe_open(exported("deit_micro deit", "safetensors").file, framework="pt") as file:
        assert json.loads(file.metadata()["kdbench"]) == facts


def test_a_loaded_student_is_frozen_in_eval_mode_and_disturbs_no_randomness(exported):
    file = exported("resnet8 deit", "torch").file
    before = torch.random.get_rng_state()
    student = load_student(file)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(module.training for module in student.modules())
    assert not any(p.requires_grad for p in student.parameters())


def test_where_the_file_goes(trained, tmp_path, monkeypatch):
    path = trained.path("resnet8 vid")
    named = export_trial(path, "safetensors", tmp_path / "new" / "mine.safetensors")
    assert named.file == tmp_path / "new" / "mine.safetensors"
    assert named.card == tmp_path / "new" / "mine.safetensors.md"
    assert named.file.stat().st_mode & 0o777 == named.card.stat().st_mode & 0o777
    monkeypatch.chdir(tmp_path)
    assert export_trial(path, "torch").file.resolve() == tmp_path / f"{path.name}.pt"
    assert {p.name for p in tmp_path.iterdir()} == {"new", f"{path.name}.pt", f"{path.name}.pt.md"}


# ---- plugins


@pytest.fixture
def copied(trained, tmp_path):
    """The results of the suite beside a copy of its plugin, which may be changed."""
    output = tmp_path / "runs"
    shutil.copytree(trained.output, output)
    plugin = tmp_path / "halves.py"
    shutil.copy(trained.plugin, plugin)
    plan = output / "small" / "plan.json"
    write_json(plan, read_json(plan) | {"path": str(tmp_path / "small.toml")})
    return output, plugin, output / "small" / trained.path("resnet8 halves").name


def test_an_unchanged_method_is_no_cause_for_a_warning(trained, copied, tmp_path):
    heard = []
    output, _, halves = copied
    export_trial(halves, "torch", tmp_path, warn=heard.append)
    export_trial(trained.path("resnet8 both").name, "torch", tmp_path, output=output, warn=heard.append)
    assert heard == []


def test_a_changed_method_is_reported(copied, tmp_path):
    heard = []
    _, plugin, halves = copied
    plugin.write_text(plugin.read_text() + "EDITED = True\n")
    export_trial(halves, "torch", tmp_path, warn=heard.append)
    assert heard == [f"{halves.name}: halves has changed since the training; the export uses its current prediction"]


def test_a_plugin_that_is_gone_is_named_and_may_be_given(trained, copied, tmp_path):
    _, plugin, halves = copied
    elsewhere = plugin.rename(tmp_path / "elsewhere.py")
    with pytest.raises(PluginError) as error:
        export_trial(halves, "torch", tmp_path)
    message = str(error.value)
    assert message.startswith("method 'halves' is not registered")
    assert message.endswith("install its package (halves.py local), or pass its file with -p")
    assert export_trial(halves, "torch", tmp_path, plugins=[elsewhere]).file.is_file()


def test_changed_settings_of_a_method_are_reported(copied, tmp_path):
    _, _, halves = copied
    folder = TrialFolder(halves)
    result = folder.result
    folder.begin(folder.description.model_copy(update={"settings": {"share": 0.5}}))
    folder.finish(**dict(result))
    with pytest.raises(PluginError) as error:
        export_trial(halves, "torch", tmp_path)
    assert str(error.value) == (
        "method 'halves' has changed since the training: share: unknown setting; it has no settings; "
        "trained by (halves.py local)"
    )


def test_a_method_that_no_longer_fits_is_reported(copied, tmp_path):
    _, plugin, halves = copied
    text = plugin.read_text().replace(
        'name = "halves"\n', 'name = "halves"\n\n    def setup(self, *all):\n        1 / 0\n'
    )
    plugin.write_text(text)
    with pytest.raises(PluginError, match=r"^method 'halves' no longer fits its student: division by zero$"):
        export_trial(halves, "torch", tmp_path)


# ---- what cannot be written or read


def test_an_unknown_form(trained, tmp_path):
    with pytest.raises(ExportError, match=r"^format 'tflite' is unknown; known: safetensors, torch, onnx$"):
        export_trial(trained.path("resnet8 vid"), "tflite", tmp_path)


def test_missing_packages_are_named_with_what_to_install(trained, tmp_path, monkeypatch):
    find_spec = formats.importlib.util.find_spec
    monkeypatch.setattr(
        formats.importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find_spec(name)
    )
    with pytest.raises(ExportError) as error:
        export_trial(trained.path("resnet8 vid"), "onnx", tmp_path)
    assert str(error.value) == (
        "export to onnx needs onnx and onnxscript and onnxruntime: pip install 'kdbench[export]'"
    )
    assert export_trial(trained.path("resnet8 vid"), "safetensors", tmp_path).file.is_file()


def test_a_program_that_gives_other_logits_is_refused(exported):
    file = exported("resnet8 vid", "onnx").file
    student = load_student(exported("resnet8 vid", "torch").file)
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    formats.compare(file, student, images)
    student.network.fc.bias.data[3] += 0.01
    with pytest.raises(ExportError, match=r"^the ONNX program's logits differ by 0\.01; export to safetensors or"):
        formats.compare(file, student, images)


def test_weights_of_another_student_are_refused(copied, trained, tmp_path):
    output, _, _ = copied
    place = output / "small" / trained.path("resnet8 vid").name
    shutil.copy(trained.path("deit_micro deit") / "student.safetensors", place)
    TrialFolder(place).finish(**dict(TrialFolder(place).recorded))
    with pytest.raises(ExportError) as error:
        export_trial(place, "torch", tmp_path)
    start = f"{place / 'student.safetensors'}: the weights do not match this student: Error(s) in loading"
    assert str(error.value).startswith(start)


def test_damaged_weights_are_refused(copied, trained, tmp_path):
    output, _, _ = copied
    place = output / "small" / trained.path("resnet8 vid").name
    weights = place / "student.safetensors"
    whole, before = weights.read_bytes(), weights.stat()
    changed = bytearray(whole)
    changed[-7] ^= 1
    for content in (whole[:1000], bytes(changed)):
        weights.write_bytes(content)
        # Not even the time of the last change gives it away.
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(ResultsError) as error:
            export_trial(place, "torch", tmp_path)
        assert str(error.value) == (
            f"{place}: damaged: student.safetensors does not match its checksum; remove the folder, and "
            f"kdbench run {tmp_path / 'small.toml'} retrains the student"
        )


def test_files_that_are_no_exported_student_are_refused(trained, tmp_path):
    cases = {
        tmp_path / "nowhere.pt": "no such file",
        tmp_path / "text.pt": "is truncated or not a checkpoint of weights only",
        tmp_path / "text.safetensors": "is truncated or not a safetensors file",
        tmp_path / "other.pt": "has no description of a student; it was not written by kdbench export",
        trained.path("resnet8 vid") / "student.safetensors": (
            "has no description of a student; it was not written by kdbench export"
        ),
        tmp_path / "program.onnx": "is an ONNX program; run it with onnxruntime, as its model card shows",
    }
    for name in ("text.pt", "text.safetensors", "program.onnx"):
        (tmp_path / name).write_text("no weights")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    for path, problem in cases.items():
        with pytest.raises(ExportError) as error:
            load_student(path)
        assert str(error.value) == f"{path}: {problem}"
