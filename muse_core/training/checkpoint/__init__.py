"""Checkpoints in generations that survive crashes, full disks and damaged files."""

from muse_core.training.checkpoint.checkpoints import Checkpoints, Rejected
from muse_core.training.checkpoint.generation import Generation
from muse_core.training.checkpoint.ranks import OneRank, Ranks
from muse_core.training.checkpoint.snapshot import Snapshot

__all__ = ["Checkpoints", "Generation", "OneRank", "Ranks", "Rejected", "Snapshot"]
