from __future__ import annotations

import copy
import re

import pytest
import timm
import torch
import torch.nn.functional as F

from kdbench.errors import ModelError
from kdbench.models.base import signature
from kdbench.models.deit import TappedDeiT
from kdbench.models.timm import build


def _shake_normalisations(model):
    """timm starts each block's last normalisation at zero, so that a fresh block adds nothing."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)


SMALL = [
    "resnet18",
    "regnety_002",
    "mobilenetv2_050",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "tiny_vit_5m_224",
    "swin_s3_tiny_224",
]


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_timms_and_taps_keep_their_signs(images, name):
    torch.manual_seed(0)
    size = 224 if "swin" in name else 64
    model = build(name=name, classes=10, image_shape=(3, size, size)).eval()
    _shake_normalisations(model)
    x = images(2, 3, size, size)
    # In evaluation: some of these drop paths in training by themselves.
    expected = model.network(x)
    outputs = model(x, reads=tuple(model.taps))
    torch.testing.assert_close(outputs["logits"], expected)
    assert list(outputs) == list(model.taps)
    for tap, nonnegative in model.taps.items():
        assert bool((outputs[tap] < 0).any()) != nonnegative, tap
    torch.testing.assert_close(model.get_submodule(model.classifier)(outputs["embedding"]), expected)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "convnext_atto"])
def test_every_parameter_gets_a_gradient(images, name):
    torch.manual_seed(0)
    model = build(name=name, classes=10, image_shape=(3, 64, 64)).train()
    model(images(4, 3, 64, 64))["logits"].square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


def test_resnet_stages_are_its_features(images):
    torch.manual_seed(0)
    model = build(name="resnet18", classes=10, image_shape=(3, 64, 64)).eval()
    _shake_normalisations(model)
    features = timm.create_model("resnet18", features_only=True).eval()
    features.load_state_dict(model.network.state_dict(), strict=False)
    x = images(2, 3, 64, 64)
    taps = ("stem", "stage1", "stage2", "stage3", "stage4")
    outputs = model(x, reads=(*taps, "stage1/pre", "stage4/pre"))
    for tap, expected in zip(taps, features(x), strict=True):
        torch.testing.assert_close(outputs[tap], expected)
    for tap in ("stage1", "stage4"):
        assert torch.equal(F.relu(outputs[f"{tap}/pre"]), outputs[tap])
        assert (outputs[f"{tap}/pre"] < 0).any()
    assert model.batch_norm_before("stage3/pre") is model.network.layer3[1].bn2
    assert model.batch_norm_before("stage3") is None


EXPECTED_SHAPES = {
    # At 224 pixels, from the papers' tables.
    "resnet50": [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7), (2048,)],
    "regnety_160": [(224, 56, 56), (448, 28, 28), (1232, 14, 14), (3024, 7, 7), (3024,)],
    "swin_tiny_patch4_window7_224": [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7), (768,)],
    "deit_tiny_distilled_patch16_224": [(192, 14, 14)] * 4 + [(192,)],
    "deit_small_patch16_224": [(384, 14, 14)] * 4 + [(384,)],
    "levit_128": [(128, 14, 14), (256, 7, 7), (384, 4, 4), (384,)],
}


@pytest.mark.parametrize("name", EXPECTED_SHAPES)
def test_stages_on_the_meta_device(name):
    with torch.device("meta"):
        model = build(name=name, classes=1000, image_shape=(3, 224, 224))
    facts = signature(model, f"timm:{name}", (3, 224, 224))
    assert [facts.taps[tap].shape for tap in [*facts.stages, "embedding"]] == EXPECTED_SHAPES[name]
    assert facts.taps["logits"].shape == (1000,)
    assert ("dist_logits" in facts.taps) == (name.startswith("levit") or "distilled" in name)


def test_deit_is_two_headed(images):
    torch.manual_seed(0)
    model = build(name="deit_tiny_distilled_patch16_224", classes=10, image_shape=(3, 32, 32))
    assert isinstance(model, TappedDeiT)
    assert model.head == ("network.head", "network.head_dist")
    for training in (True, False):
        outputs = model.train(training)(images(2, 3, 32, 32), reads=("dist_logits", "stage2"))
        assert outputs["stage2"].shape == (2, 192, 2, 2)
        assert not torch.equal(outputs["logits"], outputs["dist_logits"])


def test_another_second_head_is_handed_out_too(images):
    """timm averages LeViT's two heads in evaluation."""
    torch.manual_seed(0)
    model = build(name="levit_128s", classes=10, image_shape=(3, 224, 224)).eval()
    x = images(1, 3, 224, 224)
    with torch.no_grad():
        for head in (model.network.head, model.network.head_dist):
            torch.nn.init.normal_(head.linear.weight)
        outputs = model(x, reads=("dist_logits",))
        torch.testing.assert_close((outputs["logits"] + outputs["dist_logits"]) / 2, model.network(x))
    assert not torch.allclose(outputs["logits"], outputs["dist_logits"])


