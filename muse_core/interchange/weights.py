"""Weights of another program in a model of a recipe: a safetensors file and a table of names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from muse_core.errors import RecipeError, StorageError
from muse_core.recipe import Checked, to_toml
from muse_core.recipe.check import check_table
from muse_core.recipe.reading import read_source
from muse_core.storage.run_directory import RunDirectory
from muse_core.training.architectures import adopt
from muse_core.training.locking import lock_of
from muse_core.training.setup import set_up
from muse_core.training.train_state import kept_weights

INDEX = "model.safetensors.index.json"
KEYS = ("name", "transpose", "part")
NUMBER = "{}"
PREFIX = "model."
"""Before every name in the files of ``muse export``."""


@attrs.frozen(kw_only=True)
class Rule:
    """Where one of their tensors, or a numbered family of them, goes."""

    theirs: str
    """Their name; ``{}`` stands for a number."""
    ours: str
    transpose: bool = False
    """Their matrix is (inputs, outputs), as in GPT-2's files."""
    part: tuple[int, int] | None = None
    """(i, n): the i-th of n equal pieces along the first axis (after transposing), from 0; for fused projections."""

    def source(self, ours: str) -> str | None:
        """Their name for this one of ours; None when the rule is about others."""
        pattern = r"(\d+)".join(re.escape(piece) for piece in self.ours.split(NUMBER))
        found = re.fullmatch(pattern, ours)
        return None if found is None else _filled(self.theirs, found.groups())

    def value(self, tensor: Tensor) -> Tensor:
        """Their tensor as ours, in fp32. ValueError when it cannot be cut so."""
        value = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        if self.transpose:
            if value.ndim != 2:
                raise ValueError(f"has {value.ndim} axes, and only a matrix can be transposed")
            value = value.T
        if self.part is not None:
            index, count = self.part
            if not value.ndim or value.shape[0] % count:
                raise ValueError(f"its first axis, of shape {tuple(value.shape)}, is not {count} equal pieces")
            value = value.chunk(count)[index]
        return value.contiguous()


