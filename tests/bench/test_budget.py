from __future__ import annotations

from kdbench.bench.budget import Budget


def test_a_part_gets_its_share_of_what_is_left(clock):
    budget = Budget(100.0, {"a": 1.0, "b": 2.0, "c": 1.0}, clock)
    budget.begin("a")
    assert budget.left == 25
    clock.now += 10
    assert budget.left == 15
    # 15 seconds that "a" did not use go to the others: two thirds of 90.
    budget.begin("b")
    assert budget.left == 60
    clock.now += 70
    assert budget.left == 0
    budget.begin("c")
    assert budget.left == 20


def test_nothing_is_allowed_after_the_time(clock):
    budget = Budget(10.0, {"a": 1.0}, clock)
    assert not budget.allows(0.0)
    budget.begin("a")
    assert budget.allows(10.0)
    assert not budget.allows(10.1)
    clock.now += 11
    assert not budget.allows(0.0)
    assert budget.left == 0


def test_a_share_of_a_part(clock):
    budget = Budget(10.0, {"a": 1.0}, clock)
    budget.begin("a")
    over = budget.until(0.5)
    clock.now += 4.9
    assert not over()
    clock.now += 0.1
    assert over()
