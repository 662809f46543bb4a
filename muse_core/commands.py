"""Where the commands ``muse`` and ``muse-run`` begin: Ctrl-C is answered from here on, while the rest is imported too.

Imports nothing, so that little of the start is left out.
"""


class Interruptible:
    """A context in which Ctrl-C ends the process as it does within a command: one line, exit code 130."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            import sys

            if sys.stderr is not None:
                try:
                    print("interrupted", file=sys.stderr)
                except (OSError, ValueError):  # nobody reads it
                    pass
            raise SystemExit(130) from None


def muse(**given: object) -> None:
    """The command ``muse``; ``given`` is for click."""
    with Interruptible():
        from muse_core.cli import muse

        muse(**given)


def muse_run() -> None:
    """The command ``muse-run``."""
    with Interruptible():
        from muse_core.cli.run import main

        main()
