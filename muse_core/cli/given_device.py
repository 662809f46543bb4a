"""Devices on a command line."""

from __future__ import annotations

import re
from typing import Any

import click


class GivenDevice(click.ParamType):
    """auto, cpu, cuda or cuda:<index>, told by the option that was given and not by the recipe's key that it sets.
    Whether the device is there is not asked."""

    name = "device"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "DEVICE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from muse_core.recipe.schema import DEVICE

        if re.fullmatch(DEVICE, value) is None:
            self.fail(f"{value!r} is no device: give auto, cpu, cuda or cuda:<index>", param, ctx)
        return str(value)
