"""``muse generate``: text from a trained run, as it is drawn."""

from __future__ import annotations

import codecs
import contextlib
import itertools
import math
import sys
from pathlib import Path

import click

from muse_core.cli.errors import guarded, warn
from muse_core.cli.threads import let_waiting_threads_sleep

LEAST_TEMPERATURE = 1e-6
"""Below it scores overflow when they are divided by it."""


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="Text to continue.")
@click.option("--tokens", default=200, show_default=True, type=click.IntRange(min=1), help="Tokens to draw.")
@click.option("--temperature", default=0.8, show_default=True, type=click.FloatRange(min=0.0),
              help="Spread of the draws; 0 takes the most likely token.")
@click.option("--top-p", default=1.0, show_default=True, type=click.FloatRange(0.0, 1.0, min_open=True),
              help="Draw from the smallest set of tokens with this probability.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Seed of the draws.")
@click.option("--step", type=click.IntRange(min=0), help="Take the weights of this step's checkpoint.")
@click.option("--device", help="auto, cpu, cuda or cuda:<index> [default: as the run's recipe says].")
def generate(
    run: Path, prompt: str, tokens: int, temperature: float, top_p: float, seed: int, step: int | None,
    device: str | None,
) -> None:
    """Continue a prompt with the newest weights of RUN, a run directory. No text of the run is read.

    Prints the prompt and what follows as it is drawn. Memory stays constant where the model's state does.
    """
    let_waiting_threads_sleep()
    with guarded():
        from muse_core.errors import RecipeError
        from muse_core.model.generation import generate as draw
        from muse_core.training.trained import open_trained

        if not (math.isfinite(temperature) and (temperature == 0 or temperature >= LEAST_TEMPERATURE)):
            raise RecipeError(f"--temperature {temperature}: must be 0 or a number from {LEAST_TEMPERATURE} up")
        if math.isnan(top_p):
            raise RecipeError("--top-p nan: must be a number above 0, at most 1")
        if any(0xD800 <= ord(character) < 0xE000 for character in prompt):
            raise RecipeError("--prompt: is not UTF-8 text; write it in UTF-8")
        with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints when it is imported is not the answer
            setup, _ = open_trained(run, device=device, step=step, untrained=False, say=warn)
        tokenizer = setup.corpus.tokenizer
        ids = [int(token) for token in tokenizer.encode(prompt)]
        if not ids:
            raise RecipeError("--prompt: is empty; give at least one character")
        drawn = draw(
            setup.model,
            ids,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stream_period=setup.stream_period,
            device=setup.precision.device,
            precision=setup.precision,
        )
        # As the tokens spell it: the numbers of a task need a space before the next.
        sys.stdout.write(tokenizer.decode(ids))
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in itertools.islice(drawn, tokens):
            if token == tokenizer.separator:
                break
            sys.stdout.write(decoder.decode(tokenizer.decode_bytes([token])))
            sys.stdout.flush()
        sys.stdout.write(decoder.decode(b"", final=True) + "\n")
