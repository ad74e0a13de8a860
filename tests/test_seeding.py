from __future__ import annotations

import hashlib

import torch

from kdbench.seeding import derive, generator


def test_a_purpose_names_its_seed_on_every_machine():
    digest = hashlib.sha256(b"7\x1forder\x1fmain\x1f3").digest()
    assert derive(7, "order", "main", 3) == int.from_bytes(digest[:8], "big") // 2
    assert 0 <= derive(7, "order") < 2**63


def test_purposes_and_seeds_do_not_run_into_each_other():
    seeds = [derive(1, "a", "b"), derive(1, "ab"), derive(1, "b", "a"), derive(2, "a", "b"), derive(1, "a", "b", "")]
    assert len(set(seeds)) == len(seeds)


def test_generators_of_one_purpose_agree_and_leave_the_global_one_alone():
    before = torch.get_rng_state()
    a, b = (torch.rand(4, generator=generator("cpu", 0, "purpose")) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, torch.rand(4, generator=generator("cpu", 1, "purpose")))
    assert torch.equal(before, torch.get_rng_state())
