"""Errors for people, each with the exit code of the command that stops on it. Messages say where, what, what to do."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def typed(path: str | os.PathLike[str]) -> str:
    """The path as it is typed in a command that a message names: quoted where a shell would take it apart."""
    return shlex.quote(os.fspath(path))


class MuseError(Exception):
    """A condition that a user can act on; the command prints the message without a traceback."""

    exit_code = 1


class RecipeError(MuseError):
    """Recipe, arguments or device are not usable. Carries every problem found, one sentence each."""

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class StorageError(MuseError):
    """Disk, run directory or checkpoint."""

    exit_code = 3


class DataError(MuseError):
    """Corpus, tokenizer or cache."""

    exit_code = 3


class Halted(MuseError):
    """Stopped by a gate or a monitor. ``facts``: what the event ``halt`` of the records says, by default the message as
    its ``reason``."""

    exit_code = 4

    def __init__(self, message: str, facts: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.facts = {"reason": message} if facts is None else dict(facts)


class PluginError(MuseError):
    """A plugin that the run needs does not work."""

    exit_code = 5


class RankLost(MuseError):
    """Another process of the run failed, died or stalled."""

    exit_code = 6


class OutOfMemory(MuseError):
    """The memory of the device or of the host ran out. Where others share it, there may be room another time."""

    exit_code = 7


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised from or while handling, each once: ``raise error from error`` makes one its own
    cause."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and not any(cause is one for one in found):
        found.append(cause)
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