def read_rules(path: Path) -> tuple[Rule, ...]:
    """A TOML table ``"OURS" = "THEIRS"`` or ``"OURS" = { name = "THEIRS", transpose = true, part = [0, 3] }``, where
    ``{}`` in both stands for the same number. Raises RecipeError naming the line of what is wrong."""
    source = read_source(path)
    problems, rules = [], []
    for ours, value in source.table.items():
        where = f"{source.locate((ours,))}: {ours!r}"
        row = {"name": value} if isinstance(value, str) else value
        if not isinstance(row, Mapping) or not isinstance(row.get("name"), str):
            problems.append(f'{where}: must be their name, or a table with name = "…"')
            continue
        if odd := [key for key in row if key not in KEYS]:
            problems.append(f"{where}: has no key {odd[0]!r}; there are {', '.join(KEYS)}")
            continue
        transpose, part = row.get("transpose", False), row.get("part")
        if not isinstance(transpose, bool):
            problems.append(f"{where}: transpose must be true or false")
        elif part is not None and not _is_part(part):
            problems.append(f"{where}: part must be [i, n] with 0 ≤ i < n, the i-th of n equal pieces")
        elif ours.count(NUMBER) != row["name"].count(NUMBER):
            problems.append(f"{where}: {NUMBER} must stand equally often in both names")
        else:
            rules.append(Rule(theirs=row["name"], ours=ours, transpose=transpose, part=part and (part[0], part[1])))
    if problems:
        raise RecipeError(problems)
    return tuple(rules)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, of a directory with model.safetensors or of one with an index of several.

    Raises StorageError when there is none or one is damaged.
    """
    files = [path]
    if path.is_dir():
        index = path / INDEX
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
                raise StorageError(f"{index}: is no index of safetensors files ({error})") from error
            if odd := [name for name in names if Path(str(name)).name != name]:
                raise StorageError(f"{index}: names {odd[0]!r}, which is not a file beside it")
            files = [path / name for name in names]
        else:
            files = [path / "model.safetensors"]
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                found |= {name: opened.get_tensor(name) for name in opened.keys()}
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{file}: cannot be read as a safetensors file ({error})") from error
    return found


def matched(
    model: nn.Module, theirs: Mapping[str, Tensor], rules: tuple[Rule, ...], *, partial: bool
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights for the model by our names, and those of theirs that nothing asked for.

    A name without a rule is looked for as it is, then as ``muse export`` writes it. Raises StorageError with every
    weight that is missing (unless ``partial``), does not fit or is not finite, or that a rule names in vain.
    """
    own = model.state_dict()
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    problems: list[str] = []
    applied: set[str] = set()
    for name, value in own.items():
        exported = PREFIX + name
        plain = Rule(theirs=exported if name not in theirs and exported in theirs else name, ours=name)
        rule = next((rule for rule in rules if rule.source(name) is not None), plain)
        source = rule.source(name)
        applied.add(rule.ours)
        if source is None or source not in theirs:
            if not partial:
                problems.append(f"{name} {tuple(value.shape)}: there is no {source!r}")
            continue
        used.add(source)
        try:
            given = rule.value(theirs[source])
        except ValueError as error:
            problems.append(f"{name}: {source!r} {error}")
            continue
        if given.shape != value.shape:
            problems.append(f"{name}: {source!r} has shape {tuple(given.shape)} where {tuple(value.shape)} is due")
        elif value.is_floating_point() != given.is_floating_point():
            problems.append(f"{name}: {source!r} is {given.dtype} where {value.dtype} is due")
        elif odd := int((~torch.isfinite(given.to(value.dtype))).sum()):
            # A checkpoint with one would be written and never opened again.
            problems.append(f"{name}: {source!r} has {odd:,} of {given.numel():,} numbers that are not finite in "
                            f"{value.dtype}")
        else:
            found[name] = given.to(value.dtype)
    problems += [f"names: {rule.ours!r} is no weight of this model" for rule in rules if rule.ours not in applied]
    if problems:
        more = [f"  and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise StorageError("\n".join(["the weights do not fit the recipe's model:",
                                      *(f"  {one}" for one in problems[:20]), *more]))
    if not found:
        raise StorageError("none of the weights has a name of the recipe's model; give a table of names")
    return found, tuple(name for name in theirs if name not in used)


def import_run(
    checked: Checked, weights: Path, directory: Path, rules: tuple[Rule, ...], *, partial: bool
) -> tuple[int, int, tuple[str, ...]]:
    """Make ``directory`` a run of the recipe, which trains nothing, with these weights. Returns how many of how many
    weights were given, and those of theirs that were left.

    Raises StorageError and leaves nothing behind when something is wrong.
    """
    theirs = read_weights(weights)
    setup = set_up(checked.recipe, checked.registry)
    given, left = matched(setup.model, theirs, rules, partial=partial)
    whole: dict[str, Any] = kept_weights(setup.model) | given
    table = {key: value for key, value in checked.resolved.items() if key != "init"} | {"stages": [{"use": "evaluate"}]}
    # Read anew, so that recipe and lock have every default of what was put in, as muse-run --resume compares them.
    checked = attrs.evolve(check_table(table, checked.registry, checked.where), source=checked.source)
    resolved = to_toml(checked.resolved)
    with RunDirectory.claim(directory, resolved) as claimed:
        try:
            lock = lock_of(checked, setup)
            claimed.begin(source=to_toml(checked.source.table), recipe=resolved, lock=to_toml(lock.table),
                          tokenizer=setup.corpus.tokenizer.to_json())
            adopt(claimed, setup, 0, "import", checked.resolved, whole)
        except BaseException:
            claimed.withdraw()
            raise
    return len(given), len(whole), left


def _filled(name: str, numbers: tuple[str, ...]) -> str:
    pieces = name.split(NUMBER)
    return pieces[0] + "".join(number + piece for number, piece in zip(numbers, pieces[1:]))


def _is_part(part: Any) -> bool:
    return (
        isinstance(part, list) and len(part) == 2 and all(type(one) is int for one in part) and 0 <= part[0] < part[1]
    )
