from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from kdbench.models.library import LibraryModel, Preprocessing, family
from kdbench.models.torchvision import build
from kdbench.models.weights import weights_sha256


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet34", "resnet"),
        ("wide_resnet50_2", "resnet"),
        ("resnext50_32x4d", "resnet"),
        ("mobilenet_v2", "mobilenet"),
        ("mobilenetv2_100", "mobilenet"),
        ("shufflenet_v2_x1_0", "shufflenet"),
        ("vgg13_bn", "vgg"),
        ("vit_b_16", "vit"),
        ("deit3_small_patch16_224", "vit"),
        ("regnety_160", "regnet"),
        ("regnet_y_16gf", "regnet"),
        ("convnextv2_atto", "convnext"),
    ],
)
def test_family(name, expected):
    assert family(name) == expected


def test_images_are_converted_from_the_datas_normalisation_to_the_weights():
    model = LibraryModel()
    raw = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    theirs = Preprocessing((4, 4), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)

    def normalise(mean, std):
        channels = [(raw[:, c] - m) / s for c, (m, s) in enumerate(zip(mean, std, strict=True))]
        return torch.stack(channels, dim=1)

    images = normalise(mean, std)
    model.accept_normalisation(mean, std)
    assert model.prepare(images) is images
    model.preprocessing = theirs
    model.accept_normalisation(mean, std)
    torch.testing.assert_close(model.prepare(images), normalise(theirs.mean, theirs.std))
    # The conversion travels with the weights, to a network that knows nothing of it.
    loaded = LibraryModel()
    loaded.load_state_dict(model.state_dict())
    torch.testing.assert_close(loaded.prepare(images), normalise(theirs.mean, theirs.std))


def test_equal_normalisations_leave_images_alone():
    model = LibraryModel()
    model.preprocessing = Preprocessing((4, 4), (0.5,), (0.2,))
    model.accept_normalisation([0.5], [0.2])
    images = torch.ones(1, 1, 4, 4)
    assert model.prepare(images) is images


def test_a_file_saved_here_keeps_its_own_normalisation(tmp_path):
    """Weights trained here on images as the data set gives them must not be fed the library's."""
    trained = build(name="resnet18", classes=10, image_shape=(3, 32, 32))
    save_file(trained.state_dict(), tmp_path / "trained.safetensors")
    again = build(name="resnet18", classes=10, image_shape=(3, 32, 32), weights=str(tmp_path / "trained.safetensors"))
    again.accept_normalisation((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert again.input_scale is None
    assert weights_sha256(again) == weights_sha256(trained)

    published = build(name="resnet18", classes=10, image_shape=(3, 32, 32))
    published.preprocessing = Preprocessing((224, 224), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    published.accept_normalisation((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    save_file(published.state_dict(), tmp_path / "published.safetensors")
    again = build(name="resnet18", classes=10, image_shape=(3, 32, 32), weights=str(tmp_path / "published.safetensors"))
    assert again.input_scale.flatten().tolist() == pytest.approx([5.0] * 3)
    assert again.input_shift.flatten().tolist() == pytest.approx([-2.0, -1.5, -1.0])
    assert weights_sha256(again) == weights_sha256(published)
