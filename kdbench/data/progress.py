"""A progress bar on standard error; silent if that is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many of ``total`` files are done. Call the yielded function with the number of newly finished files."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda number: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    bar = Progress(
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(escape(what), total=total)
    with bar:
        yield lambda number: bar.advance(task, number)
