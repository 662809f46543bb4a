"""Exact resume rests on this: what a checkpoint gives back is what was given, to the last bit."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muse_core.selftest.reliability.disks import VolatileDisk
from muse_core.storage.checkpoint import Checkpoints, Snapshot
from muse_core.storage.checkpoint.generation import describe, read
from muse_core.storage.checkpoint.tensor_file import (
    DTYPES,
    file_size,
    fingerprint,
    read_tensors,
    tensor_bytes,
    write_tensors,
)

NAMES = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def tensors(draw):
    """Any bits at all (NaN payloads and negative zeros too), any dtype, no axes, no elements, strided."""
    dtype = draw(st.sampled_from(sorted(DTYPES, key=str)))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = torch.Size(shape).numel()
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if dtype is torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    flat = torch.frombuffer(bytearray(raw), dtype=dtype) if count else torch.empty(0, dtype=dtype)
    tensor = flat.reshape(shape)
    return tensor.transpose(0, 1) if len(shape) > 1 and draw(st.booleans()) else tensor


def tables():
    return st.dictionaries(NAMES, tensors(), max_size=4)


def identical(one, other):
    return one.keys() == other.keys() and all(fingerprint(one[name]) == fingerprint(other[name]) for name in one)


@settings(max_examples=60, deadline=None)
@given(tables(), tables(), tables(), st.dictionaries(st.text(max_size=8), JSON, max_size=4), st.integers(0, 2**40))
def test_a_snapshot_comes_back_to_the_last_bit(model, optimizer, state, table, step):
    given_ = Snapshot(step, model, optimizer, state, table)
    with tempfile.TemporaryDirectory() as folder:
        generation = Checkpoints(Path(folder), disk=VolatileDisk()).commit(given_)
        # Read as it is: newest() passes over weights and moments that are not finite.
        again = describe(Path(folder) / "checkpoints", generation.number)
        found = read(again)
    assert again.number == generation.number
    assert found.step == step
    assert found.json == table
    assert identical(found.model, model)
    assert identical(found.optimizer, optimizer)
    assert identical(found.state, state)
    assert found.state_hash() == given_.state_hash() == generation.state_hash


@settings(max_examples=60, deadline=None)
@given(tables())
def test_the_library_reads_what_we_write_and_we_read_what_it_writes(table):
    with tempfile.TemporaryDirectory() as folder:
        written, _ = write_tensors(VolatileDisk(), Path(folder) / "file", table)
        assert written.size == file_size(table) == (Path(folder) / "file").stat().st_size
        assert identical(safetensors.torch.load_file(Path(folder) / "file"), table)
    theirs = safetensors.torch.save({name: tensor.contiguous().clone() for name, tensor in table.items()})
    assert identical(read_tensors(theirs), table)


def test_tensors_are_aligned_to_their_element_size():
    table = {
        "a": torch.zeros(3, dtype=torch.uint8),
        "b": torch.zeros(2, dtype=torch.float64),
        "c": torch.zeros(5, dtype=torch.bfloat16),
    }
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(VolatileDisk(), Path(folder) / "file", table)
        content = (Path(folder) / "file").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    for name, entry in json.loads(content[8 : 8 + length]).items():
        assert entry["data_offsets"][0] % table[name].element_size() == 0


@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_other_element_of_a_tensor(count):
    strided = torch.arange(2.0 * count)[::2]
    assert strided.stride() == (2,)
    assert bytes(tensor_bytes(strided)) == strided.clone().numpy().tobytes()


def test_tied_weights_and_negative_views_are_written_out():
    weight = torch.randn(3, 4)
    conjugate = torch.randn(1, dtype=torch.complex64).conj().imag
    assert conjugate.is_neg()
    assert conjugate.is_contiguous(), "a copy on the way would resolve it by chance"
    with tempfile.TemporaryDirectory() as folder:
        Checkpoints(Path(folder), disk=VolatileDisk()).commit(
            Snapshot(0, {"a": weight, "b": weight.t(), "c": conjugate}, {}, {}, {})
        )
        _, found = Checkpoints(Path(folder)).newest()
    assert torch.equal(found.model["a"], weight)
    assert torch.equal(found.model["b"], weight.t())
    assert torch.equal(found.model["c"], conjugate)


def test_the_state_hash_sees_every_bit_dtype_shape_name_and_number():
    def variant(**changes):
        parts = {"model": {"w": torch.zeros(2, 3)}, "optimizer": {}, "state": {}, "json": {"rate": 0.1}, "step": 4}
        return Snapshot(**{**parts, **changes}).state_hash()

    flipped = torch.zeros(2, 3)
    flipped[1, 2] = -0.0
    hashes = [
        variant(),
        variant(step=5),
        variant(json={"rate": 0.1 + 2**-56}),
        variant(model={"w": flipped}),
        variant(model={"w": torch.zeros(3, 2)}),
        variant(model={"w": torch.zeros(2, 3, dtype=torch.int32)}),
        variant(model={"v": torch.zeros(2, 3)}),
        variant(model={}, optimizer={"w": torch.zeros(2, 3)}),
    ]
    assert len(set(hashes)) == len(hashes)
    assert variant() == hashes[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"json": {"rates": [1.0, float("nan")]}}, r"rates\[1\]: nan"),
        ({"json": {"pair": (1, 2)}}, "pair: tuple"),
        ({"json": {"by_step": {3: 1.0}}}, "by_step: key 3"),
        ({"model": {"w": torch.zeros(2, dtype=torch.complex64)}}, "w is complex"),
        ({"state": {"w": torch.zeros(2, device="meta")}}, "w is not a dense tensor"),
        ({"optimizer": {"__metadata__": torch.zeros(2)}}, "__metadata__"),
        ({"step": -1}, "negative"),
    ],
)
def test_what_would_come_back_changed_is_refused_by_name(tmp_path, changes, named):
    parts = {"step": 0, "model": {}, "optimizer": {}, "state": {}, "json": {}}
    with pytest.raises(ValueError, match=named):
        Checkpoints(tmp_path).commit(Snapshot(**{**parts, **changes}))
    assert Checkpoints(tmp_path).newest() is None
