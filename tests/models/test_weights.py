from __future__ import annotations

import argparse
import fractions
import hashlib
import pickle
import re
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdbench.errors import ModelError
from kdbench.models.weights import load_weights, read_state_dict, weights_sha256


class Layout:
    """Writes a state dictionary in the public layout of the CRD study, entry by entry."""

    def __init__(self):
        self.state = {}
        self.generator = torch.Generator().manual_seed(3)

    def tensor(self, name, *shape):
        self.state[name] = torch.rand(*shape, generator=self.generator)

    def convolution(self, name, out_channels, in_channels, size, bias=False):
        self.tensor(f"{name}.weight", out_channels, in_channels, size, size)
        if bias:
            self.tensor(f"{name}.bias", out_channels)

    def norm(self, name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            self.tensor(f"{name}.{part}", channels)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(187680)

    def linear(self, name, classes, width):
        self.tensor(f"{name}.weight", classes, width)
        self.tensor(f"{name}.bias", classes)
        return self.state


def resnet8(classes=100):
    layout = Layout()
    layout.convolution("conv1", 16, 3, 3)
    layout.norm("bn1", 16)
    for layer, (before, channels) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
        layout.convolution(f"layer{layer}.0.conv1", channels, before, 3)
        layout.norm(f"layer{layer}.0.bn1", channels)
        layout.convolution(f"layer{layer}.0.conv2", channels, channels, 3)
        layout.norm(f"layer{layer}.0.bn2", channels)
        if layer > 1:
            layout.convolution(f"layer{layer}.0.downsample.0", channels, before, 1)
            layout.norm(f"layer{layer}.0.downsample.1", channels)
    return layout.linear("fc", classes, 64)


def wrn_16_2():
    layout = Layout()
    layout.convolution("conv1", 16, 3, 3)
    for block, (first, channels) in enumerate(((16, 32), (32, 64), (64, 128)), start=1):
        for layer, before in ((0, first), (1, channels)):
            name = f"block{block}.layer.{layer}"
            layout.norm(f"{name}.bn1", before)
            layout.convolution(f"{name}.conv1", channels, before, 3)
            layout.norm(f"{name}.bn2", channels)
            layout.convolution(f"{name}.conv2", channels, channels, 3)
            if before != channels:
                layout.convolution(f"{name}.convShortcut", channels, before, 1)
    layout.norm("bn1", 128)
    return layout.linear("fc", 100, 128)


def vgg13():
    layout = Layout()
    before = 3
    for block, channels in enumerate((64, 128, 256, 512, 512)):
        # Convolution, normalisation and activation count as three entries of the block.
        for index in (0, 3):
            layout.convolution(f"block{block}.{index}", channels, before, 3, bias=True)
            layout.norm(f"block{block}.{index + 1}", channels)
            before = channels
    return layout.linear("classifier", 100, 512)


def resnet50():
    layout = Layout()
    layout.convolution("conv1", 64, 3, 3)
    layout.norm("bn1", 64)
    before = 64
    for layer, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            layout.convolution(f"{name}.conv1", width, before, 1)
            layout.norm(f"{name}.bn1", width)
            layout.convolution(f"{name}.conv2", width, width, 3)
            layout.norm(f"{name}.bn2", width)
            layout.convolution(f"{name}.conv3", 4 * width, width, 1)
            layout.norm(f"{name}.bn3", 4 * width)
            if block == 0:
                layout.convolution(f"{name}.shortcut.0", 4 * width, before, 1)
                layout.norm(f"{name}.shortcut.1", 4 * width)
            before = 4 * width
    return layout.linear("linear", 100, 2048)


def mobilenet_v2():
    layout = Layout()
    layout.convolution("conv1.0", 16, 3, 3)
    layout.norm("conv1.1", 16)
    before = 16
    groups = ((8, 1), (12, 2), (16, 3), (32, 4), (48, 3), (80, 3), (160, 1))
    for group, (channels, blocks) in enumerate(groups):
        for block in range(blocks):
            name = f"blocks.{group}.{block}.conv"
            wide = before * (1 if group == 0 else 6)
            layout.convolution(f"{name}.0", wide, before, 1)
            layout.norm(f"{name}.1", wide)
            layout.convolution(f"{name}.3", wide, 1, 3)
            layout.norm(f"{name}.4", wide)
            layout.convolution(f"{name}.6", channels, wide, 1)
            layout.norm(f"{name}.7", channels)
            before = channels
    layout.convolution("conv2.0", 1280, 160, 1)
    layout.norm("conv2.1", 1280)
    return layout.linear("classifier.0", 100, 1280)


def shuffle_v1():
    layout = Layout()
    layout.convolution("conv1", 24, 3, 1)
    layout.norm("bn1", 24)
    before = 24
    for layer, (channels, blocks) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            out = channels - before if block == 0 else channels
            middle = out // 4
            layout.convolution(f"{name}.conv1", middle, before // (1 if before == 24 else 3), 1)
            layout.norm(f"{name}.bn1", middle)
            layout.convolution(f"{name}.conv2", middle, 1, 3)
            layout.norm(f"{name}.bn2", middle)
            layout.convolution(f"{name}.conv3", out, middle // 3, 1)
            layout.norm(f"{name}.bn3", out)
            before = channels
    return layout.linear("linear", 100, 960)


def shuffle_v2():
    layout = Layout()
    layout.convolution("conv1", 24, 3, 1)
    layout.norm("bn1", 24)
    before = 24
    for layer, (channels, blocks) in enumerate(((116, 3), (232, 7), (464, 3)), start=1):
        half = channels // 2
        name = f"layer{layer}.0"
        layout.convolution(f"{name}.conv1", before, 1, 3)
        layout.norm(f"{name}.bn1", before)
        layout.convolution(f"{name}.conv2", half, before, 1)
        layout.norm(f"{name}.bn2", half)
        layout.convolution(f"{name}.conv3", half, before, 1)
        layout.norm(f"{name}.bn3", half)
        layout.convolution(f"{name}.conv4", half, 1, 3)
        layout.norm(f"{name}.bn4", half)
        layout.convolution(f"{name}.conv5", half, half, 1)
        layout.norm(f"{name}.bn5", half)
        for block in range(1, blocks + 1):
            name = f"layer{layer}.{block}"
            layout.convolution(f"{name}.conv1", half, half, 1)
            layout.norm(f"{name}.bn1", half)
            layout.convolution(f"{name}.conv2", half, 1, 3)
            layout.norm(f"{name}.bn2", half)
            layout.convolution(f"{name}.conv3", half, half, 1)
            layout.norm(f"{name}.bn3", half)
        before = channels
    layout.convolution("conv2", 1024, 464, 1)
    layout.norm("bn2", 1024)
    return layout.linear("linear", 100, 1024)


CASES = [
    ("resnet8", resnet8, {"layer2.0.downsample.0.weight": "layer2.0.downsample.0.weight", "fc.bias": "fc.bias"}),
    (
        "wrn_16_2",
        wrn_16_2,
        {"block2.layer.0.convShortcut.weight": "block2.layer.0.shortcut.weight", "bn1.bias": "bn1.bias"},
    ),
    ("vgg13", vgg13, {"block4.3.bias": "block4.3.bias", "classifier.weight": "fc.weight"}),
    ("ResNet50", resnet50, {"layer1.0.shortcut.0.weight": "layer1.0.shortcut.0.weight", "linear.bias": "fc.bias"}),
    (
        "MobileNetV2",
        mobilenet_v2,
        {"classifier.0.weight": "fc.weight", "blocks.6.0.conv.6.weight": "blocks.6.0.conv.6.weight"},
    ),
    ("ShuffleNetV1", shuffle_v1, {"linear.weight": "fc.weight", "layer3.3.bn3.bias": "layer3.3.bn3.bias"}),
    ("ShuffleNetV2", shuffle_v2, {"linear.weight": "fc.weight", "layer3.0.conv5.weight": "layer3.0.conv5.weight"}),
]


@pytest.mark.parametrize(("name", "layout", "entries"), CASES, ids=[case[0] for case in CASES])
def test_public_checkpoints_load(build, tmp_path, name, layout, entries):
    state = layout()
    path = tmp_path / "ckpt_epoch_240.pth"
    torch.save({"epoch": 240, "model": state, "accuracy": torch.tensor(72.34)}, path)
    model = build(name)
    load_weights(model, path)
    own = model.state_dict()
    assert len(own) == len(state)
    for theirs, ours in entries.items():
        assert torch.equal(own[ours], state[theirs])
    # Every entry went somewhere: the values are all different, so their sums agree only then.
    assert sum(v.double().sum() for v in own.values()) == pytest.approx(
        sum(v.double().sum().item() for v in state.values())
    )


@pytest.mark.parametrize("container", [None, "model", "state_dict", "net", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_layouts_around_the_state_dictionary(build, tmp_path, container, prefix):
    state = {f"{prefix}{name}": value for name, value in resnet8().items()}
    path = tmp_path / "resnet8.pth"
    torch.save(state if container is None else {"epoch": 1, container: state}, path)
    model = build("resnet8")
    load_weights(model, path)
    assert torch.equal(model.fc.weight, state[f"{prefix}fc.weight"])


def test_safetensors_and_a_file_in_own_names(build, tmp_path):
    path = tmp_path / "student.safetensors"
    torch.manual_seed(0)
    saved, loaded = build("wrn_16_1"), build("wrn_16_1")
    save_file(saved.state_dict(), path)
    load_weights(loaded, path)
    assert weights_sha256(loaded) == weights_sha256(saved)


def test_command_line_arguments_beside_the_weights_are_let_through(build, tmp_path):
    path = tmp_path / "resnet8_last.pth"
    torch.save({"opt": argparse.Namespace(model="resnet8", lr=0.05), "model": resnet8()}, path)
    load_weights(build("resnet8"), path)


def test_batch_counts_may_be_missing(build, tmp_path):
    path = tmp_path / "old.pth"
    torch.save({k: v for k, v in resnet8().items() if not k.endswith("num_batches_tracked")}, path)
    load_weights(build("resnet8"), path)


def _error(build, path, name="resnet8"):
    model = build(name)
    before = weights_sha256(model)
    with pytest.raises(ModelError) as caught:
        load_weights(model, path)
    assert weights_sha256(model) == before
    return str(caught.value).replace(str(path), "FILE")


def test_missing_file(build, tmp_path):
    expected = "FILE: no such file; weights are a .pth, .pt or .safetensors file"
    assert _error(build, tmp_path / "none.pth") == expected


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_file(build, tmp_path, kind, share):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(resnet8(), path)
    else:
        torch.save(resnet8(), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert _error(build, path) == "FILE: the file is truncated or not a checkpoint"


@pytest.mark.parametrize("content", [b"<html>404</html>", b"hello, world"])
def test_not_a_checkpoint(build, tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    assert _error(build, path) == "FILE: the file is truncated or not a checkpoint"


def test_python_objects_are_not_unpickled(build, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"model": resnet8(), "accuracy": fractions.Fraction(1, 2)}, path)
    assert _error(build, path) == (
        "FILE: contains a fractions.Fraction; for safety, only tensors are read; save only the state dictionary"
    )


def test_wrong_number_of_classes(build, tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"model": resnet8(classes=10)}, path)
    assert _error(build, path) == "FILE: its classifier has 10 classes, the data has 100"
    torch.save({f"module.{k}": v for k, v in vgg13().items()}, path)
    model = build("vgg13", classes=10)
    with pytest.raises(ModelError, match=r"its classifier has 100 classes, the data has 10$"):
        load_weights(model, path)


def test_another_network(build, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(resnet8(), path)
    assert _error(build, path, "resnet14") == (
        "FILE: the weights are not those of this ResNet: missing layer1.1.conv1.weight, layer1.1.bn1.weight, "
        "layer1.1.bn1.bias and 27 more"
    )
    state = resnet8()
    state["extra.weight"] = state.pop("bn1.bias")
    torch.save(state, path)
    assert _error(build, path) == (
        "FILE: the weights are not those of this ResNet: missing bn1.bias, unexpected extra.weight"
    )
    state = resnet8()
    state["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    torch.save(state, path)
    assert _error(build, path) == (
        "FILE: the weights are not those of this ResNet: conv1.weight is 16x1x3x3, the model needs 16x3x3x3"
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 3, "accuracy": 0.5}, "it contains accuracy, epoch"),
        ([torch.zeros(2)], "it is not a dictionary"),
        ({}, "it contains nothing"),
    ],
)
def test_no_state_dictionary(build, tmp_path, content, found):
    path = tmp_path / "w.pth"
    torch.save(content, path)
    assert _error(build, path) == f"FILE: no state dictionary in it ({found}); save model.state_dict()"


def test_read_state_dict_keeps_the_files_names(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"model": {"module.linear.weight": torch.ones(2)}}, path)
    assert list(read_state_dict(path)) == ["linear.weight"]


def test_sha256_is_that_of_names_types_shapes_and_bytes():
    """Written out with struct and hashlib for two small tensors."""
    state = {"b": torch.tensor([[1.5, -2.0]]), "a": torch.tensor(7)}
    expected = hashlib.sha256(
        b"a\0torch.int64\0\0" + struct.pack("<q", 7) + b"b\0torch.float32\x001,2\0" + struct.pack("<2f", 1.5, -2.0)
    ).hexdigest()
    assert weights_sha256(state) == expected


def test_sha256_tells_weights_apart_but_not_memory_formats(build):
    torch.manual_seed(0)
    model = build("resnet8")
    first = weights_sha256(model)
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    assert weights_sha256(model.to(memory_format=torch.channels_last)) == first
    with torch.no_grad():
        model.bn1.running_mean[3] += 1e-6
    assert weights_sha256(model) != first
    assert weights_sha256({"a": torch.zeros(2, 3)}) != weights_sha256({"a": torch.zeros(3, 2)})
    assert weights_sha256({"a": torch.zeros(2)}) != weights_sha256({"b": torch.zeros(2)})
    assert weights_sha256({"a": torch.zeros(2)}) != weights_sha256({"a": torch.zeros(2, dtype=torch.int32)})
    assert weights_sha256({"a": torch.ones(2, dtype=torch.bfloat16)}) != weights_sha256(
        {"a": torch.zeros(2, dtype=torch.bfloat16)}
    )
    assert weights_sha256(nn.Identity()) == hashlib.sha256().hexdigest()


class Call:
    """Pickled, a call of what torch lets a checkpoint call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("call", [(bytearray, 10**15), (bytearray, "text"), (OrderedDict, 1)], ids=str)
def test_a_checkpoint_that_asks_for_nonsense_is_no_checkpoint(tmp_path, call):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(tmp_path / "bad.pth", "w") as bad:
        for member in good.namelist():
            bad.writestr(member, pickle.dumps(Call(*call), 2) if member.endswith("data.pkl") else good.read(member))
    with pytest.raises(ModelError, match=r"bad\.pth: the file is truncated or not a checkpoint"):
        read_state_dict(tmp_path / "bad.pth")


def test_a_small_file_does_not_fill_the_memory(tmp_path):
    torch.save({"weight": torch.zeros(2**20)}, tmp_path / "good.pth")
    with (
        zipfile.ZipFile(tmp_path / "good.pth") as good,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in good.namelist():
            bomb.writestr(member, good.read(member))
    with pytest.raises(ModelError, match=r"bomb\.pth: is compressed \(4,19.,... bytes unpacked\)"):
        read_state_dict(tmp_path / "bomb.pth")
