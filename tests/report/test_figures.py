from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdbench.report.figures import canvas
from kdbench.report.figures.accuracy import accuracy
from kdbench.report.figures.cost import _front, cost
from kdbench.report.figures.curves import curves
from kdbench.report.figures.draw import draw
from kdbench.report.figures.labels import place_labels
from kdbench.report.figures.profile import performance_profile
from kdbench.report.figures.ranks import critical_difference
from kdbench.report.figures.training import stages, terms
from kdbench.report.parts import parts_of
from kdbench.report.study import Study, read_study
from kdbench.results import NO_PLAN, EpochRecord, SuiteFolder

FIGURES = parts_of(NO_PLAN).figures


@pytest.fixture(scope="module")
def read(untouched_study: SuiteFolder) -> Study:
    return read_study(untouched_study)


def test_files_are_well_formed_and_no_settings_are_left_behind(read: Study, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    drawings = draw(read, tmp_path, FIGURES)[0]
    assert dict(matplotlib.rcParams) == before
    assert list(drawings) == ["accuracy", "curves", "terms", "cost"]
    for name, drawing in drawings.items():
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")
        assert ElementTree.fromstring(drawing.svg).attrib["aria-label"] == drawing.caption
        # The page puts its own colours in; and declares no namespaces, which look like addresses.
        assert "var(--ink)" in drawing.svg
        assert not any(colour in drawing.svg for colour in canvas.THEME)
        assert "xmlns" not in drawing.svg
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_accuracy_shows_every_seed_the_mean_and_the_spread(read: Study) -> None:
    made = accuracy(read)
    assert made is not None
    axes = made[0].axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert set(labels) == {"none", "kd", "vid", "rkd", "pkt", "ab", "ft", "deit"}
    row = labels.index("vid")
    seeds = [tuple(point) for dots in axes.collections for point in _offsets(dots) if point[1] == row]
    # Right of the panel, in shares of its width, is the mark of the gain.
    assert [x for x, _ in seeds if x < 2] == [1.015]
    seeds = [(x, y) for x, y in seeds if x > 2]
    assert sorted(x for x, _ in seeds) == [72.1, 72.3, 73.9]
    means = [
        line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [row] and line.get_marker() != "None"
    ]
    assert means == [pytest.approx(np.mean([72.1, 72.3, 73.9]))]
    bars = [bar for dots in axes.collections for bar in _segments(dots) if bar[0][1] == row]
    assert bars[0][1][0] - bars[0][0][0] == pytest.approx(2 * np.std([72.1, 72.3, 73.9], ddof=1))


def test_accuracy_says_what_has_no_mean(read: Study) -> None:
    made = accuracy(read)
    assert made is not None
    texts = [text.get_text().strip() for text in made[0].axes[0].texts]
    assert sorted(texts) == ["1 of 3 diverged", "skipped"]


def test_the_baseline_and_the_teacher_have_their_lines(read: Study) -> None:
    made = accuracy(read)
    assert made is not None
    upright = {line.get_xdata()[0] for line in made[0].axes[0].lines if len(line.get_xdata()) == 2}
    assert {71.0, 80.0} <= upright


def test_a_collapsed_method_does_not_squeeze_the_others(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for seed in range(3):
        for label, top1 in (("none", 70.0), ("kd", 71.0), ("vid", 71.5), ("rkd", 70.5), ("pkt", 10.0)):
            suite.done("resnet20", "resnet8", label, seed, top1 + 0.1 * seed)
    made = accuracy(read_study(suite.write()))
    assert made is not None
    axes = made[0].axes[0]
    assert axes.get_xlim()[0] > 60
    assert [text.get_text() for text in axes.texts if "10.1" in text.get_text()]


def test_curves_are_means_over_seeds(read: Study) -> None:
    made = curves(read)
    assert made is not None
    axes = made[0].axes[0]
    colour = read.styles["vid"].colour
    line = next(line for line in axes.lines if line.get_color() == colour)
    assert list(line.get_xdata()) == [1, 2, 3]
    assert line.get_ydata()[-1] == pytest.approx(np.mean([72.1, 72.3, 73.9]))
    legend = made[0].legends[0]
    # ab was skipped, and has no curve.
    assert {text.get_text() for text in legend.get_texts()} == {"none", "kd", "vid", "rkd", "pkt", "ft", "deit"}


def test_curves_end_where_a_seed_diverged(read: Study) -> None:
    made = curves(read)
    assert made is not None
    colour = read.styles["pkt"].colour
    line = next(line for line in made[0].axes[0].lines if line.get_color() == colour)
    assert list(line.get_xdata()) == [1]


def test_with_many_methods_curves_name_the_best_and_the_baselines(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for index in range(30):
        label = {0: "none", 1: "kd"}.get(index, f"method{index}")
        for seed in range(2):
            suite.done("resnet20", "resnet8", label, seed, 60.0 + index + 0.1 * seed)
    made = curves(read_study(suite.write()))
    assert made is not None
    named = {text.get_text() for text in made[0].legends[0].get_texts()}
    assert named == {"none", "kd", *(f"method{index}" for index in range(24, 30)), "others"}
    grey, *coloured = made[0].axes[0].lines
    assert len(coloured) == 8
    # The other 22, of three epochs each, are one line with gaps.
    assert list(grey.get_xdata()) == pytest.approx([1, 2, 3, np.nan] * 21 + [1, 2, 3], nan_ok=True)
    assert list(grey.get_ydata()[:3]) == pytest.approx([63.05, 78.05, 83.05])


def test_cost_shows_gain_by_time(read: Study) -> None:
    made = cost(read)
    assert made is not None
    colour = read.styles["vid"].colour
    point = next(line for line in made[0].axes[0].lines if line.get_color() == colour)
    assert point.get_xdata()[0] == pytest.approx(11.0)
    assert point.get_ydata()[0] == pytest.approx((2.1 + 1.3 + 1.9) / 3)


@pytest.fixture(scope="module")
def four_states(tmp_path_factory: pytest.TempPathFactory, module_runs: Callable[..., Any]) -> Study:
    """Over none: kd is better, vid is worse, rkd is not resolved, and pkt has one seed."""
    suite = module_runs(tmp_path_factory.mktemp("states"))
    suite.teacher("resnet20", 80.0)
    tops = {"none": (70, 71, 72), "kd": (72.1, 73, 74), "vid": (67.9, 69, 70), "rkd": (71, 70, 73), "pkt": (71,)}
    for label, values in tops.items():
        for seed, top1 in enumerate(values):
            suite.done("resnet20", "resnet8", label, seed, float(top1))
    return read_study(suite.write())


WORDS = ["better", "worse", "not resolved", "no interval"]


def test_cost_marks_what_is_known_of_a_gain_by_shape_and_colour(four_states: Study) -> None:
    made = cost(four_states)
    assert made is not None
    (axes,) = made[0].axes
    points = {line.get_color(): line for line in axes.lines if line.get_marker() not in ("None", None)}
    filled = {
        label: points[four_states.styles[label].colour].get_markerfacecolor() != canvas.PAPER
        for label in four_states.labels
    }
    assert filled == {"none": True, "kd": True, "vid": True, "rkd": False, "pkt": False}
    marks = [dots for dots in axes.collections if type(dots).__name__ == "PathCollection"]
    heights = [[round(float(y), 2) for _, y in dots.get_offsets()] for dots in marks]
    assert heights == [[2.03], [-2.03], [0.33], [1.0]]
    assert len({dots.get_paths()[0].vertices.tobytes() for dots in marks}) == 4
    colours = [tuple(dots.get_edgecolor()[0]) for dots in marks]
    assert len(set(colours)) == 3
    assert colours[2] == colours[3]
    texts = [text.get_text() for text in made[0].legends[0].get_texts()]
    assert [text for text in texts if text in WORDS] == WORDS
    assert "○ not resolved: the interval contains 0" in made[1]


def test_accuracy_marks_what_is_known_of_a_gain(four_states: Study) -> None:
    made = accuracy(four_states)
    assert made is not None
    (axes,) = made[0].axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    marks = [[labels[int(y)] for x, y in _offsets(dots) if x == 1.015] for dots in axes.collections]
    assert [found for found in marks if found] == [["kd"], ["vid"], ["rkd"], ["pkt"]]
    assert [text.get_text() for text in made[0].legends[0].get_texts()] == WORDS


def test_cost_shows_the_best_and_the_front_however_far_they_are_from_the_others(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    close = {f"close{index}": 70.0 + 0.01 * index for index in range(12)}
    for place, (label, top1) in enumerate({"none": 70.0, **close, "best": 77.0, "lost": 40.0}.items()):
        seconds = 1.0 if label == "lost" else 10.0 + place
        suite.done("resnet20", "resnet8", label, 0, top1, cost={"seconds": seconds})
    study = read_study(suite.write())
    made = cost(study)
    assert made is not None
    low, high = made[0].axes[0].get_ylim()
    # The one that is cheapest is on the Pareto front, although its gain is -30.
    assert low < -30 < 7 < high
    assert "Outside the range" not in made[1]


def test_cost_leaves_out_what_is_far_below_and_off_the_front(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for place, (label, top1) in enumerate({"none": 70.0, "kd": 70.2, "vid": 70.3, "rkd": 65.2, "pkt": 40.0}.items()):
        suite.done("resnet20", "resnet8", label, 0, top1, cost={"seconds": 10.0 + place})
    made = cost(read_study(suite.write()))
    assert made is not None
    low, high = made[0].axes[0].get_ylim()
    # rkd is 5.1 points below the leader.
    assert -4.8 < low < 0
    assert high > 0.3
    assert "Outside the range of the panel: rkd and pkt." in made[1]


def test_the_front_is_what_nothing_beats_in_less_time(read: Study) -> None:
    frame = read.cells.iloc[:4].assign(seconds=[1.0, 2.0, 3.0, 4.0], height=[1.0, 0.5, 2.0, 2.0])
    assert list(_front(frame)["seconds"]) == [1.0, 3.0]


def test_no_critical_difference_below_five_pairs(read: Study) -> None:
    assert critical_difference(read) is None


def test_critical_difference_has_each_method_at_its_rank(runs: Callable[..., Any]) -> None:
    suite = runs("many")
    for index in range(6):
        suite.teacher(f"teacher{index}", 80.0)
        for offset, label in enumerate(("none", "kd", "vid")):
            suite.done(f"teacher{index}", "resnet8", label, 0, 70.0 + offset)
    read = read_study(suite.write())
    made = critical_difference(read)
    assert made is not None
    texts = {text.get_text().strip() for text in made[0].axes[0].texts}
    assert {"vid  1.00", "kd  2.00", "3.00  none"} <= texts


def test_labels_do_not_overlap() -> None:
    figure = Figure(figsize=(4, 3))
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    points = [(0.5, 0.5), (0.52, 0.51), (0.5, 0.51), (0.51, 0.5), (0.5, 0.5), (0.51, 0.51), (0.1, 0.9)]
    canvas.draw()
    placed = place_labels(canvas, axes, points, ["label"] * len(points))
    assert placed == len(axes.texts)
    assert 1 <= placed < len(points)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert all(not a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def _offsets(collection: Any) -> list[Any]:
    return list(collection.get_offsets()) if type(collection).__name__ == "PathCollection" else []


def _segments(collection: Any) -> list[Any]:
    return list(collection.get_segments()) if hasattr(collection, "get_segments") else []


@pytest.fixture
def staged(runs: Callable[..., Any]) -> Study:
    """Two pairs: none with one term, and ft with two terms and a first stage ``paraphraser`` of two epochs."""
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for student in ("resnet8", "resnet14"):
        for seed in range(2):
            suite.done("resnet20", student, "none", seed, 70.0)
            suite.done("resnet20", student, "ft", seed, 71.0, terms=("ce", "factors"), stages=("paraphraser",))
    return read_study(suite.write())


def _lines(axes: Any) -> list[tuple[str, list[float]]]:
    return [(line.get_linestyle(), [round(float(y), 3) for y in line.get_ydata()]) for line in axes.lines]


def test_every_term_and_the_training_loss_have_a_curve(staged: Study) -> None:
    made = terms(staged)
    assert made is not None
    panels = {axes.get_title(): axes for axes in made[0].axes if axes.get_title()}
    assert list(panels) == ["none", "ft"]
    # By epoch e: the loss is 2/e, the first term 1/e, the second 2/e; solid for one pair, dashed for the other.
    loss, first, second = [2.0, 1.0, 0.667], [1.0, 0.5, 0.333], [2.0, 1.0, 0.667]
    assert _lines(panels["none"]) == [("-", loss), ("--", loss), ("-", first), ("--", first)]
    assert _lines(panels["ft"]) == [(s, y) for y in (loss, first, second) for s in ("-", "--")]
    texts = panels["ft"].get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["loss", "ce", "factors"]
    assert "Lines: solid resnet20 → resnet8, dashed resnet20 → resnet14." in made[1]


def test_first_stages_have_curves_of_their_own(staged: Study) -> None:
    made = stages(staged)
    assert made is not None
    (axes,) = [axes for axes in made[0].axes if axes.get_title()]
    assert axes.get_title() == "ft: paraphraser"
    assert _lines(axes) == [("-", [2.0, 1.0]), ("--", [2.0, 1.0]), ("-", [1.0, 0.5]), ("--", [1.0, 0.5])]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["loss", "paraphraser"]


def test_without_first_stages_none_are_drawn(read: Study) -> None:
    assert stages(read) is None


def test_losses_that_are_not_finite_are_left_out(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    trial = suite.done("resnet20", "resnet8", "none", 0, 70.0)
    suite.folder.trial(trial.id).append_epoch(
        EpochRecord(epoch=4, stage="main", train_loss=float("nan"), terms={"ce": float("inf")}, seconds=1.0)
    )
    made = terms(read_study(suite.write()))
    assert made is not None
    assert _lines(made[0].axes[0]) == [("-", [2.0, 1.0, 0.667]), ("-", [1.0, 0.5, 0.333])]


def test_a_logarithmic_panel_has_plain_numbers(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "none", 0, 70.0, curve=[70.0] * 40)
    drawn = draw(read_study(suite.write()), tmp_path, FIGURES)[0]["terms"].svg
    assert "mathdefault" not in drawn
    assert ">0.1<" in drawn


def test_long_curves_are_thinned_alike_up_to_the_last_epoch_of_all_seeds(runs: Callable[..., Any]) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for label in ("none", "kd"):
        for seed, epochs in ((0, 200), (1, 203)):
            suite.done("resnet20", "resnet8", label, seed, 70.0, curve=[50 + 0.1 * e for e in range(epochs)])
    study = read_study(suite.write())
    drawn = []
    for figure in (curves(study), terms(study)):
        assert figure is not None
        drawn += [list(line.get_xdata()) for axes in figure[0].axes for line in axes.lines]
    assert len(drawn) == 6
    assert all(epochs == list(range(2, 201, 3)) for epochs in drawn)


def test_over_seeds_agrees_with_pandas() -> None:
    draw = np.random.default_rng(0)
    records = pd.DataFrame({"epoch": [1, 2, 3, 4, 2, 1, 3, 4, 1, 2, 3], "top1": draw.normal(size=11)})
    records.loc[[4, 5], "top1"] = np.nan, np.inf
    records.loc[[2, 6, 10], "top1"] = np.nan
    expected = records.groupby("epoch")["top1"].agg(["mean", "min", "max"]).iloc[:3]
    found = canvas.over_seeds(records, "top1")
    assert list(found.epochs) == [1, 2, 3]
    assert found.seeds == 3
    for ours, theirs in ((found.mean, "mean"), (found.low, "min"), (found.high, "max")):
        assert list(ours) == pytest.approx(list(expected[theirs]), nan_ok=True)


@pytest.mark.parametrize(("epochs", "drawn"), [(1, 1), (79, 79), (80, 80), (81, 41), (240, 80), (1000, 77)])
def test_a_curve_has_at_most_eighty_points_and_the_last_epoch(epochs: int, drawn: int) -> None:
    records = pd.DataFrame({"epoch": range(1, epochs + 1), "top1": 1.0})
    found = canvas.over_seeds(records, "top1").epochs
    assert (len(found), found[-1]) == (drawn, epochs)


def test_names_in_an_embedded_figure_are_left_as_they_are() -> None:
    names = ['id="x"', "#1c1c1d", "lr0.00015", "'DejaVu Sans'", "url(#p1)", "xlink:href"]
    texts = "".join(f"<text>{name}</text>" for name in names)
    svg = f'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><g id="unused">{texts}</g></svg>'
    root = ElementTree.fromstring(canvas.inline(svg, "figure", "caption"))
    assert [text.text for text in root.iter("text")] == names
    assert "id" not in root[0].attrib


def test_a_long_line_of_an_embedded_figure_is_where_it_was() -> None:
    draw = np.random.default_rng(1)
    lines = [draw.uniform(-5, 900, size=(points, 2)) for points in (9, 20)]
    path = "".join(f"{'L' if index else 'M'} {x:.6f} {y:.6f} \n" for line in lines for index, (x, y) in enumerate(line))
    short = ElementTree.fromstring(canvas.inline(f'<svg><path d="{path}z\n"/></svg>', "figure", ""))[0].attrib["d"]
    assert len(short) < 0.7 * len(path)
    assert short.endswith("z")
    pieces = [[float(number) for number in re.findall(r"-?[\d.]+", piece)] for piece in short.split("M")[1:]]
    for piece, line in zip(pieces, lines, strict=True):
        assert np.abs(np.reshape(piece, (-1, 2)).cumsum(axis=0) - line).max() < 0.061


def test_a_short_line_of_an_embedded_figure_keeps_its_digits() -> None:
    path = "M 0.111111 0.222222 \nL 3.333333 4.444444 \n"
    assert 'd="M 0.11 0.22 \nL 3.33 4.44 \n"' in canvas.inline(f'<svg><path d="{path}"/></svg>', "figure", "")


def test_no_profile_below_five_pairs(runs: Callable[..., Any], read: Study) -> None:
    assert performance_profile(read) is None
    assert performance_profile(_gaining(runs, {"none": 0.0, "kd": 1.0}, pairs=4)) is None
    assert performance_profile(_gaining(runs, {"vid": 0.0, "kd": 1.0})) is None


def test_a_profile_is_the_share_of_runs_that_gain_as_much(runs: Callable[..., Any]) -> None:
    read = _gaining(runs, {"none": 0.0, "kd": 1.0, "vid": -0.5})
    made = performance_profile(read)
    assert made is not None
    (axes,) = made[0].axes
    lines = {line.get_color(): line for line in axes.lines}
    for label in ("kd", "vid"):
        cells = read.trials.pivot(index=["pair", "seed"], columns="label", values="top1")
        gains = (cells[label] - cells["none"]).to_numpy()
        line = lines[read.styles[label].colour]
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert len(gains) == 10
        for tau in np.linspace(-2, 3, 37):
            # Between two corners, the line is flat.
            right = np.flatnonzero(x > tau)
            drawn = y[right[0]] if len(right) else 0.0
            assert drawn == pytest.approx(100 * np.mean(gains >= tau))
    assert read.styles["none"].colour not in {line.get_color() for line in axes.lines if len(line.get_xdata()) > 2}


def test_a_diverged_run_reaches_no_gain(runs: Callable[..., Any]) -> None:
    made = performance_profile(_gaining(runs, {"none": 0.0, "kd": 1.0}, diverged="kd"))
    assert made is not None
    heights = np.concatenate(
        [np.asarray(line.get_ydata()) for line in made[0].axes[0].lines if len(line.get_ydata()) > 2]
    )
    # One of two runs on one of five pairs.
    assert heights.max() == pytest.approx(90)


def test_a_profile_names_the_best_of_many_methods_and_the_highlighted(runs: Callable[..., Any]) -> None:
    labels = {f"m{index}": index / 10 for index in range(14)}
    read = _gaining(runs, {"none": 0.0, "kd": 0.05, **labels}, highlight=["m0"])
    made = performance_profile(read)
    assert made is not None
    (legend,) = made[0].legends
    names = {text.get_text() for text in legend.get_texts()}
    assert names == {"kd", "m13", "m12", "m11", "m10", "m9", "m8", "m7", "★ m0", "others"}
    assert made[1].endswith("6 others in grey.")


def _gaining(
    runs: Callable[..., Any], gains: dict[str, float], pairs: int = 5, diverged: str = "", highlight: Sequence[str] = ()
) -> Study:
    """Two seeds on each pair, with a different spread; the last run of ``diverged`` has no score."""
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for pair in range(pairs):
        for index, (label, gain) in enumerate(gains.items()):
            for seed in range(2):
                if label == diverged and (pair, seed) == (pairs - 1, 1):
                    suite.diverged("resnet20", f"student{pair}", label, seed, epoch=1)
                    continue
                top1 = 70 + 2 * pair + gain + 0.3 * seed + 0.01 * ((7 * pair + 3 * index + 5 * seed) % 11)
                suite.done("resnet20", f"student{pair}", label, seed, top1)
    return read_study(suite.write(), highlight=highlight)
