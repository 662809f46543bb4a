"""What is scored where few labels count: they alone, with the numbers that all would give."""

from types import SimpleNamespace

import pytest
import torch

from muse_core.contracts import Batch, Tokens
from muse_core.data.batches import columns, to_device
from muse_core.evaluation.cross_entropy import cross_entropy, scored

VOCABULARY, WIDTH = 11, 6


def batch_of(counts):
    """Two rows of eight tokens, of which ``counts`` labels count."""
    generator = torch.Generator().manual_seed(counts)
    labels = torch.randint(VOCABULARY, (2, 8), generator=generator)
    mask = torch.zeros(16, dtype=torch.bool)
    mask[torch.randperm(16, generator=generator)[:counts]] = True
    return Batch(labels, labels, mask.view(2, 8), Tokens(torch.arange(8).expand(2, -1)))


@pytest.mark.parametrize("counts", [0, 1, 5, 16])
def test_few_counted_labels_alone_are_scored(counts):
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    hidden = torch.randn(2, 8, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    sizes = []

    def logits(some):
        sizes.append(len(some))
        return some @ head.T

    model = SimpleNamespace(logits=logits, vocabulary_size=VOCABULARY)
    batch = batch_of(counts)
    there = to_device(batch, torch.device("cpu"))
    found, expected = [], []
    for answers, one in ((found, there), (expected, batch)):
        loss = cross_entropy(model, hidden, one)
        answers += [loss, *torch.autograd.grad(loss, [head, hidden])]
        answers += [cross_entropy(model, hidden, one, per_token=True), *scored(model, hidden, one)]
    torch.testing.assert_close(found, expected)
    assert sizes[0] == (counts if 0 < counts < 8 else 16)


def test_a_part_of_every_row_forgets_the_places_of_the_whole():
    there = to_device(batch_of(5), torch.device("cpu"))
    assert there.target_places is not None and columns(there, 0, 2).target_places is None
    assert there.loss_mask.flatten()[there.target_places].all() and len(there.target_places) == 5


@pytest.mark.parametrize("dtype, due", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_the_loss_is_in_single_precision_at_least(dtype, due):
    model = SimpleNamespace(logits=lambda some: some, vocabulary_size=VOCABULARY)
    hidden, batch = torch.randn(2, 8, VOCABULARY, dtype=dtype), batch_of(5)
    assert cross_entropy(model, hidden, batch).dtype == due and scored(model, hidden, batch)[0].dtype == due
