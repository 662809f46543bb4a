"""Whether a recorded step has the gradients of the plain one from the same inputs.

Both launch the same kernels. Where these add up in any order, or others are chosen, sums round otherwise; what that
does to a gradient is measured by plain passes that are made once more, as they were and with weights moved within their
rounding. What neither tells from a fault nor from rounding is looked at again in the next steps, on other inputs: a
fault is there each time, a difference by chance is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

from muse_core.errors import RecipeError
from muse_core.parallel.one import Ranks
from muse_core.training.rounding import MOVES, NEAR, apart, beyond

SPREAD, SHARE = 3.0, 0.5
"""Times as far as a second plain step is from the first, and of what moving weights within their rounding does to a
gradient, so far may the recorded one be from the plain one, where that is more. Right ones (phase5 with windows of 256
and 512 in bfloat16) were up to 0.2 of what rounding does apart; of 78 other runs two, of a decay of a few numbers each,
0.54."""
DOUBTFUL = 1.0
"""Of what moving weights does to a gradient, how far a recorded one may be and yet be a right one."""
LOOKS = 3
"""Steps in a row in which a recorded gradient may be doubtful before it is refused."""
OFF = "set train.cuda_graph = false"


def found_same(
    own: Mapping[str, Tensor],
    recorded: Mapping[str, Tensor],
    again: Iterator[Mapping[str, Tensor]],
    ranks: Ranks,
    *,
    last: bool,
) -> bool:
    """Whether the gradients of a recorded step are those of the plain one, ``own``, for all processes; False where that
    is doubtful.

    While one is far, plain passes are made ``again``, by all processes: the first as it was, the others with moved
    weights. Raises RecipeError where a gradient is another one, and where it is doubtful in the ``last`` look.
    """
    explained: dict[str, float] = {}
    doubtful: dict[str, float] = {}
    for number in range(MOVES + 2):
        refusal = _refusal(own, recorded, explained)
        if not any(ranks.gather(refusal is not None)):
            return True
        if number <= MOVES:
            gradients = next(again)
            for name, gradient in own.items():
                change = apart(gradient, gradients[name])[0]
                if math.isfinite(change):
                    for far, factor in ((explained, SHARE), (doubtful, DOUBTFUL)):
                        far[name] = max(far.get(name, 0.0), (factor if number else SPREAD) * change)
    sure = _refusal(own, recorded, doubtful)
    if any(ranks.gather(sure is not None)) or last:
        if refusal is not None:
            raise refusal
    return False


def _refusal(
    own: Mapping[str, Tensor], recorded: Mapping[str, Tensor], explained: Mapping[str, float]
) -> RecipeError | None:
    try:
        require_same(own, recorded, explained)
    except RecipeError as error:
        return error
    return None


def require_same(
    own: Mapping[str, Tensor], recorded: Mapping[str, Tensor], explained: Mapping[str, float] | None = None
) -> None:
    """Raises RecipeError where gradients of a recorded step are not those of the plain one from the same inputs, within
    ``NEAR`` of their norm or as far as is ``explained``, by parameter. Nothing explains a zero."""
    if own.keys() != recorded.keys():
        odd = sorted(own.keys() ^ recorded.keys())[0]
        raise RecipeError(f"train.cuda_graph: recorded or plain, a step has a gradient of {odd} only once - {OFF}")
    pairs = {name: apart(expected, recorded[name]) for name, expected in own.items()}
    distances, sizes = ({name: pair[place] for name, pair in pairs.items()} for place in (0, 1))
    explained = explained or {}
    allowed = {name: max(NEAR * size, explained.get(name, 0.0)) for name, size in sizes.items()}
    if far := beyond(distances, allowed):
        name = far[0]
        told = f", and repeats and rounding explain {explained[name]:.1e}" if name in explained else ""
        raise RecipeError(
            f"train.cuda_graph: the recorded step gives {name} another gradient than the plain one "
            f"({distances[name]:.1e} apart, where its norm is {sizes[name]:.1e}{told}) - {OFF}"
        )
    if lost := [name for name, size in sizes.items() if 0 < size == distances[name] and not recorded[name].any()]:
        raise RecipeError(
            f"train.cuda_graph: the recorded step leaves the gradient of {lost[0]} at zero, whose norm is "
            f"{sizes[lost[0]]:.1e} in the plain one - {OFF}"
        )
