"""Promise S2: whatever is done to a recipe, checking it ends in a recipe or in sentences with their places.

A process of its own without torch, so that its peak of memory is that of checking recipes.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import random
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from muse_core.errors import RecipeError
from muse_core.plugins import Registry, load_plugins
from muse_core.recipe import check_table, read_recipe

SECONDS, MEBIBYTES = 2.0, 256
"""Processor time of one recipe, and memory of the process."""

GOOD = """\
format = 1
name = "fuzz"
seed = 7
deterministic = false
data = { use = "files", paths = ["a.txt"], tokenizer = { use = "bpe", vocabulary = 400 } }

[model]
width = 64
depth = 4
dropout = 0.1

[[model.block]]
use = "attention"
heads = 4
at = "::2"

[[model.block]]
use = "fast-weights"
rule = "delta"
heads = 4
period = 32
filters = ["snr"]

[[model.block]]
use = "feed-forward"

[train]
steps = 10
sequence_length = 128
learning_rate = 3e-3
optimizer = { use = "muon", momentum = 0.9 }

[[monitors]]
use = "gradient-safety"
policy = "skip"

[[initializers]]
use = "zeta"
match = "embedding.weight"
"""

PIECES = (
    "=", "[", "]", "[[", "{", "}", '"', "'", '\"\"\"', ".", ",", "#", "\n", "\\", "\x00", "é", "\u202e", "1e999", "-1",
    "nan", "true", "9" * 30, "use", "model", "[model]", "block = 3\n", "use = 4\n", "2024-01-01", "0x",
    "a.b.c.d.e.f.g.h.i", "[" * 20, "extends = 'x.toml'\n", "format = 2\n", "'@'", '"stack"', '"snr@nobody"', "\t",
)
VALUES = (
    None, True, 0, -1, 1, 2**63, -(10**400), 0.5, float("nan"), float("inf"), "", "snr", "\x00", "a" * 5000, [], [[]],
    {}, [None], {"use": None}, {"use": "snr", "a": {}}, [{"use": "fast-weights"}], {"": ""}, {1: 2}, object(), b"x",
)


@attrs.define
class Findings:
    """Result of an experiment."""

    recipes: int = 0
    refused: int = 0
    slowest: float = 0.0
    """Seconds of processor time that the slowest recipe took."""
    problems: list[str] = attrs.field(factory=list)


def damaged(text: str, chance: random.Random) -> str:
    """The text after one to four changes of its characters, words or lines."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text))
        lines = text.split("\n")
        match chance.randrange(7):
            case 0:
                text = text[:at] + chance.choice(PIECES) + text[at:]
            case 1:
                text = text[:at] + text[at + chance.randint(1, 9) :]
            case 2:
                line = chance.choice(lines)
                text = text.replace(line, "", 1) if line else text
            case 3:
                lines.insert(chance.randrange(len(lines)), chance.choice(lines))
                text = "\n".join(lines)
            case 4:
                chance.shuffle(lines)
                text = "\n".join(lines)
            case 5:
                words = [word for word in text.split() if word not in "=,[]{}"]
                text = text.replace(chance.choice(words), chance.choice([*PIECES, *words]), 1) if words else text
            case 6:
                text = text[:at] + chr(chance.randrange(0x250)) + text[at + 1 :]
        text = text or "#"
    return text


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Key paths of everything in a table."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in items:
        yield (*path, step)
        yield from places(item, (*path, step))


def replaced(chance: random.Random) -> dict[str, Any]:
    """The good recipe as a table with one value exchanged."""
    table = copy.deepcopy(tomllib.loads(GOOD))
    path = chance.choice(list(places(table)))
    holder: Any = table
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = chance.choice(VALUES)
    return table


def experiment(count: int, seed: int, registry: Registry, only: int | None = None) -> Findings:
    """Checks ``count`` damaged recipes, four of five as files; ``only`` looks at one again."""
    found = Findings()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for number in range(count) if only is None else [only]:
            chance = random.Random(f"{seed}/{number}")
            where = "x.toml"
            began = time.process_time()
            try:
                if number % 5:
                    Path(where).write_text(damaged(GOOD, chance), encoding="utf-8")
                    checked = read_recipe(where, registry=registry)
                else:
                    where = "<table>"
                    checked = check_table(replaced(chance), registry)
                again = check_table(checked.resolved, registry)
                if again.recipe != checked.recipe:
                    found.problems.append(f"recipe {number}: checked again, the resolved recipe is another one")
            except RecipeError as error:
                found.refused += 1
                if not error.problems or any(not line.startswith(where) or not line.isprintable()
                                             for line in error.problems):
                    found.problems.append(f"recipe {number}: a problem without its place: {error.problems}")
            except Exception:
                found.problems.append(f"recipe {number}: {traceback.format_exc(limit=-2)}")
            seconds = time.process_time() - began
            found.slowest = max(found.slowest, seconds)
            if seconds > SECONDS:
                found.problems.append(f"recipe {number}: {seconds:.1f} s of processor time")
            found.recipes += 1
    return found


def peak_mebibytes() -> float:
    """Largest resident memory of this program so far. ``getrusage`` would count that of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--only", type=int, help="look at this recipe alone")
    chosen = parser.parse_args(arguments)
    registry = load_plugins()
    check_table(tomllib.loads(GOOD), registry)
    found = experiment(chosen.recipes, chosen.seed, registry, chosen.only)
    memory = peak_mebibytes()
    if memory > MEBIBYTES:
        found.problems.append(f"the process took {memory:.0f} MiB")
    if "torch" in sys.modules:
        found.problems.append("checking a recipe imported torch")
    print(
        f"seed {chosen.seed}: {found.recipes} recipes, {found.refused} refused, slowest {found.slowest:.3f} s of "
        f"processor time, {memory:.0f} MiB, {len(found.problems)} problems"
    )
    for problem in found.problems[:20]:
        print(problem)
    return 1 if found.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
