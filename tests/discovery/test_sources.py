"""Which files a source imports, and when its fingerprint changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import kdbench
from kdbench.discovery import discover
from kdbench.discovery.sources import meaning, read_source

Install = Callable[..., Path]


def hash_sources(path: Path) -> str:
    return read_source(path).digest


def test_fingerprint_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    hashes = set()
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "loss.py").write_text("import helper\n")
        (folder / "helper.py").write_text("A = 1\n")
        hashes.add(hash_sources(folder / "loss.py"))
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("statement", "follows"),
    [
        ("import package.helper", {"helper.py"}),
        ("from package import helper", {"helper.py"}),
        ("from package.helper import f", {"helper.py"}),
        ("from . import helper", {"helper.py"}),
        ("from .helper import f", {"helper.py"}),
        ("from .deep import g", {"deep/__init__.py"}),
        ("from .deep import inner", {"deep/inner.py"}),
        ("from package.deep.inner import f", {"deep/inner.py"}),
        ("def late():\n    from . import helper", {"helper.py"}),
        ("from package import f", {"__init__.py"}),
        ("import package", {"__init__.py"}),
        ("from . import f", {"__init__.py"}),
        ("import os, json, torch", set()),
    ],
)
def test_sources_within_a_package(tmp_path: Path, statement: str, follows: set[str]) -> None:
    package = tmp_path / "package"
    (package / "deep").mkdir(parents=True)
    files = {"__init__.py", "helper.py", "deep/__init__.py", "deep/inner.py", "neighbour.py"}
    for name in files:
        (package / name).write_text("A = 1\n")
    loss = package / "loss.py"
    loss.write_text(statement + "\n")
    before = hash_sources(loss)
    changing = set()
    for name in files:
        (package / name).write_text("A = 2\n")
        if hash_sources(loss) != before:
            changing.add(name)
        (package / name).write_text("A = 1\n")
    assert changing == follows


def test_first_party_neighbours_keep_their_fingerprints(tmp_path: Path) -> None:
    import kdbench_methods

    source = Path(kdbench_methods.__file__).parent
    copy = tmp_path / "kdbench_methods"
    copy.mkdir()
    for file in source.glob("*.py"):
        (copy / file.name).write_bytes(file.read_bytes())
    before = {name: hash_sources(copy / f"{name}.py") for name in ("kd", "rkd", "ft")}
    (copy / "rkd.py").write_text((copy / "rkd.py").read_text() + "\nCHANGED = 1\n")
    (copy / "__init__.py").write_text((copy / "__init__.py").read_text() + "\nCHANGED = 1\n")
    after = {name: hash_sources(copy / f"{name}.py") for name in before}
    assert {name for name in before if before[name] != after[name]} == {"rkd"}


LOSS = """
class Loss:
    name = "loss"

    def forward(self, student, teacher):
        return {"mse": ((student - teacher) ** 2).mean()}
