"""Records with CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from kdbench.engine.graphs.replayed import Recorder


def recorder(device: torch.device, generators: Sequence[torch.Generator]) -> Recorder:
    """What records on a GPU. ``generators`` are those that the actions draw from."""
    pool = torch.cuda.graph_pool_handle()
    # The global generator is registered by torch.
    own = [one for one in generators if one not in torch.cuda.default_generators]

    def record(action: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in own:
            graph.register_generator_state(generator)
        with (
            torch.cuda.device(device),
            # Some versions of torch stay on the stream of a capture that failed.
            torch.cuda.stream(torch.cuda.current_stream(device)),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            action()
        # A capture executes nothing.
        graph.replay()
        return graph

    return record
