"""Whether a dependency admits a version. Plain bounds are compared here, since importing ``packaging`` costs a third of
the time of a listing; everything else is left to it."""

from __future__ import annotations

import operator
import re

_PLAIN = re.compile(r"[A-Za-z0-9._-]+ *\(?((?:>=|<=|<|>)\d+(?:\.\d+)*(?: *, *(?:>=|<=|<|>)\d+(?:\.\d+)*)*)\)?")
_BOUND = re.compile(r"(>=|<=|<|>)(\d+(?:\.\d+)*)")
_COMPARE = {">=": operator.ge, "<=": operator.le, "<": operator.lt, ">": operator.gt}


def admits(requirement: str, version: str) -> bool | None:
    """Whether a requirement such as ``muse-core>=0.2,<0.3`` admits a version; None when its marker excludes this
    interpreter.

    Raises ValueError for a requirement that cannot be read.
    """
    plain = _PLAIN.fullmatch(requirement.strip())
    if plain and re.fullmatch(r"\d+(\.\d+)*", version):
        return all(
            _COMPARE[sign](*_padded(version, bound)) for sign, bound in _BOUND.findall(plain[1])
        )
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        parsed = Requirement(requirement)
    except InvalidRequirement as error:
        raise ValueError(str(error).splitlines()[0]) from None
    if parsed.marker is not None and not parsed.marker.evaluate():
        return None
    return parsed.specifier.contains(version, prereleases=True)


def _padded(one: str, other: str) -> tuple[list[int], list[int]]:
    first, second = ([int(part) for part in text.split(".")] for text in (one, other))
    length = max(len(first), len(second))
    return first + [0] * (length - len(first)), second + [0] * (length - len(second))
