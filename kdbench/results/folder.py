"""The folders of suites, trials and teachers: the only reader and writer of their records."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import ValidationError

from kdbench.atomic import remove_leftovers
from kdbench.errors import ResultsError, TrialError
from kdbench.results import correct, record
from kdbench.results.files import (
    CHECKSUM,
    Check,
    inspect_json,
    mismatch,
    parse_json,
    read_bytes,
    remove,
    stamp,
    write_json,
    write_text,
)
from kdbench.results.planned import PlanRecord
from kdbench.results.record import (
    EpochRecord,
    Failure,
    Record,
    Stamp,
    TeacherRecord,
    TeacherResult,
    TrialRecord,
    TrialResult,
)
from kdbench.suite.plan import PROTOCOL

D = TypeVar("D", TrialRecord, TeacherRecord)
R = TypeVar("R", TrialResult, TeacherResult)
K = TypeVar("K", bound=Record)

TEACHERS = "_teachers"


def suite_names(output: Path) -> list[str]:
    """The names of the suites' folders in an output folder, sorted.

    Names that begin with ``_`` or ``.`` are reserved: for teachers, conflicts of a merge, and temporary files.
    """
    return sorted(path.name for path in output.iterdir() if path.name[0] not in "_." and path.is_dir())


def _line(epoch: EpochRecord) -> str:
    return json.dumps(_without_numbers(epoch.to_json()), allow_nan=False) + "\n"


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


_CURRENT = b'{"format": %d, ' % record.FORMAT


def _sound_line(line: bytes) -> EpochRecord | None:
    """A line as this version writes it, if all its numbers are finite: three times as fast as the other way."""
    if not line.startswith(_CURRENT):
        return None
    try:
        return EpochRecord.model_validate_json(b"{" + line[len(_CURRENT) :])
    except ValidationError:
        return None


def _parsed_line(line: bytes, path: str) -> EpochRecord | None:
    """Any line; None if it is truncated or damaged."""
    try:
        content = _with_numbers(json.loads(line))
    except (ValueError, RecursionError):
        return None
    return record.parse(EpochRecord, content, path)[0] if isinstance(content, Mapping) else None


class Folder(Generic[D, R]):
    """The folder of a training. A result that is not of ``identifier`` is damaged, where that is given.

    ``check`` is called right before each write, and raises where this process must not write any more.
    :class:`TrialFolder` and :class:`TeacherFolder` say which records it holds.
    """

    description_name: ClassVar[str]
    weights_name: ClassVar[str]
    description_type: type[D]
    result_type: type[R]

    def __init__(self, path: Path, identifier: str | None = None, check: Check = None) -> None:
        self.path = path
        self.check = check
        self.identifier = identifier
        self.weights = path / self.weights_name
        self.correct = path / correct.NAME
        """Which test images its network classifies correctly: see :func:`~kdbench.results.correct.read_correct`."""
        self.checkpoint = path / "checkpoint.pt"

    def begin(self, description: D) -> None:
        """Write what is trained. The last attempt's result and error are removed, its checkpoint is kept."""
        self._checked()
        # The result first, so that it never exists without the files that it names.
        for own in ("result.json", "error.json", correct.NAME):
            remove(self.path / own)
        place = self.path / self.description_name
        # A folder or a link to nowhere cannot be replaced by a file.
        for old in (place, self.path / "epochs.jsonl", self.weights, self.checkpoint):
            if not old.is_file():
                remove(old)
        write_json(place, description.to_json(), self.check)

    def _checked(self) -> None:
        if self.check is not None:
            self.check()

    def clear(self) -> None:
        """Remove everything."""
        self._checked()
        # The result first, so that it never exists without the files that it names.
        remove(self.path / "result.json")
        if self.path.is_dir():
            for path in self.path.iterdir():
                remove(path)

    @property
    def description(self) -> D | None:
        """What is trained; None if missing or damaged."""
        return self._sound(self.description_type, self.description_name)[0]

    def description_problem(self) -> str:
        """What is wrong with the description; empty if nothing is, or if it is missing."""
        return self._sound(self.description_type, self.description_name)[1]

    @property
    def recorded(self) -> R | None:
        """``result.json``, if it is sound itself, whatever has become of the files that it names."""
        return self._sound(self.result_type, "result.json")[0]

    @property
    def result(self) -> R | None:
        """The outcome, where the training is done or diverged; None if missing or damaged (:meth:`damage`)."""
        return self._outcome(trust_time=True)[0]

    def damage(self, *, thorough: bool = False) -> str:
        """Why a result cannot be used, as ``student.safetensors does not match its checksum``.

        Empty where it can be used, or where there is none. Weights of unchanged size and time are taken to be
        unchanged, unless ``thorough``: then they are read.
        """
        return self._outcome(trust_time=not thorough)[1]

    def _outcome(self, *, trust_time: bool) -> tuple[R | None, str]:
        for _ in range(3):
            result, problem = self._sound(self.result_type, "result.json")
            if result is not None:
                problem = self._mismatch(result.files, result.done, trust_time)
            # Where a run replaces the result meanwhile, its files are not the ones that were named.
            if not problem or self.recorded == result:
                break
        return (None, problem) if problem else (result, "")

    def _sound(self, kind: type[K], name: str) -> tuple[K | None, str]:
        """A record of this training, or what is wrong with it."""
        content, problem = inspect_json(self.path / name)
        if content is None:
            return None, problem
        found, problem = record.parse(kind, content, str(self.path / name))
        if problem:
            return None, f"{name}: {problem}"
        identifier = content.get("id", content.get("key"))
        if self.identifier not in {None, identifier}:
            return None, f"{name} is of {identifier}"
        return found, ""

    def _mismatch(self, files: Mapping[str, Stamp], has_weights: bool, trust_time: bool) -> str:
        """What is wrong with the files that a result names."""
        if has_weights and self.weights.name not in files:
            return f"result.json does not list {self.weights.name}"
        for name, known in files.items():
            trusted = trust_time and name == self.weights.name
            if found := mismatch(self.path / name, known.model_dump(), trust_time=trusted):
                return found
        return ""

    @property
    def error(self) -> Failure | None:
        """Why the last attempt failed."""
        return self._sound(Failure, "error.json")[0]

    @property
    def epochs(self) -> list[EpochRecord]:
        """The records of ``epochs.jsonl`` up to the first that is truncated or damaged."""
        found: list[EpochRecord] = []
        place = self.path / "epochs.jsonl"
        for line in (read_bytes(place)[0] or b"").splitlines():
            epoch = _sound_line(line) or _parsed_line(line, str(place))
            if epoch is None:
                break
            found.append(epoch)
        return found

    def write_epochs(self, epochs: Sequence[EpochRecord]) -> None:
        """Replace ``epochs.jsonl``."""
        write_text(self.path / "epochs.jsonl", "".join(map(_line, epochs)), self.check)

    def append_epoch(self, epoch: EpochRecord) -> None:
        """Add one line to ``epochs.jsonl``."""
        self._checked()
        try:
            with (self.path / "epochs.jsonl").open("a", encoding="utf-8") as file:
                file.write(_line(epoch))
        except OSError as error:
            raise ResultsError(f"{self.path / 'epochs.jsonl'}: cannot be written: {error.strerror}") from error

    def finish(self, **fields: Any) -> R:
        """Write the outcome, with the checksums of the other files, and return it; the training is then finished.

        ``fields`` are those of the folder's type of result; ``files`` is set here.

        Raises:
            ResultsError: the folder was removed meanwhile.
            TrialError: the outcome is none that can be read back.
        """
        place = self.path / "result.json"
        description = self.path / self.description_name
        if not description.is_file():
            raise ResultsError(f"{self.path}: the folder was removed during the training; run the suite again")
        named = (description, self.path / "epochs.jsonl", self.weights, self.correct)
        files = {path.name: Stamp(**stamp(path)) for path in named if path.is_file()}
        try:
            result = self.result_type(**{**fields, "files": files})
        except ValidationError as error:
            raise TrialError(f"{place}: cannot be written: {record.first_problem(error)}") from error
        write_json(place, result.to_json(), self.check)
        self.checkpoint.unlink(missing_ok=True)
        return result

    def fail(self, failure: Failure) -> None:
        """Write the reason of a failure; the training is not finished."""
        write_json(self.path / "error.json", failure.to_json(), self.check)


