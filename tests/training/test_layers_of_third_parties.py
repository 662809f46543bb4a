"""A layer that breaks its contract is refused before training, in a sentence with the layer, its plugin and what
differs; a plugin that raises or exits ends the command with exit code 5."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from muse_core.cli.run import main
from muse_core.contracts import LayerOutput, Tokens
from muse_core.errors import PluginError
from muse_core.metrics.jsonl import read_rows
from muse_core.testing import warm
from muse_core.training.setup import Setup

Change = Callable[[LayerOutput, Tensor], Any]

WRONG: dict[str, tuple[Change, str]] = {
    "none": (lambda step, x: None, "forward returned None where"),
    "a tuple": (lambda step, x: (step.update, None), "forward returned a tuple of 2 where"),
    "a bare tensor": (lambda step, x: step.update, "forward returned a Tensor where"),
    "a number": (lambda step, x: step._replace(update=0.0), "the update is a float where a tensor is due"),
    "a row for all": (lambda step, x: step._replace(update=step.update[:1]), "the update has shape (1, 24, 32) where"),
    "one number for all": (
        lambda step, x: step._replace(update=step.update.mean().reshape(1, 1, 1)), "the update has shape (1, 1, 1)",
    ),
    "one token less": (lambda step, x: step._replace(update=step.update[:, 1:]), "the update has shape (2, 23, 32)"),
    "whole numbers": (lambda step, x: step._replace(update=step.update.long()), "the update is int64 for a stream in"),
    "wider": (lambda step, x: step._replace(update=step.update.double()), "the update is float64 for a stream in fl"),
    "narrower": (lambda step, x: step._replace(update=step.update.half()), "the update is float16 for a stream in fl"),
    "another device": (lambda step, x: step._replace(update=step.update.to("meta")), "the update is on meta and the"),
    "no gradient": (lambda step, x: step._replace(update=step.update.detach()), "the update has no gradient"),
    "a signal more": (lambda step, x: step._replace(signals={"odd": x}), "there is a signal 'odd' that is not in"),
    "signals as a list": (lambda step, x: step._replace(signals=[]), "signals is a list of 0 where a dict is due"),
    "a loss vector": (lambda step, x: step._replace(losses={"own": x.mean((0, 1))}), "the loss 'own' has shape (32,)"),
    "a loss of a float": (lambda step, x: step._replace(losses={"own": 0.5}), "the loss 'own' is a float where"),
    "a loss of whole numbers": (
        lambda step, x: step._replace(losses={"own": torch.tensor(1)}), "the loss 'own' is int64",
    ),
    "a metric of text": (lambda step, x: step._replace(metrics={"mood": "good"}), "the metric 'mood' is a str where"),
    "a metric vector": (
        lambda step, x: step._replace(metrics={"norm": x.detach().mean((0, 1))}), "the metric 'norm' has shape (32,)",
    ),
    "a metric with a gradient": (
        lambda step, x: step._replace(metrics={"norm": x.mean()}), "the metric 'norm' has a gradient",
    ),
    "a state in a list": (lambda step, x: step._replace(state=[x]), "state is a list of 1; a state is a tree of dicts"),
    "a state of numbers": (lambda step, x: step._replace(state={"count": 3}), "state.count is a int; a state is"),
    "a state by number": (lambda step, x: step._replace(state={0: x}), "state has the key 0; keys are strings"),
    "a state with a slash": (lambda step, x: step._replace(state={"a/b": x}), "state has the key 'a/b'; keys are"),
    "a complex state": (
        lambda step, x: step._replace(state={"w": torch.complex(x, x)}), "state.w is complex; store a trailing axis",
    ),
    "a half state": (lambda step, x: step._replace(state={"w": x.half()}), "state.w is float16; a state is at least"),
}
"""Title → what becomes of a right output, and what is said."""


class Foreign(nn.Module):
    """The layer ``inner``, its output changed."""

    def __init__(self, inner: nn.Module, change: Change):
        super().__init__()
        self.inner = inner
        self.change = change

    def forward(self, x: Tensor, state: Any, signals: Any, tokens: Tokens) -> Any:
        return self.change(self.inner(x, state, signals, tokens), x)


@pytest.fixture
def setup(table: Callable[..., Any], prepare: Callable[[Any], Setup]) -> Setup:
    return prepare(table())


def put(setup: Setup, change: Change) -> Any:
    block = setup.model.blocks[1]
    block.add_module("attention", Foreign(block.get_submodule("attention"), change))
    return setup.model.train()


@pytest.mark.parametrize("title", WRONG)
def test_a_wrong_output_names_layer_plugin_and_difference(setup: Setup, title: str) -> None:
    change, said = WRONG[title]
    model = put(setup, change)
    with pytest.raises(PluginError) as caught:
        model(setup.first_batch().inputs)
    sentence = str(caught.value)
    assert sentence.startswith("blocks.1.attention: layer 'attention' of muse-baseline 0."), sentence
    assert said in sentence and "\n" not in sentence
    assert caught.value.exit_code == 5


def test_a_right_output_passes_also_under_autocast_and_without_gradients(setup: Setup) -> None:
    model, ids = put(setup, lambda step, x: step), setup.first_batch().inputs
    model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        model(ids)
    with torch.no_grad():
        model(ids)


def test_a_missing_signal_names_its_layer(table: Callable[..., Any], prepare: Callable[[Any], Setup]) -> None:
    block = [
        {"use": "fast-weights", "heads": 2},
        {"use": "resolvent", "heads": 4, "potential": ["hermitian", "memory-feedback"]},
    ]
    setup = prepare(table(model={"width": 32, "depth": 1, "block": block}))
    inner = setup.model.blocks[0].get_submodule("fast-weights")
    ids = setup.first_batch().inputs
    for change, said in (
        (lambda step, x: step._replace(signals={}), "is missing, which a later layer reads"),
        (lambda step, x: step._replace(signals={k: v[..., :1] for k, v in step.signals.items()}), "has shape"),
    ):
        setup.model.blocks[0].add_module("fast-weights", Foreign(inner, change))
        with pytest.raises(PluginError, match=r"blocks\.0\.fast-weights: .*the signal '.*" + said):
            setup.model(ids)


LAYER = """
    import attrs
    from muse_core.component import Component
    from muse_core.hookspecs import hookimpl

    @attrs.frozen(kw_only=True)
    class Options:
        '''A layer.'''
        mode: str = "right"
        '''What it does.'''

    @hookimpl
    def muse_layers():
        yield Component("odd", options=Options, implementation="odd_layer_plugin:Odd")
