from __future__ import annotations

from kdbench.bench import cohorts, timing
from kdbench.bench.world import VARIANTS, Cohort, Variant


def test_a_ratio_belongs_to_a_round(session, tiny, monkeypatch):
    current = session("cohorts", 1000.0)
    monkeypatch.setattr(cohorts, "RECIPE", cohorts.RECIPE.model_copy(update={"batch_size": 8}))
    monkeypatch.setattr(current.budget, "until", lambda share: lambda: True)
    cohorts.measure(current, sizes=(1, 2), world=tiny)
    rows = {(row.name, row.settings.get("learners")): row for row in current.findings.rows}
    names = ("cohort", "sum of its parts", "cohort / sum of its parts")
    assert rows.keys() == {(name, size) for name in names for size in (1, 2)} | {("pass of the teacher", None)}
    for size in (1, 2):
        assert rows["cohort", size].n == rows["cohort / sum of its parts", size].n == cohorts.ROUNDS
        # More than the pass of the teacher alone, which is one of the parts.
        assert rows["sum of its parts", size].value > rows["pass of the teacher", None].value > 0
    assert rows["cohort", 2].settings["variant"] == "eager"
    assert current.findings.left_out == []


def test_parts_are_summed_and_compared(session, tiny, clock, monkeypatch):
    """A pass of the teacher takes 1 second, a student alone 2, a cohort of n students 5 n."""
    clock.step = 10.0
    monkeypatch.setattr(cohorts._Rounds, "_teacher", lambda self: 1.0)
    monkeypatch.setattr(cohorts._Rounds, "_alone", lambda self, learner, shown: 2.0)
    monkeypatch.setattr(Cohort, "seconds_per_step", lambda self, steps: 5.0 * len(self._lockstep.learners))
    current = session("cohorts", 1000.0, clock)
    cohorts.measure(current, sizes=(1, 4), world=tiny)
    values = {(row.name, row.settings.get("learners")): row.value for row in current.findings.rows}
    assert values == {
        ("cohort", 1): 5.0,
        ("sum of its parts", 1): 3.0,
        ("cohort / sum of its parts", 1): 5 / 3,
        ("cohort", 4): 20.0,
        ("sum of its parts", 4): 9.0,
        ("cohort / sum of its parts", 4): 20 / 9,
        ("pass of the teacher", None): 1.0,
    }


def test_sizes_without_time_are_left_out(session, tiny, monkeypatch):
    """3 rounds of 3 steps: one learner takes 2 passes and 2 steps in each, 18 seconds; with two it is 47."""
    monkeypatch.setattr(cohorts._Rounds, "_teacher", lambda self: 0.4)
    monkeypatch.setattr(cohorts._Rounds, "_alone", lambda self, learner, shown: 0.6)
    current = session("cohorts", 30.0)
    monkeypatch.setattr(cohorts._Rounds, "measure", lambda self, sizes: None)
    monkeypatch.setattr(cohorts._Rounds, "report", lambda self, sizes, settings: fitting.append(sizes))
    monkeypatch.setattr(current.budget, "until", lambda share: lambda: True)
    fitting = []
    cohorts.measure(current, sizes=(1, 2, 4), world=tiny)
    assert fitting == [[1]]
    assert [entry.settings["learners"] for entry in current.findings.left_out] == [2, 4]


def test_every_variant_of_the_device_is_measured(session, tiny, monkeypatch):
    monkeypatch.setattr(cohorts._Rounds, "measure", lambda self, sizes: seen.append(self._cohort.keywords["variant"]))
    monkeypatch.setattr(cohorts._Rounds, "report", lambda self, sizes, settings: None)
    monkeypatch.setattr(timing, "MOST", 1)
    current = session("cohorts", 1000.0)
    monkeypatch.setattr(current.budget, "until", lambda share: lambda: True)
    seen = []
    other = Variant("slow", recipe={"clip_grad_norm": 1.0})
    cohorts.measure(current, [*VARIANTS, other, Variant("graphs", ("cuda",))], sizes=(1,), world=tiny)
    assert [variant.name for variant in seen] == ["eager"] * cohorts.ROUNDS + ["slow"] * cohorts.ROUNDS
