"""Weights of one model in another, name by name, and what became of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor, nn

from muse_core.errors import StorageError
from muse_core.training.shards import divided_as

Unfit = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Name, shape there, shape here."""


@attrs.frozen(kw_only=True)
class Conversion:
    """What became of every weight, parameters and buffers alike, by full name."""

    copied: tuple[str, ...]
    initialised: tuple[str, ...]
    """Only in the new model: as its recipe initialises them."""
    unfit: tuple[Unfit, ...]
    """In both with different shapes: as the new recipe initialises them."""
    left: tuple[str, ...]
    """Only in the old model."""

    def counts(self) -> dict[str, int]:
        return {kind: len(getattr(self, kind)) for kind in ("copied", "initialised", "unfit", "left")}

    def event(self) -> dict[str, Any]:
        """For events.jsonl: counts, and the names of what was not copied."""
        unfit = [f"{name} {list(there)} to {list(here)}" for name, there, here in self.unfit]
        names = {"initialised_names": list(self.initialised), "unfit_names": unfit, "left_names": list(self.left)}
        return {"event": "weights"} | self.counts() | names

    def rows(self) -> dict[str, str]:
        """For people: names that differ in the number of their block only are one row."""
        told = {
            "copied": self.copied,
            "initialised": self.initialised,
            "did not fit": [f"{name}: {_shape(there)} there, {_shape(here)} here" for name, there, here in self.unfit],
            "left behind": self.left,
        }
        return {f"{what} ({len(names)})": "\n".join(_grouped(names)) for what, names in told.items() if names}


def carry_over(model: nn.Module, tensors: Mapping[str, Tensor]) -> Conversion:
    """Put the weights that fit by name and shape into the model; the others keep what they have.

    Raises StorageError when none fits.
    """
    copied = check_fit(model, tensors)
    own = model.state_dict()
    model.load_state_dict({name: divided_as(tensors[name], own[name]) for name in copied}, strict=False)
    return Conversion(
        copied=copied,
        initialised=tuple(name for name in own if name not in tensors),
        unfit=tuple(
            (name, tuple(tensors[name].shape), tuple(own[name].shape))
            for name in own if name in tensors and tensors[name].shape != own[name].shape
        ),
        left=tuple(name for name in tensors if name not in own),
    )


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the weights that fit by name and shape. Raises StorageError when none does."""
    own = model.state_dict()
    found = tuple(name for name in own if name in tensors and tensors[name].shape == own[name].shape)
    if not found:
        known = ", ".join(list(own)[:2])
        raise StorageError(f"none of the {len(tensors)} weights fits this model by name and shape ({known}, …)")
    return found


def renamed(tensors: Mapping[str, Tensor], renames: Sequence[str]) -> dict[str, Tensor]:
    """The same with OLD replaced by NEW, whole components of dotted names only, for each pair ``"OLD=NEW"`` in turn.

    Raises StorageError when a pair applies to no name or makes two names equal.
    """
    found = dict(tensors)
    for pair in renames:
        old, _, new = pair.partition("=")
        literal = new.replace("\\", r"\\")
        pattern = re.compile(rf"(?<![^.]){re.escape(old)}(?![^.])")
        changed = {name: pattern.sub(literal, name) for name in found}
        if all(name == other for name, other in changed.items()):
            raise StorageError(f"rename {pair!r}: no weight has {old!r} in its name")
        if len(set(changed.values())) < len(changed):
            raise StorageError(f"rename {pair!r}: two weights would have one name")
        found = {changed[name]: value for name, value in found.items()}
    return found


def _grouped(names: Iterable[str]) -> list[str]:
    groups: dict[str, int] = {}
    for name in names:
        pattern = re.sub(r"^blocks\.\d+\.", "blocks.*.", name)
        groups[pattern] = groups.get(pattern, 0) + 1
    return [pattern if count == 1 else f"{pattern} × {count}" for pattern, count in groups.items()]


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