"""

IMPLEMENTATION = """
    import os
    import sys
    import threading
    import time
    import torch
    from torch import nn
    from muse_core.contracts import LayerOutput
    from muse_core.model.stack import make_norm

    class Odd(nn.Module):
        def __init__(self, options, context):
            super().__init__()
            self.mode, self.calls = options.mode, 0
            self.linear = nn.Linear(context.width, context.width)
            if self.mode == "exits when built":
                sys.exit(0)
            if self.mode == "plays with the streams":
                threading.Thread(target=self.shout, daemon=True).start()

        def shout(self):
            while True:
                print("noise from a thread", flush=True)
                time.sleep(0.001)

        def forward(self, x, state, signals, tokens):
            self.calls += 1
            if self.mode == "raises" or self.mode == "raises in training" and self.calls > 24:
                raise KeyError("gain")
            if self.mode == "exits":
                sys.exit(0)
            if self.mode == "plays with the streams" and self.calls == 30:
                sys.stdout.close()
                sys.stderr.close()
                os.close(1)
            if self.mode == "misuses the core":
                make_norm("rms", "wide")
            if self.mode == "a wrong product":
                x @ x
            return LayerOutput(self.linear(x), None)
"""

RECIPE = """
    name = "tiny"
    data = {{ use = "state-of-the-union", tokenizer = "bytes" }}
    [model]
    width = 16
    depth = 1
    block = [{{ use = "odd", mode = "{mode}" }}]
    [train]
    steps = 40
    batch_size = 2
    sequence_length = 16
    device = "cpu"
    [evaluate]
    every = 1000
    tokens = 64
    final_tokens = 64
"""


@pytest.fixture
def run(install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Callable[..., Result]:
    """``muse-run`` with the third party's layer in a mode."""
    monkeypatch.setenv("MUSE_CACHE", str(cache))
    install("odd", LAYER)
    (install.site / "odd_layer_plugin.py").write_text(textwrap.dedent(IMPLEMENTATION))

    def go(mode: str) -> Result:
        recipe = tmp_path / "tiny.toml"
        recipe.write_text(textwrap.dedent(RECIPE.format(mode=mode)))
        return CliRunner().invoke(main, [str(recipe), "--run-dir", str(tmp_path / "run")])

    return go


@pytest.mark.parametrize(
    "mode, said",
    [
        ("raises", "blocks.0.odd: layer 'odd' of odd 1.0.0: KeyError: 'gain' at "),
        ("raises in training", "blocks.0.odd: layer 'odd' of odd 1.0.0: KeyError: 'gain' at "),
        ("exits", "blocks.0.odd: layer 'odd' of odd 1.0.0: SystemExit: 0 at "),
        ("exits when built", "layer 'odd' of odd 1.0.0: SystemExit: 0 at "),
        ("misuses the core", "blocks.0.odd: layer 'odd' of odd 1.0.0: "),
        ("a wrong product", "blocks.0.odd: layer 'odd' of odd 1.0.0: RuntimeError: "),
    ],
)
def test_what_a_layer_raises_is_one_sentence_and_exit_code_5(run: Callable[..., Result], mode: str, said: str) -> None:
    ended = run(mode)
    assert ended.exit_code == 5, ended.output
    last = ended.stderr.splitlines()[-1]
    assert said in last and "odd_layer_plugin.py:" in last, ended.stderr
    assert "Traceback" not in ended.output


def test_strict_shows_the_traceback_too(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSE_STRICT", "1")
    ended = run("raises")
    assert ended.exit_code == 5 and "Traceback (most recent call last)" in ended.stderr


def test_a_right_layer_of_a_third_party_trains(run: Callable[..., Result]) -> None:
    ended = run("right")
    assert ended.exit_code == 0, ended.output


def test_a_layer_that_closes_the_output_and_prints_from_a_thread_ends_nothing(
    run: Callable[..., Result], install: Any, tmp_path: Path
) -> None:
    """A10, in a process of its own, whose streams these are. The layer is named."""
    (tmp_path / "tiny.toml").write_text(textwrap.dedent(RECIPE.format(mode="plays with the streams")))
    ended = warm.run(
        [sys.executable, "-m", "muse_core.cli.run", "tiny.toml", "--run-dir", "run"], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(install.site)}, capture_output=True, text=True, timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert "odd_layer_plugin.py:" in ended.stderr and "closes a standard stream" in ended.stderr
    assert "Traceback" not in ended.stderr and "noise from a thread" in ended.stdout
    assert "Done" in ended.stdout, "what is printed after it arrives"
    rows = [row["sequence"] for row in read_rows(tmp_path / "run/metrics.jsonl")]
    assert rows == list(range(len(rows)))
    assert "noise" not in "".join(path.read_text() for path in (tmp_path / "run").glob("*.*"))
