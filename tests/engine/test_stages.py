"""The way through the stages, without the engine around it."""

from __future__ import annotations

import pytest
from torch import nn

from kdbench.engine.stages import Stages, through
from kdbench.method import Method, Signature, Stage
from kdbench.parts import Parts
from kdbench.recipe import Recipe

KNOWN = Signature("net", "resnet", 10, {})


class Two(Method):
    """Two stages, the first of which freezes what it trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = (nn.Linear(2, 2) for _ in range(3))
        self.ended: list[str] = []

    def stages(self):
        return [Stage(name, self, 1, (name,), frozenset()) for name in ("first", "second")]

    def after_stage(self, name):
        self.ended.append(name)
        # What entering the stage froze is free here.
        assert self.idle.weight.requires_grad
        self.first.requires_grad_(False)


@pytest.fixture
def method() -> Two:
    return Two()


def trained(stages: Stages) -> set[str]:
    return {name.split(".")[1] for name in stages.trained}


def test_every_stage_trains_what_it_names_and_the_main_one_what_is_not_frozen(method):
    stages = Stages(method, Parts.of(Recipe(epochs=1)), KNOWN, KNOWN)
    seen = []
    for phase in through(stages):
        stages.set_modes()
        recording = {name.split(".")[0] for name, p in method.named_parameters() if p.requires_grad}
        modes = {name for name, part in method.named_children() if part.training}
        assert recording == trained(stages)
        seen.append((phase.name, recording, modes, list(method.ended)))
    assert seen == [
        ("first", {"first"}, {"first"}, []),
        ("second", {"second"}, {"second"}, ["first"]),
        ("main", {"second", "idle"}, {"first", "second", "idle"}, ["first", "second"]),
    ]


def test_the_main_stage_alone_ends_no_other(method):
    stages = Stages(method, Parts.of(Recipe(epochs=1)), KNOWN, KNOWN, main_only=True)
    assert [phase.name for phase in through(stages)] == ["main"]
    assert method.ended == []
    assert trained(stages) == {"first", "second", "idle"}


def test_the_way_begins_where_the_stages_are(method):
    stages = Stages(method, Parts.of(Recipe(epochs=1)), KNOWN, KNOWN)
    stages.leave()
    assert [phase.name for phase in through(stages)] == ["second", "main"]
    assert method.ended == ["first", "second"]
