"""Results of a study by name, one JSON line each: a study that was stopped goes on where it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Record:
    """Results that are computed once, and kept in a file where there is one.

    Args:
        path: The file; ``None`` keeps them in memory alone.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.is_file() else []
        self._results = {line["key"]: line["result"] for line in map(json.loads, lines)}

    def get(self, key: list[Any], compute: Callable[[], Any]) -> Any:
        """Return what is known under a key; what is not known yet is computed and kept.

        Args:
            key: All that the result depends on, numbers and strings.
            compute: Returns the result, of what JSON can hold.
        """
        name = json.dumps(key)
        if name not in self._results:
            self._results[name] = compute()
            self._keep(name)
        return self._results[name]

    def _keep(self, name: str) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps({"key": name, "result": self._results[name]}) + "\n")
