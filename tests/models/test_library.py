from __future__ import annotations

import pytest
import torch

from kdbench.models.library import LibraryModel, Preprocessing, family


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
    assert model.state_dict() == {}


def test_equal_normalisations_leave_images_alone():
    model = LibraryModel()
    model.preprocessing = Preprocessing((4, 4), (0.5,), (0.2,))
    model.accept_normalisation([0.5], [0.2])
    images = torch.ones(1, 1, 4, 4)
    assert model.prepare(images) is images
