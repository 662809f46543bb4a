"""Gradients that several processes sum, without the processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, distributed, nn

from muse_core.training import forward
from muse_core.training.forward import SummedForward
from muse_core.training.objectives import NextToken


@pytest.mark.parametrize("bucket", [forward.BUCKET, 1], ids=["one", "several"])
def test_summed_gradients_lie_in_memory_as_their_parameters_do(monkeypatch: pytest.MonkeyPatch, bucket: int) -> None:
    """By columns too: a fused update pairs the two as they lie, and would move a matrix by another one's gradient."""
    monkeypatch.setattr(distributed, "all_reduce", lambda total: total.mul_(2))
    monkeypatch.setattr(forward, "BUCKET", bucket)
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.arange(6.0).view(3, 2).t())
    model.complex = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    loss = (model(torch.tensor([1.0, 2.0, 4.0])) * torch.tensor([1.0, 3.0])).sum()
    (loss + (model.complex * 2j).imag.sum()).backward()
    due = {name: 2 * one.grad for name, one in model.named_parameters()}
    ranks = SimpleNamespace(size=2, agree=lambda *told: None)
    SummedForward(model, NextToken(), ranks, dict(model.named_parameters())).sum_gradients()
    for name, parameter in model.named_parameters():
        found: Tensor = parameter.grad
        assert torch.equal(found, due[name])
        assert found.stride() == parameter.stride()
