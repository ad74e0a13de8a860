"""The record of a failed trial."""

from __future__ import annotations

import traceback

from kdbench.engine.progress import now
from kdbench.errors import in_words, text_of
from kdbench.results import Failure


def failure(identifier: str, error: BaseException, stage: str, epoch: int) -> Failure:
    """The record of an error. ``epoch`` counts from 1; 0 means before the first epoch."""
    try:
        trace = "".join(traceback.format_exception(error))
    except BaseException as second:  # noqa: BLE001 - formatting runs a plugin's code
        trace = f"(cannot be formatted: {type(second).__name__})"
    return Failure(
        id=identifier,
        stage=stage,
        epoch=epoch,
        type=type(error).__name__,
        message=text_of(error) or type(error).__name__,
        why=in_words(error),
        traceback=trace.encode("utf-8", "backslashreplace").decode("utf-8"),
        when=now(),
    )


def forget_frames(error: BaseException) -> None:
    """Drop the traceback and the chained errors: their frames keep the activations of a step in memory."""
    for name in ("__traceback__", "__context__", "__cause__"):
        BaseException.__setattr__(error, name, None)
