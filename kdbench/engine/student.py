"""A student: a network, and the submodules of a method that it uses for prediction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdbench.engine.average import Average
from kdbench.engine.device import in_float32
from kdbench.engine.outputs import outputs
from kdbench.errors import TrialError
from kdbench.method import Method
from kdbench.models.base import TappedModel

NETWORK, METHOD = "network", "method"
PARTS = frozenset({NETWORK, METHOD, "optimizer", "schedule"})
"""The parts of a student's training that third-party plugins may provide."""


class StudentInTraining:
    """The student that is evaluated, saved and counted.

    If the recipe averages weights, ``average`` is updated from the start of the main stage, and the averaged weights
    are evaluated and saved.
    """

    def __init__(
        self, network: TappedModel, method: Method, device: torch.device, *, classes: int, foreign: Collection[str]
    ) -> None:
        """Move network and method to ``device``. ``foreign``: which of the two come from third-party plugins."""
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.method = method.to(device)
        self.classes = classes
        self.foreign = frozenset(foreign)
        self.average: Average | None = None
        if self.foreign:
            _own_buffers(self.network)
            _own_buffers(self.method)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The submodules of the method that belong to the student, by name."""
        return {name: self.method.get_submodule(name) for name in self.method.part_of_student}

    def _predicting(self) -> nn.ModuleDict:
        """The network and the parts, as one module."""
        return nn.ModuleDict(
            {"network": self.network, **{name.replace(".", "/"): part for name, part in self.parts.items()}}
        )

    def begin_average(self, decay: float) -> None:
        """Start to average the weights."""
        self.average = Average(self._predicting(), decay)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Context in which the student has the averaged weights, if any."""
        if self.average is None:
            yield
            return
        own = self._predicting()
        kept = {key: value.clone() for key, value in own.state_dict().items()}
        own.load_state_dict(self.average.deployed_state())
        try:
            yield
        finally:
            own.load_state_dict(kept)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Context in which :meth:`predict` returns the predictions for evaluation: eval mode, averaged weights."""
        self.network.eval()
        self.method.eval()
        with self._averaged():
            yield

    def predict(self, images: Tensor, reads: Sequence[str]) -> Tensor:
        """The logits (B, C) of images (B, channels, H, W), computed in float32: in bf16 many would be tied.

        ``reads``: the taps that the method predicts from.
        Raises :class:`~kdbench.errors.TrialError` if the method returns something else.
        """
        with torch.no_grad(), in_float32(images.device):
            images = images.clone() if NETWORK in self.foreign else images
            logits = self.method.predict(outputs(self.network(images, reads), reads))
            self._check(logits, images)
            # A copy: the method may write into its own tensor at the next batch.
            return logits.float().clone() if self.foreign else logits.float()

    def _check(self, logits: object, images: Tensor) -> None:
        wanted = len(images), self.classes
        if not isinstance(logits, Tensor):
            raise TrialError(f"predict must return logits of shape {wanted}, got {type(logits).__name__}")
        if tuple(logits.shape) != wanted or not logits.is_floating_point():
            got = f"{logits.dtype} of shape {tuple(logits.shape)}"
            raise TrialError(f"predict must return floating-point logits of shape {wanted}, got {got}")
        if logits.device != images.device:
            raise TrialError(f"predict must return logits on {images.device}, got them on {logits.device}")

    def weights(self) -> dict[str, Tensor]:
        """Copies of the network's weights, and of its parts' weights with the prefix ``method.``."""
        with self._averaged():
            state = {key: value.detach().clone() for key, value in self.network.state_dict().items()}
            for name, part in self.parts.items():
                for key, value in part.state_dict().items():
                    state[f"method.{name}.{key}"] = value.detach().clone()
        return {key: value.contiguous() for key, value in state.items()}

    def parameter_counts(self, trained: Iterable[nn.Parameter]) -> dict[str, int]:
        """Counts of the student's parameters (with its parts), of adapters, and of ``trained`` with a gradient.

        Call it after the last step: parameters that only a first stage trains have no gradient in the main stage.
        """
        student = {id(p): p for module in (self.network, *self.parts.values()) for p in module.parameters()}
        adapters = {id(p): p for p in self.method.parameters() if id(p) not in student}
        return {
            "student_parameters": sum(p.numel() for p in student.values()),
            "trained_parameters": sum(p.numel() for p in trained if p.grad is not None),
            "adapter_parameters": sum(p.numel() for p in adapters.values()),
        }


def _own_buffers(module: nn.Module) -> None:
    """Copy the buffers, as a move to a GPU does: a plugin may register the same tensor in all its instances."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = buffer.clone()
