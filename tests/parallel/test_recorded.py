"""Recorded steps of several processes: sums and gathers over NCCL inside the recording. On one GPU, by a process group
of one; what needs no GPU is in test_processes.py."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import distributed

from muse_core import fault_injection
from muse_core.errors import RecipeError
from muse_core.metrics.console import Display
from muse_core.metrics.jsonl import Records, read_rows
from muse_core.parallel.environment import Launched
from muse_core.parallel.group import Group
from muse_core.parallel.sequence import Sequence
from muse_core.parallel.sizes import Sizes
from muse_core.plugins import load_plugins
from muse_core.recipe import check_table, to_toml
from muse_core.storage.checkpoint import Checkpoints
from muse_core.storage.run_directory import RunDirectory
from muse_core.training.cuda_graph import PLAIN, RecordedPasses
from muse_core.training.forward import ReplicatedForward, SummedForward
from muse_core.training.locking import own_digests
from muse_core.training.run import Run
from muse_core.training.setup import set_up

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
MEMORY = [
    {"use": "resolvent", "heads": 4, "potential": ["non-hermitian"]},
    {"use": "fast-weights", "rule": "delta", "heads": 2},
    {"use": "feed-forward"},
]


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    """Of one process, over NCCL and gloo."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    told = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port)}
    before = dict(os.environ)
    os.environ |= told
    made = Group(Launched(rank=0, size=1, local_rank=0, local_size=1, address="localhost", port=port))
    made.join(torch.device("cuda", 0), Sizes(1, 1, 1))
    yield made
    made.close()
    os.environ.clear()
    os.environ.update(before)


class OverNccl(Run):
    """A run whose gradients are summed, or averaged by torch, over the process group: one process takes neither."""

    way: Any = SummedForward

    def loop(self, *given: Any) -> Any:
        made, setup = super().loop(*given), self.setup
        trained = {name: one for name, one in setup.model.named_parameters() if one.requires_grad}
        objective, ranks = made.state.objective, setup.ranks
        if self.way is SummedForward:
            made.forward = SummedForward(setup.model, objective, ranks, trained)
        else:
            made.forward = ReplicatedForward(setup.model, objective, ranks, varies=False)
        made.passes = made._recorded()
        return made


class OverTorchs(OverNccl):
    """By DistributedDataParallel."""

    way = ReplicatedForward


