"""Memory that runs out is told as that, with exit code 7, whatever library says it and whoever takes it for a fault."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import muse_core
from muse_core import out_of_memory
from muse_core.cli.errors import guarded
from muse_core.errors import DataError, OutOfMemory, PluginError, RecipeError, StorageError
from muse_core.out_of_memory import ran_out, what_ran_out
from muse_core.plugins.raised import failure
from muse_core.storage.checkpoint import tensor_file
from muse_core.training import compilation, cuda_graph
from muse_core.training.cuda_graph import captured
from muse_core.training.monitors import MonitorGroup
from muse_core.training.objectives import Train
from muse_core.training.setup import memory_errors

HINT = (
    "\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda/ for more information.\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)
GONE: dict[str, BaseException] = {
    "torch": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 9.80 GiB of which 1.88 MiB is "
        "free. Process 71 has 66.00 MiB memory in use. Including non-PyTorch memory, this process has 4.31 GiB in use."
    ),
    "CUDA": RuntimeError(f"CUDA error: out of memory{HINT}"),
    "the driver": RuntimeError("CUDA driver error: out of memory"),
    "Triton": RuntimeError("Triton Error [CUDA]: out of memory"),
    "the compiler": RuntimeError("InductorError: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 MiB."),
    "the tracer": RuntimeError("Dynamo failed to run:\ngot RuntimeError('CUDA error: out of memory')\nfrom user"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuFFT": RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    "cuSOLVER": RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    "NCCL": RuntimeError("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"),
    "NVML": RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":830'),
    "torch on a CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2048 bytes."),
    "C++": RuntimeError("std::bad_alloc"),
    "Python": MemoryError(),
    "the system": OSError(errno.ENOMEM, "Cannot allocate memory"),
}
OTHER: dict[str, BaseException] = {
    "a fault on a GPU": RuntimeError("CUDA error: device-side assert triggered"),
    "a capture": RuntimeError("CUDA error: operation not permitted when stream is capturing"),
    "shared memory": ValueError("out of resource: shared memory, Required: 262144, Hardware limit: 232448"),
    "a word of a user": DataError("text: 'I ran out of memory' is not a number"),
    "a full disk": OSError(errno.ENOSPC, "No space left on device"),
    "a handle": RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
}


@pytest.mark.parametrize("name", GONE)
def test_every_library_says_it_in_its_words(name: str) -> None:
    error = GONE[name]
    assert ran_out(error) and failure(error) is None
    told = what_ran_out(error)
    assert told and "\n" not in told and "Process 71" not in told
    assert any(words in told for words in (*out_of_memory.WORDS, "out of memory"))


def test_torch_itself_says_it_so() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**48, dtype=torch.float64)
    assert ran_out(caught.value) and "allocate memory" in what_ran_out(caught.value)
    with pytest.raises(MemoryError) as full:
        np.empty(2**48, dtype=np.float64)
    assert ran_out(full.value) and "Unable to allocate" in what_ran_out(full.value)


@pytest.mark.parametrize("name", OTHER)
def test_other_faults_stay_what_they_are(name: str) -> None:
    assert not ran_out(OTHER[name])
    with pytest.raises(type(OTHER[name])), memory_errors():
        raise OTHER[name]


@pytest.mark.parametrize("free, gone", [(2**20, True), (2**34, False), (None, False)])
def test_a_handle_that_is_not_initialised_is_memory_where_there_is_little(
    free: int | None, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuBLAS and cuDNN say the same behind a fault that has stopped the GPU, which then answers nothing."""

    def asked() -> tuple[int, int]:
        if free is None:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return free, 2**36

    monkeypatch.setattr(torch.cuda, "mem_get_info", asked)
    for library in ("CUDA error: CUBLAS", "cuDNN error: CUDNN"):
        assert ran_out(RuntimeError(f"{library}_STATUS_NOT_INITIALIZED")) == gone


def raised_from(error: BaseException, wrapped: Exception) -> Callable[[], None]:
    def go() -> None:
        try:
            raise error
        except BaseException as cause:
            raise wrapped from cause

    return go


def plainly(error: BaseException) -> Callable[[], None]:
    def go() -> None:
        raise error

    return go


