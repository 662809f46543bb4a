"""Parts of several processes that need none."""

from __future__ import annotations

import datetime
import gc
import math
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from torch import nn

from muse_core.cli.run import main
from muse_core.contracts import Batch, Result, Tokens
from muse_core.data.batches import micro_batches, to_device
from muse_core.errors import MuseError, RankLost, RecipeError, StorageError
from muse_core.metrics.accumulator import Key, Packed, combined, read
from muse_core.parallel import group
from muse_core.parallel.environment import launched
from muse_core.parallel.group import Group
from muse_core.parallel.meeting import agree_on_start, check_shared
from muse_core.parallel.sizes import Sizes, check_sizes, sizes_of
from muse_core.plugins import load_plugins
from muse_core.recipe import check_table
from muse_core.recipe.schema import Parallel
from muse_core.selftest.reliability.processes import RECIPE
from muse_core.training.cuda_graph import RecordedPasses
from muse_core.training.forward import (
    Clock,
    ReplicatedForward,
    SummedForward,
    _SeveralForward,
    make_forward,
    of_ranks,
)
from muse_core.training.ranks import join
from muse_core.training.stop import Stop
from muse_core.training.train_state import dealt


@pytest.fixture(scope="module")
def recipe() -> Callable[..., Any]:
    registry = load_plugins()

    def make(**tables: Any) -> Any:
        table = {
            "name": "tiny", "data": {"use": "state-of-the-union"},
            "model": {"width": 16, "depth": 1, "block": [{"use": "feed-forward"}]}, "train": {"batch_size": 8},
        }
        for name, values in tables.items():
            table[name] = values if isinstance(values, list) else table.get(name, {}) | values
        return check_table(table, registry).recipe

    return make


@pytest.mark.parametrize(
    ("parallel", "processes", "sizes"),
    [
        (Parallel(), 1, Sizes(1, 1, 1)),
        (Parallel(), 6, Sizes(6, 1, 1)),
        (Parallel(shard="auto", context="auto"), 1, Sizes(1, 1, 1)),
        (Parallel(data=1, shard="auto"), 4, Sizes(1, 4, 1)),
        (Parallel(data="auto", shard=2), 6, Sizes(3, 2, 1)),
        (Parallel(data=2, shard=2, context="auto"), 4, Sizes(2, 2, 1)),
    ],
)
def test_auto_takes_the_processes_that_the_others_leave(parallel: Parallel, processes: int, sizes: Sizes) -> None:
    assert sizes_of(parallel, processes) == sizes


@pytest.mark.parametrize(
    ("parallel", "processes", "start"),
    [(Parallel(data=2), 1, "start 2 of"), (Parallel(data=2), 4, "start 2 of"), (Parallel(shard=3), 4, "a multiple")],
)
def test_a_product_that_is_not_the_number_of_processes_is_refused(
    parallel: Parallel, processes: int, start: str
) -> None:
    with pytest.raises(RecipeError, match=start):
        sizes_of(parallel, processes)


