"""Recorded steps: a step is recorded once and replayed, by a CUDA graph on a GPU and by a tape on a CPU.

:mod:`~kdbench.engine.graphs.replayed` decides when a step is recorded, replayed and checked;
:mod:`~kdbench.engine.graphs.cuda` records on a GPU, :mod:`~kdbench.engine.graphs.tape` anywhere, and
:mod:`~kdbench.engine.graphs.snapshot` copies and compares the state of a training.
"""
