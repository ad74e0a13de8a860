"""What the contract says of taps."""

from __future__ import annotations

import pytest
import torch

from kdbench.errors import PluginError
from kdbench.method import DataSignature, Incompatible, Method, Output, Signature, Stage, TapSignature, set_up

SMALL, LARGE = (
    Signature(name, "resnet", 10, {f"stage{i + 1}": TapSignature((4, 4, 4), nonnegative=True) for i in range(stages)})
    for name, stages in (("small", 2), ("large", 3))
)


class Reads(Method):
    """Reads what it is told to."""

    def __init__(self, *reads: str, first: str = "stage1") -> None:
        super().__init__()
        self.reads = frozenset({"logits", *reads})
        self.first = first

    def stages(self):
        return [Stage("first", self.forward, 1, ("student",), frozenset({self.first}))]


@pytest.mark.parametrize("reads", [("stage*", "embedding", "dist_logits"), ("stage3",), ("stage-1/pre", "stem")])
def test_taps_that_some_networks_lack_and_taps_of_one_network_may_be_read(reads):
    set_up(Reads(*reads), SMALL, LARGE, DataSignature(10, 100))


@pytest.mark.parametrize("method", [Reads("stage9"), Reads(first="stage9")])
def test_a_tap_that_no_network_has_is_a_mistake(method):
    with pytest.raises(Incompatible) as error:
        set_up(method, SMALL, LARGE, DataSignature(10, 100))
    assert str(error.value) == ("reads 'stage9', a tap that neither large nor small has; taps: stage1, stage2, stage3")


def test_outputs_name_what_was_not_read_and_know_the_last_stage():
    maps = {"stage1": torch.zeros(1), "stage2": torch.ones(1)}
    output = Output(torch.zeros(1, 10), maps)
    assert output["stage-1"] is maps["stage2"]
    for look in (lambda: output.embedding, lambda: output["embedding"]):
        with pytest.raises(PluginError, match=r"tap 'embedding' was not read: add it to reads, .*read: stage1, stage2"):
            look()
