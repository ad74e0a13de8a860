from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdbench.report.render import render


def test_overall_csv_has_the_table_of_all_pairs(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs("many")
    gains = np.array([1.0, 2.0, 1.5, 2.5, 0.5])
    for index, gain in enumerate(gains):
        suite.teacher(f"teacher{index}", 80.0)
        for label, top1, seconds in (("none", 70.0, 10.0), ("kd", 69.0, 20.0), ("vid", 70.0 + gain, 40.0)):
            suite.done(f"teacher{index}", "resnet8", label, 0, top1, cost={"seconds": seconds})
        suite.diverged(f"teacher{index}", "resnet8", "pkt", 0, epoch=1)
        if index:
            suite.done(f"teacher{index}", "resnet8", "ft", 0, 60.0)
        else:
            suite.failed(f"teacher{index}", "resnet8", "ft", 0, "out of memory")
    render(suite.write(), tmp_path, plots=False)
    frame = pd.read_csv(tmp_path / "overall.csv").set_index("label")
    assert list(frame.columns) == [
        "method", "pairs", "mean_rank", "mean_rank_low", "mean_rank_high",
        "gain_over_none", "gain_over_none_n", "gain_over_none_low", "gain_over_none_high", "gain_over_none_word",
        "gain_over_kd", "gain_over_kd_n", "gain_over_kd_low", "gain_over_kd_high", "gain_over_kd_word",
        "probability_of_improvement", "probability_above_0.3", "diverged", "finished",
        "relative_seconds", "why_unranked",
    ]  # fmt: skip
    vid = frame.loc["vid"]
    half = stats.t.ppf(0.975, 4) * gains.std(ddof=1) / np.sqrt(5)
    assert (vid["gain_over_none"], vid["gain_over_none_n"]) == (pytest.approx(1.5), 5)
    assert vid["gain_over_none_low"] == pytest.approx(1.5 - half, rel=1e-5)
    assert vid["gain_over_none_high"] == pytest.approx(1.5 + half, rel=1e-5)
    assert (vid["gain_over_none_word"], vid["probability_of_improvement"]) == ("better", 1.0)
    assert vid["gain_over_kd"] == pytest.approx(2.5)
    assert (vid["mean_rank"], vid["relative_seconds"], vid["pairs"], vid["finished"]) == (1.0, 4.0, 5, 5)
    pkt, ft = frame.loc["pkt"], frame.loc["ft"]
    assert (pkt["diverged"], pkt["finished"], pkt["mean_rank"]) == (5, 5, 4.0)
    assert np.isnan(ft["mean_rank"])
    assert ft["why_unranked"] == "failed on 1 of the compared pairs"
    assert np.isnan(frame.loc["none", "gain_over_none"])


def test_overall_csv_of_one_pair_and_other_baselines(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs()
    suite.tables["baselines"] = ["kd"]
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "kd", 0, 70.0)
    suite.done("resnet20", "resnet8", "vid", 0, 71.0)
    render(suite.write(), tmp_path, plots=False)
    frame = pd.read_csv(tmp_path / "overall.csv").set_index("label")
    assert frame.loc["vid", "gain_over_kd"] == pytest.approx(1.0)
    assert "gain_over_none" not in frame
