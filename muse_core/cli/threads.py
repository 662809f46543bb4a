"""How torch's threads wait for each other."""

from __future__ import annotations

import os


def let_waiting_threads_sleep() -> None:
    """Let threads that wait sleep instead of spin; to be called before torch is imported. A value that the user has
    set stays.

    With two threads on two cores that other processes use as well, phase2_base trained 54 tokens/s spinning and 642
    sleeping.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
