"""Checkpoints in generations that survive crashes, full disks and damaged files."""

from muse_core.storage.checkpoint.checkpoints import Checkpoints, Rejected
from muse_core.storage.checkpoint.generation import Generation
from muse_core.storage.checkpoint.snapshot import Snapshot

__all__ = ["Checkpoints", "Generation", "Rejected", "Snapshot"]
