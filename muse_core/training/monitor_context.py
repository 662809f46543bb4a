"""What a monitor learns about the run when it is built. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np


@attrs.frozen(kw_only=True)
class MonitorContext:
    """Given to ``Monitor(options, context)``."""

    name: str
    """The name under which the monitor's numbers stand in the records: ``<name>/<number>``."""
    seed: int
    """The run's seed."""
    sequence_length: int
    """Tokens per training sequence."""
    batch_size: int
    """Sequences per optimiser step."""
    tokenizer: Any
    """``encode(text)`` gives token ids as a numpy array; ``separator`` is the id between documents."""
    validation: Callable[[], np.ndarray]
    """Token ids (tokens,) of held-out text, documents joined by the separator."""
    canary: Callable[[int], Any] = lambda sequences: ()
    """``canary(n)`` gives batches of up to n sequences of held-out text, the same at every call; no other measure reads
    that text, so what a monitor decides by it does not tune the validation loss."""
    warmup_steps: int = 0
    """Steps of the learning rate's warm-up."""
    checkpoint_every: int | None = None
    """Steps between checkpoints."""
    kernels: Any = None
    """The run's ``BoundKernels``, for monitors that test an operation as the run computes it."""
