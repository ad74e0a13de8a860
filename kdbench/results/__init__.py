"""The results folder: the primary copy of all results. MLflow mirrors it, the report reads it.

    runs/<suite>/plan.json                      the suite, all its trials as last planned, skipped ones with reasons
    runs/<suite>/<trial id>/trial.json          what the trial is
    runs/<suite>/<trial id>/epochs.jsonl        one line an epoch; what is not finite is "NaN" or "Infinity", in quotes
    runs/<suite>/<trial id>/result.json         exists once the trial is done or diverged
    runs/<suite>/<trial id>/error.json          why the last attempt failed
    runs/<suite>/<trial id>/student.safetensors the student's weights
    runs/<suite>/<trial id>/correct.npy         which test images it classifies correctly, one bit for each
    runs/<suite>/<trial id>/source/             the code behind it: of its method, networks and data set
    runs/<suite>/<trial id>/checkpoint.pt       while it is being trained
    runs/_teachers/<key>/                       teacher.json, epochs.jsonl, result.json, teacher.safetensors,
                                                correct.npy
    runs/_conflicts/<source>/                   what a merge keeps apart: a results folder

Every file is written under a temporary name and renamed, so a reader never sees half of one.
"""

from kdbench.atomic import remove_leftovers
from kdbench.results.code import store_code, stored_code
from kdbench.results.correct import read_correct, write_correct
from kdbench.results.files import Check, parse_json, write_atomically, write_json, write_text
from kdbench.results.find import again, find_folder
from kdbench.results.folder import TEACHERS, AnyFolder, SuiteFolder, TeacherFolder, TrialFolder
from kdbench.results.planned import NO_PLAN, PlannedTeacher, PlannedTrial, PlanRecord
from kdbench.results.record import (
    MAIN,
    Best,
    Cost,
    DataUsed,
    Environment,
    EpochRecord,
    Failure,
    TeacherRecord,
    TeacherResult,
    TeacherUsed,
    TrialRecord,
    TrialResult,
    parse,
)

__all__ = [
    "MAIN",
    "NO_PLAN",
    "TEACHERS",
    "AnyFolder",
    "Best",
    "Check",
    "Cost",
    "DataUsed",
    "Environment",
    "EpochRecord",
    "Failure",
    "PlanRecord",
    "PlannedTeacher",
    "PlannedTrial",
    "SuiteFolder",
    "TeacherFolder",
    "TeacherRecord",
    "TeacherResult",
    "TeacherUsed",
    "TrialFolder",
    "TrialRecord",
    "TrialResult",
    "again",
    "find_folder",
    "parse",
    "parse_json",
    "read_correct",
    "remove_leftovers",
    "store_code",
    "stored_code",
    "write_atomically",
    "write_correct",
    "write_json",
    "write_text",
]
