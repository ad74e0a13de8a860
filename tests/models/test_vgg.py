from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import vgg

from kdbench.errors import ModelError


@pytest.mark.parametrize(("depth", "letter"), [(11, "A"), (13, "B"), (16, "D"), (19, "E")])
def test_equals_torchvisions_features_at_64_pixels(build, images, depth, letter):
    """The same layers in the same order; the reference's last pooling is the average here."""
    torch.manual_seed(0)
    model = build(f"vgg{depth}", image_shape=(3, 64, 64)).eval()
    # Without the classifier, which has a hundred million weights.
    reference = vgg.make_layers(vgg.cfgs[letter], batch_norm=True)[:-1].eval()
    body = [value for key, value in model.state_dict().items() if not key.startswith("fc")]
    reference.load_state_dict(dict(zip(reference.state_dict(), body, strict=True)))
    x = images(2, 3, 64, 64)
    outputs = model(x, reads=("stage4", "embedding"))
    torch.testing.assert_close(outputs["stage4"], reference(x))
    torch.testing.assert_close(outputs["embedding"], nn.AdaptiveAvgPool2d(1)(outputs["stage4"]).flatten(1))


def test_batch_norm_facts_are_those_of_the_last_convolution(build):
    model = build("vgg13")
    assert model.batch_norm_before("stage2/pre") is model.block2[4]
    assert model.batch_norm_before("stage2") is None


def test_depths_that_are_none_are_refused(build):
    with pytest.raises(ModelError, match=r"^vgg: depth must be one of 8, 11, 13, 16, 19, got 12$"):
        build("vgg8", depth=12)
