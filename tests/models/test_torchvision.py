from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
import torchvision

from kdbench.errors import ModelError
from kdbench.models.base import signature
from kdbench.models.torchvision import build

SMALL = ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1", "regnet_y_400mf", "densenet121"]


def _pair(name, classes=10, size=64):
    """The network under test, and torchvision's own with the same weights."""
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name, num_classes=classes)
    model = build(name=name, classes=classes, image_shape=(3, size, size))
    model.network.load_state_dict(reference.state_dict())
    return model, reference


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_torchvisions_and_taps_keep_their_signs(images, name):
    model, reference = _pair(name)
    x = images(4, 3, 64, 64)
    torch.testing.assert_close(model.eval()(x)["logits"], reference.eval()(x))
    # Training without dropout, whose draws differ from call to call.
    for network in (model, reference):
        network.train()
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    outputs = model(x, reads=tuple(model.taps))
    torch.testing.assert_close(outputs["logits"], reference(x))
    assert list(outputs) == list(model.taps)
    for tap, nonnegative in model.taps.items():
        assert bool((outputs[tap] < 0).any()) != nonnegative, tap
    for name_, buffer in model.network.named_buffers():
        torch.testing.assert_close(buffer, reference.get_buffer(name_))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_every_parameter_gets_a_gradient(images, name):
    torch.manual_seed(0)
    model = build(name=name, classes=10, image_shape=(3, 64, 64)).train()
    model(images(4, 3, 64, 64))["logits"].square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


def test_resnet_stages_are_its_layers(images):
    model, reference = _pair("resnet18")
    model.eval(), reference.eval()
    seen = {}
    for i in range(1, 5):
        layer = reference.get_submodule(f"layer{i}")
        layer.register_forward_hook(lambda m, inputs, output, i=i: seen.__setitem__(f"stage{i}", output))
        # The last block's second call of its ReLU rectifies the sum; it works in place there.
        layer[-1].relu.register_forward_pre_hook(
            lambda m, inputs, i=i: seen.__setitem__(f"stage{i}/pre", inputs[0].clone())
        )
    reference.avgpool.register_forward_hook(lambda m, inputs, output: seen.__setitem__("embedding", output.flatten(1)))
    x = images(2, 3, 64, 64)
    reference(x)
    outputs = model(x, reads=tuple(seen))
    assert len(seen) == 9
    for tap, expected in seen.items():
        torch.testing.assert_close(outputs[tap], expected)
        if tap.endswith("/pre"):
            assert torch.equal(F.relu(outputs[tap]), outputs[tap.removesuffix("/pre")])
    assert model.batch_norm_before("stage2/pre") is model.get_submodule("network.layer2.1.bn2")
    assert model.batch_norm_before("stage2") is None


def test_only_what_is_read_is_given(images):
    model = build(name="resnet18", classes=10, image_shape=(3, 32, 32))
    assert list(model(images(2, 3, 32, 32), reads=("stage2",))) == ["stage2", "logits"]
    with pytest.raises(ModelError, match=r"^TorchvisionModel has no tap stage7; it has stem, stage1/pre, "):
        model(images(2, 3, 32, 32), reads=("stage7",))


def test_a_linear_bottleneck_is_its_own_pre_activation(images):
    model = build(name="mobilenet_v2", classes=10, image_shape=(3, 64, 64)).eval()
    outputs = model(images(2, 3, 64, 64), reads=tuple(model.taps))
    assert torch.equal(outputs["stage2/pre"], outputs["stage2"])
    assert torch.equal(F.relu6(outputs["stage4/pre"]), outputs["stage4"])


EXPECTED_SHAPES = {
    # At 224 pixels, from the papers' tables.
    "resnet34": [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7), (512,)],
    "resnet50": [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7), (2048,)],
    "vgg13_bn": [(128, 112, 112), (256, 56, 56), (512, 28, 28), (512, 14, 14), (4096,)],
    "densenet121": [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (1024, 7, 7), (1024,)],
    "convnext_tiny": [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7), (768,)],
    "swin_t": [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7), (768,)],
    "vit_b_16": [(768, 14, 14)] * 4 + [(768,)],
    "regnet_y_400mf": [(48, 56, 56), (104, 28, 28), (208, 14, 14), (440, 7, 7), (440,)],
    "mobilenet_v2": [(24, 56, 56), (32, 28, 28), (96, 14, 14), (1280, 7, 7), (1280,)],
    "googlenet": [(192, 56, 56), (480, 28, 28), (832, 14, 14), (1024, 7, 7), (1024,)],
}


@pytest.mark.parametrize("name", EXPECTED_SHAPES)
def test_stages_on_the_meta_device(name):
    with torch.device("meta"):
        model = build(name=name, classes=1000, image_shape=(3, 224, 224))
    facts = signature(model, f"torchvision:{name}", (3, 224, 224))
    assert [facts.taps[tap].shape for tap in [*facts.stages, "embedding"]] == EXPECTED_SHAPES[name]
    assert facts.taps["logits"].shape == (1000,)
    assert facts.classifier_weight.shape == (1000, *EXPECTED_SHAPES[name][-1])
    pres = facts.select({"stage*/pre"})
    assert len(pres) in {0, len(facts.stages)}


