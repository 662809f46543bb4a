"""``muse generate``: text from a trained run, as it is drawn."""

from __future__ import annotations

import codecs
import itertools
import sys
from pathlib import Path

import click

from muse_core.cli.errors import guarded
from muse_core.cli.threads import let_waiting_threads_sleep


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="Text to continue.")
@click.option("--tokens", default=200, show_default=True, type=click.IntRange(min=1), help="Tokens to draw.")
@click.option("--temperature", default=0.8, show_default=True, type=click.FloatRange(min=0.0),
              help="Spread of the draws; 0 takes the most likely token.")
@click.option("--top-p", default=1.0, show_default=True, type=click.FloatRange(0.0, 1.0, min_open=True),
              help="Draw from the smallest set of tokens with this probability.")
@click.option("--seed", default=0, show_default=True, help="Seed of the draws.")
@click.option("--device", help="auto, cpu, cuda or cuda:<index> [default: as the run's recipe says].")
def generate(
    run: Path, prompt: str, tokens: int, temperature: float, top_p: float, seed: int, device: str | None
) -> None:
    """Continue a prompt with the newest weights of RUN, a run directory.

    Prints the prompt and what follows as it is drawn. Memory stays constant where the model's state does.
    """
    let_waiting_threads_sleep()
    with guarded():
        from muse_core.errors import RecipeError
        from muse_core.model.generation import generate as draw
        from muse_core.training.trained import open_trained

        setup, _ = open_trained(run, device=device)
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
        sys.stdout.write(prompt)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in itertools.islice(drawn, tokens):
            if token == tokenizer.separator:
                break
            sys.stdout.write(decoder.decode(tokenizer.decode_bytes([token])))
            sys.stdout.flush()
        sys.stdout.write(decoder.decode(b"", final=True) + "\n")
