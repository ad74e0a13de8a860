from __future__ import annotations

import numpy as np
import torch
from kdbench_methods.pairing import pair_stages, pool_to_smaller


def test_the_larger_map_is_averaged():
    a, b = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 5, 4, 4, dtype=torch.float64)
    expected = a.numpy().reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    for found, same in (pool_to_smaller(a, b), pool_to_smaller(b, a)[::-1]):
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
        assert same is b


def test_pairs_in_order(signature):
    pairs = pair_stages(signature(), signature(channels=(6, 8, 12)), "x")
    assert [(s.shape[0], t.shape[0]) for s, t in pairs] == [(4, 6), (8, 8), (16, 12)]