@pytest.fixture
def trained(tmp_path: Path, group: Group) -> Callable[..., tuple[dict[int, float], str]]:
    """Losses by step and the hash of the last state of a run."""
    registry = load_plugins()

    def make(name: str, kind: Any, *, recorded: bool, context: bool = False, **train: Any) -> tuple[Any, str]:
        table = {
            "name": "tiny", "seed": 3,
            "data": {"use": "state-of-the-union", "tokenizer": "bytes", "cache": str(tmp_path / "cache")},
            "model": {"width": 64, "depth": 2, "block": MEMORY},
            "train": {"steps": 8, "batch_size": 4, "micro_batch": 2, "sequence_length": 512, "warmup_steps": 2,
                      "precision": "fp32", "log_every": 1, "device": "cuda", "cuda_graph": recorded} | train,
            "evaluate": {"every": 1000, "tokens": 2048, "final_tokens": 2048}, "checkpoint": {"every": 3},
        }
        group.sequence = Sequence(distributed.group.WORLD) if context else None
        ranks: dict[str, Any] = {} if kind is Run else {"ranks": group}
        setup = set_up(check_table(table, registry).recipe, registry, **ranks)
        text = to_toml({"name": "tiny"})
        directory = RunDirectory.create(
            tmp_path / name, source=text, recipe=text,
            lock=to_toml({"format": 1, "digests": own_digests(setup), "recipe": table}),
            tokenizer=setup.corpus.tokenizer.to_json(),
        )
        records = Records(tmp_path / name)
        with contextlib.closing(records), directory:
            kind(setup, directory, records, Display(Console(quiet=True))).go()
        losses = {row["step"]: row["loss"] for row in read_rows(tmp_path / name / "metrics.jsonl")
                  if row["event"] == "train"}
        found = Checkpoints(tmp_path / name).newest()
        assert found is not None
        return losses, found[1].state_hash()

    return make


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collectives over GPUs that Python asks for, by step: none where a recording makes them."""
    counts = [0]
    gather = "all_gather_single" if hasattr(distributed, "all_gather_single") else "all_gather_into_tensor"
    for name in ("all_reduce", gather):
        real = getattr(distributed, name)

        def counted(*given: Any, real: Any = real, **more: Any) -> Any:
            counts[0] += 1
            return real(*given, **more)

        monkeypatch.setattr(distributed, name, counted)
    return counts


@pytest.mark.parametrize("more", [{}, {"precision": "bf16", "optimizer": "muon"}], ids=["fp32", "bf16"])
def test_recorded_sums_have_the_bits_of_plain_ones(trained: Any, launched: list[int], more: Any) -> None:
    plain = trained("plain", OverNccl, recorded=False, **more)
    of_plain, launched[0] = launched[0], 0
    recorded = trained("recorded", OverNccl, recorded=True, **more)
    assert recorded == plain and len(plain[0]) == 8
    # Plain steps, the one that a recording is compared with, and the recording; a second form of step has its own.
    assert 0 < of_plain // 8 * (PLAIN + 2) <= launched[0] < of_plain
    assert trained("one", Run, recorded=False, **more) == plain, "the sum over one process is what it has"


def test_the_sums_are_those_of_distributed_data_parallel(trained: Any) -> None:
    assert trained("torchs", OverTorchs, recorded=False)[0] == trained("summed", OverNccl, recorded=True)[0]


@pytest.mark.parametrize("more", [{}, {"precision": "bf16", "activation_checkpointing": True}],
                         ids=["kept", "computed again"])
def test_recorded_gathers_have_the_bits_of_plain_ones(trained: Any, launched: list[int], more: Any) -> None:
    """Tokens divided among one process: the kernels gather what their chunks do over NCCL."""
    plain = trained("plain", OverNccl, recorded=False, context=True, **more)
    of_plain, launched[0] = launched[0], 0
    recorded = trained("recorded", OverNccl, recorded=True, context=True, **more)
    assert recorded == plain and len(plain[0]) == 8
    assert 0 < of_plain // 8 * (PLAIN + 2) <= launched[0] < of_plain
    losses = trained("one", Run, recorded=False, **more)[0]
    assert losses == pytest.approx(plain[0], rel=1e-3)


@pytest.mark.parametrize("after", [PLAIN, PLAIN + 3], ids=["where it would be recorded", "once it is"])
def test_a_rollback_of_a_recorded_run_is_that_of_a_plain_one(
    trained: Any, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight becomes a NaN: the step after is no recording and is rolled back."""
    made = []
    keep = RecordedPasses._record
    monkeypatch.setattr(RecordedPasses, "_record", lambda self, *given: made.append(self) or keep(self, *given))

    def damage(model: Any, left: list[int]) -> Any:
        left[0] -= 1
        if left[0] == 0:
            with torch.no_grad():
                model.norm.weight.fill_(float("nan"))
        return model

    found = []
    for name, recorded in (("plain", False), ("recorded", True)):
        left = [after]
        with fault_injection.installed({"post_step": lambda model, left=left: damage(model, left)}):
            found.append(trained(name, OverNccl, recorded=recorded, steps=12))
    assert found[0] == found[1] and len(made) == 1


def test_what_draws_random_numbers_and_is_computed_again_is_refused(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from muse_baseline.feed_forward import FeedForward

    forward = FeedForward.forward

    def drawing(self: Any, x: Any, *more: Any) -> Any:
        return forward(self, torch.nn.functional.dropout(x, 0.1), *more)

    monkeypatch.setattr(FeedForward, "forward", drawing)
    monkeypatch.setattr("muse_core.training.setup.Setup.causality_gate", lambda self, warn: "left out")
    with pytest.raises(RecipeError, match="this model draws some"):
        trained("drawn", OverNccl, recorded=True, activation_checkpointing=True)
