from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdbench.errors import ResultsError
from kdbench.report.render import render
from kdbench.results import SuiteFolder
from kdbench.suite.load import shipped

VOID = {"meta", "br", "hr", "img", "input", "link", "col", "wbr"}


class Page(HTMLParser):
    """What a page refers to, its identifiers, its text, and whether its elements close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.text: list[str] = []
        self.elements: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            elif name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}:
                address = value or ""
                if address.startswith("#"):
                    self.targets.append(address[1:])
                elif tag == "a":
                    self.links.append(address)
                else:
                    self.loads.append(address)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in {"style", "script"}:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def page(untouched_study: SuiteFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    path = render(untouched_study, tmp_path_factory.mktemp("reports") / "digits")
    return path, Page(path.read_text(encoding="utf-8"))


def test_all_files_stand(page: tuple[Path, Page]) -> None:
    path, _ = page
    assert path.name == "index.html"
    names = {str(p.relative_to(path.parent)) for p in path.parent.rglob("*") if p.is_file()}
    plots = {f"plots/{name}.{suffix}" for name in ("accuracy", "curves", "terms", "cost") for suffix in ("svg", "png")}
    assert names == {"index.html", "leaderboard.md", "leaderboard.csv", "overall.csv", "trials.csv"} | plots


def test_the_page_loads_nothing_from_outside(page: tuple[Path, Page]) -> None:
    path, parsed = page
    assert parsed.loads == []
    html = path.read_text(encoding="utf-8")
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", html)
    assert not re.search(r"fetch\(|XMLHttpRequest|<iframe|<link\b", html)
    # What is left to follow are the report's own files.
    assert all(not link.startswith(("http:", "//")) for link in parsed.links)
    assert all((path.parent / link).exists() for link in parsed.links if not link.startswith("https:"))


def test_identifiers_are_unique_and_all_references_resolve(page: tuple[Path, Page]) -> None:
    _, parsed = page
    assert len(parsed.ids) == len(set(parsed.ids))
    assert set(parsed.targets) <= set(parsed.ids)
    html = page[0].read_text(encoding="utf-8")
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(parsed.ids)


def test_the_page_says_what_it_is_about(page: tuple[Path, Page]) -> None:
    words = page[1].words
    assert "Which loss helps most?" in words
    assert "21 of 27 trials finished" in words
    assert "Highest mean here: vid, 72.77 ± 0.99 % (n=3), +1.77 [+0.34, +3.20] over none." in words
    assert "Diverged, ranked last: pkt in 1 of 3." in words
    assert "One seed gives no interval" in words
    assert "ab needs pre-activation taps; resnet8 has none" in words
    assert "RuntimeError: out of memory | twice (epoch 2)" in words
    assert "the loss was NaN or infinite (epoch 1)" in words
    assert "One trained teacher is used" in words
    assert "after the last epoch" in words
    assert "kdbench run suites/digits.toml" in words


def test_sections_stand_in_order(page: tuple[Path, Page]) -> None:
    found = [name for name in page[1].ids if name.endswith("-title")]
    assert found == [
        f"{name}-title"
        for name in ("verdict", "overall", "pairs", "beside", "costs", "uncounted", "rules", "environment")
    ]


def test_leaderboard_csv(page: tuple[Path, Page]) -> None:
    frame = pd.read_csv(page[0].parent / "leaderboard.csv")
    assert {
        "teacher", "student", "method", "n", "diverged", "top1_mean", "top1_std", "gain_over_none", "seconds",
    } <= set(frame.columns)  # fmt: skip
    row = frame[(frame["method"] == "kd") & (frame["student"] == "resnet8")].iloc[0]
    assert (row["teacher"], row["n"], row["diverged"]) == ("resnet20", 3, 0)
    assert row["top1_mean"] == pytest.approx(np.mean([72, 72.5, 73.5]), rel=1e-5)
    assert row["top1_std"] == pytest.approx(np.std([72, 72.5, 73.5], ddof=1), rel=1e-5)
    assert row["gain_over_none"] == pytest.approx(5 / 3, rel=1e-5)
    assert len(frame) == 8 + 2


def test_trials_csv(page: tuple[Path, Page]) -> None:
    frame = pd.read_csv(page[0].parent / "trials.csv")
    assert len(frame) == 30
    assert dict(frame["status"].value_counts()) == {"done": 20, "diverged": 1, "failed": 1, "skipped": 3, "pending": 5}


def test_leaderboard_markdown(page: tuple[Path, Page]) -> None:
    text = (page[0].parent / "leaderboard.md").read_text(encoding="utf-8")
    assert text.startswith("# Which loss helps most?\n")
    assert "| 1 | vid | 72.77 ± 0.99 | 3 | +1.77 [+0.34, +3.20] | +0.10 [−1.32, +1.52] |" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1
    assert "\nRecipe: epochs 3; batch size 64; optimizer sgd; lr 0.05; momentum 0.9;" in text
    assert "\n- vid: weight 1.0\n" in text


def test_rendering_twice_gives_the_same_bytes(
    untouched_study: SuiteFolder, page: tuple[Path, Page], tmp_path: Path
) -> None:
    first, second = page[0], render(untouched_study, tmp_path / "again")
    names = [p.relative_to(first.parent) for p in first.parent.rglob("*") if p.is_file()]
    assert len(names) == 13
    for name in names:
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes(), name


def test_filters(study: SuiteFolder, tmp_path: Path) -> None:
    path = render(study, tmp_path / "report", methods=["vid", "kd"], pairs=["resnet20:resnet8"], plots=False)
    frame = pd.read_csv(path.parent / "leaderboard.csv")
    assert list(frame["label"]) == ["vid", "kd"]
    assert frame["gain_over_none"].notna().all()
    html = path.read_text(encoding="utf-8")
    assert "Only part of the suite is shown" in html
    assert "kdbench run suites/digits.toml --method=vid --method=kd --pair=resnet20:resnet8" in html


def test_no_trial_is_done_yet(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for label in ("none", "kd"):
        suite.plan_trial("resnet20", "resnet8", label, 0)
        suite.plan_trial("resnet20", "resnet14", label, 0)
    path = render(suite.write(), tmp_path / "report")
    words = Page(path.read_text(encoding="utf-8")).words
    assert "No trial is done yet." in words
    assert "0 of 4 trials finished" in words
    assert not list(path.parent.glob("plots/*"))
    assert len(pd.read_csv(path.parent / "leaderboard.csv")) == 4


def test_old_plots_do_not_outlive_their_results(study: SuiteFolder, tmp_path: Path) -> None:
    report = tmp_path / "report"
    (report / "plots").mkdir(parents=True)
    (report / "plots" / "accuracy.svg").write_text("of an earlier run")
    plan = study.plan
    assert plan is not None
    trials = tuple(row.model_copy(update={"id": row.id.replace("resnet8-", "elsewhere-")}) for row in plan.trials)
    study.write_plan(plan.model_copy(update={"trials": trials}))
    render(study, report, pairs=["resnet20:resnet8"])
    assert not list(report.glob("plots/accuracy.*"))


def test_only_diverged(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for seed in range(2):
        suite.diverged("resnet20", "resnet8", "kd", seed, epoch=1)
    words = Page(render(suite.write(), tmp_path / "report").read_text(encoding="utf-8")).words
    assert "Diverged, ranked last: kd in 2 of 2." in words


def test_one_seed_says_so(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "none", 0, 70.0)
    suite.done("resnet20", "resnet8", "kd", 0, 72.0)
    path = render(suite.write(), tmp_path / "report", plots=False)
    words = Page(path.read_text(encoding="utf-8")).words
    assert "Highest score here: kd, 72.00 % (n=1), +2.00 over none." in words
    assert "One seed gives no interval" in words
    assert "±" not in words.split("Protocol")[1].split("Mean ±")[0]
    assert "All pairs" not in words


def test_tables_mark_what_is_known_of_a_gain(page: tuple[Path, Page]) -> None:
    html = page[0].read_text(encoding="utf-8")
    mark = '<span class="{}"><span class="mark" role="img" aria-label="{}">{}</span>{}</span>'
    for shown in (("up", "better", "↑", "+1.77"), ("unresolved", "not resolved", "○", "0.00")):
        assert mark.format(*shown) in html
    # The second pair has one seed: no interval of +1.00.
    assert mark.format("unresolved", "no interval", "?", "+1.00") in html
    cells = re.findall(r'<td class="number([^"]*)" data-value="[^"]*" (?:style="([^"]*)")?>', html)
    shaded = {(" hatched" in names, style.partition(":")[0]) for names, style in cells if style}
    assert shaded == {(True, "--hatch"), (False, "background")}


def test_ab_shows_its_extra_epochs(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    for seed in range(2):
        suite.done("resnet20", "resnet8", "none", seed, 70.0 + seed)
        suite.done("resnet20", "resnet8", "ab", seed, 72.0 + seed, cost={"extra_epochs": 30})
    words = Page(render(suite.write(), tmp_path / "report", plots=False).read_text(encoding="utf-8")).words
    assert "+30 epochs" in words
    assert "Methods with stages before the main one (epochs in brackets): ab (30)." in words


def test_validation_selected_results_say_so(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs(selection="validation")
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "none", 0, 70.0, validation={"top1": 68.25})
    words = Page(render(suite.write(), tmp_path / "report", plots=False).read_text(encoding="utf-8")).words
    assert "68.25" in words
    assert "at the epoch with the best accuracy on a validation split" in words
    assert "after the last epoch" not in words


def test_a_shipped_suite_is_run_by_its_name(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs("cifar100")
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "none", 0, 70.0)
    folder = suite.write(path=str(shipped()["cifar100"]))
    html = render(folder, tmp_path / "report", plots=False).read_text(encoding="utf-8")
    assert "<code>kdbench run cifar100</code>" in html


def test_many_pairs_are_led_in_a_table(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs("many")
    for index in range(6):
        suite.teacher(f"teacher{index}", 80.0)
        for seed in range(2):
            for offset, label in enumerate(("none", "kd", "vid")):
                suite.done(f"teacher{index}", "resnet8", label, seed, 70.0 + 2 * offset + 0.1 * seed * offset)
    path = render(suite.write(), tmp_path / "report")
    parsed = Page(path.read_text(encoding="utf-8"))
    assert "The highest mean on each pair." in parsed.words
    assert "Lowest mean rank over these 6 pairs: vid, 1.00." in parsed.words
    assert "Friedman's test" in parsed.words
    # What the seeds of each pair resolve, and marks that a correction decides and not the interval beside them.
    assert "Resolvable: the gain in points" in parsed.words
    assert "Marks, corrected for the number of methods: ↑ better , ↓ worse , ○ not resolved" in parsed.words
    assert (path.parent / "plots" / "critical_difference.svg").exists()
    assert (path.parent / "plots" / "performance_profile.svg").exists()


def test_published_results_are_compared_with_ours(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs("cifar", data="cifar100")
    suite.teacher("resnet56", 72.0)
    for seed in range(2):
        suite.done("resnet56", "resnet20", "none", seed, 69.0 + seed)
        suite.done("resnet56", "resnet20", "kd", seed, 70.5 + seed)
    words = Page(render(suite.write(), tmp_path / "report", plots=False).read_text(encoding="utf-8")).words
    assert "CRD study" in words
    assert "protocol: last epoch" in words
    assert "70.66" in words
    assert "+0.34" in words


def test_a_report_folder_that_cannot_be_made(study: SuiteFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot be written: Not a directory"):
        render(study, tmp_path / "file" / "report", plots=False)


def test_reports_import_neither_torch_nor_mlflow_nor_matplotlib_before_it_draws() -> None:
    code = (
        "import sys, kdbench.report.render;"
        "print([m for m in ('torch', 'mlflow', 'matplotlib', 'kdbench_methods') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plots_leave_pyplot_alone() -> None:
    code = "import sys, kdbench.report.figures.draw; print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


def test_the_teacher_table_shows_epochs_recipe_and_training_time(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0, epochs=60, seconds=7200.0)
    suite.teacher("vgg13", 81.0)
    for teacher in ("resnet20", "vgg13"):
        suite.done(teacher, "resnet8", "none", 0, 70.0)
    words = Page(render(suite.write(), tmp_path / "report", plots=False).read_text(encoding="utf-8")).words
    assert "teacher top-1, % epochs recipe weights, SHA-256" in words
    assert f"resnet20 80.00 60 epochs 60 {'a' * 16}…" in words
    assert f"vgg13 81.00 3 same as the students {'a' * 16}…" in words
    assert "Training time of teachers: resnet20 2.0 h" in words


def test_the_validation_accuracy_that_selects_is_in_every_table(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs(selection="validation")
    suite.teacher("resnet20", 80.0)
    suite.tables["data"] = {"name": "digits", "validation": 0.1}
    suite.done("resnet20", "resnet8", "none", 0, 70.0, validation={"top1": 68.25})
    suite.done("resnet20", "resnet8", "kd", 0, 71.0, validation={"top1": 69.5})
    path = render(suite.write(), tmp_path / "report", plots=False)
    board = (path.parent / "leaderboard.md").read_text(encoding="utf-8")
    assert "| diverged | validation, % | time |\n|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|\n" in board
    assert "| 0 | 69.50 | 10.0 s |" in board
    assert list(pd.read_csv(path.parent / "leaderboard.csv")["validation_top1_mean"]) == [69.5, 68.25]
    pairs = path.read_text(encoding="utf-8").split('id="pairs"')[1].split("</section>")[0]
    assert "validation, %" in pairs
    assert "69.50" in pairs


def test_a_page_of_a_changed_suite_says_so_at_its_head(runs: Callable[..., Any], tmp_path: Path) -> None:
    suite = runs()
    suite.teacher("resnet20", 80.0)
    suite.done("resnet20", "resnet8", "none", 0, 70.0)
    path = render(suite.write(overrides=("recipe.epochs=2", "data.train_limit=<9>")), tmp_path, plots=False)
    said = "The suite was changed by: --set recipe.epochs=2 --set data.train_limit=<9>"
    words = Page(path.read_text(encoding="utf-8")).words
    assert said in words
    assert words.index(said) < words.index("Verdict")
    assert "`--set recipe.epochs=2 --set data.train_limit=<9>`" in (path.parent / "leaderboard.md").read_text()
    assert "was changed by" not in render(suite.write(), tmp_path / "other", plots=False).read_text(encoding="utf-8")
