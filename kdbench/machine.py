"""Which machine this is, what its processor is called, and which of its processes live."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path


def process_space() -> str:
    """Equal for two processes of one machine if each sees the other's number: containers may share only a name."""
    try:
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def this_machine() -> str:
    """:func:`process_space`, until the machine is started again."""
    space = process_space()
    with suppress(OSError):
        space += f" {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    return space


def cpu_model() -> str:
    """The processor's product name; its architecture where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def is_alive(pid: int) -> bool:
    """Whether a process of this machine lives; one that was killed is dead before its parent asks for it."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # another user's
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state != "Z"
