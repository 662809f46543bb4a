"""Generation continues what one pass over the whole text would say."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muse_core.building import build_model
from muse_core.model.generation import generate, sample
from muse_core.plugins import load_plugins
from muse_core.recipe import check_table

V = 11


@pytest.fixture(scope="module")
def model() -> Any:
    registry = load_plugins()
    block = [{"use": "resolvent", "heads": 2}, {"use": "fast-weights", "heads": 2, "period": 4, "filters": ["snr"]}]
    table = {"name": "g", "model": {"width": 8, "depth": 2, "block": block}, "train": {"sequence_length": 16}}
    built, _ = build_model(check_table(table, registry).recipe, registry, vocabulary_size=V, dtype="float64")
    return built.double().eval()


def test_most_likely_tokens_are_those_of_whole_passes(model: Any) -> None:
    prompt = [1, 5, 3]
    text = list(prompt)
    for token in itertools.islice(generate(model, prompt, temperature=0.0, stream_period=4), 12):
        with torch.no_grad():
            assert token == int(model.logits(model(torch.tensor([text])).hidden)[0, -1].argmax())
        text.append(token)


def test_seed_decides_what_is_drawn(model: Any) -> None:
    def drawn(seed: int) -> list[int]:
        return list(itertools.islice(generate(model, [1], temperature=5.0, seed=seed, stream_period=4), 20))

    assert drawn(0) == drawn(0) != drawn(1)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0.01, 0.99), st.integers(0, 1000))
def test_top_p_draws_from_the_smallest_set_that_has_the_probability(
    scores: list[float], top_p: float, seed: int
) -> None:
    values = torch.tensor(scores, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    token = sample(values, temperature=1.0, top_p=top_p, generator=generator)
    probabilities = torch.softmax(values, -1)
    more_likely = probabilities[probabilities > probabilities[token]].sum().item()
    assert more_likely < top_p + 1e-9


def test_bad_values_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="empty"):
        next(generate(model, []))
    with pytest.raises(ValueError, match="top_p"):
        next(generate(model, [1], top_p=0.0))
