"""The processes of a run: what they exchange, and how a failure of one ends all."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import gc
import hashlib
import json
import os
import pickle
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from muse_core.errors import MuseError, RankLost, RecipeError, causes
from muse_core.parallel import watch as watching
from muse_core.parallel.environment import Launched
from muse_core.parallel.sequence import Sequence
from muse_core.parallel.sizes import Sizes
from muse_core.parallel.watch import Failure, PeerFailed, Watch, failure_of, first_failure, post

T = TypeVar("T")
PATIENCE = datetime.timedelta(hours=1)
"""Of a collective; ranks that stand still are found earlier by ``watch``."""
MEETING = datetime.timedelta(minutes=10)
"""Within which all processes of a run must have started."""
COLD = 24
"""First marks of the steps, which compile and allocate: their duration says nothing."""
SIGNALLED = 128
"""Exit codes above it are of signals."""
LENGTH = 8
"""Bytes in which a value's length is told."""
PROGRAM = 1
"""Exit code of a fault of the program, which no sentence explains."""
BROKEN = ("gloo/", "NCCL", "Connection closed", "Connection reset", "Broken pipe")
"""Parts of messages of torch that tell of a connection to another process."""


class Channel:
    """Values of all ranks through the store, for one thread."""

    def __init__(self, group: Group, number: int, store: Any):
        self.rank, self.size = group.rank, group.size
        self._watch, self._store, self._name, self._count = group.watch, store, f"gather/{number}", 0

    def gather(self, value: Any) -> list[Any]:
        """See ``Ranks.gather``."""
        self._count += 1
        store, keys = self._store, [f"{self._name}/{self._count}/{rank}" for rank in range(self.size)]
        store.set(keys[self.rank], json.dumps(value))
        pause = 0.001
        while not store.check(keys):
            if self._watch.failure is not None:
                self._watch.ending = True
                raise PeerFailed(self._watch.failure)
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        values = [json.loads(one) for one in store.multi_get(keys)]
        # Everyone has read those of two before: all have been here since.
        store.delete_key(f"{self._name}/{self._count - 2}/{self.rank}")
        return values


