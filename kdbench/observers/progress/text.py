"""Times, columns and accuracies as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdbench.results import EpochRecord, TeacherResult


def clock_time(seconds: float | None) -> str:
    """``mm:ss``, or ``h:mm:ss`` for an hour or more.

    >>> clock_time(61), clock_time(3661), clock_time(None)
    ('01:01', '1:01:01', '--:--')
    """
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def in_columns(groups: Mapping[str, Sequence[str]], width: int) -> list[str]:
    """Lines of at most ``width`` characters: each group's name, and its cells in aligned columns."""
    cells = [cell for group in groups.values() for cell in group]
    if not cells:
        return []
    margin = max(len(name) for name in groups) + 4
    size = max(len(cell) for cell in cells) + 2
    columns = max(1, (width - margin + 2) // size)
    lines = []
    for name, group in groups.items():
        for start in range(0, len(group), columns):
            lead = f"  {name}" if start == 0 else ""
            row = "".join(cell.ljust(size) for cell in group[start : start + columns])
            lines.append(f"{lead.ljust(margin)}{row}".rstrip())
    return lines


def time_left(seconds: Sequence[float]) -> str:
    """``00:41 left``, or ``00:41 left (02:03 in all)`` if the run's remaining time is known and longer."""
    if not seconds:
        return "--:-- left"
    rest = f" ({clock_time(seconds[1])} in all)" if len(seconds) > 1 and seconds[1] > seconds[0] + 1 else ""
    return f"{clock_time(seconds[0])} left{rest}"


def split_shown(selection: str | None) -> str:
    """The split of the accuracy shown during training, for a recipe's ``selection``."""
    return "validation" if selection == "validation" else "test"


def top1_shown(record: EpochRecord | TeacherResult, split: str) -> float | None:
    """The accuracy on a split in percent; None if it was not measured."""
    return record.validation_top1 if split == "validation" else record.top1
