"""``muse-run --processes N``: N processes of this host under torch's elastic launcher, and what became of them."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from muse_core.errors import MuseError, RankLost, RecipeError

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGUSR1"


class Ended(MuseError):
    """The processes have said why they failed; the launcher ends with their code and says nothing more."""

    def __init__(self, code: int):
        super().__init__("")
        self.exit_code = code


def start(processes: int, arguments: Sequence[str]) -> None:
    """Run ``python -m muse_core.cli.run`` with these arguments in so many processes until all have ended.

    Raises RankLost naming a process that was killed, and Ended with the exit code of the first that failed.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the processes say what failed
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
        **({"signals_to_handle": SIGNALS} if "signals_to_handle" in known else {}),  # torch 2.6 does not know it
    )
    try:
        elastic_launch(config, sys.executable)("-m", "muse_core.cli.run", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise RankLost(f"rank {rank} (process {failure.pid}) was killed by {name}") from None
        raise Ended(failure.exitcode) from None
    except SignalException as error:
        raise Ended(128 + error.sigval) from None


def refuse_launcher(processes: int) -> None:
    """Raises RecipeError for numbers that cannot be started, and under another launcher."""
    if processes < 1:
        raise RecipeError(f"--processes {processes}: give 1 or more")
    if os.environ.get("WORLD_SIZE", "").strip() not in ("", "1"):
        raise RecipeError("--processes starts the processes of a run, and this is one of them: leave it out here")
