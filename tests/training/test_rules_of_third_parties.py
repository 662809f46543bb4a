"""Optimizers and schedules of plugins: stopped and resumed a run ends in the same bits, and what is wrong is named."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from muse_core import fault_injection
from muse_core.component import Component
from muse_core.errors import PluginError
from muse_core.storage.checkpoint import Checkpoints
from muse_core.testing.loose import registry_with
from muse_core.training.stop import Interrupted

HERE = __name__


@attrs.frozen(kw_only=True)
class Decay:
    """One decay."""

    decay: float = 0.9
    """Of the running mean."""


class Momentum:
    """The sign of a running mean, with a count of its own and a whole number beside it."""

    def __init__(self, options: Decay, context: Any):
        self.options, self.context = options, context

    def build(self, parameters: Any) -> list[torch.optim.Optimizer]:
        rate = self.context.learning_rate
        return [Signs([one.tensor for one in parameters.values()], {"lr": rate, "decay": self.options.decay})]

    def kept(self, optimizer: Any, parameter: Any) -> dict[str, torch.Tensor]:
        return {"mean": parameter, "count": torch.zeros((), dtype=torch.int64)}


class Signs(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= {"mean": torch.zeros_like(parameter), "count": torch.zeros((), dtype=torch.int64)}
                state["count"] += 1
                state["mean"].lerp_(parameter.grad, 1 - group["decay"])
                parameter.add_(state["mean"].sign(), alpha=-group["lr"] / int(state["count"]))


class Wave:
    """Warm-up, then a slow wave."""

    def __init__(self, options: Decay, context: Any):
        self.context = context

    def factor(self, updates: int) -> float:
        return self.context.warming(updates) or 1 - 0.05 * (updates % 7)


class Fails(Momentum):
    def build(self, parameters: Any) -> list[torch.optim.Optimizer]:
        class Broken(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:
                raise KeyError("velocity")

        return [Broken([one.tensor for one in parameters.values()], lr=0.1)]


class Forgets(Momentum):
    def kept(self, optimizer: Any, parameter: Any) -> dict[str, torch.Tensor]:
        return {"mean": parameter}


class NoOptimizer(Momentum):
    def build(self, parameters: Any) -> Any:
        return [object()]


class NoBuild:
    def __init__(self, options: Decay, context: Any):
        pass

    def kept(self, optimizer: Any, parameter: Any) -> dict[str, torch.Tensor]:
        return {}


@pytest.fixture
def registry() -> Any:
    made = [("optimizer", one) for one in (Momentum, Fails, Forgets, NoOptimizer, NoBuild)] + [("schedule", Wave)]
    return registry_with(*(
        (kind, Component(one.__name__.lower(), options=Decay, implementation=f"{HERE}:{one.__name__}"))
        for kind, one in made
    ))


@pytest.mark.parametrize("train", [
    {"optimizer": {"use": "momentum", "decay": 0.8}, "schedule": "wave"}, {"optimizer": "muon", "schedule": "wsd"},
], ids=["third-party", "core"])
def test_stopped_and_resumed_it_ends_in_the_same_bits(
    train: dict[str, Any], table: Callable[..., dict[str, Any]], go: Callable[..., Any], losses: Any, tmp_path: Path
) -> None:
    recipe = table(train=train | {"learning_rate": 1e-3})
    go(recipe, "whole")
    calls = iter(range(100))

    def stop_after_four(model: Any) -> Any:
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return model

    with fault_injection.installed({"post_step": stop_after_four}), pytest.raises(Interrupted):
        go(recipe, "pieces")
    assert Checkpoints(tmp_path / "pieces").generations()[0].step == 4
    go(recipe, "pieces")
    whole, pieces = (Checkpoints(tmp_path / name).generations()[0] for name in ("whole", "pieces"))
    assert (whole.step, whole.state_hash) == (pieces.step, pieces.state_hash) and whole.step == 8
    assert losses("whole") == losses("pieces")


@pytest.mark.parametrize(("name", "said"), [
    ("fails", "optimizer 'fails' of loose 0 raised when updating the weights: KeyError: 'velocity' at .*py:\\d+"),
    ("forgets", r"optimizer 'forgets' of loose 0 does not keep the contract: it keeps \['count', 'mean'\] for "
                r"[\w.]+ where kept\(\) says \['mean'\]"),
    ("nooptimizer", r"does not keep the contract: build gave a object, not a torch\.optim\.Optimizer"),
    ("nobuild", r"train\.optimizer: optimizer 'nobuild' of loose 0 does not keep the contract: NoBuild has no method "
                r"build\(parameters\)"),
])
def test_what_departs_from_the_contract_is_named_at_the_first_step(
    name: str, said: str, table: Callable[..., dict[str, Any]], go: Callable[..., Any]
) -> None:
    with pytest.raises(PluginError, match=said):
        go(table(train={"optimizer": name, "steps": 2}))
