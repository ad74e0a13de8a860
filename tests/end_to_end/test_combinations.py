"""A method may contain others, whoever offers them; their sources and settings identify the trial."""

from __future__ import annotations

import pytest

from kdbench.errors import KdbenchError
from kdbench.run import open_suite

PLUGIN = """
from kdbench.method import Method, Positive


class Gap(Method):
    name = "gap"

    def __init__(self, *, weight: Positive = 0.5):
        super().__init__()
        self.weight = weight

    def forward(self, student, teacher, batch):
        return {"gap": ((student.logits - teacher.logits).square().mean(), self.weight)}
"""
INNER = '{ name = "combine", methods = [{ name = "gap" }, { name = "pkt" }] }'
MEMBERS = '[{ name = "kd" }, { name = "gap", weight = 0.25 }]'


@pytest.fixture
def suite(write_suite, tmp_path):
    def write(members=MEMBERS, plugin=PLUGIN):
        (tmp_path / "gap.py").write_text(plugin)
        return write_suite("combine", more=f"methods = {members}\n", plugins=("gap.py",))

    return write


def test_a_third_partys_loss_is_combined_with_a_built_in_one(suite, run):
    results = run(suite())
    (trial,) = results.plan.trials
    assert trial.status == "done", trial.reason
    folder = results.folder.trial(trial.id)
    assert set(folder.epochs[-1].terms) == {"ce", "kd.kd", "gap.gap"}
    assert [path.name for path in (folder.path / "source").rglob("gap.py")] == ["gap.py"]
    (edited,) = open_suite(suite(plugin=PLUGIN.replace(".square()", ".abs()"))).plan.trials
    assert edited.id != trial.id
    (other,) = open_suite(suite(MEMBERS.replace("0.25", "0.75"))).plan.trials
    assert other.id != trial.id


def test_the_source_of_a_method_within_a_combination_within_a_combination_counts(suite):
    (before,) = open_suite(suite(f"[{INNER}]")).plan.trials
    (after,) = open_suite(suite(f"[{INNER}]", plugin=PLUGIN.replace(".square()", ".abs()"))).plan.trials
    assert before.status == "pending"
    assert before.id != after.id


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ('[{ name = "gap", wieght = 1.0 }]', r"methods\[0\]\.wieght: unknown setting; did you mean 'weight'\?"),
        ('[{ name = "gap", weight = -1.0 }]', r"methods\[0\]\.weight: must be positive, got -1\.0"),
        ('[{ name = "gapp" }]', r"method 'gapp' is not registered; did you mean 'gap'\?"),
    ],
)
def test_a_wrong_member_is_refused(suite, members, message):
    with pytest.raises(KdbenchError, match=message):
        _ = open_suite(suite(members)).plan
