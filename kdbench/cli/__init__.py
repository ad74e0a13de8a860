"""The command line. Commands import slow packages when they run.

A module holds a group of commands; importing it registers them, in the order in which `--help` lists them.
"""

from kdbench.cli import suites, tuning, offers, checks, speed, students, trials, folders, authors, tracking  # isort: skip
from kdbench.cli.application import app, main

__all__ = [
    "app",
    "authors",
    "checks",
    "folders",
    "main",
    "offers",
    "speed",
    "students",
    "suites",
    "tracking",
    "trials",
    "tuning",
]
