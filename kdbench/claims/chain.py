"""Who holds what: for each name a chain of numbered files, of which the last one counts.

Taking over a name, and giving it up, is the creation of the next file of its chain. Exclusive creation is atomic on
local disks and on network file systems, and files are never changed or removed, so that of two processes with
outdated views only one succeeds, and the other one learns it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kdbench import atomic

_NAME = re.compile(r"(?P<name>.+)\.(?P<number>[0-9]{6,})")
# What a file system without hard links answers.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


@dataclass(frozen=True)
class Entry:
    """One file of a chain."""

    owner: str | None
    """The process that holds the name (:attr:`Heartbeat.owner`); None if nobody does. Empty if unreadable."""
    together: int = 1
    """How many trials it trains in lockstep, this one included."""
    epochs: int = 0
    """The number of finished epochs when it was claimed."""
    deaths: int = 0
    """How many processes in a row died while they held the name, without finishing an epoch."""


FREE = Entry(None)


class Chain:
    """The chains of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def numbers(self) -> Mapping[str, int]:
        """The number of the last file of each chain, as the folder shows it now; a file system may be late."""
        last: dict[str, int] = {}
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return last
        for file in names:
            if match := _NAME.fullmatch(file):
                last[match["name"]] = max(last.get(match["name"], 0), int(match["number"]))
        return last

    def path(self, name: str, number: int) -> Path:
        """One file of a chain."""
        return self.folder / f"{name}.{number:06}"

    def read(self, name: str, number: int) -> Entry:
        """An entry; number 0, before the first file, is a free one."""
        if number == 0:
            return FREE
        try:
            return Entry(**json.loads(self.path(name, number).read_bytes()))
        except FileNotFoundError:
            return FREE
        except (ValueError, TypeError):
            # Without hard links, its creator has not written it yet, or died before it could.
            return Entry("")

    def append(self, name: str, number: int, entry: Entry) -> bool:
        """Create file ``number`` of a chain; False if another process has created it. Raises ``OSError``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.path(name, number)
        content = json.dumps(asdict(entry)).encode()
        # As kdbench.atomic names what it removes after its process has died.
        temporary = self.folder / f".{secrets.token_hex(8)}.{atomic.HOST}.{os.getpid()}.tmp"
        temporary.write_bytes(content)
        try:
            os.link(temporary, place)
        except FileExistsError:
            # The answer of a network file system may be lost, and its repetition finds the file that it has made.
            return temporary.stat().st_nlink > 1
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _create(place, content)
        finally:
            temporary.unlink(missing_ok=True)
        return True


def _create(place: Path, content: bytes) -> bool:
    try:
        descriptor = os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return True
