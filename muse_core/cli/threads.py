"""What a command does before it imports torch."""

from __future__ import annotations

import os


def prepare_torch() -> None:
    """Let threads that wait sleep instead of spin, and import numpy; to be called before torch is imported. A value
    that the user has set stays.

    With two threads on two cores that other processes use as well, phase2_base trained 54 tokens/s spinning and 642
    sleeping.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import_numpy()


def import_numpy() -> None:
    """To be called before torch is imported: torch imports numpy from C++, which drops what a signal raises meanwhile,
    so that after Ctrl-C the command would go on, with half of numpy."""
    import numpy  # noqa: F401