@pytest.mark.parametrize(
    ("tables", "processes", "said"),
    [
        ({}, 3, "train.batch_size: 8 rows"),
        ({"data": {"order": "streams"}}, 2, "data.order"),
        ({"data": {"order": "streams"}, "parallel": {"context": 2, "data": 1}}, 2, "data.order"),
        ({"train": {"device": "cuda:1", "batch_size": 8}}, 2, "names one device for 2"),
        ({"parallel": {"context": 2}, "train": {"sequence_length": 255}}, 2, "train.sequence_length: 255"),
        ({"parallel": {"context": 2, "shard": 2}}, 4, "parallel.context: 2 beside parallel.shard: 2"),
        ({"parallel": {"context": 2}, "train": {"batch_size": 8, "compile": True}}, 2, "not compiled yet"),
        ({"parallel": {"context": 2}, "train": {"batch_size": 8, "compile": "blocks"}}, 2, "not compiled yet"),
        (
            {"parallel": {"context": 2}, "model": {"block": [{"use": "fast-weights", "filters": ["snr"]}]}}, 2,
            "fast-weights applies filters",
        ),
        (
            {"parallel": {"context": 2}, "stages": [{"use": "train"}, {"use": "koopman-distil", "teacher": "run"}]}, 2,
            "the objective of koopman-distil reads whole rows",
        ),
    ],
)
def test_a_recipe_that_cannot_be_divided_is_refused(
    recipe: Callable[..., Any], tables: dict[str, Any], processes: int, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        check_sizes(recipe(**tables), processes)


def test_two_sizes_that_could_take_what_is_left_are_refused() -> None:
    """data is "auto" unless a recipe says otherwise: with shard = "auto" alone weights would not be divided."""
    with pytest.raises(RecipeError, match='data and shard are "auto", and 4 processes are left .* as data = 1$'):
        sizes_of(Parallel(shard="auto"), 4)


def test_sizes_in_a_recipe_are_checked(recipe: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match="parallel: data = 0 must be from 1"):
        recipe(parallel={"data": 0})
    assert recipe(parallel={"shard": "auto"}).parallel.shard == "auto"


TORCHRUN = {
    "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "29",
}


def test_the_launcher_is_read_from_the_environment() -> None:
    assert launched({}) is None and launched({"WORLD_SIZE": "1"}) is None
    here = launched(TORCHRUN)
    assert here is not None and (here.rank, here.size, here.address, here.port) == (1, 2, "a", 29)


def test_processes_are_checked_and_not_started_for_a_look(tmp_path: Any) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(cache=tmp_path / "cache", block='{ use = "feed-forward" }'))
    shown = CliRunner().invoke(main, [str(path), "--dry-run", "--processes", "2"])
    assert shown.exit_code == 0 and shown.output.count("dry run: no run was begun") == 1, shown.output
    refused = CliRunner().invoke(main, [str(path), "--dry-run", "--processes", "3"])
    assert refused.exit_code == 2 and "cannot be divided among 3" in refused.output


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"RANK": ""}, "RANK not set"), ({"RANK": "2"}, "do not fit together"), ({"LOCAL_RANK": "x"}, "LOCAL_RANK = 'x'")],
)
def test_a_launcher_that_says_nonsense_is_refused(changes: dict[str, str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        launched(TORCHRUN | changes)


def test_a_rank_whose_others_never_start_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    here = TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(group, "MEETING", datetime.timedelta(seconds=1))
    with pytest.raises(RankLost, match=r"rank 0 cannot reach the other processes at localhost:\d+ \(.* 1/2 clients"):
        Group(launched(here))  # type: ignore[arg-type]


class Answers:
    """Ranks whose others answer what they are told to."""

    size = 2
    rank = 0
    sequence = None

    def __init__(self, other: Any):
        self.other = other

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]


class Ends:
    """An objective that ends by what it has seen."""

    finished = False


def test_what_ranks_cannot_share_is_refused(recipe: Callable[..., Any]) -> None:
    model, ranks = torch.nn.Linear(2, 2), Answers(None)
    with pytest.raises(RecipeError, match="objective Ends .* as one process"):
        make_forward(model, Ends(), recipe(), ranks)  # type: ignore[arg-type]
    row = torch.zeros(1, 4, dtype=torch.long)
    batch = Batch(row, row, row == 0, Tokens(torch.arange(4)[None]))
    with pytest.raises(RecipeError, match="of 1 rows, which cannot be divided among 2"):
        _SeveralForward(model, None, ranks).own_rows(batch)  # type: ignore[arg-type]


def test_ranks_come_to_a_new_form_of_recorded_steps_in_the_same_step() -> None:
    """Four processes, each with half of the tokens of two rows. Where few labels count a batch says which places are
    scored: as many on every rank, however few of its own count."""
    model = nn.Linear(1, 1)
    forwards, recorders = [], []
    for rank in range(4):
        ranks = SimpleNamespace(size=4, rank=rank, sequence=SimpleNamespace(rank=rank % 2, size=2))
        forwards.append(SummedForward(model, None, ranks, {}))  # type: ignore[arg-type]
        recorders.append(RecordedPasses(lambda *given: (Packed((), torch.zeros(1)), []), {}, rounding=0.0))
    tokens, numbers = torch.arange(8).expand(4, 8), []
    for counted in ([0], [0, 1], [9], [0, 1, 2], [4, 30, 31], []):
        mask = torch.zeros(32, dtype=torch.bool)
        mask[counted] = True
        batch = Batch(tokens, tokens, mask.view(4, 8), Tokens(tokens))
        found = []
        for forward, recorder in zip(forwards, recorders, strict=True):
            own = list(micro_batches(forward.own_rows(batch), 1))
            room = forward.target_room(batch, own, 1)
            pieces = [to_device(piece, torch.device("cpu"), room) for piece in own]
            for steps in recorder.forms:
                steps.plain = 0  # nothing is recorded here
            recorder(pieces, [None] * 2, torch.tensor(1.0))
            found.append([steps.plain for steps in recorder.forms].index(1))
            for piece in pieces:
                scored = piece.loss_mask.flatten() if piece.target_places is None else piece.loss_mask.flatten()[
                    piece.target_places
                ]
                assert scored.sum() == piece.loss_mask.sum(), "no label that counts is left out"
        assert len(set(found)) == 1, (counted, found)
        numbers.append(found[0])
    assert numbers == [0, 1, 0, 2, 1, 0]


def test_a_recorded_step_tells_no_time_of_its_forward_pass() -> None:
    clock = Clock(torch.device("cpu"))
    clock.start()
    assert clock.read() is None and of_ranks([(clock.read(), 7), (0.5, 9)]) == {"ranks/memory_bytes_max": 9.0}
    clock.lap()
    seconds = clock.read()
    assert seconds is not None and seconds >= 0
    assert of_ranks([(seconds, 0), (seconds + 1, 0)])["ranks/slowest"] == 1.0


def test_a_run_directory_that_is_not_shared_is_refused(tmp_path: Any) -> None:
    (tmp_path / "held").write_text("by rank 0")
    with pytest.raises(StorageError, match="rank 1 does not see what rank 0 wrote"):
        check_shared(Answers(""), tmp_path, "held")  # type: ignore[arg-type]


def test_more_processes_than_gpus_are_refused(recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    four = SimpleNamespace(size=4, launched=launched(TORCHRUN | {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}))
    with pytest.raises(RecipeError, match=r"train.device: 4 processes on this host and 2 GPU\(s\)"):
        join(four, recipe())  # type: ignore[arg-type]


def test_a_torch_without_nccl_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(RecipeError, match="built without it - install a torch with NCCL"):
        Group.join(SimpleNamespace(), torch.device("cuda"), Sizes(2, 1, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("differs", "said"),
    [("version of python", "rank 1 does not have rank 0's version of python"),
     ("versions of packages", r"rank 1 does not have rank 0's versions of packages \(torch\)"),
     ("recipe", r"rank 1 does not have rank 0's recipe \(.*r.toml\)"),
     ("arguments", "rank 1 does not have rank 0's arguments")],
)
def test_a_rank_that_was_started_otherwise_is_refused(tmp_path: Any, differs: str, said: str) -> None:
    """The other rank answers what rank 0 tells, but for one thing."""

    class Told(Answers):
        def agree(self, what: str, value: Any, advice: str) -> None:
            other = "another"
            if isinstance(value, dict):
                other = value | {key: "0.0" for key in value if key == "torch" or key.endswith(".toml")}
            self.other = other if what == differs else value
            Group.agree(self, what, value, advice)  # type: ignore[arg-type]

    (tmp_path / "r.toml").write_text("name = 'a'")
    with pytest.raises(RecipeError, match=said):
        agree_on_start(Told(None), ["r.toml"], [tmp_path / "r.toml", None])  # type: ignore[arg-type]


def test_a_stop_of_one_rank_is_one_of_all() -> None:
    with Stop(None, Answers([15, 0])) as stop:  # type: ignore[arg-type]
        assert not stop.requested
        stop.agree()
        assert stop.signal == 15 and stop.interrupted and not stop.out_of_time
    with Stop(None, Answers([0, 1])) as stop:  # type: ignore[arg-type]
        stop.agree()
        assert stop.out_of_time and not stop.interrupted


def test_numbers_of_ranks_are_one() -> None:
    loss, share = Key("total", per_token=True), Key("a/mean", per_token=True)
    count, least, most = (Key(f"a/{name}", per_token=False) for name in ("x_sum", "x_min", "x_max"))
    norm, flag, whole = (Key(name, per_token=False, added=False) for name in ("norm", "flag", "of_step_sum"))
    parts = [
        (3.0, {loss: 6.0, share: 3.0, count: 1.0, least: 2.0, most: math.nan, norm: 1.5, flag: 0.0, whole: 3.0}),
        (1.0, {loss: 2.0, share: 5.0, count: 2.0, least: 1.0, most: 7.0, norm: 1.5, flag: 1.0, whole: 3.0}),
    ]
    for several in (parts, parts[::-1]):
        found = read(combined(several))
        assert found["tokens"] == 4 and found["loss"] == 2 and found["a/mean"] == 2
        assert found["a/x_sum"] == 3 and found["a/x_min"] == 1 and math.isnan(found["a/x_max"])
        assert found["norm"] == 1.5 and found["flag"] == 1 and found["of_step_sum"] == 3


def test_tensors_are_dealt_evenly_and_each_once() -> None:
    parts = {
        "model": {f"m{size}": torch.zeros(size) for size in (100, 90, 30, 20, 10)},
        "optimizer": {"o": torch.zeros(50)},
    }
    hands = dealt(parts, 3)
    assert sorted(key for hand in hands for key in hand) == sorted((p, n) for p, named in parts.items() for n in named)
    loads = [sum(parts[part][name].numel() for part, name in hand) for hand in hands]
    assert max(loads) == 100 and min(loads) >= 90
    assert dealt(parts, 1) == [set(dealt(parts, 1)[0])] and len(dealt(parts, 8)) == 8


class Two(nn.Module):
    """Two weights, of which the second may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([3.0]))
        self.leave_out = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first * x if self.leave_out else self.first * self.second * x


class Alone:
    """What a copy of the model asks of its processes, for one."""

    rank, size, sequence = 0, 1, None

    def mark(self, doing: str) -> None:
        pass

    def seed_step(self, seed: int, step: int) -> None:
        pass


@pytest.fixture
def process_group() -> Iterator[None]:
    """One of this process alone. What uses it must be gone by its end: torch 2.13 lets go of a group's last use while
    it holds Python's lock, which a thread of the group may need to end."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    gc.collect()
    dist.destroy_process_group()


def steps_of_copies(varies: bool) -> None:
    """Returns when everything of the copies can be collected."""
    model = Two()

    def objective(model: Any, batch: Any, state: Any) -> Result:
        return Result(model(batch).sum(), {}, {}, None)

    copies = ReplicatedForward(model, objective, Alone(), varies=varies)  # type: ignore[arg-type]

    def step(number: int) -> list[float]:
        copies.begin(0, number)
        model.first.grad = model.second.grad = None
        with copies.gradients_of(0, 1):
            copies(torch.tensor([5.0]), None).total.backward()
        copies.norms([one.grad for one in model.parameters() if one.grad is not None])
        return [one.grad.item() for one in model.parameters() if one.grad is not None]

    assert step(0) == [15.0, 10.0] and copies.search
    assert step(1) == [15.0, 10.0] and step(2) == [15.0, 10.0] and copies.search == varies
    model.leave_out = True
    if varies:
        assert step(3) == [5.0]
    else:
        with pytest.raises(MuseError, match="^second has no gradient in this step and had one before"):
            step(3)


@pytest.mark.parametrize("varies", [False, True])
def test_copies_look_for_unused_parameters_in_the_first_step_alone(process_group: None, varies: bool) -> None:
    """Where one has no gradient later, its rank's part would be left out of the sum: the run ends before the update."""
    steps_of_copies(varies)
