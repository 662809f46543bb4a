"""The numbers of a run: rows as their schema says, differences that can be computed again, TensorBoard beside them."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from muse_core import fault_injection
from muse_core.errors import RecipeError
from muse_core.metrics import sinks
from muse_core.metrics.jsonl import Records, read_rows
from muse_core.metrics.recorder import Telemetry, shared
from muse_core.metrics.schema import EVENTS, SCHEMA, json_schema
from muse_core.selftest.reliability.disks import VolatileDisk
from muse_core.training import loop as training_loop
from muse_core.training.loop import Loop
from muse_core.training.monitors import MonitorGroup

pytestmark = pytest.mark.usefixtures("punctual")
Table = Callable[..., dict[str, Any]]
Go = Callable[..., dict[str, Any]]

MEMORY = {
    "block": [
        {"use": "resolvent", "heads": 4},
        {"use": "fast-weights", "heads": 2, "period": 8, "filters": ["snr"]},
        {"use": "feed-forward"},
    ]
}
MONITORS = ["gradient-safety", {"use": "niah-probe", "every": 4, "needles": 2, "budget": 1.0}]


def rows(folder: Path, event: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(folder / "metrics.jsonl") if row["event"] == event]


def follow(folder: Path) -> dict[int, float]:
    """Step → ppl_delta computed again from the losses alone, for the rows that count but the first."""
    last = {row["step"]: math.exp(row["loss"]) for row in rows(folder, "train")}
    steps = sorted(last)
    return {step: last[step] - last[before] for before, step in zip(steps, steps[1:])}


def test_every_row_of_a_real_run_is_as_the_schema_says(table: Table, go: Go, tmp_path: Path) -> None:
    summary = go(table(model=MEMORY, monitors=MONITORS, evaluate={"every": 4}))
    check = jsonschema.Draft202012Validator(json_schema())
    found = Counter()
    for row in read_rows(tmp_path / "run" / "metrics.jsonl"):
        check.validate(row)
        found[row["event"]] += 1
        bare = {key for key in row if "/" not in key}
        event = EVENTS[row["event"]]
        named = {key.name for key in event.keys} | {"event", "sequence", "attempt"}
        assert bare <= named, f"{row['event']}: {bare - named} is not documented"
        assert {key.name for key in event.keys if key.always} <= bare
    assert set(found) == set(EVENTS) and found["train"] == 8 and found["probe"] == 2
    (header,) = rows(tmp_path / "run", "schema")
    assert header["schema"] == SCHEMA and header["sequence"] == 0
    last = rows(tmp_path / "run", "train")[-1]
    measures = ("resolvent/broadening", "fast-weights/decay")
    decays = [last[f"blocks.{block}.{measure}"] for block in (0, 1) for measure in measures]
    assert last["gamma"] == pytest.approx(sum(decays) / 4)
    assert last["snr"] == pytest.approx(sum(last[f"blocks.{n}.fast-weights/snr/signal_to_noise"] for n in (0, 1)) / 2)
    probe = rows(tmp_path / "run", "probe")[-1]
    assert summary["probes"]["niah-probe"]["step"] == 8
    assert summary["probes"]["niah-probe"]["over_shuffled"] == probe["niah-probe/over_shuffled"]


def test_the_schema_refuses_what_it_does_not_know() -> None:
    check = jsonschema.Draft202012Validator(json_schema())
    row = {"event": "eval", "sequence": 3, "attempt": 1, "stage": 0, "step": 4, "loss": 1.0, "perplexity": "inf",
           "bits_per_byte": 1.0, "bits_per_byte_low": 0.9, "bits_per_byte_high": 1.1, "accuracy": 0.5, "tokens": 5,
           "bytes": 5}
    assert check.is_valid(row)
    assert check.is_valid(row | {"blocks.0.fast-weights/energy": 2.0})
    assert not check.is_valid(row | {"blocks.0.fast-weights/energy": "large"})
    for wrong in ({"loss": "high"}, {"tokens": 5.5}, {"surprise": 1.0}, {"event": "unknown"}, {"stage": None}):
        assert not check.is_valid(row | wrong), wrong
    assert not check.is_valid({key: value for key, value in row.items() if key != "stage"})


def test_ppl_delta_is_the_difference_of_perplexities(table: Table, go: Go, tmp_path: Path) -> None:
    go(table(train={"log_every": 3}))
    found = {row["step"]: row["ppl_delta"] for row in rows(tmp_path / "run", "train")}
    assert list(found) == [1, 3, 6, 8] and found.pop(1) is None
    assert found == pytest.approx(follow(tmp_path / "run"), rel=1e-12)


def test_ppl_delta_follows_what_counts_after_a_rollback(table: Table, go: Go, tmp_path: Path) -> None:
    calls = {"n": -1}

    def damage(result: Any) -> Any:
        calls["n"] += 1
        return result._replace(total=result.total * math.nan) if calls["n"] in range(8, 14) else result

    with fault_injection.installed({"loss": damage}):
        assert go(table())["rollbacks"] == 1
    found = [(row["step"], row["ppl_delta"]) for row in rows(tmp_path / "run", "train")]
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8]
    assert dict(found[1:]) == pytest.approx(follow(tmp_path / "run"), rel=1e-12)


def test_an_attempt_and_a_stage_go_on_where_they_should(tmp_path: Path) -> None:
    def write(stage: int, *pairs: tuple[int, float]) -> list[float | None]:
        records = Records(tmp_path, VolatileDisk())
        telemetry = Telemetry(records, read_rows(tmp_path / "metrics.jsonl"))
        telemetry.begin(stage)
        done = [telemetry.metrics({"event": "train", "step": step, "perplexity": value}) for step, value in pairs]
        records.close()
        return [row["ppl_delta"] for row in done]

    assert write(0, (1, 100.0), (2, 90.0), (3, math.nan)) == [None, -10.0, pytest.approx(math.nan, nan_ok=True)]
    assert write(0, (3, 80.0), (4, 70.0)) == [-10.0, -10.0], "step 3 is repeated and follows step 2"
    assert write(1, (1, 50.0), (2, 49.0)) == [None, -1.0]
    assert write(1, (2, 40.0)) == [-10.0]
    telemetry = Telemetry(Records(tmp_path, VolatileDisk()), read_rows(tmp_path / "metrics.jsonl"))
    telemetry.begin(0)  # a resumed run goes through the stages that are done
    telemetry.begin(1)
    assert telemetry.metrics({"event": "train", "step": 3, "perplexity": 30.0})["ppl_delta"] == -10.0


def test_means_over_layers_are_there_when_there_are_such_layers() -> None:
    row = {"a.x/broadening": 1.0, "b.y/decay": 3.0, "b.y/decay_max": 9.0, "b.y/f/signal_to_noise": 2.0}
    row["a.x/energy"] = 5.0
    assert shared(row) == {"gamma": 2.0, "snr": 2.0}


class Reads(TorchFunctionMode):
    """Counts what makes the host wait for a tensor, of tensors that depend on the model."""

    NAMES = frozenset({"tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "equal",
                       "allclose", "is_nonzero", "__index__"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in self.NAMES and isinstance(arguments[0], torch.Tensor) and arguments[0].is_floating_point():
            self.seen.append(name)
        return function(*arguments, **(keywords or {}))


class Scalars(TorchDispatchMode):
    """Counts the operations that need a value on the host, below whatever Python calls them: also x[mask], whose size
    depends on the mask."""

    OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique2", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = function.overloadpacket.__name__
        indices = arguments[1] if name in ("index", "index_put", "index_put_") else ()
        masks = [one for one in indices if one is not None and one.dtype == torch.bool]
        if name in self.OPERATIONS or masks:
            self.seen.append(name)
        return function(*arguments, **(keywords or {}))


@pytest.fixture
def loss_mask(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """What each step reads on the host for its gradients, verdict and clipping. Optimisers are left out: torch keeps
    their step counters on the host."""
    steps: list[list[str]] = []

    def watched(owner: Any, name: str, begins: bool = False) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            with Reads() as reads, Scalars() as scalars:
                result = original(*arguments)
            if begins:
                steps.append([])
            steps[-1] += reads.seen + scalars.seen
            return result

        monkeypatch.setattr(owner, name, call)

    watched(Loop, "_gradients", begins=True)
    watched(MonitorGroup, "judge")
    watched(training_loop, "clip")
    yield steps


def test_a_step_reads_once_from_the_device(
    table: Table, go: Go, loss_mask: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many micro-batches, layers and monitors there are; also in steps that are logged."""
    go(table(model=MEMORY, monitors=MONITORS, train={"steps": 3, "micro_batch": 1, "log_every": 2}))
    assert loss_mask == [["tolist"]] * 3


