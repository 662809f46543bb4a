"""Kinds of component as people write them on a command line."""

from __future__ import annotations


def read_kind(text: str) -> str:
    """A kind of ``component.KINDS``; ``memory-layer`` and ``memory layer`` are one.

    Raises RecipeError with the nearest kind for anything else.
    """
    from muse_core.errors import RecipeError
    from muse_core.kinds import KINDS
    from muse_core.plugins.near import suggestion

    kind = text.replace("-", " ")
    if kind not in KINDS:
        raise RecipeError(f"--kind: there is no kind {kind!r}{suggestion(kind, KINDS, 'kinds')}")
    return kind
