"""Recorded steps say what the layers' own code says, and are refused where they could not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_core.building import build_model
from muse_core.contracts import ModelOutput, Tokens
from muse_core.model import replay
from muse_core.model.generation import Stream, generate, generate_batch, generate_by_lookup
from muse_core.model.precision import Precision
from muse_core.model.recording import NotRecordable, record
from muse_core.plugins import load_plugins
from muse_core.recipe import check_table

V = 11
PERIODS = (4, 6)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "RECORD_AFTER", 2)


def built(block: list[dict[str, Any]], device: str = "cpu", depth: int = 1, width: int = 16, **model: Any) -> Any:
    registry = load_plugins()
    table = {"name": "g", "model": {"width": width, "depth": depth, "block": block, **model},
             "train": {"sequence_length": 16}}
    dtype = "float64" if device == "cpu" else "float32"
    found, _ = build_model(check_table(table, registry).recipe, registry, vocabulary_size=V, device=device, dtype=dtype)
    return (found.double() if device == "cpu" else found).eval()


FILTERED: list[dict[str, Any]] = [
    {"use": "resolvent", "heads": 2, "potential": ["non-hermitian"], "phase": "shift"},
    {"use": "fast-weights", "name": "first", "rule": "delta", "heads": 2, "period": PERIODS[0], "filters": ["snr"]},
    {"use": "fast-weights", "name": "second", "heads": 2, "period": PERIODS[1], "filters": ["snr"],
     "rotation": "positions"},
    {"use": "feed-forward"},
]


@pytest.fixture(scope="module", params=DEVICES)
def reading(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    block = FILTERED
    if request.param == "cuda":  # where recordings that read positions are refused
        block = [{key: value for key, value in layer.items() if key != "rotation"} for layer in block]
    return built(block, request.param), {"stream_period": 12, "device": request.param}


def ids_of(length: int, rows: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(seed))


def tolerance(reading: dict[str, Any]) -> dict[str, float]:
    return {"rtol": 1e-10, "atol": 1e-10} if reading["device"] == "cpu" else {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize("piece", [1, 3])
def test_pieces_read_from_recordings_say_what_the_layers_say(reading: Any, piece: int) -> None:
    model, how = reading
    ids = ids_of(150, rows=2)
    own, recorded = Stream(model, eager=True, **how), Stream(model, **how)
    for part in ids.split(piece, dim=1):
        torch.testing.assert_close(recorded.read(part), own.read(part), **tolerance(how))
    assert len(recorded.replays.kept) >= 3 and not own.replays.kept


def test_the_greedy_text_is_the_same(reading: Any) -> None:
    model, how = reading
    own = list(itertools.islice(generate(model, [1, 5, 3], temperature=0.0, eager=True, **how), 90))
    assert list(itertools.islice(generate(model, [1, 5, 3], temperature=0.0, **how), 90)) == own
    assert list(itertools.islice(generate_by_lookup(model, [1, 5, 3], match=1, draft=3, **how), 90)) == own
    assert generate_batch(model, [[1, 5, 3], [2, 2, 2]], 90, temperature=0.0, **how)[0] == own


def test_a_recorded_stream_goes_back_to_its_snapshot_bit_by_bit(reading: Any) -> None:
    model, how = reading
    stream = Stream(model, **how)
    stream.prefill(ids_of(7))
    for token in ids_of(60)[0]:
        stream.read(token.view(1, 1))
    start = stream.snapshot()
    for count in range(1, 9):
        ids = ids_of(count, seed=count)
        first = torch.cat([stream.read(ids[:, [at]]) for at in range(count)], 1)
        stream.restore(start)
        again = torch.cat([stream.read(ids[:, [at]]) for at in range(count)], 1)
        assert torch.equal(first, again)
        stream.restore(start)


def test_a_snapshot_of_a_recorded_stream_can_be_read_by_the_layers(reading: Any) -> None:
    model, how = reading
    stream = Stream(model, **how)
    for token in ids_of(40)[0]:
        stream.read(token.view(1, 1))
    other = Stream(model, eager=True, **how)
    other.restore(stream.snapshot())
    torch.testing.assert_close(other.read(ids_of(5)), stream.read(ids_of(5)), **tolerance(how))


def test_beginnings_and_ends_of_periods_are_kinds_of_their_own(reading: Any) -> None:
    model, how = reading
    stream = Stream(model, **how)
    assert model.periods == PERIODS
    kinds = {stream.replays.kind(torch.Size((1, 1)), stream.carried, done) for done in range(12)}
    assert len(kinds) < 12
    for done in range(12):
        kind = stream.replays.kind(torch.Size((1, 3)), stream.carried, done)
        ends = [[at for at in range(3) if (done + at + 1) % period == 0] for period in PERIODS]
        for other in range(12):
            if stream.replays.kind(torch.Size((1, 3)), stream.carried, other) == kind:
                assert [[at for at in range(3) if (other + at + 1) % period == 0] for period in PERIODS] == ends


def test_where_the_layers_do_the_same_a_recording_is_shared(reading: Any) -> None:
    model, how = reading
    stream = Stream(model, **how)
    for token in ids_of(150)[0]:
        stream.read(token.view(1, 1))
    kinds, made = len(stream.replays.kept), len(set(stream.replays.kept.values()))
    assert made < kinds, "what begins a period does no other operations than what lies within one"


def test_what_a_measure_needs_is_not_recorded() -> None:
    model = built(FILTERED)
    stream = Stream(model, stream_period=12)
    for token in ids_of(40)[0]:
        stream.read(token.view(1, 1))
    names = {str(node.target) for made in stream.replays.kept.values() for node in made.recorded.graph.nodes}
    assert "aten.mm.default" in names
    assert "aten.aminmax.default" not in names


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_that_reads_positions_is_refused_on_a_gpu(caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream(built(FILTERED, "cuda"), stream_period=12, device="cuda")
    for token in ids_of(20)[0]:
        stream.read(token.view(1, 1))
    assert not stream.replays.kept
    assert ["reads positions" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("layer", [{"use": "attention", "window": 4}, {"use": "trace-attention", "window": 4}, "mag"])
def test_windows_of_attention_are_recorded(layer: Any) -> None:
    """torch marks its attention as one that draws random numbers, which without dropout it does not."""
    layer = {"use": layer, "window": 4, "memory": {"use": "fast-weights", "heads": 2}} if layer == "mag" else layer
    model = built([{"heads": 2, **layer}, {"use": "feed-forward"}])
    ids = ids_of(40, rows=2)
    own, recorded = Stream(model, eager=True), Stream(model)
    for part in ids.split(1, dim=1):
        torch.testing.assert_close(recorded.read(part), own.read(part), rtol=1e-10, atol=1e-10)
    assert recorded.replays.kept


class Echo(nn.Module):
    """A model whose step is ``move(state, ids)`` on a state (B, V)."""

    vocabulary_size = V

    def __init__(self, move: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.move = move

    def forward(self, ids: Tensor, state: Any = None, tokens: Tokens | None = None) -> ModelOutput:
        before = torch.ones(ids.shape[0], V) if state is None else state["x"]
        after = self.move(before, ids)
        return ModelOutput(after[:, None].expand(-1, ids.shape[1], -1), {"x": after}, {}, {})

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def steps() -> Iterator[Tensor]:
    for token in ids_of(20)[0]:
        yield token.view(1, 1)


def branch(x: Tensor, ids: Tensor) -> Tensor:
    return x + 1 if int(ids[0, 0]) % 2 else x - 1


def listed(x: Tensor, ids: Tensor) -> Tensor:
    return x + ids.tolist()[0][0]


def through_numpy(x: Tensor, ids: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy() * 0.5)


def noisy(x: Tensor, ids: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def drops(x: Tensor, ids: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5)[0]


def overwrites(x: Tensor, ids: Tensor) -> Tensor:
    return x.add_(1)


class Counts:
    """Depends on a number of Python that each call moves on."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, ids: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


