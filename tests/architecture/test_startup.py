"""The commands that only look at things load nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.results import PlanRecord, SuiteFolder, write_json
from kdbench.suite.plan import PROTOCOL

TORCH = {"torch", "torchvision", "timm", "torchmetrics"}
HEAVY = TORCH | {"mlflow", "matplotlib", "pandas", "scipy", "sklearn"}

# What a process has loaded when it ends, after whatever the command line did.
PROGRAM = """
import sys
from kdbench.cli import main
code = 0
for arguments in {commands!r}:
    sys.argv = ["kdbench", *arguments]
    try:
        main()
    except SystemExit as stop:
        code = code or stop.code or 0
print("loaded", code, *sorted(name for name in sys.modules if "." not in name))
"""


def run(arguments: list[str], folder: Path, program: str = PROGRAM) -> tuple[int, set[str], str]:
    """Exit code, top-level modules loaded, and what was printed before."""
    return run_all([arguments], folder, program)


def run_all(commands: list[list[str]], folder: Path, program: str = PROGRAM) -> tuple[int, set[str], str]:
    """The same of commands one after the other: the first exit code that is not 0."""
    done = subprocess.run(
        [sys.executable, "-c", program.format(commands=commands)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    *printed, last = done.stdout.splitlines()
    word, code, *modules = last.split()
    assert word == "loaded"
    return int(code), set(modules), "\n".join(printed) + done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--help"], "describe"),
        (["--version"], "kdbench"),
        (["list", "methods"], "rkd"),
        (["list", "methods", "--json"], "rkd"),
        (["list", "models"], "resnet8"),
        (["list", "datasets"], "digits"),
        (["list", "metrics"], "kl_to_teacher"),
        (["list", "sections"], "verdict"),
        (["list", "figures"], "critical_difference"),
        (["list", "plugins"], "kdbench"),
        (["list", "suites"], "digits"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_looking_loads_nothing_heavy(tmp_path: Path, arguments: list[str], says: str) -> None:
    code, modules, printed = run(arguments, tmp_path)
    assert code == 0
    assert says in printed
    assert modules & HEAVY == set()


def test_reporting_the_last_plan_loads_no_torch(tmp_path: Path) -> None:
    SuiteFolder(tmp_path / "runs", "last").write_plan(PlanRecord(protocol=PROTOCOL, path="last"))
    code, modules, printed = run(["report", "last"], tmp_path)
    assert code == 2
    assert "as last planned from last" in printed
    assert modules & (TORCH | {"mlflow"}) == set()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["runs", "--output", "."], 0, "planned"),
        (["diff", "digits/one", "digits/two", "--output", "."], 0, "temperature: 4 -> 8"),
    ],
    ids=["runs", "diff"],
)
def test_listing_and_comparing_trials_load_nothing_heavy(
    tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    for name, temperature in (("one", 4), ("two", 8)):
        trial = {"id": name, "teacher": "t", "student": "s", "method": "kd", "label": "kd", "seed": 0}
        trial |= {"settings": {"temperature": temperature}}
        write_json(tmp_path / "digits" / name / "trial.json", trial)
    found, modules, printed = run(arguments, tmp_path)
    assert (found, says in printed) == (code, True), printed
    assert modules & HEAVY == set()


def test_merging_loads_nothing_heavy(tmp_path: Path) -> None:
    trial = {
        "id": "one",
        "teacher": "t",
        "student": "s",
        "method": "kd",
        "label": "kd",
        "seed": 0,
        "protocol": PROTOCOL,
    }
    write_json(tmp_path / "lab/digits/one/trial.json", trial)
    found, modules, printed = run(["merge", "lab", "--into", "all"], tmp_path)
    assert (found, "not copied: 1 unfinished trial" in printed) == (0, True), printed
    assert modules & HEAVY == set()


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path) -> None:
    program = "import sys, kdbench; print('loaded', 0, *sorted(name for name in sys.modules if '.' not in name))"
    _, modules, _ = run([], tmp_path, program)
    assert modules & (HEAVY | {"typer", "rich", "pydantic", "pluggy"}) == set()


def test_what_loads_torch_is_seen(tmp_path: Path) -> None:
    _, modules, _ = run(["describe", "kd", "--json"], tmp_path)
    assert "torch" in modules


# torch's compiler brings sympy, and takes longer to import than the rest of torch.
COMPILER = {"sympy"}


def test_describing_loads_no_compiler(tmp_path: Path) -> None:
    names = ["kd", "crd", "ofd", "resnet20"]
    code, modules, printed = run_all([["describe", name] for name in names], tmp_path)
    assert (code, modules & (COMPILER | {"timm"})) == (0, set())
    assert [name for name in names if name not in printed] == []


def test_a_plan_loads_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    code, modules, printed = run(["plan", "cifar100"], tmp_path)
    assert (code, modules & (COMPILER | {"timm"})) == (0, set())
    assert "520 trials (520 pending)" in printed


def test_a_second_plan_builds_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    # One of its networks is timm's.
    _, loaded_first, first = run(["plan", "digits"], tmp_path)
    _, loaded_then, then = run(["plan", "digits"], tmp_path)
    assert "timm" in loaded_first
    assert loaded_then & {"timm", "kdbench.models.resnet"} == set()
    assert first == then
    assert "6 skipped" in first


SMALL = """
name = "small"
question = "Does a finished suite end at once?"
seeds = [0]
[data]
name = "digits"
train_limit = 64
test_limit = 10
[recipe]
epochs = 1
[[pairs]]
teacher = "resnet8"
student = "resnet8"
[[methods]]
name = "none"
"""


def test_a_finished_run_reads_no_table_and_builds_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small.toml").write_text(SMALL)
    unneeded = COMPILER | {"timm", "torchvision", "mlflow", "matplotlib", "pandas", "scipy"}
    arguments = ["run", "small.toml", "--tracking-uri", "none"]
    code, modules, printed = run(arguments, tmp_path)
    assert (code, "pandas" in modules) == (0, True), printed
    code, modules, printed = run(arguments, tmp_path)
    assert (code, modules & unneeded) == (0, set())
    assert "small: 1 done" in printed
