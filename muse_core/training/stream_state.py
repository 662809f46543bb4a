"""State carried from segment to segment when data are read as streams."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class StreamState:
    """One state per micro-batch of a step, detached. In permuted order there is none: every window starts afresh.

    A proposed state becomes the carried one only when the step is accepted or skipped without damage to it
    (``accept``); a non-finite step keeps the last good state (``reject``).
    """

    def __init__(self, streams: bool):
        self.streams = streams
        self.states: list[Any] = []
        self._proposed: list[Any] = []

    def of(self, index: int) -> Any:
        """The state that micro-batch ``index`` starts from."""
        return self.states[index] if self.streams and index < len(self.states) else None

    def propose(self, state: Any) -> None:
        if self.streams:
            self._proposed.append(pytree.tree_map_only(Tensor, torch.Tensor.detach, state))

    def accept(self) -> None:
        if self._proposed:
            self.states = self._proposed
        self._proposed = []

    def reject(self) -> None:
        self._proposed = []

    def tensors(self) -> dict[str, Tensor]:
        """Leaves by path, for the checkpoint."""
        return {f"carry/{path}": leaf for path, leaf in _flatten(self.states)}

    def load(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """The inverse of ``tensors``."""
        states: dict[str, Any] = {}
        for path, leaf in tensors.items():
            parts = path.removeprefix("carry/").split("/")
            node = states
            for part in parts[:-1]:
                node = node.setdefault(part, {})
            node[parts[-1]] = leaf.to(device)
        self.states = [states[key] for key in sorted(states, key=int)] if states else []


def leaves(state: Any) -> list[tuple[str, Tensor]]:
    """Tensors of a state by path, as a checkpoint names them."""
    return _flatten(state)


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(prefix.removeprefix("/"), value)]
    if value is None:
        return []
    items = enumerate(value) if isinstance(value, list) else value.items()
    return [found for key, item in items for found in _flatten(item, f"{prefix}/{key}")]
