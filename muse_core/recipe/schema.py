"""What a recipe holds: attrs classes whose fields are the keys, defaults the defaults, docstrings the help.

Imports no torch. ``UseSource`` and its like mark a component; a component field marked ``inline`` takes every key of
its table that the class does not name itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import attrs
from attrs import field, validators

from muse_core.component import (
    RecipePath,
    UseInitializer,
    UseKernelBackend,
    UseModel,
    UseMonitor,
    UseOptimizer,
    UseSchedule,
    UseSink,
    UseSource,
    UseStage,
    UseTokenizer,
)
from muse_core.options.renames import RENAMES

POSITIVE = validators.ge(1)
FRACTION = validators.and_(validators.ge(0.0), validators.le(1.0))

INLINE = {"inline": True}
"""Field metadata: the component's ``use`` and options stand in this very table."""


@attrs.frozen(kw_only=True)
class Data:
    """Text, its tokens and their order. Other keys of this table are the source's options."""

    source: UseSource = field(default="state-of-the-union", metadata=INLINE)
    """Where the text comes from."""
    tokenizer: UseTokenizer = "bytes"
    """How text becomes tokens. With ``init.from`` the default is that run's: ``{ from = RUN }``."""
    order: Literal["permuted", "streams"] = "permuted"
    """permuted: windows in an order that is a function of seed, epoch and index. streams: every row of a batch reads
    on where it stopped, its state carried along."""
    reset_at_documents: bool = True
    """Layers start afresh where a document starts; otherwise a window is one text."""
    validation: float = field(default=0.05, validator=[validators.gt(0.0), validators.lt(0.5)])
    """Share of the documents held out for validation."""
    test: float = field(default=0.05, validator=[validators.gt(0.0), validators.lt(0.5)])
    """Share of the documents held out for the final test."""
    split_seed: int = field(default=0, validator=validators.ge(0))
    """Seed of the division into splits. Apart from ``seed``, so that runs with several seeds hold the same text out."""
    near_duplicates: Literal["together", "apart"] = "together"
    """together: documents that share a tenth of their strings of 64 bytes stay in one split, so that held-out text is
    not read in training. apart: documents are divided one by one."""
    cache: RecipePath | None = None
    """Folder of encoded corpora, relative to the recipe. Default: ``muse`` under the user's cache folder, or
    MUSE_CACHE."""


MOST_PROCESSES = 65_536


DEVICE = r"auto|(cpu|cuda)(:[0-9]{1,3})?"
"""Which of them there is, the machine that trains says."""
CLIP_HINT = "to clip nothing, write a large number, as 1e9"


@attrs.frozen(kw_only=True)
class Train:
    """The loop."""

    steps: int = field(default=600, validator=POSITIVE)
    """Planned optimiser steps."""
    schedule_steps: int | None = field(default=None, validator=validators.optional(POSITIVE))
    """Steps that the schedule of the learning rate spans; later ones have the rate of its last. Default: all."""
    batch_size: int = field(default=8, validator=POSITIVE)
    """Sequences per optimiser step, over all ranks."""
    micro_batch: int | None = field(default=None, validator=validators.optional(POSITIVE))
    """Sequences per forward pass on one rank; gradients accumulate. Default: all at once."""
    sequence_length: int = field(default=256, validator=POSITIVE)
    """Tokens per sequence."""
    optimizer: UseOptimizer = "adamw"
    """Update rule."""
    learning_rate: float = field(default=3e-3, validator=validators.gt(0.0))
    """Peak learning rate."""
    schedule: UseSchedule = "cosine"
    """The learning rate over the steps, as shares of the peak."""
    warmup_steps: int = field(default=50, validator=validators.ge(0))
    """Steps of linear warm-up."""
    final_rate: float = field(default=0.1, validator=FRACTION)
    """Learning rate at the last step as a share of the peak; the schedule leads there."""
    weight_decay: float = field(default=0.1, validator=validators.ge(0.0))
    """Decoupled decay of matrices and embeddings; vectors and dynamics have none."""
    clip_norm: float = field(default=1.0, validator=validators.gt(0.0), metadata={"hint": CLIP_HINT})
    """Largest global gradient norm, computed in float64. It cannot be turned off: a large number, as 1e9, clips
    nothing."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast: bf16 where the processor computes in it, otherwise fp32. Parameters stay fp32."""
    compile: bool | Literal["blocks"] = False
    """Use torch.compile: for the whole model as one graph (true), or for each kind of block of a model by itself
    ("blocks"), which takes a fraction of the time that one graph of many blocks takes to compile."""
    check_compiled: bool = True
    """Before the first step compare gradients of compiled code with the plain model's, and end the run where they
    differ by more than rounding does."""
    cuda_graph: bool = False
    """Record the forward and backward pass of a step as a CUDA graph and launch it as one: the same numbers to the last
    bit (to rounding with ``compile``), without the time of the processor between a thousand small kernels. On GPUs,
    of one process or several whose weights are whole; for next-token training and a model in which no value of a tensor
    decides what is computed."""
    activation_checkpointing: bool = False
    """Recompute activations of each block in the backward pass to save memory."""
    max_seconds: float | None = field(default=None, validator=validators.optional(validators.gt(0.0)))
    """Ends an attempt early after this much wall clock, and the run is reported as it then is; ``--resume`` goes on,
    with as much time again. Never alters the schedule."""
    log_every: int = field(default=10, validator=POSITIVE)
    """Steps between rows of telemetry."""
    device: str = field(default="auto", validator=validators.matches_re(DEVICE))
    """auto, cpu, cuda or cuda:<index>."""

    def problems(self, recipe: Recipe) -> Iterator[str]:
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            yield f"micro_batch {self.micro_batch} exceeds batch_size {self.batch_size}; lower it or leave it out"


