"""The folders of suites, trials and teachers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdbench.errors import ResultsError
from kdbench.results.files import read_json, remove_leftovers, write_json, write_text
from kdbench.suite.plan import PROTOCOL

TEACHERS = "_teachers"


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_without_numbers(record), allow_nan=False) + "\n"


_NO_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _without_numbers(value: Any) -> Any:
    """NaN and infinities as words: JSON has no numbers for them, and many readers refuse Python's."""
    if isinstance(value, Mapping):
        return {key: _without_numbers(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    return value


def _with_numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_numbers(inner) for key, inner in value.items()}
    return _NO_NUMBERS.get(value, value) if isinstance(value, str) else value


class TrialFolder:
    """One trial's (or teacher's) folder."""

    def __init__(self, path: Path, weights: str = "student.safetensors") -> None:
        self.path = path
        self.weights = path / weights
        self.checkpoint = path / "checkpoint.pt"

    def begin(self, description: Mapping[str, Any], name: str = "trial.json") -> None:
        """Write what this trial is; the last attempt's error is cleared."""
        write_json(self.path / name, description)
        (self.path / "error.json").unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def trial(self) -> dict[str, Any] | None:
        """What the trial is."""
        return read_json(self.path / "trial.json")

    @property
    def result(self) -> dict[str, Any] | None:
        """The outcome, where the trial is done or diverged; None if missing or damaged."""
        result = read_json(self.path / "result.json")
        if result is None or result.get("status") not in {"done", "diverged"}:
            return None
        if result["status"] == "done" and not self.weights.exists():
            return None
        return result

    @property
    def error(self) -> dict[str, Any] | None:
        """Why the last attempt failed."""
        return read_json(self.path / "error.json")

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The records of ``epochs.jsonl``; a truncated last line is left out."""
        records = []
        try:
            lines = (self.path / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                records.append(_with_numbers(json.loads(line)))
            except json.JSONDecodeError:
                break
        return records

    def write_epochs(self, records: list[dict[str, Any]]) -> None:
        """Replace ``epochs.jsonl``."""
        text = "".join(_line(record) for record in records)
        write_text(self.path / "epochs.jsonl", text)

    def append_epoch(self, record: Mapping[str, Any]) -> None:
        """Add one line to ``epochs.jsonl``."""
        try:
            with (self.path / "epochs.jsonl").open("a", encoding="utf-8") as file:
                file.write(_line(record))
        except OSError as error:
            raise ResultsError(f"{self.path / 'epochs.jsonl'}: cannot be written: {error.strerror}") from error

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the outcome; from here on the trial counts as done."""
        write_json(self.path / "result.json", result)
        self.checkpoint.unlink(missing_ok=True)

    def fail(self, error: Mapping[str, Any]) -> None:
        """Write why the trial failed; it stays undone."""
        write_json(self.path / "error.json", error)


class SuiteFolder:
    """``runs/<suite>``."""

    def __init__(self, output: Path, suite: str) -> None:
        self.path = output / suite
        self.output = output

    def trial(self, identifier: str) -> TrialFolder:
        """One trial's folder."""
        return TrialFolder(self.path / identifier)

    def teacher(self, key: str) -> TrialFolder:
        """One teacher's folder, shared by all suites of the same output folder."""
        return TrialFolder(self.output / TEACHERS / key, weights="teacher.safetensors")

    def remove_leftovers(self) -> list[Path]:
        """Remove what dead processes left half written, here and in the teachers' folders; the paths removed."""
        folders = [self.path]
        for parent in (self.path, self.output / TEACHERS):
            if parent.is_dir():
                folders += sorted(path for path in parent.iterdir() if path.is_dir())
        return [path for folder in folders for path in remove_leftovers(folder)]

    @property
    def plan(self) -> dict[str, Any] | None:
        """The suite and its trials as last planned."""
        return read_json(self.path / "plan.json")

    def write_plan(self, content: Mapping[str, Any]) -> None:
        """Remember the suite and its trials."""
        write_json(self.path / "plan.json", {"protocol": PROTOCOL, **content})

    def check_protocol(self) -> None:
        """Refuse a folder that another protocol version wrote."""
        plan = self.plan
        if plan is not None and plan.get("protocol") != PROTOCOL:
            raise ResultsError(
                f"{self.path}: written under protocol {plan.get('protocol')}, this kdbench has protocol "
                f"{PROTOCOL}: the numbers must not be mixed; choose another --output or move the folder away"
            )

    def __iter__(self) -> Iterator[TrialFolder]:
        if self.path.is_dir():
            for path in sorted(self.path.iterdir()):
                if (path / "trial.json").exists():
                    yield TrialFolder(path)
