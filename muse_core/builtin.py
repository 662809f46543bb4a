"""The components of muse-core itself, registered like any plugin's."""

from __future__ import annotations

from collections.abc import Iterable

from muse_core.component import Component
from muse_core.data.options import BytePairOptions, BytesOptions, GPT2Options, OfRunOptions, TokenizerFileOptions
from muse_core.hookspecs import hookimpl
from muse_core.metrics.options import TensorBoardOptions
from muse_core.model.options import ScaledOptions, StackOptions
from muse_core.training.options import AdamWOptions, CosineOptions, MuonOptions, WarmupStableDecayOptions
from muse_core.training.stages import ConvertOptions, EvaluateOptions, TrainOptions


@hookimpl
def muse_models() -> Iterable[Component]:
    yield Component("stack", options=StackOptions, implementation="muse_core.model.stack:Stack")


@hookimpl
def muse_initializers() -> Iterable[Component]:
    yield Component("scaled", options=ScaledOptions, implementation="muse_core.model.initializers:Scaled")


@hookimpl
def muse_stages() -> Iterable[Component]:
    yield Component("train", options=TrainOptions, implementation="muse_core.training.objectives:Train")
    yield Component("evaluate", options=EvaluateOptions, implementation="muse_core.training.objectives:Evaluate")
    yield Component("convert", options=ConvertOptions, implementation="muse_core.training.convert:Convert")


@hookimpl
def muse_optimizers() -> Iterable[Component]:
    where = "muse_core.training.update_rules"
    yield Component("adamw", options=AdamWOptions, implementation=f"{where}:AdamW")
    yield Component("muon", options=MuonOptions, implementation=f"{where}:MuonWithAdamW")


@hookimpl
def muse_schedules() -> Iterable[Component]:
    where = "muse_core.training.schedules"
    yield Component("cosine", options=CosineOptions, implementation=f"{where}:Cosine")
    yield Component("wsd", options=WarmupStableDecayOptions, implementation=f"{where}:WarmupStableDecay")


@hookimpl
def muse_tokenizers() -> Iterable[Component]:
    where = "muse_core.data.tokenizers"
    yield Component("bytes", options=BytesOptions, implementation=f"{where}:Bytes")
    yield Component("bpe", options=BytePairOptions, implementation=f"{where}:BytePair")
    yield Component("gpt2", options=GPT2Options, implementation=f"{where}:GPT2")
    yield Component("file", options=TokenizerFileOptions, implementation=f"{where}:TokenizerFile")
    yield Component("run", options=OfRunOptions, implementation="muse_core.data.kept:OfRun")


@hookimpl
def muse_sinks() -> Iterable[Component]:
    yield Component(
        "tensorboard", options=TensorBoardOptions, implementation="muse_core.metrics.tensorboard:TensorBoard"
    )
