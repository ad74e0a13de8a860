"""The command line without a command."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench import cli


@pytest.mark.parametrize("arguments", [[], ["mlflow"]])
def test_without_a_command_the_help_is_all(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kdbench", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert "Usage:" in out
    assert "Commands" in out
    assert err == ""


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("arguments", ["list suites", "no-such-command"])
def test_closed_streams_change_no_exit_code(arguments: str, closed: str) -> None:
    line = f"{shlex.quote(sys.executable)} -m kdbench {arguments}"
    expected = subprocess.run(line, shell=True, check=False, capture_output=True).returncode
    assert subprocess.run(f"{line} {closed}", shell=True, check=False).returncode == expected


def test_another_encoding_and_no_home_change_no_exit_code(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "suites/digits.toml").read_text(encoding="utf-8")
    (tmp_path / "suite.toml").write_text(text.replace('question = "', 'question = "Größer – '), encoding="utf-8")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HOME": str(tmp_path / "none")}
    environment = {key: value for key, value in os.environ.items() if key not in {"KDBENCH_CACHE", "XDG_CACHE_HOME"}}
    done = subprocess.run(
        [sys.executable, "-m", "kdbench", "plan", "suite.toml"],
        cwd=tmp_path,
        env=environment | plain,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"42 pending" in done.stdout


def test_no_file_takes_the_number_of_a_closed_stream() -> None:
    # What a library writes to standard error would end up in it.
    script = "import os; from kdbench.cli.output import prepare_streams; prepare_streams(); os._exit(os.open('/', 0))"
    line = f"exec {sys.executable} -c {shlex.quote(script)} <&- >&- 2>&-"
    assert subprocess.run(line, shell=True, check=False).returncode >= 3