def test_transformer_maps_are_its_patch_tokens(images):
    torch.manual_seed(0)
    model = build(name="vit_b_16", classes=10, image_shape=(3, 32, 32)).eval()
    seen = []
    layer = model.network.encoder.layers.encoder_layer_3
    layer.mlp.register_forward_hook(lambda m, inputs, output: seen.append(output))
    x = images(2, 3, 32, 32)
    outputs = model(x, reads=("stage1", "embedding"))
    assert outputs["stage1"].shape == (2, 768, 2, 2)
    # What the next layer normalises, seen through the reference implementation with the same weights.
    reference = torchvision.models.vit_b_16(image_size=32, num_classes=10).eval()
    reference.load_state_dict(model.network.state_dict())
    reference.encoder.layers[2].register_forward_hook(lambda m, inputs, output: seen.append(output))
    logits = reference(x)
    tokens = seen[-1]
    for patch in range(4):
        torch.testing.assert_close(outputs["stage1"][:, :, patch // 2, patch % 2], tokens[:, 1 + patch])
    torch.testing.assert_close(model.network.heads.head(outputs["embedding"]), logits)


def test_a_copy_is_independent_and_a_switch_of_mode_keeps_the_weights(images):
    torch.manual_seed(0)
    model = build(name="resnet18", classes=10, image_shape=(3, 32, 32))
    copied = copy.deepcopy(model)
    x = images(2, 3, 32, 32)
    expected = model.eval()(x, reads=("stage3/pre",))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    actual = copied.train().eval()(x, reads=("stage3/pre",))
    assert torch.equal(actual["stage3/pre"], expected["stage3/pre"])
    assert torch.equal(actual["logits"], expected["logits"])


def test_grey_images_are_repeated(images):
    torch.manual_seed(0)
    model = build(name="resnet18", classes=10, image_shape=(1, 32, 32)).eval()
    x = images(2, 1, 32, 32)
    assert torch.equal(model(x)["logits"], model(x.repeat(1, 3, 1, 1))["logits"])


def test_drop_path(images):
    torch.manual_seed(0)
    model = build(name="convnext_tiny", classes=10, image_shape=(3, 32, 32), drop_path=0.9).train()
    x = images(4, 3, 32, 32)
    assert not torch.equal(model(x)["logits"], model(x)["logits"])
    with pytest.raises(ModelError, match=r"^torchvision:resnet18: drop_path cannot be set for this network$"):
        build(name="resnet18", classes=10, image_shape=(3, 32, 32), drop_path=0.1)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's download cache, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_pretrained_weights_bring_their_preprocessing(hub, images):
    torch.manual_seed(5)
    reference = torchvision.models.resnet18()
    torch.save(reference.state_dict(), hub / "resnet18-f37072fd.pth")
    model = build(name="resnet18", classes=1000, image_shape=(3, 64, 64), weights="IMAGENET1K_V1").eval()
    assert model.preprocessing.size == (224, 224)
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)
    assert model.preprocessing.std == (0.229, 0.224, 0.225)
    x = images(2, 3, 64, 64)
    torch.testing.assert_close(model(x)["logits"], reference.eval()(x))


def test_weights_from_a_file_in_torchvisions_names(tmp_path, images):
    torch.manual_seed(5)
    reference = torchvision.models.resnet18(num_classes=10)
    path = tmp_path / "resnet18.pth"
    torch.save({"model": reference.state_dict()}, path)
    model = build(name="resnet18", classes=10, image_shape=(3, 32, 32), weights=str(path)).eval()
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(model(x)["logits"], reference.eval()(x))
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)
    with pytest.raises(ModelError, match=r"its classifier has 10 classes, the data has 7$"):
        build(name="resnet18", classes=7, image_shape=(3, 32, 32), weights=str(path))


def test_no_network(monkeypatch, hub):
    def refuse(*args, **kwargs):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    message = (
        "torchvision:resnet18: its weights could not be downloaded (<urlopen error [Errno -2] Name or service "
        "not known>); download them on a machine with network access and set weights = 'file.pth'"
    )
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        build(name="resnet18", classes=1000, image_shape=(3, 32, 32), weights="DEFAULT")


ERRORS = [
    ({"name": "resnet43"}, "torchvision has no network called 'resnet43'; did you mean 'resnet34'?"),
    (
        {"name": "resnet18", "weights": "IMAGENET1K_V9"},
        "torchvision:resnet18: no file and no weights called 'IMAGENET1K_V9'; did you mean 'IMAGENET1K_V1'?",
    ),
    (
        {"name": "resnet18", "weights": "IMAGENET1K_V1"},
        "torchvision:resnet18: weights IMAGENET1K_V1 have 1000 classes, the data has 10",
    ),
    (
        {"name": "resnet18", "image_shape": (4, 32, 32)},
        "torchvision:resnet18: images must have 1 or 3 channels, got 4x32x32",
    ),
]


@pytest.mark.parametrize(("settings", "message"), ERRORS)
def test_errors(settings, message):
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        build(**{"classes": 10, "image_shape": (3, 32, 32), **settings})


def test_images_that_do_not_fit(hub):
    with pytest.raises(ModelError, match=r"^torchvision:alexnet: cannot take images of 3x16x16 \(.+\)$"):
        build(name="alexnet", classes=10, image_shape=(3, 16, 16))
    with pytest.raises(ModelError, match=r"^torchvision:vit_b_16: cannot take images of 3x30x30 \(.+\)$"):
        build(name="vit_b_16", classes=10, image_shape=(3, 30, 30))
    with pytest.raises(ModelError, match=r"^torchvision:vit_b_16: weights DEFAULT do not fit \(.+\)$"):
        build(name="vit_b_16", classes=1000, image_shape=(3, 32, 32), weights="DEFAULT")
