"""The interface of a network: its taps, its body, its classifier."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import ModelError
from kdbench.method import Signature, TapSignature

if TYPE_CHECKING:
    from kdbench.discovery import Offer
    from kdbench.hookspecs import ModelSpec

NONNEGATIVE = True
SIGNED = False


class TappedModel(nn.Module):
    """A classifier that returns its intermediate tensors by name.

    ``taps`` maps each name, in network order, to whether its values are nonnegative: ``stem``,
    ``stage1`` .. ``stageN`` (after the stage's last activation), ``stageI/pre`` (before that activation, if there
    is one), ``embedding``, ``logits`` and, with a second head, ``dist_logits``. Activations must not be in place:
    they would overwrite a tap that is read before its activation.
    """

    family: str
    """The architecture's family (``resnet``, ``wrn``, ``vit`` ..), to which some recipes refer."""
    taps: Mapping[str, bool]
    head: tuple[str, ...]
    """Names of the submodules that are not part of the body (the boundary stage of AB trains only the body)."""
    classifier: str
    """Name of the linear layer that computes the logits."""
    published_names: ClassVar[Mapping[str, str]] = {}
    """Parts of parameter names in published checkpoints, and their names here."""
    optional_entries: ClassVar[frozenset[str]] = frozenset()
    """Entries that a state dictionary of this network may have or lack."""

    def forward(self, images: Tensor, reads: Collection[str] = ()) -> dict[str, Tensor]:
        """``logits`` (B, C) and the taps named in ``reads``, for images (B, channels, H, W)."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def parameter_name(self, published: str) -> str:
        """The name in this network's state dictionary of the entry ``published`` of a published checkpoint.

        Each whole part of the dotted name that ``published_names`` lists is replaced.
        """
        name = f".{published}."
        for theirs, ours in self.published_names.items():
            name = name.replace(f".{theirs}.", f".{ours}.")
        return name.strip(".")

    def accept_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Receive the channel ``mean`` and ``std`` (of values in 0..1) with which the images are normalised.

        A pretrained network converts its input to the normalisation of its weights; others ignore the call.
        """

    def no_weight_decay(self) -> Collection[str]:
        """Names of parameters without weight decay in AdamW, in addition to biases and one-dimensional parameters.

        A transformer lists its tokens and position embeddings (timm's convention). SGD decays all parameters.
        """
        return frozenset()

    def batch_norm_before(self, tap: str) -> nn.BatchNorm2d | None:
        """The last batch normalisation before the activation of the pre-activation tap ``tap``, if there is one.

        In a residual network this is the one whose output is added to the shortcut (OFD estimates its
        margins from it: Heo 2019, https://arxiv.org/abs/1904.01866).
        """
        return None


def from_offer(
    offer: Offer[ModelSpec], *, classes: int, image_shape: tuple[int, int, int], **settings: Any
) -> TappedModel:
    """Build a network of a registered model, for images (channels, height, width).

    ``settings`` are additional arguments of its builder. Raises the builder's errors, and
    :class:`~kdbench.errors.PluginError` if the builder cannot be imported. The caller must check the result, see
    :func:`contract_problems`.
    """
    build = offer.load()
    return cast(TappedModel, build(classes=classes, image_shape=image_shape, **offer.spec.presets, **settings))


def contract_problems(network: object) -> list[str]:
    """The problems of ``network`` as a :class:`TappedModel`, one sentence for each; empty if there are none."""
    if not isinstance(network, TappedModel):
        return [f"its builder must return a kdbench.models.base.TappedModel, got {type(network).__name__}"]
    problems = []
    family, taps = getattr(network, "family", None), getattr(network, "taps", None)
    if not isinstance(family, str) or not family:
        problems.append(f"family must name the architecture's family, such as 'resnet', got {family!r}")
    if not isinstance(taps, Mapping) or not all(isinstance(sign, bool) for sign in taps.values()):
        problems.append(f"taps must map each tap's name to NONNEGATIVE or SIGNED, got {taps!r}")
    elif "logits" not in taps:
        problems.append(f"taps must contain logits, got {', '.join(taps) or 'none'}")
    head, classifier = getattr(network, "head", None), getattr(network, "classifier", None)
    modules = dict(network.named_modules())
    if not isinstance(head, tuple) or not all(isinstance(name, str) and name in modules for name in head):
        problems.append(f"head must be a tuple of names of submodules, got {head!r}")
    if not isinstance(classifier, str) or not classifier or classifier not in modules:
        problems.append(f"classifier must be the name of a submodule, got {classifier!r}")
    if "reads" not in inspect.signature(network.forward).parameters:
        problems.append("forward must take reads: forward(self, images, reads=())")
    if not any(True for _ in network.parameters()):
        problems.append("it has no parameters")
    return problems


