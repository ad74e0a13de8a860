"""What is asked of torch to record on a GPU. Nothing here runs on one: torch's part is replaced."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdbench.engine.graphs import cuda

GPU = torch.device("cuda", 0)


class Graphs:
    """Stands for ``torch.cuda``: the current stream, and what was done in which order."""

    def __init__(self) -> None:
        self.stream_now = "main"
        self.done: list[Any] = []
        self.default_generators = (object(),)
        self.fails_to_end = False

    def make(self) -> Any:
        return SimpleNamespace(
            register_generator_state=lambda generator: self.done.append(("register", generator)),
            replay=lambda: self.done.append(("replay", self.stream_now)),
        )

    @contextmanager
    def graph(self, graph: Any, pool: Any, capture_error_mode: str) -> Any:
        self.stream_now = "capture"
        yield
        if self.fails_to_end:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.stream_now = "main"

    @contextmanager
    def stream(self, stream: str) -> Any:
        before, self.stream_now = self.stream_now, stream
        try:
            yield
        finally:
            self.stream_now = before

    @contextmanager
    def device(self, device: torch.device) -> Any:
        yield


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    graphs = Graphs()
    for name, value in {
        "CUDAGraph": graphs.make,
        "graph": graphs.graph,
        "graph_pool_handle": lambda: "pool",
        "stream": graphs.stream,
        "current_stream": lambda device: graphs.stream_now,
        "device": graphs.device,
        "default_generators": graphs.default_generators,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return graphs


def test_a_recording_knows_the_methods_generator_and_is_executed_once(graphs):
    own: Any = object()
    record = cuda.recorder(GPU, [own, *graphs.default_generators])
    recording = record(lambda: graphs.done.append(("action", graphs.stream_now)))
    assert graphs.done == [("register", own), ("action", "capture"), ("replay", "main")]
    recording.replay()
    assert graphs.done[3:] == [("replay", "main")]


def test_a_capture_that_fails_leaves_the_stream_as_it_was(graphs):
    graphs.fails_to_end = True
    with pytest.raises(RuntimeError, match="during capture"):
        cuda.recorder(GPU, [])(lambda: None)
    assert graphs.stream_now == "main"
    assert graphs.done == []
