from __future__ import annotations

import io

from rich.console import Console

from kdbench.bench.findings import EQUAL, Findings, Row
from kdbench.bench.table import tables


def printed(findings):
    console = Console(file=io.StringIO(), width=200)
    for table in tables(findings):
        console.print(table)
    return console.file.getvalue()


def test_rows_and_what_was_left_out():
    findings = Findings()
    findings.describe({"cpu": "Fast [1]", "gpu": None})
    findings.add(Row.of("pairs", "steps", {"pair": "a:b", "methods": ["none", "kd"]}, [10.0, 12.0, 2345.6], "steps/s"))
    for pair in "cdefghi":
        findings.leave_out("pairs", "steps", {"pair": pair}, "no time")
    findings.leave_out("data", "data", {}, "broken", failed=True)
    text = printed(findings)
    assert "Fast [1]" in text
    assert "gpu" not in text
    [row] = [line for line in text.splitlines() if "pair a:b" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "steps", "pair a:b, methods none+kd", "12", "steps/s", "11 – 1,179", "3",
    ]  # fmt: skip
    assert "pair c; pair d; pair e; pair f; pair g; and 2 more" in text
    assert "failed: broken" in text


def test_losses_have_a_row_each():
    findings = Findings()
    for batch, milliseconds in ((64, 1.0), (256, 5.0)):
        settings = {"loss": "kd", "stage": "main", "batch": batch, "width": 512}
        findings.add(Row.of("losses", "forward and backward", settings, [milliseconds], "ms"))
        findings.add(Row.of("losses", "peak memory", settings, [batch / 10], "MiB"))
    settings = {"loss": "ab", "stage": "boundary", "batch": 256, "width": 512}
    findings.add(Row.of("losses", "forward and backward", settings, [7.0], "ms"))
    lines = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in printed(findings).splitlines()]
    assert ["kd", "1 / 6.4", "5 / 25.6"] in lines
    assert ["ab, stage boundary", "", "7 / ?"] in lines


def test_comparisons_that_are_equal_share_a_row_and_others_have_their_own():
    findings = Findings()
    for method in ("none", "kd"):
        findings.add(Row.of("correctness", "a = b", {"method": method, "replays": len(method)}, [1.0], EQUAL))
    assert "correctness: all 2 equal" in printed(findings)
    assert "methods none+kd" in printed(findings)
    findings.add(Row.of("correctness", "a = b", {"method": "at", "largest_difference": 0.5}, [0.0], EQUAL))
    text = printed(findings)
    assert "correctness: 1 of 3 comparisons are unequal" in text
    [row] = [line for line in text.splitlines() if "method at" in line]
    assert "largest difference 0.5" in row
    assert "unequal" in row