class TrialFolder(Folder[TrialRecord, TrialResult]):
    """``runs/<suite>/<trial id>``."""

    description_name = "trial.json"
    weights_name = "student.safetensors"
    description_type = TrialRecord
    result_type = TrialResult


class TeacherFolder(Folder[TeacherRecord, TeacherResult]):
    """``runs/_teachers/<key>``."""

    description_name = "teacher.json"
    weights_name = "teacher.safetensors"
    description_type = TeacherRecord
    result_type = TeacherResult

    @property
    def is_complete(self) -> bool:
        """Whether its weights were read back after the training, so that it can be used without writing anything."""
        result = self.result
        return result is not None and result.sha256 is not None


AnyFolder = TrialFolder | TeacherFolder


class SuiteFolder:
    """``runs/<suite>``."""

    def __init__(self, output: Path, suite: str) -> None:
        self.path = output / suite
        self.output = output

    def trial(self, identifier: str, check: Check = None) -> TrialFolder:
        """One trial's folder."""
        return TrialFolder(self.path / identifier, identifier, check)

    def teacher(self, key: str, check: Check = None) -> TeacherFolder:
        """One teacher's folder, shared by all suites of the same output folder."""
        return TeacherFolder(self.output / TEACHERS / key, key, check)

    def create(self) -> None:
        """Create the folder. Raises :class:`~kdbench.errors.ResultsError`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultsError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def remove_leftovers(self) -> list[Path]:
        """Remove unfinished files of dead processes, here and in the teachers' folders; return their paths."""
        folders = [self.path]
        for parent in (self.path, self.output / TEACHERS):
            if parent.is_dir():
                folders += sorted(path for path in parent.iterdir() if path.is_dir())
        return [path for folder in folders for path in remove_leftovers(folder)]

    @property
    def plan(self) -> PlanRecord | None:
        """The suite and its trials as last planned; None if missing or damaged."""
        path = self.path / "plan.json"
        content = inspect_json(path)[0]
        return None if content is None else record.parse(PlanRecord, content, str(path))[0]

    def write_plan(self, plan: PlanRecord) -> None:
        """Store the suite and its trials."""
        path = self.path / "plan.json"
        if not path.is_file():
            remove(path)
        write_json(path, plan.to_json())

    def check_protocol(self, remedy: str = "choose another --output or move the folder away") -> None:
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
                f"{PROTOCOL}: the numbers must not be mixed; {remedy}"
            )

    def __iter__(self) -> Iterator[TrialFolder]:
        try:
            places = sorted(self.path.iterdir()) if self.path.is_dir() else []
            # Other names are reserved, for temporary files.
            found = [path for path in places if path.name[0] not in "_." and (path / "trial.json").exists()]
        except OSError as error:
            raise ResultsError(f"{error.filename}: cannot be read: {error.strerror or error}") from error
        yield from (self.trial(path.name) for path in found)