"""


@pytest.mark.parametrize(
    "same",
    [
        LOSS + "\n# a comment\n",
        '"""What it is."""\n' + LOSS,
        LOSS.replace('name = "loss"', '"""A class."""\n    name = "loss"'),
        LOSS.replace("return", '"""A function."""\n        return'),
        LOSS.replace("return {", "return (  # because\n            {").replace("mean()}", "mean()}\n        )"),
        LOSS.replace('"', "'"),
        LOSS.replace("** 2", "** 0x2"),
        LOSS.replace("\n", "\r\n"),
        "# -*- coding: latin-1 -*-\n" + LOSS,
    ],
    ids=["comment", "module", "class", "function", "line breaks", "quotes", "a number", "line ends", "encoding"],
)
def test_comments_docstrings_and_formatting_are_no_part_of_a_fingerprint(tmp_path: Path, same: str) -> None:
    path = tmp_path / "loss.py"
    path.write_bytes(LOSS.encode())
    before = hash_sources(path)
    path.write_bytes(same.encode())
    assert hash_sources(path) == before


@pytest.mark.parametrize(
    "other",
    [
        LOSS.replace("** 2", "** 2.0"),
        LOSS.replace("student - teacher", "teacher - student"),
        LOSS.replace("((student - teacher) ** 2)", "(student - teacher ** 2)"),
        LOSS.replace('"mse"', '"MSE"'),
        LOSS.replace("forward", "predict"),
        LOSS.replace('name = "loss"', 'name = "loss"\n    "no docstring"'),
        LOSS.replace("self, student", "self, *, student"),
        LOSS.replace("{", "{**{}, "),
        LOSS + "None\n",
        LOSS + "...\n",
        LOSS + "import torch\n",
        LOSS + "from . import torch\n",
        LOSS.replace("    def", "    async def"),
    ],
)
def test_what_a_file_does_is_its_fingerprint(tmp_path: Path, other: str) -> None:
    path = tmp_path / "loss.py"
    path.write_text(LOSS)
    before = hash_sources(path)
    path.write_text(other)
    assert hash_sources(path) != before


@pytest.mark.parametrize("text", ["def broken(:\n", "x = 1\0\n", "x = '\udcff'\n"], ids=["syntax", "zero", "encoding"])
def test_what_cannot_be_parsed_is_taken_byte_by_byte(tmp_path: Path, text: str) -> None:
    path = tmp_path / "loss.py"
    path.write_bytes(text.encode(errors="surrogateescape"))
    before = hash_sources(path)
    path.write_bytes(text.encode(errors="surrogateescape") + b"# more")
    assert hash_sources(path) != before


def test_a_long_sum_does_not_depend_on_how_deep_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "loss.py"
    path.write_text(f"x = {' + '.join(map(str, range(900)))}\n")

    def ask(depth: int) -> str:
        return hash_sources(path) if depth == 0 else ask(depth - 1)

    assert ask(0) == ask(600)


def test_an_invalid_escape_causes_no_warning(tmp_path: Path) -> None:
    path = tmp_path / "loss.py"
    path.write_text(r"x = '\d'  # a comment")
    before = hash_sources(path)
    path.write_text(r"x = '\d'")
    assert hash_sources(path) == before


def test_the_tree_in_words_is_the_same_for_every_version_of_python() -> None:
    """Written by hand: no field that is empty, and none that only some versions have."""
    source = b'def f(x, *, y=1.5):\n    """Doc."""\n    return [x, None, "\xc3\xa9"]\n'
    assert meaning(source).decode().splitlines() == [
        "Module body",
        "[1]",
        "FunctionDef name args body",
        "'f'",
        "arguments args kwonlyargs kw_defaults",
        "[1]",
        "arg arg",
        "'x'",
        "[1]",
        "arg arg",
        "'y'",
        "[1]",
        "Constant value",
        "1.5",
        "[1]",
        "Return value",
        "List elts ctx",
        "[3]",
        "Name id ctx",
        "'x'",
        "Load ",
        "Constant ",
        "Constant value",
        "'\\xe9'",
        "Load ",
    ]


def test_relative_imports_leave_a_folder_without_init(tmp_path: Path) -> None:
    (tmp_path / "space" / "losses").mkdir(parents=True)
    loss = tmp_path / "space" / "losses" / "loss.py"
    loss.write_text("from ..helper import f\n")
    (tmp_path / "space" / "helper.py").write_text("A = 1\n")
    assert set(read_source(loss).files) == {"loss.py", "__/helper.py"}


def test_the_harness_itself_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kdbench").mkdir()
    (tmp_path / "kdbench" / "__init__.py").write_text("")
    (tmp_path / "kdbench" / "method.py").write_text("A = 1\n")
    loss = tmp_path / "loss.py"
    loss.write_text("import kdbench\nfrom kdbench.method import Method\n")
    assert set(read_source(loss).files) == {"loss.py"}


# ---- what plugins offer

OFFER = """
    from kdbench.hookspecs import MethodSpec, hookimpl

    @hookimpl
    def kdbench_methods():
        return [MethodSpec("{name}", "{module}:Loss")]

    class Loss:
        pass
