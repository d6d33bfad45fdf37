"""From what a user writes as ``storage=`` to a storage of Optuna's."""

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import TypeAlias

from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from hyperopt_dl.errors import StudyError

Storage: TypeAlias = str | os.PathLike[str] | BaseStorage | None

STALE_LOCK = 5
"""Seconds after which the lock of a process that was killed while it held it is taken away."""
JOURNAL = b'{"op_code":'
"""How every record of a journal starts."""
_logger = logging.getLogger(__name__)


def open_storage(storage: Storage) -> BaseStorage:
    """Return memory for ``None``, a journal for a path, a database for a URL.

    A storage of Optuna's is returned as it is. A journal whose last line was cut off (the machine
    lost power, the disk was full) is mended first: the torn line goes, and the file as it was found
    stays beside it.

    Raises:
        StudyError: A path to a directory, or something that is no storage.
    """
    if storage is None:
        return InMemoryStorage()
    if isinstance(storage, BaseStorage):
        return storage
    if not isinstance(storage, (str, os.PathLike)):
        raise StudyError(
            f"storage must be None, a path, a database URL or an Optuna storage, got "
            f"{type(storage).__name__}."
        )
    if "://" in os.fspath(storage):
        return RDBStorage(os.fspath(storage))
    path = Path(
        storage
    ).absolute()  # the lock is a link to the path, and must be right from anywhere
    if path.is_dir():
        raise StudyError(f"storage must be a file, {path} is a directory. Name a file in it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    _must_be_a_journal(path)
    lock = JournalFileSymlinkLock(str(path), grace_period=STALE_LOCK)
    backend = JournalFileBackend(str(path), lock_obj=lock)
    _mend(path, lock)
    return JournalStorage(backend)


def default_name(storage: Storage) -> str | None:
    """Return a name for a study without one, the file's or database's, so that a rerun goes on.

    Memory and storage objects have none; Optuna makes one up.
    """
    if not isinstance(storage, (str, os.PathLike)):
        return None
    return Path(os.fspath(storage).partition("?")[0]).stem


def _must_be_a_journal(path: Path) -> None:
    """Raise, before anything is written, if a file is something else than a journal."""
    if not path.exists():
        return
    with path.open("rb") as file:
        start = file.read(len(JOURNAL))
    if start != JOURNAL[: len(start)]:
        database = start.startswith(b"SQLite")
        advice = f"Write 'sqlite:///{path}'." if database else "Name another file."
        raise StudyError(
            f"storage must be a journal of Optuna's, {path} is "
            f"{'an SQLite database' if database else 'something else'}. {advice}"
        )


def _mend(path: Path, lock: JournalFileSymlinkLock) -> None:
    """Cut the file after its last newline, unless somebody is writing what stands behind it."""
    if not _torn(path):
        return
    lock.acquire()
    try:
        content = path.read_bytes()
        kept = content[: content.rfind(b"\n") + 1]
        if len(kept) == len(content):
            return
        copy = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
        copy.write_bytes(content)
        os.truncate(path, len(kept))
    finally:
        with contextlib.suppress(RuntimeError):
            lock.release()
    _logger.warning("The last record of %s was torn and is cut off; a copy is at %s.", path, copy)


def _torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