@pytest.mark.parametrize(
    ("move", "said"),
    [
        (branch, "lets a value decide"),
        (listed, "Tensor.tolist lets a value decide"),
        (through_numpy, "Tensor.numpy lets a value decide"),
        (noisy, "random"),
        (drops, "random"),
        (overwrites, "its input in place"),
        (Counts(), "gives other scores"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_step_that_a_recording_would_get_wrong_is_refused_and_said(
    move: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    stream = Stream(Echo(move).eval())
    for ids in steps():
        assert stream.read(ids).shape == (1, 1, V)
    assert not stream.replays.kept
    assert [said in record.message for record in caplog.records] == [True]


def test_values_of_weights_may_decide() -> None:
    weight = torch.tensor(3.0)

    def step(x: Tensor) -> list[Tensor]:
        return [x * float(weight) if bool(weight > 0) else x]

    graph = record(step, [torch.ones(2)])
    assert torch.equal(graph(torch.full((2,), 2.0))[0], torch.full((2,), 6.0))


def test_writing_to_a_weight_is_refused() -> None:
    weight = torch.zeros(2)
    with pytest.raises(NotRecordable, match="a weight or a constant in place"):
        record(lambda x: [weight.add_(x)], [torch.ones(2)])


def test_writing_to_what_the_step_made_is_kept_in_order() -> None:
    def step(x: Tensor) -> list[Tensor]:
        made = torch.zeros(3)
        first = made + 1
        made[1:].add_(x)
        return [made * 2, first, x.view(2)]

    graph = record(step, [torch.ones(2)])
    for value in (1.0, 5.0, 7.0):
        x = torch.full((2,), value)
        for found, expected in zip(graph(x), step(x)):
            assert torch.equal(found, expected)


def test_in_short_floats_too() -> None:
    model = built([{"use": "fast-weights", "rule": "delta", "heads": 2}, {"use": "feed-forward"}]).float()
    how = {"precision": Precision(device=torch.device("cpu"), autocast=True)}
    own, recorded = Stream(model, eager=True, **how), Stream(model, **how)
    for ids in steps():
        torch.testing.assert_close(recorded.read(ids), own.read(ids), rtol=0.02, atol=0.02)
    assert recorded.replays.kept


def test_a_prompt_is_scored_at_its_last_token_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built([{"use": "resolvent", "heads": 2}])
    scored = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: (scored.append(hidden.shape[1]), logits(hidden))[1])
    ids = ids_of(1300)
    found = Stream(model).prefill(ids)
    assert sum(scored) == 1
    torch.testing.assert_close(found, logits(model(ids).hidden)[:, -1], rtol=1e-10, atol=1e-10)


def test_views_of_views_are_one_view_and_every_part_of_a_split_is_right() -> None:
    def step(x: Tensor) -> list[Tensor]:
        first, second = x.split(3, dim=1)
        made = x + 1
        parts = made.unflatten(1, (2, 3)).transpose(0, 1).chunk(2)
        return [second.reshape(-1)[2:] * first.t().reshape(-1)[:4], parts[1][0, :, 1] + 1, made.view(2, 6)[1, 2:]]

    graph = record(step, [torch.zeros(2, 6)])
    for seed in range(3):
        x = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed))
        for found, expected in zip(graph(x), step(x), strict=True):
            assert torch.equal(found, expected)
    names = {str(node.target) for node in graph.graph.nodes}
    assert "aten.as_strided.default" in names
    assert not names & {"aten.split.Tensor", "aten.transpose.int", "aten.t.default", "aten.select.int"}


def test_means_that_are_written_to_stay_apart() -> None:
    def step(x: Tensor) -> list[Tensor]:
        return [x.mean(-1).add_(1), x.mean(-1).add_(2), torch.rms_norm(x, (3,)), x.mean((0, 1), True)]

    graph = record(step, [torch.zeros(2, 3)])
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(graph(x), step(x), strict=True):
        assert torch.equal(found, expected)
    assert "aten.mean.dim" not in {str(node.target) for node in graph.graph.nodes}
