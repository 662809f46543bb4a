"""Paths on a command line."""

from __future__ import annotations

import os
from typing import Any

import click


class GivenPath(click.Path):
    """A path that is not empty: ``--run-dir "$OUT"`` without a value of OUT is a mistake and not the working
    directory, for which an empty path would stand."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if os.fspath(value) in ("", b""):
            self.fail("it is empty, as a shell's variable without a value is: name a path, or leave it out", param, ctx)
        return super().convert(value, param, ctx)
