"""The folders of suites, trials and teachers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdbench.errors import ResultsError, TrialError
from kdbench.results import records
from kdbench.results.files import (
    CHECKSUM,
    inspect_json,
    mismatch,
    parse_json,
    read_bytes,
    read_json,
    remove,
    remove_leftovers,
    stamp,
    write_json,
    write_text,
)
from kdbench.suite.plan import PROTOCOL

TEACHERS = "_teachers"
LOCK = ".lock"


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
    """One trial's (or teacher's) folder. A result that is not of ``identifier`` is damaged, where that is given."""

    def __init__(self, path: Path, weights: str = "student.safetensors", identifier: str | None = None) -> None:
        self.path = path
        self.identifier = identifier
        self.weights = path / weights
        self.checkpoint = path / "checkpoint.pt"

    def begin(self, description: Mapping[str, Any], name: str = "trial.json") -> None:
        """Write what this trial is. The last attempt's result and error are removed, its checkpoint is kept."""
        for own in ("result.json", "error.json"):
            remove(self.path / own)
        # A folder or a link to nowhere cannot be replaced by a file.
        for place in (self.path / name, self.path / "epochs.jsonl", self.weights, self.checkpoint):
            if not place.is_file():
                remove(place)
        write_json(self.path / name, description)

    def clear(self) -> None:
        """Remove everything but the lock, which this process may hold."""
        # The result first, so that nobody meets it without the files that it names.
        remove(self.path / "result.json")
        if self.path.is_dir():
            for path in self.path.iterdir():
                if path.name != LOCK:
                    remove(path)

    @property
    def trial(self) -> dict[str, Any] | None:
        """What the trial is; None if missing or damaged."""
        return self._sound(records.Trial, "trial.json")[0]

    @property
    def record(self) -> dict[str, Any] | None:
        """``result.json``, if it is sound itself, whatever has become of the files that it names."""
        return self._sound(records.Result, "result.json")[0]

    @property
    def result(self) -> dict[str, Any] | None:
        """The outcome, where the trial is done or diverged; None if missing or damaged (:meth:`damage`)."""
        return self._outcome(trust_time=True)[0]

    def damage(self, *, thorough: bool = False) -> str:
        """Why a result cannot be used, as ``student.safetensors does not match its checksum``.

        Empty where it can be used, or where there is none. Weights of unchanged size and time are taken to be
        unchanged, unless ``thorough``: then they are read.
        """
        return self._outcome(trust_time=not thorough)[1]

    def _outcome(self, *, trust_time: bool) -> tuple[dict[str, Any] | None, str]:
        for _ in range(3):
            result, problem = self._sound(records.Result, "result.json")
            if result is not None:
                problem = self._mismatch(result["files"], result["status"] == "done", trust_time)
            # Where a run replaces the result meanwhile, its files are not the ones that were named.
            if not problem or self.record == result:
                break
        return (None, problem) if problem else (result, "")

    def _sound(self, kind: type[records.Result | records.Trial], name: str) -> tuple[dict[str, Any] | None, str]:
        """A record of this trial, or what is wrong with it."""
        content, problem = inspect_json(self.path / name)
        if content is None:
            return None, problem
        if wrong := records.problem(kind, content):
            return None, f"{name}: {wrong}"
        if self.identifier not in {None, content["id"]}:
            return None, f"{name} is of {content['id']}"
        return content, ""

    def _mismatch(self, files: Mapping[str, Any], has_weights: bool, trust_time: bool) -> str:
        """What is wrong with the files that a result names."""
        if has_weights and self.weights.name not in files:
            return f"result.json does not name {self.weights.name}"
        for name, known in files.items():
            trusted = trust_time and name == self.weights.name
            if found := mismatch(self.path / name, known, trust_time=trusted):
                return found
        return ""

    @property
    def error(self) -> dict[str, Any] | None:
        """Why the last attempt failed."""
        return read_json(self.path / "error.json")

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The records of ``epochs.jsonl`` up to the first that is truncated or damaged."""
        found: list[dict[str, Any]] = []
        content = read_bytes(self.path / "epochs.jsonl")[0] or b""
        for line in content.splitlines():
            try:
                record = _with_numbers(json.loads(line))
            except (ValueError, RecursionError):
                break
            if records.problem(records.Epoch, record):
                break
            found.append(record)
        return found

    def write_epochs(self, records: list[dict[str, Any]]) -> None:
        """Replace ``epochs.jsonl``."""
        write_text(self.path / "epochs.jsonl", "".join(_line(record) for record in records))

    def append_epoch(self, record: Mapping[str, Any]) -> None:
        """Add one line to ``epochs.jsonl``."""
        try:
            with (self.path / "epochs.jsonl").open("a", encoding="utf-8") as file:
                file.write(_line(record))
        except OSError as error:
            raise ResultsError(f"{self.path / 'epochs.jsonl'}: cannot be written: {error.strerror}") from error

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the outcome, with the checksums of the other files; from here on the trial counts as done.

        Raises:
            ResultsError: the folder was removed meanwhile.
            TrialError: the outcome is none that can be read back.
        """
        descriptions = (self.path / "trial.json", self.path / "teacher.json")
        if not any(path.is_file() for path in descriptions):
            raise ResultsError(f"{self.path}: the folder was removed during the training; run the suite again")
        truth = (*descriptions, self.path / "epochs.jsonl", self.weights)
        content = {**result, "files": {path.name: stamp(path) for path in truth if path.is_file()}}
        if wrong := records.problem(records.Result, content):
            raise TrialError(f"{self.path / 'result.json'}: would be no result: {wrong}")
        write_json(self.path / "result.json", content)
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
        return TrialFolder(self.path / identifier, identifier=identifier)

    def teacher(self, key: str) -> TrialFolder:
        """One teacher's folder, shared by all suites of the same output folder."""
        return TrialFolder(self.output / TEACHERS / key, "teacher.safetensors", key)

    def remove_leftovers(self) -> list[Path]:
        """Remove what dead processes left half written, here and in the teachers' folders; the paths removed."""
        folders = [self.path]
        for parent in (self.path, self.output / TEACHERS):
            if parent.is_dir():
                folders += sorted(path for path in parent.iterdir() if path.is_dir())
        return [path for folder in folders for path in remove_leftovers(folder)]

    @property
    def plan(self) -> dict[str, Any] | None:
        """The suite and its trials as last planned; None if missing or damaged."""
        content = read_json(self.path / "plan.json")
        return None if content is None or records.problem(records.Plan, content) else content

    def write_plan(self, content: Mapping[str, Any]) -> None:
        """Remember the suite and its trials."""
        path = self.path / "plan.json"
        if not path.is_file():
            remove(path)
        write_json(path, {"protocol": PROTOCOL, **content})

    def check_protocol(self) -> None:
        """Refuse a folder that another protocol version wrote."""
        path = self.path / "plan.json"
        content, _ = inspect_json(path)
        if content is None:
            # Plans of the first protocol have no checksum. One that has another is damaged, its protocol too.
            content, _ = parse_json(path)
            if content is None or CHECKSUM in content or content.get("protocol") == PROTOCOL:
                return
        if content.get("protocol") != PROTOCOL:
            raise ResultsError(
                f"{self.path}: written under protocol {content.get('protocol')}, this kdbench has protocol "
                f"{PROTOCOL}: the numbers must not be mixed; choose another --output or move the folder away"
            )

    def __iter__(self) -> Iterator[TrialFolder]:
        try:
            places = sorted(self.path.iterdir()) if self.path.is_dir() else []
            found = [path for path in places if (path / "trial.json").exists()]
        except OSError as error:
            raise ResultsError(f"{error.filename}: cannot be read: {error.strerror or error}") from error
        yield from (self.trial(path.name) for path in found)
