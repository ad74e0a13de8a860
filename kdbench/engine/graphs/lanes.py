"""Streams: the small kernels of several students share a GPU, instead of waiting for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SEED_PER_CAPTURE = (2, 15)
"""The version from which torch keeps the seed of the global generator for each recording. Before, recordings that draw
random numbers must not be replayed at the same time."""


class Lanes:
    """A stream of a GPU for each learner. On a CPU, everything runs in order."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: dict[str, torch.cuda.Stream] = {}

    @contextmanager
    def of(self, learner: str, *, alone: bool = False) -> Iterator[None]:
        """Context whose work runs beside that of other learners, after all that was begun on the main stream.

        ``alone``: on the main stream instead.
        """
        if self._device.type != "cuda" or alone:
            yield
            return
        if learner not in self._streams:
            self._streams[learner] = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream = self._streams[learner]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            yield

    def join(self) -> None:
        """Let the main stream wait for all learners. The host does not wait."""
        for stream in self._streams.values():
            torch.cuda.current_stream(self._device).wait_stream(stream)

    def forget(self, learner: str) -> None:
        """A learner has left."""
        self._streams.pop(learner, None)


def draws_in_turn() -> bool:
    """Whether replays that draw random numbers must not run at the same time."""
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) < SEED_PER_CAPTURE
