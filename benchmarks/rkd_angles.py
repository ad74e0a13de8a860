"""Time and peak memory of RKD's angle term, as ratios to the same formula in one piece, differentiated by autograd.

    python benchmarks/rkd_angles.py [--device cuda] [--pairs 15]

Time is that of forward and backward pass. Both versions run alternately; ratios are medians of pairs, with the
quartiles. Peak memory is that of torch's allocator above what exists before: on a CPU from the allocations that its
profiler records.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from kdbench_methods.gram import gram_matrix, squared_distances
from kdbench_methods.rkd import angle_loss
from torch import Tensor

from kdbench.bench.profile import peak_bytes
from kdbench.bench.timing import seconds_of

Loss = Callable[[Tensor, Tensor], Tensor]


def cosines(e: Tensor) -> Tensor:
    """Of all triples at once: (B, B, B)."""
    G = gram_matrix(e)
    squared, coincident = squared_distances(G, torch.finfo(e.dtype).eps)
    inverse = torch.where(coincident, 0.0, squared.rsqrt()).to(e.dtype)
    inner = (G[None] - G[:, :, None] - G[:, None, :] + G.diagonal()[:, None, None]).to(e.dtype)
    return inner * inverse[:, :, None] * inverse[:, None, :]


def in_one_piece(s: Tensor, t: Tensor) -> Tensor:
    """The term, with several tensors of B^3 values that autograd keeps."""
    return F.smooth_l1_loss(cosines(s), cosines(t).detach())


def trained(loss: Loss, s: Tensor, t: Tensor) -> Tensor:
    """The gradient by ``s``."""
    [gradient] = torch.autograd.grad(loss(s, t), s)
    return gradient


def main() -> None:
    """Print a row for each batch size and width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--pairs", type=int, default=15)
    given = parser.parse_args()
    print(f"{'B':>5} {'D':>5} {'time: ratio':>12} {'quartiles':>12} {'ms':>8} {'memory: ratio':>14} {'MiB':>8}")
    for B in (32, 64, 128, 256):
        for D in (64, 512):
            generator = torch.Generator().manual_seed(0)
            s, t = (torch.randn(B, D, generator=generator).to(given.device) for _ in range(2))
            s.requires_grad_()
            both = [partial(trained, loss, s, t) for loss in (angle_loss, in_one_piece)]
            for step in both:
                step()
            pairs = [[seconds_of(step, given.device) for step in both] for _ in range(given.pairs)]
            low, middle, high = statistics.quantiles([new / old for new, old in pairs], n=4)
            new, old = (peak_bytes(step, given.device) for step in both)
            milliseconds = statistics.median(new for new, _ in pairs) * 1000
            print(
                f"{B:5} {D:5} {middle:12.2f} {f'{low:.2f}–{high:.2f}':>12} {milliseconds:8.2f} "
                f"{new / old:14.3f} {new / 2**20:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