class Group:
    """Every process of the run has one. ``join`` must come before ``exchange``."""

    def __init__(self, launched: Launched):
        """Raises RankLost when the store cannot be reached."""
        self.rank, self.size, self.launched = launched.rank, launched.size, launched
        self.shards = 1
        self.sequence: Sequence | None = None
        self._channels = self._steps = 0
        self._slowest, self._moved = 0.0, time.monotonic()
        self._control: Any = None
        self._room = 4096
        """Bytes of a value for which ``exchange`` has room, on all ranks alike."""
        try:
            self._rendezvous, _, _ = next(dist.rendezvous("env://", timeout=MEETING))
            self._rendezvous.set_timeout(PATIENCE)
            self.store = self._connect()
            self.watch = Watch(self.rank, self.size, self._connect)
            self._main = Channel(self, 0, self.store)
        except (RuntimeError, OSError, ValueError) as error:
            why = str(error).strip().partition("\n")[0]
            raise RankLost(
                f"rank {self.rank} cannot reach the other processes at {launched.address}:{launched.port} ({why}) - "
                "start the run again, on another port"
            ) from error

    def _connect(self) -> Any:
        store = dist.TCPStore(
            self.launched.address, self.launched.port, is_master=False, wait_for_workers=False,
            timeout=datetime.timedelta(seconds=watching.SILENT),
        )
        return dist.PrefixStore(f"muse/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def join(self, device: torch.device, sizes: Sizes) -> None:
        """Open the process groups: gloo for numbers of the host, NCCL for those on GPUs. Neighbours in rank share the
        tokens of a row. Raises RecipeError where the
        device has no such group."""
        if device.type == "cuda" and not dist.is_nccl_available():
            raise RecipeError(
                "train.device: several processes on GPUs need NCCL, and this torch is built without it - install a "
                "torch with NCCL, or set train.device = \"cpu\""
            )
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if not dist.is_initialized():
            dist.init_process_group(
                backend, store=self._rendezvous, rank=self.rank, world_size=self.size, timeout=PATIENCE
            )
        self._control = dist.new_group(backend="gloo", timeout=PATIENCE)
        self.shards, self.sequence = sizes.shard, None
        self._steps, self._slowest, self.watch.limit = 0, 0.0, watching.LONG  # a run's first steps compile
        if sizes.context > 1:
            mesh = init_device_mesh(device.type, (sizes.batches, sizes.context), mesh_dim_names=("batch", "context"))
            self.sequence = Sequence(mesh.get_group("context"))

    def gather(self, value: Any) -> list[Any]:
        self.watch.marks += 1
        values = self._main.gather(value)
        self._moved = time.monotonic()
        return values

    def channel(self) -> Channel:
        self._channels += 1
        return Channel(self, self._channels, self._connect())

    def exchange(self, value: Any) -> list[Any]:
        self.mark("the numbers of a step")
        values = self._exchanged(pickle.dumps(value))
        self.watch.doing = "what follows the numbers of a step"
        return values

    def _exchanged(self, told: bytes) -> list[Any]:
        """By one gather of as many bytes as the longest value so far took, where torch's of objects takes two, of the
        lengths first: GPUs stand still meanwhile. Each value stands behind its length; one that does not fit is seen by
        all, who gather once more."""
        while True:
            own = torch.frombuffer(bytearray(len(told).to_bytes(LENGTH) + told[: self._room].ljust(self._room)),
                                   dtype=torch.uint8)
            parts = [torch.empty_like(own) for _ in range(self.size)]
            dist.all_gather(parts, own, group=self._control)
            found = [part.numpy().tobytes() for part in parts]
            lengths = [int.from_bytes(one[:LENGTH]) for one in found]
            if max(lengths) <= self._room:
                return [pickle.loads(one[LENGTH : LENGTH + length]) for one, length in zip(found, lengths, strict=True)]
            self._room = 2 * max(lengths)

    def first(self, action: Callable[[], T]) -> T:
        with self.at_work("setting up"):
            if self.rank == 0:
                done = action()
            self.gather(None)
            if self.rank != 0:
                done = action()
        return done

    @contextlib.contextmanager
    def at_work(self, doing: str) -> Iterator[None]:
        before, self.watch.doing, self.watch.limit = (self.watch.doing, self.watch.limit), doing, watching.LONG
        try:
            yield
        finally:
            self.watch.doing, self.watch.limit = before
            self._moved = time.monotonic()

    def mark(self, doing: str) -> None:
        now = time.monotonic()
        self._steps += 1
        if self._steps > COLD:
            self._slowest = max(self._slowest, now - self._moved)
            self.watch.limit = max(watching.STALL, watching.SLOWER * self._slowest)
        self._moved, self.watch.doing = now, doing
        self.watch.marks += 1

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.watch.ending = True
            raise

    def seed_step(self, seed: int, step: int) -> None:
        if self.rank:
            digest = hashlib.sha256(f"{seed}/{self.rank}/{step}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def agree(self, what: str, value: Any, advice: str) -> None:
        """Raises RecipeError naming the first rank whose ``value`` is not rank 0's."""
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                if isinstance(other, dict) and isinstance(values[0], dict):
                    keys = [key for key in sorted({*other, *values[0]}) if other.get(key) != values[0].get(key)]
                    what = f"{what} ({', '.join(keys[:3])})"
                raise RecipeError(f"rank {rank} does not have rank 0's {what} - {advice}")

    def failed(self, sentence: str, code: int, error: BaseException | None) -> tuple[bool, int]:
        """Tell the others that this process fails. Returns whether it is to say why, and the exit code."""
        self.watch.ending = True
        atexit.register(self._outlast)
        try:
            return self._failed(sentence, code, error)
        except (RuntimeError, OSError):  # the store is gone, and with it whoever could listen
            return True, code

    def _failed(self, sentence: str, code: int, error: BaseException | None) -> tuple[bool, int]:
        if isinstance(error, PeerFailed):
            return False, code
        if error is not None and broken(error):
            if lost := self._who_broke_it():
                return False, lost.code
            if code == PROGRAM and not isinstance(error, MuseError):
                return True, RankLost.exit_code
        if error is None and code > SIGNALLED and (found := first_failure(self.store)):
            return False, found.code  # the launcher ends what another's failure left
        if code == PROGRAM and not isinstance(error, MuseError):
            number = post(self.store, Failure(rank=self.rank, sentence=sentence, code=code))
            found = first_failure(self.store)
            return (True, code) if number == 1 or found is None else (False, found.code)
        post(self.store, Failure(rank=self.rank, sentence=sentence, code=code))
        told_by = re.match(r"rank (\d+): ", sentence)
        other = 0 if self.rank else int(told_by[1]) if told_by else None
        deadline = time.monotonic() + watching.GRACE
        while other not in (None, self.rank) and time.monotonic() < deadline:
            said = failure_of(self.store, other)
            if said is not None:  # rank 0 speaks for ranks that say the same, and not for one that it only repeats
                return self.rank > 0 and said.sentence != sentence, code
            time.sleep(0.05)
        return True, code

    def _outlast(self) -> None:
        """Where rank 0 holds the store, it stays until the others have heard of a failure."""
        deadline = time.monotonic() + watching.GRACE + 2 * watching.INTERVAL
        with contextlib.suppress(RuntimeError, OSError):
            self.store.set(f"gone/{self.rank}", "1")
            others = [f"gone/{rank}" for rank in range(self.size)]
            while self.rank == 0 and time.monotonic() < deadline and not self.store.check(others):
                time.sleep(0.05)

    def _who_broke_it(self) -> Failure | None:
        """Find out whose end broke a collective, and make it known."""
        deadline = time.monotonic() + 3 * watching.GRACE
        while time.monotonic() < deadline:
            if found := first_failure(self.store):
                return found
            self.watch.look()
            lost = self.watch.silent_rank(3 * watching.INTERVAL)
            if lost is not None:
                sentence = f"{self.watch.name(lost)} has died: it gives no sign of life"
                failure = Failure(rank=lost, sentence=sentence, code=RankLost.exit_code)
                if post(self.store, failure) == 1:
                    print(sentence, file=sys.stderr, flush=True)
                return failure
            time.sleep(0.2)
        return None

    def close(self) -> None:
        """All have come to their end."""
        self.gather("end")
        self.watch.close()
        if dist.is_initialized():
            gc.collect()  # torch's copies of the model, of which some hang in cycles, go before the groups they use
            dist.destroy_process_group()


def broken(error: BaseException) -> bool:
    """Whether the connection to another process broke, in the core's own code or in that of a plugin, whose name is on
    what became of it: layers gather from other processes, and optimizers of divided weights do."""
    return any(
        isinstance(cause, dist.DistError)
        or (not isinstance(cause, MuseError) and any(part in str(cause) for part in BROKEN))
        for cause in causes(error)
    )