def test_a_copy_is_independent_and_no_hook_stays(images):
    torch.manual_seed(0)
    model = build(name="resnet18", classes=10, image_shape=(3, 32, 32)).eval()
    x = images(2, 3, 32, 32)
    expected = model(x, reads=("stage3/pre", "embedding"))
    assert not any(module._forward_hooks for module in model.modules())
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    actual = copied(x, reads=("stage3/pre", "embedding"))
    assert all(torch.equal(actual[tap], expected[tap]) for tap in expected)


def test_grey_images_have_a_stem_of_their_own(images):
    model = build(name="resnet18", classes=10, image_shape=(1, 32, 32)).eval()
    assert model.network.conv1.weight.shape[1] == 1
    assert model(images(2, 1, 32, 32))["logits"].shape == (2, 10)


def test_drop_path(images):
    torch.manual_seed(0)
    settings = {"classes": 10, "image_shape": (3, 32, 32), "drop_path": 0.9}
    model = build(name="convnext_atto", **settings).train()
    x = images(4, 3, 32, 32)
    assert not torch.equal(model(x)["logits"], model(x)["logits"])
    with pytest.raises(ModelError, match=r"^timm:vgg11: drop_path cannot be set for this network$"):
        build(name="vgg11", **settings)


def test_weights_from_a_file_in_timms_names(tmp_path, images):
    torch.manual_seed(5)
    reference = timm.create_model("resnet18", num_classes=10)
    path = tmp_path / "resnet18.pth"
    torch.save({"state_dict": reference.state_dict()}, path)
    model = build(name="resnet18", classes=10, image_shape=(3, 32, 32), weights=str(path)).eval()
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(model(x)["logits"], reference.eval()(x))
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)
    assert model.preprocessing.size == (224, 224)


def test_weights_for_grey_images_expect_the_mean_normalisation(monkeypatch, images):
    torch.manual_seed(5)
    reference = timm.create_model("resnet18")
    state = reference.state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: dict(state))
    model = build(name="resnet18", classes=1000, image_shape=(1, 32, 32), weights="timm").eval()
    assert model.preprocessing.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
    model.accept_normalisation((0.0,), (1.0,))
    # A grey image is one of three equal channels, normalised alike, to the network with the original stem.
    x = images(2, 1, 32, 32)
    (mean,), (std,) = model.preprocessing.mean, model.preprocessing.std
    torch.testing.assert_close(model(x)["logits"], reference.eval()(((x - mean) / std).repeat(1, 3, 1, 1)))


def test_timms_own_weights(monkeypatch, images):
    torch.manual_seed(5)
    reference = timm.create_model("resnet18")
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: reference.state_dict())
    model = build(name="resnet18.a1_in1k", classes=1000, image_shape=(3, 32, 32), weights="timm").eval()
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(model(x)["logits"], reference.eval()(x))


def test_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    with pytest.raises(
        ModelError,
        match=r"^timm:resnet18: its weights could not be downloaded \(Name or service not known\); download them on a "
        r"machine with network access and set weights = 'file.pth'$",
    ):
        build(name="resnet18", classes=1000, image_shape=(3, 32, 32), weights="timm")


ERRORS = [
    ({"name": "resnet19"}, "timm has no network called 'resnet19'; did you mean 'resnet18'?"),
    (
        {"weights": "x.pth"},
        "timm:resnet18: no file called 'x.pth'; weights must be a file, or 'timm' for those of timm",
    ),
    ({"weights": "timm"}, "timm:resnet18: timm's weights have 1000 classes, the data has 10"),
]


@pytest.mark.parametrize(("settings", "message"), ERRORS)
def test_errors(settings, message):
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        build(**{"name": "resnet18", "classes": 10, "image_shape": (3, 32, 32), **settings})


def test_images_that_do_not_fit():
    name = "deit_tiny_distilled_patch16_224"
    with pytest.raises(ModelError, match=rf"^timm:{name}: cannot take images of 3x8x8 \(.+\)$"):
        build(name=name, classes=10, image_shape=(3, 8, 8))
