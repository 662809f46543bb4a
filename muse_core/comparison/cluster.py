"""Runs of a comparison as jobs of a scheduler, through the library submitit: each where the scheduler places it.

The folder of the comparison lies on a file system that all hosts share, and the same environment is installed there.
Imports no torch, and submitit only once a cluster is asked for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import tomllib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muse_core.comparison.slots import PAUSE
from muse_core.errors import RecipeError

MINUTES = 24 * 60
"""Time limit of a job that none is given for; submitit's own is five minutes. What it ends goes on in a further job."""
COPIES = ("nodes", "tasks_per_node", "ntasks_per_node")
"""Parameters, also behind the name of a scheduler, by which a job would begin its run more than once."""
LEFT = 128 + signal.SIGTERM
"""Exit code of a job that was told to stop before its run began."""


class Cluster:
    """Begins processes as jobs; ``launch`` of ``slots.Slots``."""

    def __init__(self, name: str, folder: Path, parameters: Sequence[str] = ()):
        """``name``: slurm, or local, which starts processes here as a trial. ``folder``: where jobs keep their files.
        ``parameters``: submitit's, as ``KEY=VALUE``. Raises RecipeError where submitit or the scheduler is missing, and
        for a parameter that it does not know."""
        try:
            import submitit
        except ImportError:
            raise RecipeError(
                "--cluster needs the library submitit - install it by pip install 'muse-core[cluster]'"
            ) from None
        self.folder = folder.resolve()
        try:
            self.executor = submitit.AutoExecutor(folder=self.folder, cluster=name)
        except (RuntimeError, ValueError) as error:
            raise RecipeError(f"--cluster {name}: {_first_line(error)} - start it where jobs are submitted") from error
        try:
            self.executor.update_parameters(**{"timeout_min": MINUTES, "name": "muse"} | _given(parameters))
        except (NameError, TypeError, ValueError, AssertionError) as error:  # of a value of another type the last
            raise RecipeError(f"--job: {_first_line(error)}") from error

    def __call__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Job:
        """Submit a command. Raises RecipeError where the scheduler does not take it."""
        stop = self.folder / f"stop-{uuid.uuid4().hex}"
        try:
            job = self.executor.submit(run_here, list(command), log.resolve(), dict(environment), Path.cwd(), stop)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise RecipeError(f"--cluster: the scheduler does not take a job ({_first_line(error)})") from error
        return Job(job, stop, log)


class Job:
    """A submitted run, with what ``slots`` uses of ``subprocess.Popen``."""

    def __init__(self, job: Any, stop: Path, log: Path):
        self.job, self.stop, self.log = job, stop, log
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code once it has ended; −SIGKILL where the scheduler ended it or its host was lost."""
        if self.returncode is None and self.job.done():
            from submitit.core.utils import FailedJobError, UncompletedJobError

            try:
                self.returncode = int(self.job.result())
            except FailedJobError as error:  # not of the run: of the function that starts it
                self.returncode = 1
                self._note(error)
            except UncompletedJobError as error:
                self.returncode = -signal.SIGKILL
                self._note(error)
            self.stop.unlink(missing_ok=True)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        began = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - began >= timeout:
                raise subprocess.TimeoutExpired(f"job {self.job.job_id}", timeout)
            time.sleep(PAUSE)
        return code

    def send_signal(self, number: int) -> None:
        """The run is to save and leave; one that waits for a host does not begin."""
        self.stop.touch()
        if str(self.job.state).upper() == "PENDING":
            self.kill()

    def kill(self) -> None:
        """Take it from the scheduler."""
        self.job.cancel(check=False)

    def _note(self, error: Exception) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"job {self.job.job_id}: {lines[-1] if lines else type(error).__name__}\n")


def run_here(command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path, stop: Path) -> int:
    """In the job: the command's exit code. It is asked to save and leave once ``stop`` exists, and when the scheduler
    announces that the job's time is over."""
    if stop.exists():
        return LEFT
    over: list[int] = []
    # submitit has Slurm send it 90 seconds before the end, to the run too, which inherits that it is ignored.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    with log.open("ab") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=folder, env=os.environ | environment,
            start_new_session=True,
        )
    signal.signal(signal.SIGUSR2, lambda number, frame: over.append(number))
    try:
        asked = False
        while process.poll() is None:
            if not asked and (over or stop.exists()):
                process.send_signal(signal.SIGTERM)
                asked = True
            time.sleep(PAUSE)
    finally:
        if process.poll() is None:
            process.kill()
    return process.returncode


def _given(parameters: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` with values of TOML, or words as they are."""
    found: dict[str, Any] = {}
    for text in parameters:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise RecipeError(f"--job {text}: write KEY=VALUE, as timeout_min=600")
        key = key.strip()
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value.strip()
        if key.removeprefix("slurm_").removeprefix("local_") in COPIES and found[key] != 1:
            raise RecipeError(
                f"--job {text}: a run is one task of one node; every further one would begin it again - leave it out"
            )
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
