"""Measures how fast this machine is: what its hardware gives, and what the engine makes of it (``kdbench bench``).

Networks, learners and cohorts are the engine's; images are random. Accuracy is not measured.
"""

from kdbench.bench.findings import Findings, LeftOut, Row
from kdbench.bench.parts import PARTS, Part, measure

__all__ = ["PARTS", "Findings", "LeftOut", "Part", "Row", "measure"]
