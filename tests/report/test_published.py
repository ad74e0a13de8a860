from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from kdbench.report.published import COLUMNS, comparison, figures
from kdbench.report.study import read_study


def top1(source: str, teacher: str, student: str, method: str, dataset: str = "cifar100") -> float:
    frame = figures()
    rows = frame[
        (frame["source"] == source) & (frame["teacher"] == teacher) & (frame["student"] == student)
        & (frame["method"] == method) & (frame["dataset"] == dataset)
    ]  # fmt: skip
    assert len(rows) == 1
    return float(rows["top1"].iloc[0])


@pytest.mark.parametrize(("teacher", "student", "method", "expected"), [
    # Read from the tables of arXiv:1910.10699 by hand.
    ("wrn_40_2", "wrn_16_2", "none", 73.26), ("wrn_40_2", "wrn_40_1", "crd+kd", 74.38),
    ("resnet56", "resnet20", "kd", 70.66), ("resnet110", "resnet20", "pkt", 70.25),
    ("resnet110", "resnet32", "ft", 72.37), ("resnet32x4", "resnet8x4", "crd", 75.51), ("vgg13", "vgg8", "at", 71.43),
    ("vgg13", "MobileNetV2", "rkd", 64.52), ("ResNet50", "MobileNetV2", "sp", 68.08),
    ("ResNet50", "vgg8", "vid", 70.30),
    ("resnet32x4", "ShuffleNetV1", "ab", 73.55), ("resnet32x4", "ShuffleNetV2", "cc", 71.29),
    ("wrn_40_2", "ShuffleNetV1", "nst", 74.89),
])  # fmt: skip
def test_the_crd_study(teacher: str, student: str, method: str, expected: float) -> None:
    assert top1("CRD study", teacher, student, method) == expected


def test_the_crd_study_is_whole() -> None:
    frame = figures()
    crd = frame[frame["source"] == "CRD study"]
    assert crd.groupby(["teacher", "student"]).ngroups == 13
    # 14 methods with FSP, crd+kd and the baseline among them; FSP is not given across architectures nor for wrn_40_1.
    assert len(crd) == 13 * 14 + 6
    assert set(crd["protocol"]) == {"last epoch"}
    assert set(crd["method"]) == {
        "none", "kd", "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "fsp", "nst", "crd", "crd+kd",
    }  # fmt: skip


def test_other_sources() -> None:
    assert top1("mdistiller", "resnet32x4", "resnet8x4", "dkd") == 76.32
    assert top1("Knowledge-Distillation-Zoo", "resnet110", "resnet20", "kd", "cifar10") == 92.82
    assert top1("DIST README", "resnet34", "resnet18", "dist", "imagenet") == 72.07
    assert top1("DeiT model zoo", "regnety_160", "deit_tiny_distilled_patch16_224", "deit", "imagenet") == 74.5


def test_every_figure_has_a_source_a_protocol_and_a_sane_value() -> None:
    frame = figures()
    assert (frame[["dataset", "teacher", "student", "method", "source", "protocol"]] != "").all().all()
    assert frame["top1"].between(50, 100).all()
    assert not frame.duplicated(["dataset", "teacher", "student", "method", "source"]).any()
    assert frame["url"].str.startswith("https://").all()


def test_a_study_that_copied_anothers_column_is_not_its_source() -> None:
    frame = figures()
    copied = frame[(frame["source"].isin(["mdistiller", "KD++ README"])) & (frame["dataset"] == "cifar100")]
    assert "kd" not in set(copied["method"])


@pytest.fixture
def cells(runs: Callable[..., Any]) -> pd.DataFrame:
    suite = runs("cifar", data="cifar100")
    suite.teacher("resnet56", 72.0)
    for seed in range(2):
        suite.done("resnet56", "resnet20", "kd", seed, 70.0 + seed)
        suite.done("resnet56", "resnet20", "dkd, beta 2", seed, 71.0 + seed, method="dkd")
        suite.done("resnet56", "resnet20", "mine", seed, 99.0)
    suite.plan_trial("resnet56", "resnet20", "vid", 0)
    return read_study(suite.write()).cells


def test_ours_theirs_and_the_difference(cells: pd.DataFrame) -> None:
    found = comparison(cells, "cifar100")
    assert tuple(found.columns) == COLUMNS
    row = found[(found["source"] == "CRD study") & (found["label"] == "kd")].iloc[0]
    assert (row["top1_mean"], row["n"], row["published"]) == (70.5, 2, 70.66)
    assert row["difference"] == pytest.approx(-0.16)
    assert (row["protocol"], row["published_teacher_top1"], row["teacher_top1"]) == ("last epoch", 72.34, 72.0)
    other = found[(found["source"] == "mdistiller")].iloc[0]
    assert (other["label"], other["published"], other["protocol"]) == ("dkd, beta 2", 71.97, "best epoch on test")
    assert other["published_n"] == 5


def test_only_what_has_a_result_and_a_counterpart(cells: pd.DataFrame) -> None:
    assert set(comparison(cells, "cifar100")["label"]) == {"kd", "dkd, beta 2"}


def test_another_data_set_is_not_compared(cells: pd.DataFrame) -> None:
    assert comparison(cells, "digits").empty
    assert comparison(cells, "cifar10").empty


def test_a_library_prefix_and_spelling_do_not_matter(runs: Callable[..., Any]) -> None:
    suite = runs("imagenet", data="imagenet")
    suite.teacher("torchvision:resnet34", 73.3)
    suite.done("torchvision:resnet34", "torchvision:resnet18", "dist", 0, 72.0)
    found = comparison(read_study(suite.write()).cells, "ImageNet")
    assert {"DIST README", "torchdistill", "mmrazor"} == set(found["source"])
