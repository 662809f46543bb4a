"""A tiny run: two blocks of width 32 on real text, small enough to be trained thousands of times."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from muse_core.metrics.console import Display
from muse_core.metrics.jsonl import Records, read_rows
from muse_core.plugins import load_plugins
from muse_core.recipe import check_table, to_toml
from muse_core.storage.run_directory import RunDirectory
from muse_core.training.locking import own_digests
from muse_core.training.monitors import ProbeBudget
from muse_core.training.run import Run
from muse_core.training.setup import Setup, set_up
from muse_core.training.stop import Stop

TRACERS = "aot_eager_default_partitioner"
"""A backend of torch's compiler that traces forward and backward and makes no code of them."""


@pytest.fixture(scope="session")
def registry() -> Any:
    return load_plugins()


@pytest.fixture
def compiled_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """``compiled_by(backend)``: of torch's compiler a backend, which has no options."""
    compile_with = torch.compile

    def set_backend(backend: Any) -> None:
        monkeypatch.setattr(torch, "compile", lambda function, **_: compile_with(function, backend=backend))

    return set_backend


@pytest.fixture
def table(cache: Path) -> Callable[..., dict[str, Any]]:
    """A recipe as a table; ``train`` and other tables are merged into it."""

    def make(**tables: Any) -> dict[str, Any]:
        recipe: dict[str, Any] = {
            "name": "tiny",
            "seed": 3,
            "data": {"use": "state-of-the-union", "tokenizer": "bytes", "cache": str(cache)},
            "model": {
                "width": 32,
                "depth": 2,
                "dropout": 0.1,
                "block": [{"use": "attention", "heads": 2}, {"use": "feed-forward"}],
            },
            "train": {
                "steps": 8,
                "batch_size": 4,
                "micro_batch": 2,
                "sequence_length": 24,
                "warmup_steps": 2,
                "precision": "fp32",
                "log_every": 1,
                "device": "cpu",
            },
            "evaluate": {"every": 1000, "tokens": 240, "final_tokens": 240},
            "checkpoint": {"every": 3},
        }
        for name, value in tables.items():
            recipe[name] = recipe[name] | value if isinstance(recipe.get(name), dict) else value
        return recipe

    return make


@pytest.fixture
def prepare(registry: Any) -> Callable[[dict[str, Any]], Setup]:
    """A recipe table, checked and built."""

    def make(recipe: dict[str, Any]) -> Setup:
        return set_up(check_table(recipe, registry).recipe, registry)

    return make


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def punctual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes run whenever they are due, whatever the clock of this machine says."""
    monkeypatch.setattr(ProbeBudget, "share_with_next", lambda self, passes: 0.0)


@contextlib.contextmanager
def opened(
    setup: Setup, folder: Path, recipe: dict[str, Any], display: Display | None = None
) -> Iterator[Run]:
    """A run in ``folder``, new or continued."""
    text = to_toml({"name": recipe["name"]})
    if (folder / "recipe.toml").exists():
        directory = RunDirectory.open(folder)
    else:
        digests = own_digests(setup)
        directory = RunDirectory.create(
            folder, source=text, recipe=text, lock=to_toml({"format": 1, "digests": digests, "recipe": recipe}),
            tokenizer=setup.corpus.tokenizer.to_json(),
        )
    records = Records(folder)
    try:
        with directory:
            yield Run(setup, directory, records, display or Display(Console(quiet=True)))
    finally:
        records.close()


@pytest.fixture
def go(prepare: Callable[[dict[str, Any]], Setup], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a recipe to its end in ``tmp_path / name`` and return its summary."""

    def make(recipe: dict[str, Any], name: str = "run") -> dict[str, Any]:
        with opened(prepare(recipe), tmp_path / name, recipe) as run:
            return run.go()

    return make


@pytest.fixture
def losses(tmp_path: Path) -> Callable[[str], dict[int, float]]:
    """Step → training loss of a run; of repeated steps the last counts."""

    def make(name: str = "run") -> dict[int, float]:
        rows = read_rows(tmp_path / name / "metrics.jsonl")
        return {row["step"]: row["loss"] for row in rows if row["event"] == "train"}

    return make


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """``with interrupted(5):`` runs within are asked to stop, as by a signal, when they look for the fifth time."""

    @contextlib.contextmanager
    def within(looks: int) -> Iterator[None]:
        left = [looks]

        def requested(self: Stop) -> bool:
            left[0] -= 1
            return left[0] <= 0

        with monkeypatch.context() as patch:
            patch.setattr(Stop, "requested", property(requested))
            yield

    return within


@pytest.fixture
def tangents() -> tuple[Any, list[int]]:
    """A backend of torch.compile, and how many gradients each backward graph that it was given takes."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    given: list[int] = []

    def forward(graph: Any, inputs: Any) -> Any:
        return make_boxed_func(graph)

    def backward(graph: Any, inputs: Any) -> Any:
        given.append(sum(node.op == "placeholder" and "tangent" in node.name for node in graph.graph.nodes))
        return make_boxed_func(graph)

    return aot_autograd(fw_compiler=forward, bw_compiler=backward), given
