"""Output to terminals, closed ones among them."""

from __future__ import annotations

import errno
import io
import os
import pty
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from kdbench.cli.output import prepare_streams, show, show_error
from kdbench.terminal import outliving_terminals


class Terminal:
    """A terminal, and what a program has printed there."""

    def __init__(self, *, buffered: bool) -> None:
        self.master, slave = pty.openpty()
        raw = io.FileIO(slave, "w")
        self.stream = io.TextIOWrapper(
            io.BufferedWriter(raw) if buffered else raw, encoding="utf-8", line_buffering=True
        )

    def take_streams(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Called in a test's body: pytest sets its own streams after the fixtures."""
        monkeypatch.setattr(sys, "stdout", self.stream)
        monkeypatch.setattr(sys, "stderr", self.stream)

    def shown(self) -> str:
        return os.read(self.master, 10_000).decode().replace("\r\n", "\n")

    def close(self) -> None:
        if self.master >= 0:
            os.close(self.master)
        self.master = -1


@pytest.fixture(params=[True, False], ids=["buffered", "unbuffered"])
def terminal(request) -> Iterator[Terminal]:
    terminal = Terminal(buffered=request.param)
    yield terminal
    terminal.close()
    with suppress(OSError):
        terminal.stream.close()


def test_without_help_a_closed_terminal_raises(terminal, monkeypatch):
    terminal.take_streams(monkeypatch)
    terminal.close()
    with pytest.raises(OSError, match="Input/output error") as caught:
        sys.stdout.write("lost\n")
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("say", [lambda: sys.stdout.write("lost\n"), lambda: sys.stderr.write("lost\n")])
def test_output_to_a_closed_terminal_is_lost_and_nothing_else(terminal, monkeypatch, say: Callable[[], object]):
    terminal.take_streams(monkeypatch)
    with outliving_terminals():
        say()
        assert terminal.shown() == "lost\n"
        terminal.close()
        say()
        say()
    assert (sys.stdout, sys.stderr) == (terminal.stream, terminal.stream)


def test_a_context_within_another_changes_nothing(terminal, monkeypatch):
    terminal.take_streams(monkeypatch)
    with outliving_terminals():
        outer = sys.stdout
        assert outer is not terminal.stream
        with outliving_terminals():
            assert sys.stdout is outer
        assert sys.stdout is outer


def test_a_stream_that_was_replaced_meanwhile_is_left_alone(terminal, monkeypatch):
    terminal.take_streams(monkeypatch)
    other = io.StringIO()
    with outliving_terminals():
        monkeypatch.setattr(sys, "stdout", other)
    assert (sys.stdout, sys.stderr) == (other, terminal.stream)


def test_files_and_notebooks_keep_their_streams(tmp_path, monkeypatch):
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        before = sys.stdout, sys.stderr
        with outliving_terminals():
            assert (sys.stdout, sys.stderr) == before


def test_other_errors_are_raised(terminal, monkeypatch):
    terminal.take_streams(monkeypatch)
    with outliving_terminals():
        os.close(terminal.stream.fileno())
        try:
            with pytest.raises(OSError, match="Bad file descriptor"):
                sys.stdout.write("lost\n")
        finally:
            # A closed number may be given to another file, which must not be closed with the stream.
            os.dup2(os.open(os.devnull, os.O_WRONLY), terminal.stream.fileno())


def test_a_command_ends_as_it_would_in_an_open_terminal(terminal, monkeypatch):
    terminal.take_streams(monkeypatch)
    prepare_streams()
    terminal.close()
    show("report: reports/tiny/index.html")
    show_error("interrupted")
