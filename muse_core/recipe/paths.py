"""Key paths of a recipe: ``("model", "block", 1, "filters", 0)`` is written ``model.block[1].filters[0]``."""

from __future__ import annotations

import re

from muse_core.recipe.positions import MAX_DEPTH, Path

_STEP = re.compile(r"(?:\.|^)([A-Za-z0-9_-]+)|\[(\d{1,9})\]")


def written(path: Path) -> str:
    """The path as messages and ``--set`` write it; "" for the root."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            key = step if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", step) else repr(step[:64])
            text += f".{key}" if text else key
    return text


def read_path(text: str) -> Path:
    """The path that ``text`` writes. Raises ValueError when it is not of the form ``model.block[1].heads``."""
    path: list[str | int] = []
    at = 0
    while at < len(text):
        match = _STEP.match(text, at) if len(path) < MAX_DEPTH else None
        if match is None:
            break
        path.append(match[1] if match[2] is None else int(match[2]))
        at = match.end()
    if at < len(text) or not path or isinstance(path[0], int):
        raise ValueError(f"{text[:80]!r} is not a key path such as train.steps or model.block[1].heads")
    return tuple(path)