"""


def test_fingerprint_of_an_installed_plugin_is_its_source(install: Install) -> None:
    file = install("kdbench-margin", OFFER.format(name="margin", module="kdbench_margin"), version="0.3")
    first = discover().method("margin").fingerprint
    assert set(discover().method("margin").source.files) == {"kdbench_margin.py"}
    file.write_text(file.read_text() + "\nCHANGED = 1\n")
    assert discover().method("margin").fingerprint != first


def test_fingerprint_of_our_own_installed_methods_is_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.discovery.load._is_editable", lambda distribution: False)
    offer = discover().method("kd")
    assert offer.source is None
    assert offer.fingerprint == f"kdbench=={kdbench.__version__}"


def test_an_installed_file_is_not_followed_into_other_distributions(install: Install, tmp_path: Path) -> None:
    install("kdbench-other", "VALUE = 1", entry="other")
    source = OFFER.format(name="margin", module="kdbench_margin") + "\n    import kdbench_other, margin_helper\n"
    install("kdbench-margin", source)
    site = tmp_path / "site"
    (site / "margin_helper.py").write_text("VALUE = 1")

    def files() -> set[str]:
        return set(discover().method("margin").source.files)

    assert files() == {"kdbench_margin.py"}
    record = "kdbench_margin.py,sha256=a,1\nmargin_helper.py,sha256=b,1\nkdbench_margin-1.0.dist-info/RECORD,,\n"
    (site / "kdbench_margin-1.0.dist-info" / "RECORD").write_text(record)
    assert files() == {"kdbench_margin.py", "margin_helper.py"}


def test_without_a_source_the_record_is_the_fingerprint(install: Install, tmp_path: Path) -> None:
    install(
        "kdbench-compiled",
        """
        from kdbench.hookspecs import MethodSpec, hookimpl

        @hookimpl
        def kdbench_methods():
            return [MethodSpec("compiled", "kdbench_compiled_loss:Loss")]
        """,
    )
    assert discover().method("compiled").fingerprint == "kdbench-compiled==1.0"
    record = tmp_path / "site" / "kdbench_compiled-1.0.dist-info" / "RECORD"
    seen = set()
    for digest in ("abc", "abd"):
        record.write_text(f"kdbench_compiled_loss.so,sha256={digest},10\nkdbench_compiled-1.0.dist-info/RECORD,,\n")
        seen.add(discover().method("compiled").fingerprint)
    # How it was installed makes no difference.
    record.write_text(record.read_text() + "kdbench_compiled-1.0.dist-info/INSTALLER,sha256=uv,4\n")
    assert discover().method("compiled").fingerprint in seen
    assert len(seen) == 2


def test_fingerprint_of_an_editable_plugin_is_its_source(install: Install) -> None:
    file = install("kdbench-margin", OFFER.format(name="margin", module="kdbench_margin"), editable=True)
    first = discover().method("margin").fingerprint
    file.write_text(file.read_text() + "\n# changed\n")
    assert discover().method("margin").fingerprint == first
    file.write_text(file.read_text() + "\nCHANGED = 1\n")
    assert discover().method("margin").fingerprint != first


def test_fingerprint_follows_what_a_local_file_imports(write: Callable[[str, str], Path]) -> None:
    source = """
        import json
        import beside
        from kdbench.method import Method

        class Mine(Method):
            name = "mine"
        """
    helper = write("beside.py", "import deeper")
    deeper = write("deeper.py", "VALUE = 1")
    neighbour = write("neighbour.py", "VALUE = 1")
    mine = write("mine.py", source)

    def fingerprint() -> str:
        return discover([mine]).method("mine").fingerprint

    first = fingerprint()
    assert fingerprint() == first
    neighbour.write_text("VALUE = 2")
    assert fingerprint() == first
    seen = {first}
    for path in (mine, helper, deeper):
        path.write_text(path.read_text() + "\nCHANGED = 1\n")
        assert fingerprint() not in seen
        seen.add(fingerprint())
