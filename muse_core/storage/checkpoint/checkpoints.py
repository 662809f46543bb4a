"""The checkpoints of one run: commit, resume, certify, roll back."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from muse_core.errors import StorageError
from muse_core.fault_injection import fault_point
from muse_core.parallel.one import ONE
from muse_core.storage.checkpoint import retention
from muse_core.storage.checkpoint.commit import bytes_needed, check_free_space, commit
from muse_core.storage.checkpoint.generation import (
    ABANDONED,
    CERTIFIED,
    COMMITTED,
    QUARANTINED,
    Generation,
    describe,
    numbers,
    read,
)
from muse_core.storage.checkpoint.manifest import Damaged, marker
from muse_core.storage.checkpoint.ranks import Meeting, together
from muse_core.storage.checkpoint.snapshot import Snapshot
from muse_core.storage.disk import Disk, inside, make_directory, storage_errors, write_file_atomically

NO_DIGESTS: Mapping[str, Any] = {}


@attrs.frozen
class Rejected:
    """A generation that was not loaded."""

    number: int
    reason: str
    moved_to: Path | None
    """Where it was set aside; None if it stayed in place."""


class Checkpoints:
    """Generations under ``run_directory/checkpoints``. The caller holds the run directory's lock.

    All methods raise StorageError when the disk fails. ``keep`` generations stay besides the two newest certified;
    ``quota`` bounds the bytes of all generations together.
    """

    def __init__(
        self,
        run_directory: Path,
        *,
        keep: int = 5,
        quota: int | None = None,
        disk: Disk | None = None,
        ranks: Meeting = ONE,
    ):
        if keep < 1:
            raise ValueError(f"keep = {keep}: at least one generation must stay")
        self.directory = inside(run_directory, Path(run_directory) / "checkpoints")
        self.keep = keep
        self.quota = quota
        self.disk = disk or Disk()
        self.ranks = ranks
        self.rejected: list[Rejected] = []
        """What the last search passed over, newest first."""
        self._parent: int | None = None
        self._failure: str | None = None

    def commit(
        self, snapshot: Snapshot, *, certified: bool = False, digests: Mapping[str, Any] = NO_DIGESTS
    ) -> Generation:
        """Makes a snapshot durable and then applies retention. ``digests`` go into the manifest. Of several ranks each
        gives its part of the tensors, see ``commit``.

        A failure leaves the previous generations as they were; after one, this object commits no more.
        Raises StorageError, and ValueError for a snapshot that JSON or safetensors would not give back unchanged.
        """
        if self._failure is not None:
            raise StorageError(f"no more checkpoints after a failed one ({self._failure}) - restart the run to resume")
        try:
            inside(self.directory.parent, self.directory)  # again: it may have been exchanged for a link since
            needed = self._bytes_needed(snapshot)
            with storage_errors("write a checkpoint", self.directory, f" (it needs {needed:,} bytes)"):
                number = commit(
                    self.disk,
                    self.ranks,
                    self.directory,
                    snapshot,
                    needed=needed,
                    parent=self._parent,
                    certified=certified,
                    digests=digests,
                )
                self._parent = number
                together(self.ranks, self._apply_retention)
                fault_point("commit.after_retention", None)
                return describe(self.directory, number)
        except StorageError as error:
            self._failure = str(error)
            raise

    def check_space(self, snapshot: Snapshot) -> int:
        """Bytes that a generation of this snapshot needs; StorageError if the disk or the quota has no room for it."""
        needed = self._bytes_needed(snapshot)
        with storage_errors("write a checkpoint", self.directory, f" (it needs {needed:,} bytes)"):
            if self.ranks.rank == 0:
                make_directory(self.disk, self.directory)
                check_free_space(self.disk, self.directory, needed)
        return needed

    def newest(self, *, quarantine: bool = True) -> tuple[Generation, Snapshot] | None:
        """The newest generation that is intact; None if there never was one. Sets ``rejected``.

        Damaged ones are set aside (``quarantine=False`` leaves another run's directory untouched). If there are
        generations and none is intact, StorageError: a run never starts afresh over its own checkpoints.
        """
        found = next(self._search(lambda one: True, quarantine=quarantine), None)
        if found is None and numbers(self.directory, COMMITTED, QUARANTINED):
            causes = "; ".join(f"generation {one.number}: {one.reason}" for one in self.rejected)
            raise StorageError(
                f"{self.directory}: no checkpoint can be used ({causes or 'all were set aside earlier'}) - restore one "
                "from a copy, or start again in another run directory"
            )
        return found

    def certified_before(self, step: int, *, margin: int = 0, skip: int = 0) -> tuple[Generation, Snapshot] | None:
        """The newest intact certified generation at least ``margin`` steps before ``step``: the target of a rollback.

        A generation at ``step`` was taken before that step ran. ``skip`` passes over that many, for an older target.
        """
        found = self._search(lambda one: one.certified and one.step <= step - margin)
        return next(itertools.islice(found, skip, None), None)

    def load(self, number: int) -> tuple[Generation, Snapshot]:
        """A certain generation; StorageError if it is not there, not intact or abandoned."""
        found = next(self._search(lambda one: True, only=number), None)
        if found is None:
            reasons = [one.reason for one in self.rejected] or ["there is none that may be loaded"]
            raise StorageError(f"{self.directory}: generation {number}: {reasons[0]} - choose another generation")
        return found

    def at(self, step: int) -> tuple[Generation, Snapshot] | None:
        """The newest intact generation of this step, read where it is; None if there is none. Sets ``rejected``."""
        return next(self._search(lambda one: one.step == step, quarantine=False), None)

    def certify(self, generation: Generation) -> Generation:
        """Marks a committed generation as healthy, durably."""
        return self._mark(generation, CERTIFIED)

    def abandon(self, *, after: int, through: int) -> list[int]:
        """Marks generations ``after`` < number ≤ ``through`` as left by a rollback; repeating it changes nothing.

        They are never loaded again, also when the run is killed before its next commit, and go with retention.
        """
        left = [one for one in self.generations() if after < one.number <= through]
        if self.ranks.rank == 0:
            for one in left:
                if not one.abandoned:
                    self._mark(one, ABANDONED)
        self.ranks.gather(None)
        return [one.number for one in left]

    def generations(self) -> list[Generation]:
        """What the manifests say, newest first, contents unverified; those without a good manifest are left out."""
        found = []
        for number in numbers(self.directory, COMMITTED):
            with contextlib.suppress(Damaged, OSError):
                found.append(describe(self.directory, number))
        return found

    def _bytes_needed(self, snapshot: Snapshot) -> int:
        together(self.ranks, snapshot.check)
        needed = sum(together(self.ranks, lambda: bytes_needed(snapshot)))
        at_most = needed * (self.keep + retention.KEEP_CERTIFIED + 1)
        if self.quota is not None and at_most > self.quota:
            raise StorageError(
                f"{self.directory}: the quota is {self.quota} bytes, but {self.keep} generations, "
                f"{retention.KEEP_CERTIFIED} certified ones and one being written need up to {at_most} bytes - "
                "raise the quota or lower checkpoint.keep"
            )
        return needed

    def _search(
        self, wanted: Callable[[Generation], bool], *, quarantine: bool = True, only: int | None = None
    ) -> Iterator[tuple[Generation, Snapshot]]:
        """Intact generations newest first. What is taken becomes the parent of the next commit.

        A generation counts as intact only if every rank finds it so, so that all go on from the same one. One that
        the disk fails to read is passed over but stays in place: the next start may be able to read it. So does one
        whose weights or moments are not finite.
        """
        self.rejected = []
        here = numbers(self.directory, COMMITTED)
        for number in self.ranks.gather(here)[0]:
            if only not in (None, number):
                continue
            failure, damaged, passed, found = None, False, False, None
            try:
                generation = describe(self.directory, number)
                passed = generation.abandoned or not wanted(generation)
                if not passed:
                    found = generation, read(generation)
                    if broken := found[1].nonfinite(("model", "optimizer")):
                        failure = f"{broken} is not finite"
            except (Damaged, OSError) as error:
                failure, damaged = str(error), isinstance(error, Damaged)
            reports = self.ranks.gather([failure, damaged, passed])
            if failures := [report for report in reports if report[0] is not None]:
                self._reject(number, failures[0][0], quarantine and any(report[1] for report in failures))
                continue
            if any(report[2] for report in reports):
                continue
            assert found is not None
            self._parent = number
            fault_point("restore", None)
            yield found

    def _reject(self, number: int, reason: str, quarantine: bool) -> None:
        moved_to = None
        if quarantine and self.ranks.rank == 0:
            with storage_errors("set a damaged checkpoint aside", self.directory):
                moved_to = retention.quarantine(self.disk, self.directory, number)
        self.rejected.append(Rejected(number, reason, moved_to))

    def _apply_retention(self) -> None:
        if self.ranks.rank != 0:
            return
        there = self.generations()
        keep = retention.kept(there, self.keep)
        retention.remove(self.disk, self.directory, [one.number for one in there if one.number not in keep])

    def _mark(self, generation: Generation, kind: str) -> Generation:
        with storage_errors("mark a checkpoint", generation.path):
            content = marker(kind, generation.number, generation.manifest.encode())
            write_file_atomically(self.disk, generation.path / kind, content)
        return describe(self.directory, generation.number)
