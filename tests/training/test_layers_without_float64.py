"""Layers without a float64 or a CPU form declare it; the gate's exact check then runs where and in what they have, says
its tolerance and locks it. One that does not declare it is told how to."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from muse_core.cli.run import main
from muse_core.component import Component
from muse_core.contracts import LayerOutput
from muse_core.testing.layers import LayerSuite
from muse_core.testing.loose import registry_with

PLUGIN = """
    import attrs
    from muse_core.component import Component
    from muse_core.hookspecs import hookimpl

    @attrs.frozen(kw_only=True)
    class Options:
        '''A layer.'''
        leak: float = 0.0
        '''How much it sees of the next token.'''
        {declared}

    @hookimpl
    def muse_layers():
        yield Component("single", options=Options, implementation="single_layer_plugin:Single")
"""

IMPLEMENTATION = """
    import torch
    from torch import nn
    from muse_core.contracts import LayerOutput

    class Single(nn.Module):
        def __init__(self, options, context):
            super().__init__()
            self.leak = options.leak
            self.linear = nn.Linear(context.width, context.width)

        def forward(self, x, state, signals, tokens):
            if x.dtype == torch.float64:
                raise NotImplementedError("no kernel for Double")
            later = torch.cat([x[:, 1:], 0 * x[:, :1]], 1)
            return LayerOutput(self.linear(x + self.leak * later), None)
"""

RECIPE = """
    name = "tiny"
    data = {{ use = "state-of-the-union", tokenizer = "bytes" }}
    [model]
    width = 16
    depth = 1
    block = [{{ use = "single", leak = {leak} }}]
    [train]
    steps = 2
    warmup_steps = 1
    batch_size = 2
    sequence_length = 16
    device = "cpu"
    precision = "fp32"
    [evaluate]
    tokens = 64
    final_tokens = 64
"""


ON_A_GPU = """
            if not x.is_cuda:
                raise NotImplementedError("no kernel for the CPU")
"""
DEVICE_ONLY = 'device_only, widest_precision = "cuda", "float32"'


@pytest.fixture
def run(install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Callable[..., Result]:
    """``muse-run`` with a layer that cannot compute in float64; ``declared`` stands in its options class."""
    monkeypatch.setenv("MUSE_CACHE", str(cache))

    def go(declared: str = "", leak: float = 0.0, device: str = "cpu", layer: str = IMPLEMENTATION) -> Result:
        install("single", PLUGIN.format(declared=declared))
        if device != "cpu":
            layer = layer.replace("            later =", f"{ON_A_GPU[1:]}            later =")
        (install.site / "single_layer_plugin.py").write_text(textwrap.dedent(layer))
        recipe = tmp_path / "tiny.toml"
        recipe.write_text(textwrap.dedent(RECIPE.format(leak=leak)))
        given = ["--run-dir", str(tmp_path / "run"), "--set", f"train.device={device}"]
        return CliRunner().invoke(main, [str(recipe), *given])

    return go


def test_one_that_declares_it_trains_and_the_tolerance_is_said_and_locked(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    ended = run('widest_precision = "float32"')
    assert ended.exit_code == 0, ended.output
    assert "checked on cpu in float32, where changes under 0.001 go unseen" in ended.output
    lock = tomllib.loads((tmp_path / "run" / "muse.lock.toml").read_text())
    assert lock["causality_gate"] == {"device": "cpu", "precision": "float32", "tolerance": 0.001}


def test_one_that_declares_it_and_leaks_is_refused_by_name(run: Callable[..., Result]) -> None:
    ended = run('widest_precision = "float32"', leak=1.0)
    assert ended.exit_code == 4 and "causality gate: blocks.0.single lets the output" in ended.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("leak", [0.0, 1.0])
def test_one_that_runs_on_a_gpu_only_is_checked_there(run: Callable[..., Result], tmp_path: Path, leak: float) -> None:
    ended = run(DEVICE_ONLY, leak=leak, device="cuda")
    if leak:
        assert ended.exit_code == 4 and "causality gate: blocks.0.single lets the output" in ended.stderr
        return
    assert ended.exit_code == 0, ended.output
    assert "checked on cuda in float32, where changes under 0.001 go unseen" in ended.output
    lock = tomllib.loads((tmp_path / "run" / "muse.lock.toml").read_text())
    assert lock["causality_gate"] == {"device": "cuda", "precision": "float32", "tolerance": 0.001}


def test_one_that_does_not_declare_it_is_told_how(run: Callable[..., Result]) -> None:
    ended = run()
    assert ended.exit_code == 5 and "Traceback" not in ended.output
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(
        "causality gate, exact check in float64 on cpu: blocks.0.single: layer 'single' of single 1.0.0: "
        "NotImplementedError: no kernel for Double at "
    ), last
    assert "in the run's own precision the same calls work: " in last and 'widest_precision = "float32"' in last


STATEFUL = """
    import torch
    from torch import nn
    from muse_core.contracts import LayerOutput

    class Single(nn.Module):
        def __init__(self, options, context):
            super().__init__()
            self.linear = nn.Linear(context.width, context.width)

        def forward(self, x, state, signals, tokens):
            {fault}
            return LayerOutput(self.linear(x), {{"input": x[:, -1]}})
