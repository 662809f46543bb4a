"""The backend in C: when it refuses, what it keeps, and that threads change nothing."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from muse_core.testing import warm
from muse_kernels import KernelRequest, causal_resolvent_apply, fast_weights, select_backend
from muse_kernels.compiled import find_compiler, library
from muse_kernels.testing.fast_weights import draw, results

ASK = """
from muse_kernels import KernelRequest, select_backend
chosen = select_backend(KernelRequest("fast_weights", "cpu", "float32"))
print(chosen.backend, chosen.refusals.get("native"))
"""


def asked(**environment: str) -> str:
    environment = os.environ | {"CFLAGS": "-O0"} | environment  # compiled in a second
    done = warm.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_a_compiler_torch_serves_and_the_reason_is_said(tmp_path):
    empty = {"PATH": str(tmp_path), "CC": "", "MUSE_KERNELS_CACHE": str(tmp_path)}
    assert asked(**empty) == "torch there is no C compiler (cc, gcc, clang, or one that CC names)"
    said = asked(CC="no-such-compiler", MUSE_KERNELS_CACHE=str(tmp_path))
    assert said.startswith("torch the C compiler no-such-compiler could not be run")
    failing = tmp_path / "failing"
    failing.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "kernels.c: error: no" >&2; exit 1; }\n')
    failing.chmod(0o755)
    said = asked(CC=str(failing), MUSE_KERNELS_CACHE=str(tmp_path))
    assert said == f"torch the C compiler {failing} failed: kernels.c: error: no"
    failing.write_text('#!/bin/sh\nprintf "error: caf\\351\\n" >&2; exit 1\n')  # not UTF-8
    assert "failed: error: caf" in asked(CC=str(failing), MUSE_KERNELS_CACHE=str(tmp_path))
    assert asked(CC='cc "').startswith("torch CC cannot be read as a command line")
    assert asked(CFLAGS="'-O0").startswith("torch CFLAGS cannot be read as a command line")


def compiler(path: Path, does: str) -> str:
    """A C compiler that answers ``--version`` and then ``does`` something in the shell; "$out" is the file to write."""
    path.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo "1.0"; exit 0; }\nall="$*"\n'
        'while [ "$1" != -o ]; do shift; done\nout="$2"\n' + does
    )
    path.chmod(0o755)
    return str(path)


def test_a_library_is_compiled_once_and_not_kept_where_that_fails(tmp_path):
    cache = {"MUSE_KERNELS_CACHE": str(tmp_path / "cache")}
    assert asked(**cache) == "native None"
    (kept,) = (tmp_path / "cache").iterdir()
    before = kept.stat().st_mtime_ns
    assert asked(**cache) == "native None" and kept.stat().st_mtime_ns == before
    whole = kept.read_bytes()
    kept.write_bytes(whole[:1000])  # as after a power failure; to load it is a bus error
    assert asked(**cache) == "native None" and kept.read_bytes() == whole
    (tmp_path / "file").touch()
    said = asked(MUSE_KERNELS_CACHE=str(tmp_path / "file"))
    assert "could not be made in" in said and "in MUSE_KERNELS_CACHE" in said


def test_a_folder_that_cannot_be_written_to_serves_what_it_has(tmp_path):
    folder = tmp_path / "cache"
    assert asked(MUSE_KERNELS_CACHE=str(folder)) == "native None"
    (kept,) = folder.iterdir()
    folder.chmod(0o500)
    try:
        assert asked(MUSE_KERNELS_CACHE=str(folder)) == "native None"
        kept.chmod(0o400)
        assert asked(MUSE_KERNELS_CACHE=str(folder)) == "native None"
        if os.geteuid():  # nothing is read-only to root
            assert "could not be made in" in asked(MUSE_KERNELS_CACHE=str(folder), CFLAGS="-O1")
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize("does", (
    'echo half > "$out"; echo "x.c:1: error: no space left on device" >&2; exit 1', 'echo half > "$out"; kill -9 $$',
    'echo half > "$out"', "exit 0",
))  # fmt: skip
def test_a_compiler_that_fails_halfway_leaves_nothing_behind(does, tmp_path):
    folder = tmp_path / "cache"
    said = asked(CC=compiler(tmp_path / "cc", does), MUSE_KERNELS_CACHE=str(folder))
    assert said.startswith("torch ") and ("failed" in said or "could not be made" in said), said
    assert list(folder.iterdir()) == []


def test_processes_that_compile_at_the_same_time_all_have_a_library(tmp_path):
    slow = compiler(tmp_path / "cc", f'eval set -- "$all"; sleep 0.5; exec {shlex.join(find_compiler())} "$@"')
    environment = os.environ | {"CFLAGS": "-O0", "CC": slow, "MUSE_KERNELS_CACHE": str(tmp_path / "cache")}
    processes = [
        warm.Popen([sys.executable, "-c", ASK], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate()[0].strip() for process in processes] == ["native None"] * 3
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_flags_of_ones_own_make_another_library(tmp_path):
    """As for the processors of a cluster whose homes are one."""
    cache = {"MUSE_KERNELS_CACHE": str(tmp_path)}
    assert asked(**cache, CFLAGS="-O0") == asked(**cache, CFLAGS="-O0 -g0") == "native None"
    assert len(list(tmp_path.iterdir())) == 2
    assert "failed" in asked(**cache, CFLAGS="-no-such-flag")


def test_on_a_gpu_and_for_other_operations_it_refuses():
    request = KernelRequest("fast_weights", "cuda", "float64")
    assert select_backend(request).refusals["native"] == "it computes on a CPU, the tensors are on cuda"
    with pytest.raises(ValueError, match="native refuses: it has no deep_memory"):
        select_backend(request._replace(operation="deep_memory", device="cpu"), "native")


@pytest.mark.parametrize("threads", (2, 3))
def test_threads_change_no_bit(threads):
    problem = draw(700, batch=3, heads=3, key_width=16, value_width=70, dtype=torch.float32, resets=True)
    hopping = torch.rand(5, 6, 300)

    def computed() -> list[torch.Tensor]:
        diagonal = torch.randn(5, 6, 300, generator=torch.Generator().manual_seed(0), requires_grad=True)
        (y, theta), _ = causal_resolvent_apply(
            diagonal, hopping, hopping, 0.3 + 0.2j, diagonal[..., None].expand(-1, -1, -1, 8), backend="native"
        )
        (gradient,) = torch.autograd.grad(y.real.sum() + theta.imag.sum(), diagonal)
        return [*results(problem, lambda *x, **options: fast_weights(*x, backend="native", **options)), y, gradient]

    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = computed()
        torch.set_num_threads(threads)
        together = computed()
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_the_compiler_that_made_it_is_named():
    assert find_compiler() and library("float32") is library("float32") is not library("float64")