@pytest.mark.parametrize("go", [
    plainly(GONE["torch"]), plainly(GONE["CUDA"]), plainly(GONE["the system"]), plainly(MemoryError()),
    raised_from(GONE["CUDA"], PluginError("stage 'compress' of muse-x 1: RuntimeError")),
    raised_from(GONE["torch"], RecipeError("train.cuda_graph: it cannot be recorded")),
    raised_from(GONE["the system"], StorageError("x: cannot read")),
    plainly(OutOfMemory("model: does not fit into the memory")),
], ids=lambda go: go.__closure__[0].cell_contents.__class__.__name__)
def test_a_command_ends_with_a_sentence_and_exit_code_7(go: Callable[[], None]) -> None:
    @click.command()
    def command() -> None:
        with guarded():
            go()

    ended = CliRunner().invoke(command)
    assert ended.exit_code == 7 == OutOfMemory.exit_code, ended.output
    assert "memory" in ended.output and "Traceback" not in ended.output and ended.output.count("\n") == 1, ended.output


class Capture:
    """``torch.cuda.graph`` without a GPU; what ends the capture may fail too, as behind a kernel that did."""

    failure: Exception | None = None

    @classmethod
    @contextlib.contextmanager
    def graph(cls, *given: Any, **named: Any) -> Iterator[None]:
        try:
            yield
        finally:
            if cls.failure is not None:
                raise cls.failure


@pytest.mark.parametrize("end", [None, RuntimeError("CUDA error: operation failed due to a previous error in capture")])
@pytest.mark.parametrize("name", ["torch", "CUDA", "Triton", "cuBLAS"])
def test_a_recording_without_memory_is_not_one_that_waits_for_the_gpu(
    name: str, end: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graph.torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(cuda_graph.torch.cuda, "graph", Capture.graph)
    monkeypatch.setattr(cuda_graph, "draws_as_before", contextlib.nullcontext)
    monkeypatch.setattr(Capture, "failure", end)
    with pytest.raises(OutOfMemory, match="does not fit into the memory") as caught, memory_errors():
        captured(plainly(GONE[name]), "this step cannot be recorded")
    assert what_ran_out(GONE[name]) in str(caught.value) and "waits for the GPU" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError), "and not the RecipeError of a step that waits"
    monkeypatch.setattr(Capture, "failure", None)
    with pytest.raises(RecipeError, match="this step cannot be recorded: something in it waits for the GPU"):
        captured(plainly(OTHER["a capture"]), "this step cannot be recorded")


def test_a_compiler_without_memory_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(function: Any) -> Any:
        return lambda x: plainly(GONE["CUDA"])()

    monkeypatch.setattr(compilation.torch, "compile", compile)
    with pytest.raises(RuntimeError, match="^CUDA error: out of memory"):
        compilation.require_compiler(torch.device("cpu"))


def test_a_probe_without_memory_is_no_fault_of_the_monitor() -> None:
    class Watching:
        def wants_probe(self, step: int, values: Any) -> bool:
            return True

        def probe(self, model: nn.Module) -> dict[str, float]:
            raise GONE["CUDA"]

    said: list[str] = []
    use = type("Use", (), {"name": "watching", "distribution": "x", "version": "1", "implementation": "x:Y"})()
    group = MonitorGroup([(use, Watching())])
    with pytest.raises(OutOfMemory), memory_errors():
        group.probe(1, {}, nn.Linear(2, 2), contextlib.nullcontext, said.append)
    assert not said


def test_a_checkpoint_that_no_memory_is_left_to_read_is_not_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be put aside."""
    monkeypatch.setattr(tensor_file.safetensors.torch, "load", lambda data: plainly(GONE["torch on a CPU"])())
    with pytest.raises(RuntimeError, match="allocate memory"):
        tensor_file.read_tensors(b"")
    monkeypatch.setattr(tensor_file.safetensors.torch, "load", lambda data: plainly(OTHER["a capture"])())
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        tensor_file.read_tensors(b"")


def test_a_stage_without_memory_is_no_fault_of_its_plugin(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """Also from Python. What was trained before is kept."""
    monkeypatch.setattr(Train, "finish", lambda self, model: plainly(GONE["CUDA"])(), raising=True)
    with pytest.raises(OutOfMemory, match="make room and go on with: muse-run --resume") as caught:
        muse_core.train(small_recipe, run_dir=tmp_path / "run", quiet=True)
    assert "CUDA error: out of memory)" in str(caught.value)
