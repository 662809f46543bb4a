"""The routing monitor: one warning for a collapse, agreement between probes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from muse_core.contracts import Action, Routing
from muse_core.testing import build_component


def monitor(**options: Any) -> Any:
    return build_component("safety monitor", "routing", {"decay": 0.5} | options)


def loads(*shares: float) -> dict[str, float]:
    return {"loss": 1.0} | {f"blocks.1.experts/load_{index}": share for index, share in enumerate(shares)}


def test_a_collapse_is_said_once_and_again_after_recovery() -> None:
    board, heard = monitor(), []
    for step in range(40):
        dead = 5 <= step < 15 or step >= 25
        verdict = board.judge(step, loads(0.5, 0.5, 0.0) if dead else loads(0.3, 0.4, 0.3))
        assert verdict.action is Action.CONTINUE
        if verdict.reason:
            heard.append(step)
            assert "blocks.1.experts/load_2" in verdict.reason and "33.33%" in verdict.reason
    assert len(heard) == 2 and 5 < heard[0] < 15 and heard[1] > 25


def test_balanced_experts_and_models_without_any_say_nothing() -> None:
    board = monitor()
    assert not any(board.judge(step, loads(0.2, 0.5, 0.3)).reason for step in range(10))
    assert not board.judge(10, {"loss": 1.0, "entropy": 0.0}).reason


class Model(nn.Module):
    """Chooses the expert that the token's id names, after ``shift``."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Chooser()

    def forward(self, ids: torch.Tensor) -> None:
        self.router(ids)


class Chooser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, ids: torch.Tensor) -> Routing:
        expert = ((ids + (ids % 2 == 0) * int(self.shift)) % 4)[..., None]
        return Routing(expert, torch.ones(expert.shape), torch.zeros(*ids.shape, 4))


def test_agreement_is_the_share_of_choices_that_stayed() -> None:
    board, model = monitor(every=10, tokens=130), Model()
    assert board.wants_probe(20, {}) and not board.wants_probe(21, {})
    assert board.probe(model) == {}, "nothing to compare with"
    assert board.probe(model) == {"agreement/router": 1.0, "agreement": 1.0}
    with torch.no_grad():
        model.router.shift.fill_(1)
    ids = torch.from_numpy(board.context.validation()[:192].astype("int64"))
    assert board.probe(model)["agreement"] == (ids % 2 == 1).double().mean().item()
    other = monitor(every=10, tokens=130)
    other.load_state_dict(board.state_dict())
    assert other.probe(model)["agreement"] == 1.0
