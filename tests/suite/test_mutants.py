"""Mutated suite files through ``kdbench plan``: each is planned, or refused with the file's name, and nothing else.

The mutants are drawn from a fixed seed and run in this process, by the function behind the command line.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kdbench import cli
from kdbench.suite.load import shipped

DRAWN = 300
"""Mutants drawn at random, beside those that are written out."""
WATCHDOG = 120
"""Seconds after which a mutant counts as hanging. A guard, not a measurement: each takes a fraction of one."""

DIGITS = ("digits", "classics")
"""The shipped suites whose data come with scikit-learn, so that a mutant may get as far as a plan."""

LONG = "a" * 5000
HUGE = ("9" * 5000).join(["", ""])

VALUES: tuple[Any, ...] = (
    0,
    -1,
    1,
    101,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63) - 1,
    10**30,
    10**4000,
    0.0,
    -0.0,
    0.5,
    1.0,
    1e38,
    1e308,
    5e-324,
    math.inf,
    -math.inf,
    math.nan,
    True,
    False,
    "",
    " ",
    "x",
    "a b",
    "a" * 300,
    LONG,
    "/" + "a" * 300,
    "a/" * 3000,
    "..",
    ".",
    "/",
    "~",
    "/dev/null",
    "\0",
    "a\0b",
    "\x1b[31m",
    "a\nb",
    "a\rb\tc",
    "\u202e\u2028",
    "é漢\U0001f600",
    "[/bold]",
    "[red]",
    "[bold]x[/]",
    "{}",
    "%s%d",
    "a:b:c",
    "torchvision:",
    "torchvision:nothing",
    "timm:nothing",
    "kd",
    "resnet8",
    "digits",
    [],
    [[]],
    [1, "x", 2.5, {}],
    ["[/bold]"],
    [0] * 1000,
    {},
    {"": 1},
    {"[/bold]": {"a": 1}},
    {"name": "[/bold]"},
    {"name": "kd", "recipe": {"epochs": 2**64}},
)


class Mutant(NamedTuple):
    """A suite file that somebody may write, with the files beside it."""

    name: str
    content: bytes
    beside: Mapping[str, bytes] = {}
    accepted: bool | None = None
    """Whether it is planned; None where that may be either way."""


def toml(value: Any) -> str:
    """A value in TOML, tables inline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(str(value), repr(value))
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{toml(key)} = {toml(item)}' for key, item in value.items())}}}"
    return str(value)


def document(tables: Mapping[str, Any]) -> bytes:
    """A whole file, one top-level key a line."""
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in tables.items()).encode()


