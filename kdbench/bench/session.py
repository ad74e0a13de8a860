"""What the parts of a measurement share: device, plugins, time, and where results go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdbench.bench.budget import Budget
from kdbench.bench.findings import Findings, Row
from kdbench.bench.hardware import matrix_rates
from kdbench.bench.world import World
from kdbench.discovery import Registry
from kdbench.engine.device import Precision

NO_TIME = "no time left for it; raise --minutes, or select its part with --only"


@dataclass
class Session:
    """One run of ``kdbench bench``."""

    device: torch.device
    registry: Registry
    findings: Findings
    budget: Budget
    folder: Path
    """A temporary one."""
    part: str = ""
    """The current part."""
    _peaks: dict[str, list[float]] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def world(self, **sizes: Any) -> World:
        """Networks and random images on the device; see :class:`World`."""
        return World(self.registry, self.device, self.folder, **sizes)

    def add(self, name: str, settings: Mapping[str, Any], values: Sequence[float], unit: str) -> None:
        """Keep a row of the current part: the median of ``values``."""
        self.findings.add(Row.of(self.part, name, settings, values, unit))

    def leave_out(self, name: str, settings: Mapping[str, Any], reason: str, *, failed: bool = False) -> None:
        """Say that something of the current part was not measured."""
        self.findings.leave_out(self.part, name, settings, reason, failed=failed)

    def precision(self, name: str) -> Precision:
        """A recipe's precision on the device, with its options set."""
        precision = Precision.choose(name, self.device)
        precision.prepare()
        return precision

    def matrix_rates(self, precision: str) -> list[float]:
        """Measured rates of a large matrix product, in operations per second; measured once in a run."""
        if precision not in self._peaks:
            self._peaks[precision] = matrix_rates(self.device, precision, min(2.0, 0.2 * self.budget.left))
        return self._peaks[precision]
