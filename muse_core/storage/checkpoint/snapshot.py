"""Everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from muse_core.storage import canonical_json
from muse_core.storage.checkpoint.tensor_file import Fingerprint, check_tensors, fingerprint

PARTS = ("model", "optimizer", "state")
"""The parts of a snapshot that hold tensors; each is one file."""


@attrs.frozen(eq=False)
class Snapshot:
    """The state of a run at a step boundary. Tensors of any real dtype and shape, on any device."""

    step: int
    """The next step to run."""
    model: dict[str, Tensor]
    """Parameters and buffers by full name."""
    optimizer: dict[str, Tensor]
    """Moments and step counts."""
    state: dict[str, Tensor]
    """Carried state of streams, tensors of monitors and components, random states."""
    json: dict[str, Any]
    """The rest: cursors, schedule, statistics. Values that JSON gives back unchanged."""

    def check(self) -> None:
        """Raises ValueError, naming the value, for what a checkpoint cannot hold unchanged."""
        if self.step < 0:
            raise ValueError(f"step {self.step} is negative")
        for part in PARTS:
            check_tensors(getattr(self, part), part)
        canonical_json.encode(self.json)

    def nonfinite(self, parts: tuple[str, ...] = PARTS) -> str:
        """Part and name of the first tensor that holds a NaN or an infinity, or nothing."""
        for part in parts:
            for name, value in getattr(self, part).items():
                if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                    return f"{part}: {name}"
        return ""

    def state_hash(self) -> str:
        """Identifies this state to the last bit: equal hashes, equal runs from here on."""
        tensors = {part: {name: fingerprint(t) for name, t in getattr(self, part).items()} for part in PARTS}
        return state_hash(self.step, self.json, tensors)


def state_hash(step: int, json: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Fingerprint]]) -> str:
    """``Snapshot.state_hash`` from fingerprints taken before."""
    listed = {
        part: {name: [one.dtype, list(one.shape), one.sha256] for name, one in named.items()}
        for part, named in tensors.items()
    }
    return hashlib.sha256(canonical_json.encode({"step": step, "json": dict(json), "tensors": listed})).hexdigest()
