"""Output to a terminal that may be closed during a run: further output is discarded, and the run continues."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

STREAMS = ("stdout", "stderr")


def leave_closed_terminal() -> None:
    """Discard output if its terminal was closed: writing to it would raise."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


@contextmanager
def outliving_terminals() -> Iterator[None]:
    """Within the context, no output raises because its terminal was closed.

    SIGHUP comes after the closing, or not at all: under nohup, or in a job that a shell has disowned. Code that
    writes in between, such as a plugin's, would get an error that it did not cause.
    """
    previous = outlive_terminals()
    try:
        yield
    finally:
        for name, (stream, own) in previous.items():
            own.flush()
            if getattr(sys, name) is own:
                setattr(sys, name, stream)


def outlive_terminals() -> dict[str, tuple[Any, Any]]:
    """As :func:`outliving_terminals`, for good; gives by name the streams that were replaced, with the new ones."""
    replaced = {}
    for name in STREAMS:
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue  # none, or that of a notebook or of a test
        raw = getattr(stream.buffer, "raw", stream.buffer)
        if type(raw) is io.FileIO and raw.isatty():
            stream.flush()
            replaced[name] = stream, _outliving(stream, raw)
            setattr(sys, name, replaced[name][1])
    return replaced


def _outliving(stream: io.TextIOWrapper, raw: io.FileIO) -> io.TextIOWrapper:
    terminal: Any = _Terminal(raw.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        # Python has no buffer there where it was told so (-u).
        terminal if stream.buffer is raw else io.BufferedWriter(terminal),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Terminal(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            leave_closed_terminal()
            return memoryview(data).nbytes