def places(tables: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path to every value."""
    items: Any = tables.items() if isinstance(tables, dict) else enumerate(tables) if isinstance(tables, list) else ()
    for key, value in items:
        yield (*place, key)
        yield from places(value, (*place, key))


def full(name: str) -> dict[str, Any]:
    """A shipped suite's tables, with the optional keys that it leaves out, and one pair and few methods."""
    tables = tomllib.loads(shipped()[name].read_text())
    tables["pairs"] = tables["pairs"][:1]
    tables["pairs"][0] |= {"recipe": {"lr": 0.01}, "methods": {"kd": {"temperature": 2.0}}}
    tables["methods"] = [*tables["methods"][:2], {"name": "kd", "label": "soft", "temperature": 8.0}]
    tables["data"] |= {"train_limit": 500, "test_limit": 100, "validation": 0.1}
    tables["recipe"] |= {
        "schedule": "steps",
        "drops": [5, 10],
        "drop_factor": 0.1,
        "momentum": 0.9,
        "min_lr": 0.0,
        "clip_grad_norm": 5.0,
        "augmentation": [
            {"name": "crop", "padding": 1},
            {"name": "flip", "p": 0.5},
            {"name": "shift", "pixels": 1},
            {"name": "cutout", "size": 2},
            {"name": "randaugment", "num_ops": 1, "magnitude": 3},
            {"name": "random_resized_crop", "size": 8, "scale": [0.5, 1.0]},
            {"name": "mixup", "alpha": 0.8},
        ],
    }
    tables["teachers"]["resnet20"] |= {"expected_top1": 90.0, "tolerance": 10.0, "seed": 1}
    tables |= {"checkpoint_every": 5, "plugins": [], "teacher_seeds": "single"}
    return tables


def drawn(count: int) -> Iterator[Mutant]:
    """Real suites with one to three changes, each of a kind and at a place drawn at random."""
    stream = random.Random(20)
    for number in range(count):
        tables = full(DIGITS[number % len(DIGITS)])
        done = []
        for _ in range(stream.choice((1, 1, 1, 2, 3))):
            place = stream.choice(list(places(tables)))
            inner: Any = tables
            for part in place[:-1]:
                inner = inner[part]
            kind = stream.choice(("value", "value", "value", "value", "delete", "key", "twice", "wrap"))
            if kind == "value":
                inner[place[-1]] = copy.deepcopy(stream.choice(VALUES))
            elif kind == "delete":
                del inner[place[-1]]
            elif kind == "key" and isinstance(inner, dict):
                inner[stream.choice([v for v in VALUES if isinstance(v, str)])] = inner.pop(place[-1])
            elif kind == "twice" and isinstance(inner, list):
                inner.insert(int(place[-1]), copy.deepcopy(inner[int(place[-1])]))
            else:
                inner[place[-1]] = [inner[place[-1]]] if stream.random() < 0.5 else {"x": inner[place[-1]]}
            done.append(f"{kind} {'.'.join(map(str, place))[:40]}")
        yield Mutant(f"{number}: {', '.join(done)}", document(tables))


def written() -> Iterator[Mutant]:
    """What no random change of a value finds: damaged text, depth, length, plugins that misbehave."""
    plain = document(full("digits"))
    head, recipe = plain.partition(b'"recipe"')[::2]
    recipe = b'"recipe"' + recipe

    def changed(**keys: Any) -> bytes:
        return document({**full("digits"), **keys})

    yield Mutant("unchanged", plain, accepted=True)
    yield Mutant("empty", b"", accepted=False)
    yield Mutant("byte-order mark", b"\xef\xbb\xbf" + plain, accepted=True)
    yield Mutant("not UTF-8", plain.replace(b"Which", b"\xff\xfe", 1), accepted=False)
    yield Mutant("UTF-16", plain.decode().encode("utf-16"), accepted=False)
    yield Mutant("NUL", plain.replace(b"Which", b"\0", 1), accepted=False)
    yield Mutant("cut in the middle", plain[: len(plain) // 2], accepted=False)
    yield Mutant("a key twice", plain + b'name = "again"\n', accepted=False)
    for depth in (50, 500, 5_000, 50_000):
        yield Mutant(f"{depth} lists deep", b"deep = " + b"[" * depth + b"]" * depth + b"\n" + plain, accepted=False)
        yield Mutant(f"{depth} tables deep", b"deep = " + b"{a=" * depth + b"1" + b"}" * depth, accepted=False)
        yield Mutant(f"{depth} keys deep", plain + b"[" + b".".join([b"a"] * depth) + b"]\n", accepted=False)
    yield Mutant("deep setting", plain + b"[data.x" + b".a" * 400 + b"]\n", accepted=False)
    for digits in (20, 4_000, 5_000, 100_000):
        number = b"9" * digits
        yield Mutant(f"epochs of {digits} digits", re.sub(rb'"epochs" = \d+', b'"epochs" = ' + number, plain, count=1))
        yield Mutant(f"a seed of {digits} digits", re.sub(rb'"seeds" = [^\n]*', b'"seeds" = [' + number + b"]", plain))
        yield Mutant(
            f"a temperature of {digits} digits", re.sub(rb'"temperature" = 8.0', b'"temperature" = ' + number, plain)
        )
    yield Mutant("hexadecimal", re.sub(rb'"epochs" = \d+', b'"epochs" = 0x' + b"f" * 5000, plain, count=1))
    yield Mutant("seed 2^63 - 1", changed(seeds=[2**63 - 1]), accepted=True)
    yield Mutant("seed 2^63", changed(seeds=[2**63]), accepted=False)
    yield Mutant("teacher's seed 2^63", changed(teachers={"resnet20": {"seed": 2**63}}), accepted=False)
    yield Mutant("teacher's seed -1", changed(teachers={"resnet20": {"seed": -1}}), accepted=False)
    yield Mutant("100,000 seeds", changed(seeds=list(range(100_000))), accepted=False)
    many = [{"name": "kd", "label": f"kd{i}"} for i in range(100_000)]
    yield Mutant("100,000 methods", changed(methods=many), accepted=False)
    yield Mutant("100,000 pairs", changed(pairs=[{"teacher": "resnet20", "student": "resnet8"}] * 100_000))
    yield Mutant("100,000 teachers", changed(teachers={f"t{i}": {} for i in range(100_000)}), accepted=False)
    yield Mutant("100,000 drops", changed(recipe={"epochs": 10, "drops": list(range(1, 100_000))}), accepted=False)
    yield Mutant("100,000 augmentations", changed(recipe={"epochs": 10, "augmentation": [{"name": "flip"}] * 100_000}))
    yield Mutant("100,000 unknown keys", changed(recipe={"epochs": 10, **{f"k{i}": 1 for i in range(100_000)}}))
    yield Mutant("999 seeds of 300 methods", changed(seeds=list(range(999)), methods=many[:300]), accepted=False)
    yield Mutant("a million characters", changed(question="a" * 1_000_000))
    for text in ("[/bold]", "[red]", "[bold]x[/]", "[link=x]", "\\[", ":smile:"):
        yield Mutant(f"question {text}", changed(question=text), accepted=True)
        yield Mutant(
            f"label {text}", changed(methods=[{"name": "kd", "label": text}], pairs=full("classics")["pairs"][:1])
        )
        named = {"pairs": [{"teacher": text, "student": "resnet8"}], "teachers": {text: {"model": "resnet20"}}}
        yield Mutant(f"teacher {text}", changed(**named), accepted=True)
    for label in ("a" * 300, LONG, "a\nb", "\x1b[31mred", "a\x7fb"):
        yield Mutant(
            f"label {label[:8]!r} ({len(label)})", changed(methods=[{"name": "none", "label": label}]), accepted=False
        )
    for name in ("a" * 300, LONG, "a/" * 3000, "a\0b", "", ".", "/", "nothing.py"):
        yield Mutant(f"plugin {name[:8]!r} ({len(name)})", changed(plugins=[name]), accepted=False)
        yield Mutant(f"extends {name[:8]!r} ({len(name)})", b"extends = " + toml(name).encode() + b"\n", accepted=False)
    for name in (f"{'a' * 300}.pth", f"{LONG}.pth", "a\0b.pth", "nothing.pth", "", ".", "/"):
        yield Mutant(
            f"weights {name[:8]!r} ({len(name)})", changed(teachers={"resnet20": {"weights": name}}), accepted=False
        )
        yield Mutant(
            f"a list of weights {name[:8]!r} ({len(name)})",
            changed(teachers={"resnet20": {"weights": [name, "nothing.pt", 3]}}),
            accepted=False,
        )
    yield Mutant("extends itself", b'extends = "mutant.toml"\n', accepted=False)
    for length in (100, 2_000):
        chain = {f"{i}.toml": f'extends = "{i + 1}.toml"\n'.encode() for i in range(length)}
        yield Mutant(f"extends {length} files", b'extends = "0.toml"\n', {**chain, f"{length}.toml": plain})
    yield Mutant("extends a damaged file", b'extends = "base.toml"\n', {"base.toml": b"[" * 5000}, accepted=False)
    yield Mutant("recipe as an array", head + recipe.replace(b"{", b"[{", 1).rstrip() + b"]\n")
    for root in ("a" * 300, LONG, "a/" * 3000, "", ".", "/", "/dev/null", "nothing", "[/bold]"):
        data = {"name": "image_folder", "root": root}
        yield Mutant(f"data.root {root[:8]!r} ({len(root)})", changed(data=data), accepted=False)
    for raised in (
        "GeneratorExit",
        "SystemExit",
        "BaseException('[/bold]')",
        "RecursionError",
        "MemoryError",
        "StopIteration",
        "type('Rude', (BaseException,), {'__str__': lambda self: 1 / 0})()",
    ):
        code = f"raise {raised}\n".encode()
        yield Mutant(f"a plugin raises {raised[:20]}", changed(plugins=["bad.py"]), {"bad.py": code}, accepted=False)
    for what, code in {
        "is binary": b"\x00\xff",
        "has a syntax error": b"def",
        "offers 3": b"def kdbench_methods():\n    return 3\n",
        "exits when it is asked": b"def kdbench_methods():\n    raise GeneratorExit\n",
        "recurses": b"def f():\n    f()\nf()\n",
        "nests deeply": b"x = " + b"(" * 5000 + b")" * 5000 + b"\n",
    }.items():
        yield Mutant(f"a plugin {what}", changed(plugins=["bad.py"]), {"bad.py": code}, accepted=False)


WRITTEN = {mutant.name: mutant for mutant in written()}


class Hang(BaseException):
    """A mutant took longer than the watchdog allows."""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """``kdbench plan`` of a mutant: the exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    numbers = itertools.count()

    def ring(number: int, frame: object) -> None:
        raise Hang

    def run(mutant: Mutant) -> tuple[int, str, str]:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        for name, content in {"mutant.toml": mutant.content, **mutant.beside}.items():
            (folder / name).write_bytes(content)
        monkeypatch.setattr(sys, "argv", ["kdbench", "plan", str(folder / "mutant.toml")])
        previous = signal.signal(signal.SIGALRM, ring)
        signal.alarm(WATCHDOG)
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        out, err = capsys.readouterr()
        return int(str(ended.value.code or 0)), out, err.replace(str(folder), "FOLDER")

    return run


def wrong_with(mutant: Mutant, code: int, out: str, err: str) -> str:
    """What is not as it should be about a mutant's end; empty if nothing is."""
    names = ["mutant.toml", *mutant.beside]
    if "internal error" in err:
        return f"internal error: {err[:300]}"
    if code not in (0, 2):
        return f"exit code {code}: {err[:300]}"
    if mutant.accepted is not None and (code == 0) != mutant.accepted:
        return f"exit code {code}, though it should be {'planned' if mutant.accepted else 'refused'}: {err[:300]}"
    for line in (out + err).split("\n"):
        if any(ord(c) < 32 or ord(c) == 127 for c in line):
            return f"a control character: {line[:300]!r}"
    for line in err.splitlines():
        if not any(line.startswith(f"kdbench: FOLDER/{name}: ") for name in names):
            return f"a line without the file's name: {line[:300]}"
        if len(line) > 1000:
            return f"a line of {len(line)} characters: {line[:300]}"
    if len(err.splitlines()) > 100:
        return f"{len(err.splitlines())} lines"
    return "" if code == 0 or err else "refused without a word"


@pytest.mark.parametrize("mutant", WRITTEN.values(), ids=lambda mutant: mutant.name)
def test_a_written_mutant_is_planned_or_refused_by_name(plan: Callable[..., Any], mutant: Mutant) -> None:
    assert wrong_with(mutant, *plan(mutant)) == ""


def test_drawn_mutants_are_planned_or_refused_by_name(plan: Callable[..., Any]) -> None:
    wrong, planned, refused = {}, 0, 0
    for mutant in drawn(DRAWN):
        code, out, err = plan(mutant)
        planned, refused = planned + (code == 0), refused + (code == 2)
        if problem := wrong_with(mutant, code, out, err):
            wrong[mutant.name] = problem
    assert wrong == {}
    # The changes are neither all harmless nor all fatal.
    assert planned > DRAWN // 20
    assert refused > DRAWN // 2


@pytest.mark.parametrize("name", ["unchanged", "5000 lists deep", "a plugin raises GeneratorExit"])
def test_the_same_in_a_process_of_its_own(tmp_path: Path, name: str) -> None:
    mutant = WRITTEN[name]
    for file, content in {"mutant.toml": mutant.content, **mutant.beside}.items():
        (tmp_path / file).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", "kdbench", "plan", str(tmp_path / "mutant.toml")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert wrong_with(mutant, done.returncode, done.stdout, done.stderr.replace(str(tmp_path), "FOLDER")) == ""
