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
    """The functions in "float32" or "float64". Compiled once for a source, a compiler with its flags and a processor,
    and kept in `folder()` under names that tell what is in them. Raises RuntimeError with the reason where that is not
    possible here."""
    compiler, flags = find_compiler(), [*FLAGS, *_words("CFLAGS")]
    version = _run([*compiler, "--version"])
    sources = sorted(FOLDER.glob("*.c"))
    written = b"".join(path.read_bytes() for path in (*sources, *sorted(FOLDER.glob("*.h"))))
    parts = (written, " ".join([*compiler, *flags, precision, version]).encode(), _processor())
    name = f"{precision}-{_digest(b'|'.join(parts))}"
    where = folder()
    try:
        for kept in where.glob(f"{name}-*.so"):
            if kept.stem == f"{name}-{_digest(kept.read_bytes())}":  # part of a library would end the process
                return ctypes.CDLL(str(kept))
            kept.unlink(missing_ok=True)
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=where) as beside:
            made = Path(beside) / "library.so"
            _run([*compiler, *flags, f"-DBITS={BITS[precision]}", *map(str, sources), "-o", str(made), "-lm"])
            loaded = ctypes.CDLL(str(made))  # kept only if it can be loaded
            # Whole, whoever else compiles at the same time.
            os.replace(made, where / f"{name}-{_digest(made.read_bytes())}.so")
        return loaded
    except OSError as error:
        raise RuntimeError(
            f"its library could not be made in {where}: {error} - name a folder that can be written to, and loaded "
            "from, in MUSE_KERNELS_CACHE"
        ) from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:20]


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
    """The command of the C compiler: CC, or the first of `COMPILERS` there is. Raises RuntimeError without one. CFLAGS
    are given to it after our own."""
    named = _words("CC")
    if named:
        return named
    found = next((path for path in map(shutil.which, COMPILERS) if path), None)
    if found is None:
        raise RuntimeError(f"there is no C compiler ({', '.join(COMPILERS)}, or one that CC names)")
    return [found]


def _words(variable: str) -> list[str]:
    """An environment variable as a shell divides it. Raises RuntimeError for an open quotation."""
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise RuntimeError(f"{variable} cannot be read as a command line: {error}") from error


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, check=False)
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
