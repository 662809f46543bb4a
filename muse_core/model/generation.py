"""Text from a model, token by token, with memory that does not grow where the layers' state does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from muse_core.contracts import State, Tokens

PREFILL = 512
"""Prompt tokens read at once: bounds the memory of a long prompt."""


@torch.no_grad()
def generate(
    model: Any,
    prompt: Sequence[int],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    stream_period: int = 1,
    device: str | torch.device = "cpu",
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[int]:
    """Yield token ids for ever, each drawn from the model's distribution after the prompt and those before it.

    ``temperature`` 0 takes the most likely token; ``top_p`` keeps the smallest set of tokens with that probability.
    ``stream_period`` is the least common multiple of the model's periods. Raises ValueError for an empty prompt or
    values out of range.
    """
    if not prompt:
        raise ValueError("the prompt is empty; give at least one token")
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} must be ≥ 0 and top_p {top_p} in (0, 1]")
    generator = torch.Generator("cpu").manual_seed(seed)
    ids = torch.tensor([list(prompt)], device=device)
    state: State = None
    done = 0
    hidden = None
    for start in range(0, ids.shape[1], PREFILL):
        hidden, state = _read(model, ids[:, start : start + PREFILL], state, done, stream_period, precision)
        done += min(PREFILL, ids.shape[1] - start)
    while True:
        with precision():
            scores = model.logits(hidden[:, -1:])[0, 0].double().cpu()
        token = sample(scores, temperature=temperature, top_p=top_p, generator=generator)
        yield token
        following = torch.tensor([[token]], device=device)
        hidden, state = _read(model, following, state, done, stream_period, precision)
        done += 1


def sample(scores: Tensor, *, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token from scores (V,) in float64."""
    if temperature == 0:
        return int(scores.argmax())
    probabilities = torch.softmax(scores / temperature, -1)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p
        probabilities[order[outside]] = 0.0
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _read(
    model: Any,
    ids: Tensor,
    state: State,
    done: int,
    stream_period: int,
    precision: Callable[[], AbstractContextManager[object]],
) -> tuple[Tensor, State]:
    positions = done + torch.arange(ids.shape[1], device=ids.device)[None]
    with precision():
        output = model(ids, state, Tokens(positions, offset=done % stream_period))
    return output.hidden, output.state
