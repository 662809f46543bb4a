"""Small runs to do harm to: two blocks of width 32 on a page of text, some milliseconds a step."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from muse_core.building import construct
from muse_core.metrics.console import Display
from muse_core.metrics.jsonl import Records, read_rows
from muse_core.recipe import check_table, to_toml
from muse_core.selftest.reliability.disks import VolatileDisk
from muse_core.storage.run_directory import RunDirectory
from muse_core.testing.cases import installed
from muse_core.training.loop import Loop
from muse_core.training.monitors import MonitorGroup
from muse_core.training.run import Run
from muse_core.training.setup import Setup, set_up
from muse_core.training.stop import Stop

WORDS = ("union states people year congress law great peace war trade public country power treaty duty free just "
         "nation government citizen").split()


def write_text(path: Path, *, paragraphs: int = 200, seed: int = 0) -> Path:
    """A text of so many paragraphs that has something to learn: words in a fixed order of preference."""
    chance = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(WORDS))]
    lines = [" ".join(chance.choices(WORDS, weights, k=chance.randint(8, 20))) + "." for _ in range(paragraphs)]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def recipe_table(folder: Path, **tables: Any) -> dict[str, Any]:
    """A recipe on ``folder/page.txt``, which is written if it is not there; ``tables`` are merged into it."""
    page = folder / "page.txt"
    if not page.exists():
        write_text(page)
    recipe: dict[str, Any] = {
        "name": "small",
        "seed": 3,
        "data": {"use": "files", "paths": [str(page)], "documents": "paragraph", "cache": str(folder / "cache")},
        "model": {
            "width": 32,
            "depth": 2,
            "dropout": 0.1,
            "block": [{"use": "attention", "heads": 2}, {"use": "feed-forward"}],
        },
        "train": {
            "steps": 30,
            "batch_size": 4,
            "micro_batch": 2,
            "sequence_length": 24,
            "warmup_steps": 2,
            "precision": "fp32",
            "log_every": 1,
            "device": "cpu",
        },
        "evaluate": {"every": 100_000, "tokens": 240, "final_tokens": 240},
        "checkpoint": {"every": 5},
    }
    for name, value in tables.items():
        recipe[name] = recipe[name] | value if isinstance(recipe.get(name), dict) else value
    return recipe


def monitored(folder: Path) -> dict[str, Any]:
    """A recipe of 400 steps that are watched by the monitor ``rollback`` from step 100 on. Learning has slowed down at
    their end, so that damage stays: a small model at full rate heals 0.3 nats within ten steps."""
    return recipe_table(
        folder,
        train={"steps": 400, "learning_rate": 5e-3, "final_rate": 0.0, "sequence_length": 48},
        checkpoint={"every": 20},
        monitors=[{"use": "rollback", "warmup_steps": 100, "window": 64, "every": 20, "sequences": 12}],
    )


class StopAfter(Stop):
    """Asks to stop after a number of steps of this attempt; a step done again after a rollback counts again."""

    def __init__(self, steps: int):
        super().__init__(None)
        self.left = steps

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left <= 0


@contextlib.contextmanager
def opened(folder: Path, recipe: Mapping[str, Any]) -> Iterator[tuple[Run, Setup, io.StringIO]]:
    """A run in ``folder``, new or gone on with, built afresh as a new process would, and what it says."""
    torch.set_num_threads(1)
    checked = check_table(recipe, installed())
    setup = set_up(checked.recipe, checked.registry)
    text = to_toml(checked.resolved)
    disk = VolatileDisk()  # what power failures do is the business of C1 to C3
    if (folder / "recipe.toml").exists():
        directory = RunDirectory.open(folder, disk=disk)
    else:
        directory = RunDirectory.create(folder, source=text, recipe=text, lock="", disk=disk)
    said = io.StringIO()
    with directory:
        records = Records(folder, disk)
        try:
            yield Run(setup, directory, records, Display(Console(file=said, width=400))), setup, said
        finally:
            records.close()


@contextlib.contextmanager
def loop_of(
    folder: Path, recipe: Mapping[str, Any], stop: Stop | None = None, monitors: MonitorGroup | None = None
) -> Iterator[Loop]:
    """The training loop of a run, put where it stands; without gate and final evaluation. ``monitors``: monitors in
    place of the recipe's."""
    with opened(folder, recipe) as (run, setup, _):
        use = setup.recipe.stages[0]
        stage = construct(use, setup)
        objective = stage.objective(setup.model, setup.training_data)
        loop = run.loop(0, use, stage, objective, stop or Stop(None))
        loop.checkpoints.checkpoints.disk = VolatileDisk()
        if monitors is not None:
            loop.state.monitors = monitors
        loop.checkpoints.resume()
        yield loop


def train(folder: Path, recipe: Mapping[str, Any], steps: int | None = None) -> None:
    """Train a run to its end, or for so many steps."""
    with loop_of(folder, recipe, None if steps is None else StopAfter(steps)) as loop:
        loop.run()


def losses(folder: Path) -> dict[int, float]:
    """Step → training loss; of repeated steps the last counts."""
    return {row["step"]: row["loss"] for row in read_rows(folder / "metrics.jsonl") if row["event"] == "train"}


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The events of a kind."""
    return [row for row in read_rows(folder / "events.jsonl") if row["event"] == kind]


def state_hash(loop: Loop) -> str:
    """Of everything that the next step depends on."""
    return loop.state.snapshot().state_hash()
