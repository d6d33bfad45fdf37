"""Which process runs a trial, and whether that process is certainly gone."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Lease:
    """The identity of a process: a process id alone is used again, after a while or after a reboot.

    Attributes:
        host: The machine's name.
        boot: An id of the machine's present boot; empty where the system has none.
        pid: The process id.
        started: When the process was started, in the system's own unit; 0 where it cannot be told.
    """

    host: str
    boot: str
    pid: int
    started: int

    @classmethod
    def here(cls) -> "Lease":
        """Return the identity of this process."""
        return _lease_of(os.getpid())

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Lease":
        """Return the lease in a record that ``write`` made."""
        return cls(record["host"], record["boot"], record["pid"], record["started"])

    def write(self) -> dict[str, Any]:
        """Return the lease as a record for JSON."""
        return dict(vars(self))

    def expired(self) -> bool:
        """Return whether the process is certainly gone.

        Of a process on another machine nothing is certain.
        """
        if self.host != socket.gethostname():
            return False
        if self.boot != _boot():
            return True
        return not _alive(self.pid) or _started(self.pid) != self.started


@lru_cache(maxsize=1)
def _lease_of(pid: int) -> Lease:
    return Lease(socket.gethostname(), _boot(), pid, _started(pid))


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _stat(pid)[:1] != ["Z"]


def _started(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def _stat(pid: int) -> list[str]:
    """Return the fields of ``/proc/PID/stat`` after the name, which may hold blanks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
