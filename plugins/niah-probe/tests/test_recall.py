"""Recall by a model with a perfect memory of known size, and by one without any."""

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
    """Knows the digits of the row's needle from its state alone: it stores each digit it reads outside questions and
    predicts them in order after the question. ``forgets`` drops the state."""

    def __init__(self, *, certainty=4.0, forgets=False):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))
        self.certainty, self.forgets = certainty, forgets

    def forward(self, inputs, state, tokens):
        digits = state["digits"].clone() if state and not self.forgets else torch.zeros(len(inputs), 5)
        count = state["count"].clone() if state and not self.forgets else torch.zeros(len(inputs))
        hidden = torch.zeros(*inputs.shape, VOCABULARY)
        for t in range(inputs.shape[1]):
            for row, token in enumerate(inputs[:, t].tolist()):
                if 48 <= token < 58 and count[row] < 5:
                    digits[row, int(count[row])] = token
                    count[row] += 1
                asked = inputs[row, : t + 1]
                done = int(((asked >= 48) & (asked < 58)).sum())
                if count[row] == 5 and done < 5:
                    hidden[row, t, int(digits[row, done])] = self.certainty
        return ModelOutput(hidden + self.bias, {"digits": digits, "count": count}, {}, {})

    def logits(self, hidden):
        return hidden


def needles(rows=4):
    text = np.frombuffer(b"some words about nothing in particular, said again and ", dtype=np.uint8).astype(int)
    return make_needles(Characters(), text, rows=rows, lead=4, distance=40, random=np.random.default_rng(0))


def test_a_perfect_memory_recalls_everything_and_gains_over_both_controls():
    found = recall(Copier(), needles(), segment=16)
    assert found.exact == 1.0
    certain = 4.0 - torch.logsumexp(torch.cat((torch.tensor([4.0]), torch.zeros(VOCABULARY - 1))), 0).item()
    assert found.log_probability == pytest.approx(certain, rel=1e-5)
    assert found.over_emptied > 1.0
    assert found.over_shuffled > 1.0


def test_without_memory_there_is_nothing_to_gain():
    found = recall(Copier(forgets=True), needles(), segment=16)
    assert found.exact == 0.0
    assert found.over_emptied == found.over_shuffled == 0.0


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
    assert [(offset, position) for offset, position, _ in seen] == [(s, s) for s in starts] + [(length, length)] * 3
