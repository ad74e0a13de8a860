"""Claims: several processes, also of several machines, share the work of one results folder.

A process claims a trial before it trains it. Claims and signs of life are files in ``<output>/.claims``, so that two
terminals, the jobs of a Slurm array and the workers of a cluster cooperate in the same way. Nothing relies on locks of
the file system or on equal clocks: see :mod:`kdbench.claims.chain` and :mod:`kdbench.claims.heartbeat`.
"""

from kdbench.claims.desk import (
    CLAIMS,
    NEVER_HELD,
    Claim,
    ClaimLostError,
    Claims,
    HeldError,
    Standing,
    claiming,
    claiming_all,
    listed,
    living,
    standings,
    trials_of,
)
from kdbench.claims.heartbeat import LEASE_SECONDS, Holder, Watch

__all__ = [
    "CLAIMS",
    "LEASE_SECONDS",
    "NEVER_HELD",
    "Claim",
    "ClaimLostError",
    "Claims",
    "HeldError",
    "Holder",
    "Standing",
    "Watch",
    "claiming",
    "claiming_all",
    "listed",
    "living",
    "standings",
    "trials_of",
]
