"""Shows the progress of a run: a live table in a terminal, lines of text elsewhere."""

from kdbench.observers.progress.observer import ProgressObserver

__all__ = ["ProgressObserver"]
