"""What is scored where few labels count: they alone, with the numbers that all would give."""

from types import SimpleNamespace

import pytest
import torch

from muse_core.contracts import Batch, Tokens
from muse_core.data.batches import columns, micro_batches, rows, target_room, to_device
from muse_core.evaluation.cross_entropy import cross_entropy, per_counted, scored

VOCABULARY, WIDTH = 11, 6


def batch_of(counts):
    """Two rows of eight tokens, of which ``counts`` labels count."""
    generator = torch.Generator().manual_seed(counts)
    labels = torch.randint(VOCABULARY, (2, 8), generator=generator)
    mask = torch.zeros(16, dtype=torch.bool)
    mask[torch.randperm(16, generator=generator)[:counts]] = True
    return Batch(labels, labels, mask.view(2, 8), Tokens(torch.arange(8).expand(2, -1)))


@pytest.mark.parametrize("counts, places", [(0, 1), (1, 1), (3, 4), (5, 8), (8, 8), (9, 16), (16, 16)])
def test_few_counted_labels_are_scored_with_few_others(counts, places):
    """As many as the batch's halved, so that numbers of targets that are near have one shape."""
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
    assert sizes[0] == places


def test_a_part_of_every_row_forgets_the_places_of_the_whole():
    there = to_device(batch_of(5), torch.device("cpu"))
    assert there.target_places is not None and columns(there, 0, 2).target_places is None
    assert there.loss_mask.flatten()[there.target_places].sum() == 5 and len(there.target_places.unique()) == 8


def test_all_parts_of_a_step_have_room_for_the_fullest():
    mask = torch.zeros(5, 8, dtype=torch.bool)
    mask[1, :3] = mask[4, :1] = True
    labels = torch.zeros(5, 8, dtype=torch.int64)
    parts = list(micro_batches(Batch(labels, labels, mask, Tokens(torch.arange(8).expand(5, -1))), 2))
    room = target_room(parts)
    there = [to_device(part, torch.device("cpu"), room).target_places for part in parts]
    assert room == 4 and [len(one) for one in there] == [4, 4, 4]
    mask[2, :6], mask[3, :7] = True, True
    parts = list(micro_batches(Batch(labels, labels, mask, Tokens(torch.arange(8).expand(5, -1))), 2))
    assert [to_device(part, torch.device("cpu"), target_room(parts)).target_places for part in parts] == [None] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_own_losses_are_scaled_alike_before_and_after_a_move(dtype):
    """The share is a number on the host and a tensor on the device; a part of the batch has the whole one's."""
    batch = next(micro_batches(batch_of(5), 1))
    there = to_device(batch, torch.device("cpu"))
    assert isinstance(there.targets_per_token, torch.Tensor) and rows(there, 0, 1).targets_per_token == 5 / 16
    losses = {"own": torch.tensor(1 / 3, dtype=dtype)}
    found, expected = per_counted(losses, there)["own"], per_counted(losses, batch)["own"]
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.to(dtype), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype, due", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_the_loss_is_in_single_precision_at_least(dtype, due):
    model = SimpleNamespace(logits=lambda some: some, vocabulary_size=VOCABULARY)
    hidden, batch = torch.randn(2, 8, VOCABULARY, dtype=dtype), batch_of(5)
    assert cross_entropy(model, hidden, batch).dtype == due and scored(model, hidden, batch)[0].dtype == due
