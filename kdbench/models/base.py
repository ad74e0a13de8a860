"""What every network must tell: its taps, its body, its classifier."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdbench.method import Signature, TapSignature

NONNEGATIVE = True
SIGNED = False


class TappedModel(nn.Module):
    """A classifier that hands out its inner tensors by name.

    ``taps`` maps each name, in network order, to whether its values are nonnegative: ``stem``,
    ``stage1`` .. ``stageN`` (after the stage's last activation), ``stageI/pre`` (before it, where there is
    one), ``embedding`` and, with a second head, ``dist_logits``. Activations must not work in place: a tap
    handed out before its activation would change behind the reader's back.
    """

    family: ClassVar[str]
    """The architecture's family (``resnet``, ``wrn``, ``vit`` ..), which some recipes refer to."""
    taps: Mapping[str, bool]
    head: tuple[str, ...]
    """Names of the submodules that are not part of the body (AB's boundary stage trains the body alone)."""
    classifier: str
    """Name of the linear layer that gives the logits."""

    def forward(self, images: Tensor, reads: Collection[str] = ()) -> dict[str, Tensor]:
        """``logits`` (B, C) and the taps named in ``reads``, for images (B, channels, H, W)."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def batch_norm_before(self, tap: str) -> nn.BatchNorm2d | None:
        """The batch normalisation whose output is the pre-activation tap ``tap``, if there is one."""
        return None


def signature(model: TappedModel, name: str, image_shape: tuple[int, int, int]) -> Signature:
    """The signature of ``model`` for images of (channels, height, width).

    Runs one forward pass in eval mode on the device that the model lies on; on the meta device that costs
    nothing and gives shapes alone.
    """
    parameter = next(model.parameters())
    training = model.training
    model.eval()
    with torch.no_grad():
        images = torch.zeros(2, *image_shape, device=parameter.device, dtype=parameter.dtype)
        outputs = model(images, reads=tuple(model.taps))
    model.train(training)
    taps = {}
    for tap, nonnegative in model.taps.items():
        norm = model.batch_norm_before(tap)
        facts = None
        if norm is not None and norm.weight is not None:
            facts = (norm.weight.detach().clone(), norm.bias.detach().clone())
        taps[tap] = TapSignature(tuple(outputs[tap].shape[1:]), nonnegative, facts)
    classifier = model.get_submodule(model.classifier)
    weight = classifier.weight.detach().clone() if isinstance(classifier, nn.Linear) else None
    return Signature(name, model.family, outputs["logits"].shape[1], taps, weight)