@attrs.frozen(kw_only=True)
class Parallel:
    """How a run of several processes divides the work: data × shard × context processes. One "auto" takes those that
    the others leave; several are refused where processes are left."""

    data: int | Literal["auto"] = "auto"
    """Groups of processes that each hold the whole model and read their rows of every batch."""
    shard: int | Literal["auto"] = 1
    """Processes of a group among which weights, gradients and moments are divided (FSDP); each reads its own rows."""
    context: int | Literal["auto"] = 1
    """Processes among which the tokens of every row are divided."""

    def problems(self, recipe: Recipe) -> Iterator[str]:
        for key in ("data", "shard", "context"):
            size = getattr(self, key)
            if size != "auto" and not 1 <= size <= MOST_PROCESSES:
                yield f"{key} = {size} must be from 1 to {MOST_PROCESSES:,}, or \"auto\""


@attrs.frozen(kw_only=True)
class Evaluate:
    """Held-out measures."""

    every: int = field(default=100, validator=POSITIVE)
    """Steps between evaluations on validation text."""
    tokens: int = field(default=32_768, validator=POSITIVE)
    """Validation tokens read by each of them, the same ones each time."""
    final_tokens: int = field(default=262_144, validator=POSITIVE)
    """Held-out tokens read at the end."""
    split: Literal["validation", "test"] = "validation"
    """Text of the final evaluation. Leave test alone until nothing will be tuned any more."""
    halt_above: Literal["never", "uniform", "unigram", "bigram"] = "never"
    """Ends the run with exit code 4 when the held-out loss at the end is not below that of a simple predictor: every
    token alike, or counts of single training tokens or of pairs. In a task each means its chance level."""
    halt_from: int | None = field(default=None, validator=validators.optional(POSITIVE))
    """Step from which evaluations in training halt by ``halt_above`` too. Default: only the final one does."""
    lengths: tuple[int, ...] = field(default=(1,), validator=validators.min_len(1))
    """Context lengths of the final evaluation in multiples of the training length; the same text at each."""

    def problems(self, recipe: Recipe) -> Iterator[str]:
        longest = max(self.lengths)
        if min(self.lengths) < 1 or any(longest % length for length in self.lengths):
            yield f"lengths {list(self.lengths)} must be positive divisors of the longest, {longest}, to read one text"
        if self.halt_from is not None and self.halt_above == "never":
            yield "halt_from has no effect without halt_above; say which loss must be reached, or leave it out"