"""
FAULTS = {
    'x = x if state is None else x + 0 * state["inputs"][:, None]': ("KeyError: 'inputs'", "with carried state"),
    "x = x + state[0] if state is not None else x": ("KeyError: 0", "with carried state"),
    "x = x + 0 * torch.arange(16)[:, None] if self.training else x": ("RuntimeError: The size", "in training"),
    "x = x if tokens.resets is None else x + tokens.reset": (
        "AttributeError: 'Tokens' object has no attribute 'reset'", "with resets all False",
    ),
    "x = x if x.shape[1] > 1 else x[:, 1]": ("IndexError: index 1", "with a text in several calls"),
}
"""A fault of the code, which is none of dtype or device → what it raises, and how the layer was called."""


@pytest.mark.parametrize("fault", FAULTS)
def test_another_fault_gets_no_advice_about_precision(run: Callable[..., Result], fault: str) -> None:
    """Rows of the first batch have 16 tokens, those of the exact check 24. That batch has resets where documents start
    within rows, which raises before the check's own calls are made again."""
    said, how = FAULTS[fault]
    ended = run(layer=STATEFUL.format(fault=fault))
    assert ended.exit_code == 5 and "Traceback" not in ended.output
    last = ended.stderr.splitlines()[-1]
    assert said in last and "single_layer_plugin.py:" in last and "widest_precision" not in last, last
    if "resets" not in fault:
        assert last.startswith("causality gate: blocks.0.single: layer 'single' of single 1.0.0: "), last
        assert last.endswith(f" - it was called {how}, in the run's own precision too"), last


@pytest.mark.parametrize(
    "declared, code, said",
    [
        ('device_only = "cuda"', 2, "train.device: Options runs on cuda only, and this run is on cpu"),
        ('widest_precision = "half"', 5, "Options: widest_precision is 'half'; it is float64, float32 or bfloat16"),
    ],
)
def test_what_cannot_be_here_is_said_before_training(
    run: Callable[..., Result], declared: str, code: int, said: str
) -> None:
    ended = run(declared)
    assert ended.exit_code == code and said in ended.stderr, ended.output


@attrs.frozen(kw_only=True)
class SingleOptions:
    """A layer without float64."""

    widest_precision = "float32"


@attrs.frozen(kw_only=True)
class GpuOptions:
    """A layer for a GPU."""

    device_only = "cuda"


class Single(nn.Module):
    def __init__(self, options: Any, context: Any):
        super().__init__()
        self.linear = nn.Linear(context.width, context.width)

    def forward(self, x: Any, state: Any, signals: Any, tokens: Any) -> LayerOutput:
        assert x.dtype != torch.float64, "no kernel for Double"
        return LayerOutput(self.linear(x), None)


class TestSingle(LayerSuite):
    """Its suite runs in float32 where others run in float64."""

    name = "single-layer"

    @classmethod
    def registry(cls) -> Any:
        return registry_with(("layer", Component("single-layer", options=SingleOptions,
                                                 implementation=f"{__name__}:Single")))


def test_a_layer_for_a_gpu_is_skipped_without_one() -> None:
    class OnGpu(LayerSuite):
        name = "gpu-layer"

        @classmethod
        def registry(cls) -> Any:
            return registry_with(("layer", Component("gpu-layer", options=GpuOptions,
                                                     implementation=f"{__name__}:Single")))

    (case,) = OnGpu.cases(Path("."))
    with pytest.raises(pytest.skip.Exception, match="runs on cuda only - check it with: muse plugins check --device"):
        OnGpu().build(case)
