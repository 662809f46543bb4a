"""Generation continues what one pass over the whole text would say."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muse_core.building import build_model
from muse_core.model import generation
from muse_core.model.generation import Stream, generate, generate_batch, generate_by_lookup, sample
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


def test_a_long_prompt_is_read_in_pieces_as_it_is_whole(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The filters act after every fourth token of the stream, wherever the pieces are cut."""
    monkeypatch.setattr(generation, "PREFILL", 3)
    prompt = torch.tensor([[1, 5, 3, 7, 2, 9, 4, 0, 6, 8]])
    stream = Stream(model, stream_period=4)
    with torch.no_grad():
        due = model.logits(model(prompt).hidden)
        torch.testing.assert_close(stream.prefill(prompt[:, :8]), due[:, 7])
        torch.testing.assert_close(stream.read(prompt[:, 8:]), due[:, 8:])


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
    (token,) = sample(values[None], temperature=1.0, top_p=top_p, generators=[generator])
    probabilities = torch.softmax(values, -1)
    more_likely = probabilities[probabilities > probabilities[token]].sum().item()
    assert more_likely < top_p + 1e-9


def test_bad_values_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="empty"):
        next(generate(model, []))
    with pytest.raises(ValueError, match="top_p"):
        next(generate(model, [1], top_p=0.0))
    for temperature in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature"):
            next(generate(model, [1], temperature=temperature))


@pytest.mark.parametrize("temperature", [1e-3, 1e-310])
def test_a_temperature_near_zero_takes_the_most_likely(temperature: float) -> None:
    """Scores divided by so little would be infinite, and their softmax no number."""
    scores = torch.tensor([[3.0, 5.0, -200.0], [900.0, 1.0, 2.0]], dtype=torch.float64)
    drawn = sample(scores, temperature=temperature, top_p=1.0, top_k=2, generators=[torch.Generator()] * 2)
    assert drawn == [1, 0]


PROMPTS = [[1, 5, 3], [2], [4, 4, 1, 0, 7, 7, 2], [9, 8, 3]]


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_prompts_of_unequal_lengths_together_give_what_each_gives_alone(model: Any, temperature: float) -> None:
    found = generate_batch(model, PROMPTS, 11, temperature=temperature, seed=5, stream_period=4)
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, prompt, temperature=temperature, seed=5 + row, stream_period=4)
        assert found[row] == list(itertools.islice(alone, 11))


def test_a_batch_ends_when_all_that_are_continued_together_have(model: Any) -> None:
    """Rows of one length are drawn until the last of them ends; the ends of others change nothing."""
    whole = generate_batch(model, PROMPTS, 11, seed=5, stream_period=4)
    told: list[tuple[int, int]] = []
    ends = {0: 3, 1: 11, 2: 1, 3: 6}

    def ended(row: int, token: int) -> bool:
        told.append((row, token))
        return sum(1 for other, _ in told if other == row) == ends[row]

    found = generate_batch(model, PROMPTS, 11, seed=5, stream_period=4, ended=ended)
    assert found == [row[:count] for row, count in zip(whole, (6, 11, 1, 6))]
    for row, count in ends.items():
        assert [token for other, token in told if other == row] == whole[row][:count]


@pytest.mark.parametrize("draft", [1, 3, 8])
@pytest.mark.parametrize("prompt", [[1, 5, 3], [1, 2, 3, 4] * 6])
def test_lookup_gives_the_greedy_text(model: Any, prompt: list[int], draft: int) -> None:
    plain = list(itertools.islice(generate(model, prompt, temperature=0.0, stream_period=4), 60))
    looked_up = generate_by_lookup(model, prompt, draft=draft, match=2, stream_period=4)
    assert list(itertools.islice(looked_up, 60)) == plain


def test_lookup_reads_repetitive_text_in_fewer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = load_plugins()
    # The next token follows from the last alone, so that the greedy text repeats itself within V tokens.
    table = {"name": "g", "model": {"width": 8, "depth": 1, "block": [{"use": "feed-forward"}]},
             "train": {"sequence_length": 16}}
    memoryless, _ = build_model(check_table(table, registry).recipe, registry, vocabulary_size=V, dtype="float64")
    memoryless = memoryless.double().eval()
    passes = []
    read = Stream.read
    monkeypatch.setattr(Stream, "read", lambda self, ids: (passes.append(ids.shape[1]), read(self, ids))[1])
    found = list(itertools.islice(generate_by_lookup(memoryless, [1], match=2), 60))
    needed = len(passes)
    assert found == list(itertools.islice(generate(memoryless, [1], temperature=0.0), 60))
    assert needed < 30


def test_a_stream_goes_back_to_its_snapshot_bit_by_bit(model: Any) -> None:
    stream = Stream(model, stream_period=4)
    stream.prefill(torch.tensor([PROMPTS[2]]))
    start = stream.snapshot()
    for count in range(1, 9):
        ids = torch.arange(count)[None] % V
        first = torch.cat([stream.read(ids[:, [at]]) for at in range(count)], 1)
        stream.restore(start)
        again = torch.cat([stream.read(ids[:, [at]]) for at in range(count)], 1)
        assert torch.equal(first, again)
        stream.restore(start)


@pytest.mark.parametrize(
    "top_k, expected", [(1, {1}), (2, {1, 3}), (3, {1, 2, 3}), (4, {0, 1, 2, 3}), (9, {0, 1, 2, 3})]
)
def test_top_k_draws_from_the_most_likely_alone(top_k: int, expected: set[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([0.0, 3.0, 1.0, 2.0], dtype=torch.float64)
    rows = sample(scores.expand(60, -1), temperature=5.0, top_p=1.0, top_k=top_k, generators=[generator] * 60)
    assert set(rows) == expected
