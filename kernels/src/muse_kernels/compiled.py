"""The C sources of the native backend as libraries, compiled here when they are first asked for. Imports no torch."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent / "native"
BITS = {"float32": 32, "float64": 64}
FLAGS = (
    "-O3", "-march=native", "-std=c11", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math",
    # Sums may be taken in another order than written, as torch's are: otherwise none would be vectorised.
    "-fno-signed-zeros", "-fassociative-math",
)
COMPILERS = ("cc", "gcc", "clang")


@lru_cache
def library(precision: str) -> ctypes.CDLL:
    """The functions in "float32" or "float64". Compiled once for a source, a compiler and a processor, and kept in
    `folder()`. Raises RuntimeError with the reason where that is not possible here."""
    compiler = find_compiler()
    version = _run([*compiler, "--version"])
    sources = sorted(FOLDER.glob("*.c"))
    written = b"".join(path.read_bytes() for path in (*sources, *sorted(FOLDER.glob("*.h"))))
    parts = (written, " ".join([*compiler, *FLAGS, precision, version]).encode(), _processor())
    name = f"{precision}-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:20]}.so"
    kept = folder() / name
    try:
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as beside:
                made = Path(beside) / name
                _run([*compiler, *FLAGS, f"-DBITS={BITS[precision]}", *map(str, sources), "-o", str(made), "-lm"])
                os.replace(made, kept)  # whole, whoever else compiles at the same time
        return ctypes.CDLL(str(kept))
    except OSError as error:
        raise RuntimeError(f"its library could not be made in {kept.parent}: {error}") from error


@lru_cache
def _reason(precision: str) -> str | None:
    try:
        library(precision)
    except RuntimeError as error:
        return str(error)
    return None


def unavailable(precision: str) -> str | None:
    """Why there is no library here, or None; asked once a process."""
    return _reason(precision)


# As torch.compiler.assume_constant_result does, without importing torch: the question is no part of a graph.
unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def folder() -> Path:
    """Where libraries are kept: MUSE_KERNELS_CACHE, or muse-kernels in the user's cache."""
    named = os.environ.get("MUSE_KERNELS_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "muse-kernels"


def find_compiler() -> list[str]:
    """The command of the C compiler: CC, or the first of `COMPILERS` there is. Raises RuntimeError without one."""
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        return named
    found = next((path for path in map(shutil.which, COMPILERS) if path), None)
    if found is None:
        raise RuntimeError(f"there is no C compiler ({', '.join(COMPILERS)}, or one that CC names)")
    return [found]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"the C compiler {command[0]} could not be run: {error}") from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line.lower()), f"exit {done.returncode}")
        raise RuntimeError(f"the C compiler {command[0]} failed: {said.strip()}")
    return done.stdout


def _processor() -> bytes:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    told = sorted({line for line in lines if line.partition("\t")[0] in ("flags", "Features", "model name")})
    return "\n".join([platform.machine(), *told]).encode()
