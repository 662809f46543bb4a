"""summary.json, read again by whoever shows, compares or goes on from a finished run. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from muse_core.errors import StorageError, typed
from muse_core.storage.canonical_json import numbers
from muse_core.storage.disk import read_file, storage_errors

NAME = "summary.json"
MAX_BYTES = 64 * 2**20


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, float) or _whole(value)


def _text(value: object) -> bool:
    return isinstance(value, str)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _pair(value: object) -> bool:
    return value is None or isinstance(value, list) and len(value) == 2 and all(map(_number, value))


KINDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(("parameters", "active_parameters", "steps", "planned_steps", "train_tokens",
                     "train_tokens_all_stages", "rollbacks", "state_numbers"), (_whole, "a whole number")),
    **dict.fromkeys(("train_seconds", "train_seconds_all_stages", "tokens_per_second", "held_out_loss",
                     "held_out_bits_per_byte", "held_out_accuracy", "held_out_documents"), (_number, "a number")),
    **dict.fromkeys(("held_out_split", "device", "precision"), (_text, "a text")),
    "held_out_interval": (_pair, "two numbers, or null of a text that is one window"),
    "not_better_than": (_texts, "a list of names"),
}
"""Key → what its value is."""
ALL_STAGES = "_all_stages"
"""Behind ``train_tokens`` and ``train_seconds``, which are of the last stage: of all stages that trained."""
SHOWN = (
    "seed", "parameters", "steps", "planned_steps", "train_tokens", "tokens_per_second", "held_out_split",
    "held_out_loss", "held_out_bits_per_byte", "held_out_interval", "rollbacks", "device", "precision",
)
"""What is shown of every finished run."""


class Summary(dict[str, Any]):
    """The object of summary.json; empty of a run that has not finished. A key that is not there, or whose value is of
    another kind than runs write, raises StorageError with the file's name when it is asked for by ``[]``."""

    def __init__(self, file: Path, table: Mapping[str, Any] | None = None):
        super().__init__({} if table is None else table)
        self._file = file

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise self._damaged(f"has no {key}")
        value = super().__getitem__(key)
        kind, named = KINDS.get(key, (None, ""))
        if kind is not None and not kind(value):
            raise self._damaged(f"{key} is {str(value)[:40]!r} and not {named}")
        return value

    def of_all_stages(self, key: str) -> Any:
        """``train_tokens`` or ``train_seconds`` of all stages together; of runs of an earlier version, which do not
        tell them, of the last one."""
        return self[key + ALL_STAGES] if key + ALL_STAGES in self else self[key]

    def require(self, keys: tuple[str, ...]) -> None:
        """Raises StorageError unless all keys are as ``[]`` gives them."""
        for key in keys:
            self[key]

    def _damaged(self, what: str) -> StorageError:
        return StorageError(
            f"{self._file}: {what} - restore it from a copy, or remove it: "
            f"muse-run --resume {typed(self._file.parent)} measures the run again"
        )


def read_summary(run: Path) -> Summary:
    """That of a run directory. Raises StorageError for a file that is damaged."""
    file = run / NAME
    if not file.is_file():
        return Summary(file)
    with storage_errors("read", file):
        data = read_file(file, limit=MAX_BYTES)
    try:
        table = numbers(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise Summary(file)._damaged(f"is damaged ({error})") from None
    if not isinstance(table, dict):
        raise Summary(file)._damaged("is no JSON object")
    return Summary(file, table)
