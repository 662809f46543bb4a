"""``muse lm-eval``: lm-evaluation-harness with the model ``muse``."""

from __future__ import annotations

import sys

import click

from muse_core.cli.errors import guarded
from muse_core.cli.threads import prepare_torch


@click.command(
    name="lm-eval", context_settings={"ignore_unknown_options": True, "help_option_names": ["-h"]}, add_help_option=True
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def harness(arguments: tuple[str, ...]) -> None:
    """Run lm_eval 0.4.13 with its own ARGUMENTS (--help lists them), and MUSE's runs among its models:

    \b
        muse lm-eval --model muse --model_args run=runs/NAME --tasks TASKS

    lm_eval alone does not find the model muse, since it looks for no entry points. model_args: run, step, device, and
    max_length, the window of rolling log-likelihoods. Install it with pip install "muse-core[lm-eval]".

    \b
    Exit codes: 0 done; 2 lm_eval is not installed, or arguments; 3 no such run
    or no trained checkpoint; others as lm_eval ends.
    """
    with guarded():
        prepare_torch()
        from muse_core.errors import RecipeError

        try:
            import lm_eval  # noqa: F401
        except ModuleNotFoundError as error:
            if error.name != "lm_eval":
                raise
            if "--help" in arguments:  # which is lm_eval's own, where it is there
                print(click.get_current_context().get_help())
                return
            raise RecipeError(
                'lm_eval is not installed; install it with: pip install "muse-core[lm-eval]"'
            ) from None
        import muse_core.evaluation.harness  # noqa: F401

        sys.argv = ["lm_eval", *arguments]
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