def test_the_count_notices_one_read_more(
    table: Table, go: Go, loss_mask: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(result: Any) -> Any:
        mask = torch.ones(2, dtype=torch.bool)
        return result._replace(total=result.total * torch.ones(2)[mask].sum().item() / 2)

    with fault_injection.installed({"loss": read}):
        go(table(train={"steps": 1, "micro_batch": 4}))
    assert sorted(loss_mask[0]) == ["_local_scalar_dense", "index", "item", "tolist"]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="the extra tensorboard is not installed")
def test_tensorboard_has_the_numbers_of_the_rows(table: Table, go: Go, tmp_path: Path) -> None:
    """Also after a rollback: what was repeated stands once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    calls = {"n": -1}

    def damage(result: Any) -> Any:
        calls["n"] += 1
        return result._replace(total=result.total * math.nan) if calls["n"] in range(8, 14) else result

    with fault_injection.installed({"loss": damage}):
        go(table(model=MEMORY, monitors=MONITORS, telemetry={"tensorboard": True}, evaluate={"every": 4}))
    folder = tmp_path / "run" / "tensorboard" / "stage-0"
    board = EventAccumulator(str(folder), purge_orphaned_data=True).Reload()
    last = {row["step"]: row for row in rows(tmp_path / "run", "train")}
    for key in ("loss", "ppl_delta", "gamma", "blocks.1.fast-weights/energy", "gradient-safety/tensors"):
        written = {event.step: event.value for event in board.Scalars(f"train/{key}")}
        expected = {step: row[key] for step, row in last.items() if row.get(key) is not None}
        assert written == pytest.approx(expected, rel=1e-6), key
    (final,) = rows(tmp_path / "run", "final")
    (event,) = board.Scalars("final/24/bits_per_byte")
    assert event.value == pytest.approx(final["bits_per_byte"], rel=1e-6) and event.step == 8
    assert board.Scalars("probe/niah-probe/recall") and board.Scalars("eval/loss")


def test_without_the_package_the_run_says_what_to_install(
    table: Table, prepare: Callable[[dict[str, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = prepare(table(telemetry={"tensorboard": True}))
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'muse-core\[tensorboard\]'"):
        sinks.require_sinks(setup.recipe)
    sinks.require_sinks(prepare(table()).recipe)


def test_probes_in_the_summary_can_be_read_as_json(table: Table, go: Go, tmp_path: Path) -> None:
    go(table(monitors=MONITORS))
    text = (tmp_path / "run" / "summary.json").read_text()
    last = rows(tmp_path / "run", "probe")[-1]["niah-probe/distance"]
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["probes"]["niah-probe"]["distance"] == last
