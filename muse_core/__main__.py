"""``python -m muse_core`` is ``muse``."""

from muse_core.commands import muse

if __name__ == "__main__":
    muse(prog_name="python -m muse_core")
