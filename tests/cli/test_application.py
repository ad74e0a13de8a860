"""The command line without a command."""

from __future__ import annotations

import sys

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
