"""The stages of a training, and the changes to modules when a stage begins or ends.

The engine, the checks of :mod:`kdbench.testing` and the tests all iterate over stages with :func:`through`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import nn

from kdbench.engine.phase import Phase, phases
from kdbench.engine.progress import Progress
from kdbench.method import Method, Signature
from kdbench.models.base import TappedModel
from kdbench.parts import Parts

BODY = "student.body"
STUDENT = frozenset({"student", BODY})
"""Names for the student in ``trains`` of a stage: the whole student, or all but its classifiers."""


class Staged(Protocol):
    """An object that is trained in stages."""

    @property
    def phase(self) -> Phase:
        """The current stage."""

    @property
    def in_main(self) -> bool:
        """Whether the current stage is the main stage, which is the last."""

    def leave(self) -> None:
        """End the stage and enter the next one."""


def through(staged: Staged) -> Iterator[Phase]:
    """Yield each stage, from the current one of ``staged`` to the main one; each iteration leaves the stage before."""
    yield staged.phase
    while not staged.in_main:
        staged.leave()
        yield staged.phase


class Stages:
    """The stages of a method, with or without a network, and the current stage.

    In a stage, only the parameters that it trains have gradients. Parameters that the method froze stay frozen.
    """

    def __init__(
        self,
        method: Method,
        parts: Parts,
        student: Signature,
        teacher: Signature,
        *,
        network: TappedModel | None = None,
        progress: Progress | None = None,
        main_only: bool = False,
    ) -> None:
        """Enter the first stage. ``progress`` counts the stages; ``main_only`` skips all stages before the main one.

        Raises :class:`~kdbench.errors.PluginError` for a stage that trains something that does not exist.
        """
        self.method = method
        self.network = network
        self.modules = nn.ModuleDict({"network": network} if network is not None else {})
        self.modules["method"] = method
        self.progress = Progress() if progress is None else progress
        found = phases(method, parts, student, teacher)
        self.phases = found[-1:] if main_only else found
        self.trained: dict[str, nn.Parameter] = {}
        """The parameters that the stage trains, by name: ``network.*`` and ``method.*``."""
        self._enter()

    @property
    def phase(self) -> Phase:
        """The current stage."""
        return self.phases[self.progress.phase_index]

    @property
    def in_main(self) -> bool:
        """Whether the current stage is the main stage."""
        return self.progress.phase_index == len(self.phases) - 1

    def set_modes(self) -> None:
        """Set the modules that the stage trains to train mode, all others to eval mode."""
        self.modules.eval()
        for module in self._trained_modules():
            module.train()
        for head in self._frozen_heads():
            head.eval()

    def leave(self) -> None:
        """End the stage: unfreeze the parameters that it froze, call ``after_stage``, enter the next stage."""
        for key, parameter in self.modules.named_parameters():
            parameter.requires_grad_(self._trainable.get(key, True))
        self.method.after_stage(self.phase.name)
        self.progress.enter_next_phase()
        self._enter()

    def _enter(self) -> None:
        heads = {id(p) for head in self._frozen_heads() for p in head.parameters()}
        chosen = {id(p) for module in self._trained_modules() for p in module.parameters()} - heads
        self._trainable = {key: p.requires_grad for key, p in self.modules.named_parameters()}
        # Parameters that the method froze are not trained.
        self.trained = {key: p for key, p in self.modules.named_parameters() if id(p) in chosen and p.requires_grad}
        for parameter in self.modules.parameters():
            parameter.requires_grad_(False)
        for parameter in self.trained.values():
            parameter.requires_grad_(True)

    def _trained_modules(self) -> Iterator[nn.Module]:
        for name in self.phase.trains:
            if name == "method":
                yield self.method
            elif name not in STUDENT:
                yield self.method.get_submodule(name)
            elif self.network is not None:
                yield self.network

    def _frozen_heads(self) -> list[nn.Module]:
        if self.network is None or BODY not in self.phase.trains:
            return []
        return [self.network.get_submodule(name) for name in self.network.head]
