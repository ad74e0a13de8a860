"""Exports a trained student from the results folder to a file.

An exported student accepts images (B, channels, height, width), normalised as in training, and returns the logits
(B, C) used in evaluation. It has no adapters, and includes the second head if the method predicts with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kdbench
from kdbench.discovery import Local, discover
from kdbench.errors import ExportError
from kdbench.export import card, find, formats, student
from kdbench.export.formats import Format
from kdbench.export.student import Blueprint, Student
from kdbench.models.weights import weights_sha256
from kdbench.results import write_atomically, write_text

__all__ = ["Blueprint", "Exported", "Format", "Student", "export_trial", "load_student"]


@dataclass(frozen=True)
class Exported:
    """The written files."""

    file: Path
    card: Path
    """The model card, ``<file>.md``."""


def export_trial(
    trial: str | Path,
    to: Format,
    out: str | Path | None = None,
    *,
    output: str | Path = "runs",
    plugins: Sequence[Local] = (),
    warn: Callable[[str], None] | None = None,
) -> Exported:
    """Write the student of a finished trial, with its model card next to it.

    Args:
        trial: the trial's id, a unique prefix of it below ``output``, or its folder.
        to: ``safetensors`` (weights, with a description of the student in the header), ``torch`` (the same as a
            dictionary for ``torch.load(..., weights_only=True)``) or ``onnx`` (a self-contained program for any
            batch size).
        out: the file, or its folder; by default ``<trial id>.safetensors``, ``.pt`` or ``.onnx`` in the working
            folder.
        output: the results folder.
        plugins: local plugin files, and ``Method`` classes, in addition to those that the suite names.
        warn: called if the method's code has changed since the student was trained.

    Raises:
        ResultsError: the trial does not exist or has no student: unfinished, failed, diverged, skipped, damaged.
        PluginError: the plugin of the method or network is missing or has changed.
        ExportError: a package for the format is missing, or the file does not reproduce the logits.
    """
    formats.check(to)
    found = find.find_trial(trial, Path(output))
    registry = discover([*plugins, *found.suite_plugins])
    blueprint = Blueprint.of(found)
    whole = student.build(blueprint, registry)
    if whole.predicts_by_method and warn is not None:
        now = student.fingerprint(blueprint, registry)
        if now != found.trial.fingerprint:
            warn(
                f"{found.id}: {blueprint.method} has changed since the training; the export uses its current prediction"
            )
    student.load(whole, formats.read_safetensors(found.weights)[0], found.weights)
    state = student.state(whole)
    header: dict[str, Any] = {
        "trial": found.id,
        "student": blueprint.to_json(),
        "mean": list(found.data.mean),
        "std": list(found.data.std),
        "top1": found.result.top1,
        "sha256": weights_sha256(state),
        "kdbench": kdbench.__version__,
    }
    file = _place(out, found.id, to)
    write_atomically(file, lambda temporary: formats.write(to, temporary, whole, header))
    text = card.model_card(found, whole, to, file.name, header, registry)
    beside = file.with_name(f"{file.name}.md")
    write_text(beside, text)
    return Exported(file, beside)


def load_student(path: str | Path, *, plugins: Sequence[Local] = ()) -> Student:
    """The student of an exported ``.safetensors`` or ``.pt`` file, in eval mode.

    Its plugins must be installed or listed in ``plugins``: local files and ``Method`` classes.

    Raises:
        ExportError: the file is missing, damaged, or was not exported by kdbench.
        PluginError: the plugin of the method or network is missing.
    """
    path = Path(path)
    state, header = formats.read(path)
    whole = student.build(Blueprint(**header["student"]), discover(plugins))
    student.load(whole, state, path)
    return whole


def _place(out: str | Path | None, identifier: str, to: Format) -> Path:
    path = Path(out) if out is not None else Path()
    suffix = formats.SUFFIXES[to]
    if path.is_dir() or not path.suffix:
        return path / f"{identifier}{suffix}"
    if path.suffix != suffix:
        raise ExportError(f"--out {path}: a {to} file must end in {suffix}")
    return path
