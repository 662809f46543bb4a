"""Recall by a model with a perfect memory of known size, and by one without any."""

import re

import numpy as np
import pytest
import torch
from muse_niah_probe.needles import make_needles
from muse_niah_probe.recall import recall
from torch import nn

from muse_core.contracts import ModelOutput

VOCABULARY = 128


class Characters:
    separator = 0

    def encode(self, text):
        return np.array([ord(character) for character in text])


class Copier(nn.Module):
    """Remembers the text that it reads in its state and says what followed the longest stretch of it that ends as the
    text does now. ``forgets`` drops the state; ``ignores_key`` looks for what followed " room is " last."""

    def __init__(self, *, certainty=4.0, forgets=False, ignores_key=False):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))
        self.certainty, self.forgets, self.ignores_key = certainty, forgets, ignores_key

    def following(self, text):
        """The character that followed, or nothing."""
        digits = re.search("[0-9]*$", text)[0]
        if not text.endswith(f" room is {digits}"):
            return None
        asked = text[: len(text) - len(digits)].removesuffix(" room is ").split(" the ")[-1]
        key = "[a-z]+" if self.ignores_key else re.escape(asked)
        found = re.findall(f"the {key} room is ([0-9]{{5}})", text)
        return found[-1][len(digits)] if found and len(digits) < 5 else None

    def forward(self, inputs, state, tokens):
        read = state["ids"] if state and not self.forgets else inputs[:, :0]
        whole = torch.cat((read, inputs), 1)
        hidden = torch.zeros(*inputs.shape, VOCABULARY)
        for row, ids in enumerate(whole.tolist()):
            text = "".join(map(chr, ids))
            for t in range(inputs.shape[1]):
                token = self.following(text[: read.shape[1] + t + 1])
                if token is not None:
                    hidden[row, t, ord(token)] = self.certainty
        return ModelOutput(hidden + self.bias, {"ids": whole}, {}, {})

    def logits(self, hidden):
        return hidden


def needles(rows=16):
    text = np.frombuffer(b"some words about nothing in particular, said again and ", dtype=np.uint8).astype(int)
    return make_needles(Characters(), text, rows=rows, lead=4, distance=40, random=np.random.default_rng(0))


def test_a_perfect_memory_recalls_everything_and_gains_over_every_control():
    found = recall(Copier(), needles(), segment=16)
    assert found.exact == 1.0
    certain = 4.0 - torch.logsumexp(torch.cat((torch.tensor([4.0]), torch.zeros(VOCABULARY - 1))), 0).item()
    assert found.log_probability == pytest.approx(certain, rel=1e-5)
    assert found.over_emptied > 1.0
    assert found.over_shuffled > 1.0
    assert found.over_other_key > 1.0


def test_a_model_that_ignores_the_key_is_right_by_chance_and_gains_nothing_over_another_key():
    found = recall(Copier(ignores_key=True), needles(), segment=64)
    assert 0.0 < found.exact < 0.6
    assert found.over_emptied > 0.0
    assert found.over_other_key == 0.0


def test_without_memory_there_is_nothing_to_gain():
    found = recall(Copier(forgets=True), needles(), segment=16)
    assert found.exact == 0.0
    assert found.over_emptied == found.over_shuffled == found.over_other_key == 0.0


def test_the_segment_does_not_matter_to_an_exact_model():
    assert recall(Copier(), needles(), segment=7) == recall(Copier(), needles(), segment=1000)


def test_positions_and_offsets_go_on_from_segment_to_segment():
    seen = []

    class Watcher(Copier):
        def forward(self, inputs, state, tokens):
            seen.append((tokens.offset, tokens.positions[0, 0].item(), inputs.shape[1]))
            return super().forward(inputs, state, tokens)

    asked = needles()
    recall(Watcher(), asked, segment=16)
    length = asked.context.shape[1]
    starts = list(range(0, length, 16))
    assert [(offset, position) for offset, position, _ in seen] == [(s, s) for s in starts] + [(length, length)] * 4
