"""Output of commands: results on standard output, messages on standard error."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

from kdbench.terminal import outlive_terminals
from kdbench.words import one_line


def drop_output() -> None:
    """Discard further output: the reader (head, less) has closed the pipe."""
    # Python must not complain when it closes the pipe at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def prepare_streams() -> None:
    """Make both streams accept all output.

    Python has no stream where the caller closed it (``>&-``), a terminal without UTF-8 refuses other letters, and one
    that is closed meanwhile refuses all.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # It takes the lowest free number, which is this one. Left free, a file of the results would get it, and
            # whatever a library writes to standard error.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    outlive_terminals()


def show_error(message: str) -> None:
    """Print an error, each line with the program's name."""
    for line in message.split("\n"):
        stderr().print(f"[bold red]kdbench:[/] {escape(one_line(line))}", highlight=False, soft_wrap=True)


def show_warning(message: str) -> None:
    """Print a warning."""
    stderr().print(f"[yellow]kdbench:[/] {escape(one_line(message))}", highlight=False, soft_wrap=True)


def stderr() -> Console:
    """A console on standard error."""
    return Console(stderr=True, emoji=False)  # names such as a:b:c are none


def show(thing: Any) -> None:
    """Print text in rich's markup, or a table; what comes from files must be escaped."""
    # In a pipe there is no width to fit into: nothing must be cut off.
    console = Console(emoji=False, width=None if sys.stdout.isatty() else 200)
    console.print(thing, highlight=False)


def show_json(content: Any) -> None:
    """Print JSON for scripts."""
    print(json.dumps(content, indent=2, default=plain))  # noqa: T201


def plain(value: Any) -> Any:
    """What JSON has no form for: sets as sorted lists, all else as text."""
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
