from __future__ import annotations

import pytest
import torch

from kdbench.errors import ModelError
from kdbench.models.base import signature
from kdbench.models.deit import suitable_patch_size


def test_both_heads_average_to_what_timm_predicts(build, images):
    """timm's own forward pass is the oracle: in evaluation it gives the mean of the two heads."""
    torch.manual_seed(0)
    model = build("deit_micro").eval()
    x = images(2, 3, 32, 32)
    outputs = model(x, reads=("dist_logits",))
    torch.testing.assert_close((outputs["logits"] + outputs["dist_logits"]) / 2, model.network(x))
    model.train()
    model.network.set_distilled_training(True)
    torch.testing.assert_close(tuple(model(x, reads=("dist_logits",)).values()), model.network(x))


def test_heads_differ_and_the_class_head_leaves_the_other_alone(build, images):
    torch.manual_seed(0)
    model = build("deit_micro").train()
    model(images(2, 3, 32, 32))["logits"].sum().backward()
    assert model.network.head_dist.weight.grad is None
    assert model.network.head.weight.grad is not None


def test_stages_are_timms_intermediate_maps(build, images):
    torch.manual_seed(0)
    model = build("deit_micro", depth=8).eval()
    x = images(2, 3, 32, 32)
    outputs = model(x, reads=("stage1", "stage2", "stage3", "stage4"))
    maps = model.network.forward_intermediates(x, indices=[1, 3, 5, 7], intermediates_only=True)
    for i, expected in enumerate(maps, start=1):
        assert torch.equal(outputs[f"stage{i}"], expected)


def test_digits_have_four_patches(build):
    with torch.device("meta"):
        model = build("deit_micro", classes=10, image_shape=(1, 8, 8))
    facts = signature(model, "deit_micro", (1, 8, 8))
    assert facts.taps["stage4"].shape == (48, 2, 2)
    assert facts.taps["embedding"].shape == (48,)
    assert facts.taps["dist_logits"].shape == (10,)
    assert facts.select({"stage*/pre"}) == []


@pytest.mark.parametrize(("side", "patch"), [(8, 4), (10, 2), (16, 4), (28, 4), (32, 4), (64, 8), (96, 16), (224, 16)])
def test_patches_grow_with_the_image(side, patch):
    assert suitable_patch_size((3, side, side)) == patch


def test_an_odd_image_needs_a_patch_size(build):
    with pytest.raises(ModelError, match=r"^deit: the image's sides must be even, got 9x9; give patch_size$"):
        build("deit_micro", image_shape=(3, 9, 9))
    assert build("deit_micro", image_shape=(3, 9, 9), patch_size=3).network.patch_embed.grid_size == (3, 3)


def test_too_few_blocks_are_refused(build):
    message = r"^a transformer needs at least 4 blocks to have 4 stages, got 3$"
    with pytest.raises(ModelError, match=message):
        build("deit_micro", depth=3)


def test_drop_path_acts_in_training_only(build, images):
    torch.manual_seed(0)
    model = build("deit_micro", drop_path=0.5)
    x = images(8, 3, 32, 32)
    model.train()
    assert not torch.equal(model(x)["logits"], model(x)["logits"])
    model.eval()
    assert torch.equal(model(x)["logits"], model(x)["logits"])


def test_no_dropout_unless_asked_for(build, images):
    model = build("deit_micro").train()
    x = images(2, 3, 32, 32)
    assert torch.equal(model(x)["logits"], model(x)["logits"])
