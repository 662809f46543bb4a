"""Names near a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable


def near(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to ``name``, or None when none is close."""
    from difflib import get_close_matches

    known = list(known)
    simplified = {one.replace("_", "-").lower(): one for one in reversed(known)}
    matches = get_close_matches(name[:64].replace("_", "-").lower(), simplified, n=1, cutoff=0.6)
    return simplified[matches[0]] if matches else None


def suggestion(name: str, known: Iterable[str], all_of: str) -> str:
    """The second half of a message about an unknown name: the near one, or all there are."""
    known = list(known)
    close = near(name, known)
    if close is not None:
        return f" - did you mean {close!r}?"
    return f" - {all_of}: {', '.join(known)}" if known else f" - {all_of}: none"
