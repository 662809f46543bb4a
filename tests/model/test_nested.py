"""Components nested in a layer: they get their own measures back, and what they draw moves nothing of their host."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

from muse_core.building import build_model
from muse_core.component import Component, UseFilter
from muse_core.contracts import LayerOutput, Routing
from muse_core.model.stack import has_statistics, update_statistics, within
from muse_core.recipe import check_table
from muse_core.testing import build_component, registry_with


@attrs.frozen(kw_only=True)
class MeanOptions:
    """Measures the mean weight."""

    factor: float = 1.0
    """Of what it measures."""


class Mean(nn.Module):
    def __init__(self, options, context):
        super().__init__()
        self.factor, self.absorbed = options.factor, []

    def forward(self, before, after, period, state):
        return after, None, {"mean": self.factor * after.detach().mean()}

    def update_statistics(self, metrics, progress):
        self.absorbed.append((metrics, progress))


class DrawingMean(Mean):
    def __init__(self, options, context):
        super().__init__(options, context)
        self.weight = nn.Parameter(torch.randn(3, generator=context.generator))


@attrs.frozen(kw_only=True)
class HostOptions:
    """Draws before and after it builds what it nests."""

    filters: tuple[UseFilter, ...] = ()
    """What it nests."""


class Host(nn.Module):
    def __init__(self, options, context):
        super().__init__()
        self.first = nn.Parameter(torch.randn(3, generator=context.generator))
        self.filters = nn.ModuleList(
            context.build(use, name=f"{context.name}.filters.{place}", heads=1, period=8)
            for place, use in enumerate(options.filters)
        )
        self.second = nn.Parameter(torch.randn(3, generator=context.generator))

    def forward(self, x, state, signals, tokens):
        return LayerOutput(x, None)


@attrs.frozen(kw_only=True)
class LeavingOptions(HostOptions):
    """A host that decides who leaves."""

    destinations = 2


class Leaving(Host):
    def forward(self, x, signals, tokens):
        expert = torch.zeros(*x.shape[:2], 1, dtype=torch.long)
        return Routing(expert, torch.ones(expert.shape), torch.zeros(*x.shape[:2], 2))


@pytest.fixture(scope="module")
def registry():
    return registry_with(
        ("filter", Component("mean", options=MeanOptions, implementation=f"{__name__}:Mean")),
        ("filter", Component("drawing-mean", options=MeanOptions, implementation=f"{__name__}:DrawingMean")),
        ("layer", Component("host", options=HostOptions, implementation=f"{__name__}:Host")),
        ("router", Component("leaving", options=LeavingOptions, implementation=f"{__name__}:Leaving")),
    )


def test_each_nested_component_absorbs_its_own_measures_and_no_other(registry):
    filters = ["mean", "snr", {"use": "mean", "factor": 2.0}]
    memory = {"use": "fast-weights", "heads": 2, "period": 8, "filters": filters}
    block = [memory, memory | {"name": "slow", "period": 16}]
    table = {"name": "t", "model": {"width": 12, "depth": 2, "block": block}, "train": {"sequence_length": 64}}
    model, _ = build_model(check_table(table, registry).recipe, registry, vocabulary_size=11)
    ids = torch.randint(11, (2, 24), generator=torch.Generator().manual_seed(0))
    metrics = {name: value.item() for name, value in model(ids).metrics.items()}
    model.update_statistics(metrics, 0.25)
    for block in (0, 1):
        for layer in ("fast-weights", "slow"):
            name = f"blocks.{block}.{layer}"
            first, second = (model.get_submodule(f"{name}.filters.{one}") for one in ("mean", "mean-2"))
            assert first.absorbed == [({"mean": metrics[f"{name}/mean/mean"]}, 0.25)]
            assert second.absorbed == [({"mean": metrics[f"{name}/mean-2/mean"]}, 0.25)]
            assert first.absorbed[0][0]["mean"] not in (0.0, second.absorbed[0][0]["mean"])
            assert f"{name}/snr/signal_to_noise" in metrics and f"{name}/energy" in metrics


class Told(nn.Module):
    def update_statistics(self, metrics, progress):
        self.told = metrics


def test_absorbing_at_any_depth():
    model, layer, router, gate, last = nn.Module(), Told(), Told(), Told(), Told()
    model.layers = nn.ModuleList([layer])
    layer.router = router
    layer.filters = nn.ModuleDict({"gate": gate})
    router.inner = nn.Sequential(nn.Identity(), last)
    update_statistics(model, {
        "layers.0/energy": 1.0, "layers.0/router/load": 2.0, "layers.0/gate/open": 3.0, "layers.0.router/full": 4.0,
        "layers.0/router/1/depth": 5.0, "layers.00/energy": 6.0, "router/load": 7.0, "loss": 8.0,
    }, 0.5)
    assert gate.told == {"open": 3.0}
    assert router.told == {"load": 2.0, "full": 4.0, "1/depth": 5.0}
    assert last.told == {"depth": 5.0}
    assert layer.told == {"energy": 1.0, "router/load": 2.0, "gate/open": 3.0, "router/1/depth": 5.0}


def test_what_a_nested_component_draws_moves_nothing_of_its_host(registry):
    alone = build_component("layer", "host", registry=registry)
    nesting = build_component("layer", "host", {"filters": ["drawing-mean", "drawing-mean"]}, registry=registry)
    assert torch.equal(alone.first, nesting.first) and torch.equal(alone.second, nesting.second)
    drawn = [nesting.first, nesting.second, *(one.weight for one in nesting.filters)]
    assert len({tuple(value.tolist()) for value in drawn}) == 4


def test_exits_are_built_as_layers_are(registry):
    """Alone, nesting, and nesting beside another: the same host, and the nested one draws for itself."""
    built = []
    for filters in ([], ["drawing-mean"], ["mean", "drawing-mean"]):
        model = {"width": 12, "depth": 2, "block": ["feed-forward"], "exit": {"use": "leaving", "filters": filters}}
        checked = check_table({"name": "t", "model": model}, registry)
        built.append(build_model(checked.recipe, registry, vocabulary_size=11)[0].get_submodule("exits.0"))
    for host in built[1:]:
        assert torch.equal(host.first, built[0].first) and torch.equal(host.second, built[0].second)
        drawn = [host.first, host.second, host.filters[-1].weight]
        assert len({tuple(value.tolist()) for value in drawn}) == 3


def test_a_repeated_potential_starts_with_other_values():
    layer = build_component("layer", "resolvent", {"heads": 2, "potential": ["hermitian", "hermitian"]})
    first, second = layer.potentials["hermitian"], layer.potentials["hermitian-2"]
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert one.unique().numel() == 1 or not torch.equal(one, other)


class Delegating(nn.Module):
    """Has what its inner module has."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def test_whoever_has_statistics_is_found_as_by_hasattr():
    given = nn.Linear(1, 1)
    given.update_statistics = lambda metrics, progress: None
    left_out = nn.Module()
    left_out.register_module("none", None)
    for module in (Told(), given, Delegating(Told()), Delegating(nn.Identity()), nn.Linear(1, 1), left_out):
        assert has_statistics(module) == hasattr(module, "update_statistics"), module
        around = nn.Sequential(left_out, nn.Sequential(nn.Identity(), module))
        assert {*within(around)} == {*around.modules()} - {around}
