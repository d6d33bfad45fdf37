"""From what a user writes as ``artifacts=`` to a place for the files of a study."""

import io
import os
from pathlib import Path
from typing import BinaryIO, TypeAlias

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from hyperopt_dl.errors import StudyError
from hyperopt_dl.study.storage import Storage
from hyperopt_dl.tuners.archive import ArtifactStore

Artifacts: TypeAlias = str | os.PathLike[str] | ArtifactStore | None

SUFFIX = ".artifacts"
"""What the name of a journal's folder of artifacts adds to the journal's."""


class InMemoryArtifactStore:
    """An artifact store that lasts as long as its process, as a study in memory does."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Return the content of an artifact, open for reading."""
        if artifact_id not in self._contents:
            raise ArtifactNotFound("not found")
        return io.BytesIO(self._contents[artifact_id])

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Keep the content of a file as an artifact."""
        self._contents[artifact_id] = content_body.read()

    def remove(self, artifact_id: str) -> None:
        """Forget an artifact."""
        if self._contents.pop(artifact_id, None) is None:
            raise ArtifactNotFound("not found")


class FolderArtifactStore:
    """A folder of artifacts, made when the first one is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = FileSystemArtifactStore(folder)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Return the content of an artifact, open for reading."""
        return self._files.open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Keep the content of a file as an artifact."""
        _make(self._folder)
        self._files.write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Forget an artifact."""
        self._files.remove(artifact_id)


def open_artifacts(artifacts: Artifacts, storage: Storage, *, needed: bool) -> ArtifactStore | None:
    """Return the store for the files of a study.

    Args:
        artifacts: A folder, a store of Optuna's, or ``None``: memory for a study in memory, a
            folder beside a journal file, and nowhere for a database or a storage object.
        storage: What the study was given as its storage.
        needed: Whether files will be written for certain, and so a folder is made at once.

    Raises:
        StudyError: The folder cannot be made, or ``artifacts`` is no place.
    """
    if artifacts is None:
        artifacts = _beside(storage)
    if isinstance(artifacts, (str, os.PathLike)):
        folder = Path(artifacts).absolute()
        if needed:
            _make(folder)
        return FolderArtifactStore(folder)
    if not (artifacts is None or isinstance(artifacts, ArtifactStore)):
        raise StudyError(
            f"artifacts must be None, a folder or an artifact store of Optuna's, got {artifacts!r}."
        )
    return artifacts


def _beside(storage: Storage) -> Artifacts:
    if storage is None:
        return InMemoryArtifactStore()
    if isinstance(storage, (str, os.PathLike)) and "://" not in os.fspath(storage):
        return os.fspath(storage) + SUFFIX
    return None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(
            f"artifacts must be a folder that can be written to, got {folder}: {error}."
        ) from error
