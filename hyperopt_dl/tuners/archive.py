"""The Arrays of a study, and the files that hold what is too large for its storage.

An Optuna storage holds numbers. A tensor is an artifact, a ``.npy`` file of float64, and a long
text is one; the id stands in an attribute of its trial, written after the file is complete.
"""

import io
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
import optuna
import torch
from optuna.artifacts import upload_artifact
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import FrozenTrial
from torch import Tensor

from hyperopt_dl.errors import StudyError
from hyperopt_dl.space import Array

ARRAYS = "hd:arrays"
"""The user attribute of a trial with the id of the artifact of each Array's value, by name."""


@runtime_checkable
class ArtifactStore(Protocol):
    """What every artifact store of Optuna's does, ``FileSystemArtifactStore`` for one."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Return the content of an artifact, open for reading."""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Keep the content of a file as an artifact."""

    def remove(self, artifact_id: str) -> None:
        """Forget an artifact."""


@runtime_checkable
class ArrayTuner(Protocol):
    """A sampler that proposes Arrays too."""

    def sample_arrays(self, study: optuna.Study, trial: FrozenTrial) -> Mapping[str, Tensor]:
        """Return a value of every Array of the study, after the trial's parameters are drawn."""


@dataclass(frozen=True)
class Archive:
    """The Arrays of a study by name, and the store of its artifacts, where it has one."""

    arrays: Mapping[str, Array] = field(default_factory=dict)
    store: ArtifactStore | None = None

    def save(self, name: str, value: Tensor, owner: optuna.Trial | optuna.Study) -> str:
        """Keep a tensor as an artifact of a trial or of the study, and return its id.

        Args:
            name: What the file is called in the dashboard.
            value: The tensor; float64 on disk.
            owner: The trial or the study that the artifact is listed with.
        """
        content = io.BytesIO()
        np.save(content, value.detach().cpu().double().numpy())
        return self._upload(name + ".npy", content.getvalue(), owner)

    def save_text(self, name: str, text: str, owner: optuna.Trial | optuna.Study) -> str:
        """Keep a text as an artifact, a file of this name, as `save` does, and return its id."""
        return self._upload(name, text.encode(), owner)

    def load(self, artifact_id: str) -> Tensor:
        """Return the tensor of an artifact, float64 on the CPU.

        Raises:
            StudyError: The store does not have it.
        """
        return torch.from_numpy(np.load(io.BytesIO(self._read(artifact_id, "an Array"))))

    def load_text(self, artifact_id: str) -> str:
        """Return the text of an artifact.

        Raises:
            StudyError: The store does not have it.
        """
        return self._read(artifact_id, "a history").decode()

    def values(self, ids: Mapping[str, str]) -> dict[str, Tensor]:
        """Return the tensors of artifacts by name.

        Raises:
            StudyError: The store does not have one, or it has another shape than its Array.
        """
        loaded = {name: self.load(artifact_id) for name, artifact_id in ids.items()}
        for name, value in loaded.items():
            shape = self.arrays[name].shape if name in self.arrays else value.shape
            if value.shape != shape:
                raise StudyError(
                    f"The space must go on from the stored study, but the Array {name!r} was of "
                    f"shape {tuple(value.shape)} and is of shape {shape} now. Use another study "
                    f"name, or another name for the dimension."
                )
        return loaded

    def check(self, trials: Sequence[FrozenTrial]) -> None:
        """Check that the Arrays can go on from the last trial that has them.

        Raises:
            StudyError: A file is missing, or an Array has changed its shape.
        """
        ids = next((found for trial in reversed(trials) if (found := array_ids(trial))), {})
        self.values({name: ids[name] for name in self.arrays if name in ids})

    def check_store(self, what: str) -> ArtifactStore:
        """Return the store.

        Args:
            what: What is to be kept there, in the plural.

        Raises:
            StudyError: The study was not told where to keep files.
        """
        if self.store is None:
            raise StudyError(
                f"{what} are files, but a database URL or a storage object does not say where to "
                f"keep them. Give Study(artifacts=...): a folder, or an artifact store of Optuna's."
            )
        return self.store

    def _upload(self, name: str, content: bytes, owner: optuna.Trial | optuna.Study) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, re.sub(r"[^\w.-]", "_", name))
            path.write_bytes(content)
            artifact_id = upload_artifact(
                artifact_store=self.check_store("Arrays and histories"),
                file_path=str(path),
                study_or_trial=owner,
            )
        return str(artifact_id)

    def _read(self, artifact_id: str, what: str) -> bytes:
        try:
            with self.check_store("Arrays and histories").open_reader(artifact_id) as file:
                return file.read()
        except ArtifactNotFound as error:
            raise StudyError(
                f"The artifact {artifact_id} holds {what} of a trial and must be in the study's "
                f"artifact store, which does not have it. Open the study with artifacts= where its "
                f"files are, or copy them back."
            ) from error


def archive_of(study: optuna.Study) -> Archive:
    """Return the archive that a study of ours carries; in one of plain Optuna there is no Array."""
    archive: Archive = getattr(study, "archive", Archive())
    return archive


def array_ids(trial: FrozenTrial | optuna.Trial) -> dict[str, str]:
    """Return the ids of the artifacts that hold a trial's Arrays, by name."""
    return dict(trial.user_attrs.get(ARRAYS, {}))