@attrs.frozen(kw_only=True)
class Checkpoint:
    """Checkpoints in generations."""

    every: int = field(default=200, validator=POSITIVE)
    """Steps between checkpoints; one more is made at the end and when interrupted."""
    keep: int = field(default=5, validator=POSITIVE)
    """Generations kept; the two newest certified ones stay besides."""
    background: bool = False
    """Train on while a checkpoint is written: a step waits for the copy of the state alone, and for the checkpoint
    before it. A failure ends the run at the next checkpoint. Needs the memory of one copy on the host."""
    quota: int | None = field(default=None, validator=validators.optional(POSITIVE))
    """Bytes that all generations of a run may take together. Default: what the disk has."""


@attrs.frozen(kw_only=True)
class Telemetry:
    """Where the numbers of a run go besides metrics.jsonl."""

    tensorboard: bool = False
    """Write them for TensorBoard too, into the folder tensorboard of the run; needs muse-core[tensorboard]. The same as
    ``sinks = ["tensorboard"]``."""
    sinks: tuple[UseSink, ...] = ()
    """Where else they go, in this order. A sink that fails is said and recorded, and the run goes on without it."""


@attrs.frozen(kw_only=True)
class Kernels:
    """Which kernel backends may serve the layers."""

    backend: Literal["auto"] | tuple[UseKernelBackend, ...] = "auto"
    """auto: of all installed backends the highest-ranked that does not refuse. A name or a list: those, in that
    order."""
    chunk: int = field(default=64, validator=[validators.ge(1), validators.le(4096)])
    """Tokens that kernels of fast weights compute together. Changes speed and rounding, never the model; ``muse gates``
    measures which is fastest."""

    def problems(self, recipe: Recipe) -> Iterator[str]:
        if not self.backend:
            yield 'backend = [] names no kernel backend; write "auto" or name at least one'


@attrs.frozen(kw_only=True)
class Init:
    """Starting weights."""

    from_: RecipePath | None = field(default=None, metadata={"key": "from"})
    """Run directory, relative to the recipe, whose newest checkpoint gives the weights that fit by name and shape; the
    others start as this recipe says, and a table tells which is which."""
    rename: tuple[str, ...] = field(default=(), validator=RENAMES)
    """Parts of parameter names that changed since that run, as ``"OLD=NEW"``."""
    fresh: tuple[str, ...] = ()
    """Patterns of full names, as ``embedding.*``, of weights that start as this recipe says although that run has them.
    With another tokenizer than that run's every embedding must be among them."""


@attrs.frozen(kw_only=True)
class Matched:
    """An initializer for the parameters whose names match. Other keys of this table are its options."""

    initializer: UseInitializer = field(metadata=INLINE)
    """Which initializer."""
    match: str
    """Pattern of full parameter names, as ``blocks.*.resolvent.output.weight``; the last that matches wins."""


@attrs.frozen(kw_only=True)
class Plugins:
    """Which installed distributions may be loaded."""

    allow: tuple[str, ...] | None = None
    """Only these distributions besides muse-core. Default: all."""
    deny: tuple[str, ...] = ()
    """Never these."""


@attrs.frozen(kw_only=True)
class Recipe:
    """One TOML file that says everything a run does."""

    format: Literal[1, 2] = 2
    """Version of the recipe format; recipes of 1 are read with today's names."""
    name: str = field(validator=validators.matches_re(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"))
    """Name of the run directory and in reports."""
    seed: int = field(default=0, validator=[validators.ge(0), validators.lt(2**31)])
    """One seed for weights, data order and everything random."""
    deterministic: bool = False
    """Refuse operations without a deterministic implementation."""
    data: Data = field(factory=dict)
    model: UseModel = "stack"
    """The model; ``use`` defaults to the stack of residual layers."""
    train: Train = field(factory=dict)
    parallel: Parallel = field(factory=dict)
    evaluate: Evaluate = field(factory=dict)
    checkpoint: Checkpoint = field(factory=dict)
    telemetry: Telemetry = field(factory=dict)
    kernels: Kernels = field(factory=dict)
    monitors: tuple[UseMonitor, ...] = ()
    """Judges of the loop, in the order of the records."""
    stages: tuple[UseStage, ...] = ("train",)
    """What the run does, in order."""
    initializers: tuple[Matched, ...] = ()
    """Initial values by parameter name."""
    init: Init = field(factory=dict)
    plugins: Plugins = field(factory=dict)