class Recorder:
    """Keeps the tensors that are read, in network order.

    A network's forward pass calls ``value = record("stage1", value)`` for each tap. Tensors that are not read are
    not kept in memory. ``logits`` is always kept. ``taps`` contains the kept tensors.
    """

    def __init__(self, model: TappedModel, reads: Collection[str]) -> None:
        self.taps: dict[str, Tensor] = {}
        self._reads = {"logits", *reads}
        if unknown := self._reads.difference(model.taps):
            names = ", ".join(sorted(unknown))
            raise ModelError(f"{type(model).__name__} has no tap {names}; it has {', '.join(model.taps)}")

    def __call__(self, tap: str, value: Tensor) -> Tensor:
        """Keep ``value`` if tap is read; return it."""
        if tap in self._reads:
            self.taps[tap] = value
        return value

    def wants(self, tap: str) -> bool:
        """Whether ``tap`` is read; for taps that need additional computation."""
        return tap in self._reads


def rectified_taps(stages: int) -> dict[str, bool]:
    """The taps of a network whose stages end in a ReLU: all values after a ReLU are nonnegative."""
    taps = {"stem": NONNEGATIVE}
    for i in range(1, stages + 1):
        taps[f"stage{i}/pre"] = SIGNED
        taps[f"stage{i}"] = NONNEGATIVE
    return taps | {"embedding": NONNEGATIVE, "logits": SIGNED}


def rectified_stages(
    x: Tensor,
    stages: Iterable[Iterable[nn.Module]],
    record: Recorder,
    activation: Callable[[Tensor], Tensor] = F.relu,
) -> Tensor:
    """Run stages of blocks that return their output before its activation; record ``stageI/pre`` and ``stageI``."""
    for i, stage in enumerate(stages, start=1):
        for block in stage:
            before = block(x)
            x = activation(before)
        record(f"stage{i}/pre", before)
        record(f"stage{i}", x)
    return x


def he_initialise(model: nn.Module) -> None:
    """Initialise convolutions from N(0, 2 / fan-out), without biases (He 2015, https://arxiv.org/abs/1502.01852)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_image(model: str, image_shape: tuple[int, int, int], smallest: int) -> None:
    """Raise :class:`ModelError` if images (channels, height, width) are too small for the network."""
    if min(image_shape[1:]) < smallest:
        size = "x".join(map(str, image_shape))
        raise ModelError(f"{model}: images must be at least {smallest} pixels high and wide, got {size}")


def signature(model: TappedModel, name: str, image_shape: tuple[int, int, int]) -> Signature:
    """The signature of ``model`` for images of (channels, height, width).

    Runs one forward pass in eval mode on the model's device; on the meta device only shapes are computed. Raises
    :class:`ModelError` if the model does not return the taps that it declares.
    """
    parameter = next(model.parameters())
    training = model.training
    model.eval()
    with torch.no_grad():
        images = torch.zeros(2, *image_shape, device=parameter.device, dtype=parameter.dtype)
        outputs = model(images, reads=tuple(model.taps))
    model.train(training)
    _check_outputs(outputs, model, name)
    taps = {}
    for tap, nonnegative in model.taps.items():
        norm = model.batch_norm_before(tap)
        affine = None
        if norm is not None and norm.weight is not None:
            affine = (norm.weight.detach().clone(), norm.bias.detach().clone())
        taps[tap] = TapSignature(tuple(outputs[tap].shape[1:]), nonnegative, affine)
    classifier = model.get_submodule(model.classifier)
    weight = classifier.weight.detach().clone() if isinstance(classifier, nn.Linear) else None
    return Signature(name, model.family, outputs["logits"].shape[1], taps, weight)


def _check_outputs(outputs: object, model: TappedModel, name: str) -> None:
    if not isinstance(outputs, Mapping):
        raise ModelError(f"model '{name}': forward must return a dictionary of taps, got {type(outputs).__name__}")
    for tap in model.taps:
        value = outputs.get(tap)
        if not isinstance(value, Tensor):
            got = "nothing" if value is None else type(value).__name__
            raise ModelError(f"model '{name}': forward must return a tensor for tap '{tap}', got {got}")
    if outputs["logits"].ndim != 2:
        raise ModelError(
            f"model '{name}': logits must have shape (B, C), got {tuple(outputs['logits'].shape)} for B = 2"
        )
