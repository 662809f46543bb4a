"""``muse generate``: text from a trained run, as it is drawn."""

from __future__ import annotations

import codecs
import contextlib
import itertools
import logging
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from muse_core.cli.errors import guarded, warn
from muse_core.cli.given_device import GivenDevice
from muse_core.cli.given_path import GivenPath
from muse_core.cli.given_text import given_text
from muse_core.cli.run_arguments import run_argument
from muse_core.cli.threads import prepare_torch

MOST_SAMPLES = 16_384
"""Texts that are drawn together, each with its own state."""


@click.command()
@run_argument()
@click.option("--prompt", help='Text to continue; "" starts a document of its own.')
@click.option("--prompt-file", type=GivenPath(path_type=Path, allow_dash=True),
              help="File with the text to continue, in UTF-8; - is the standard input.")
@click.option("--tokens", default=200, show_default=True, type=click.IntRange(min=1), help="Tokens to draw.")
@click.option("--samples", default=1, show_default=True, type=click.IntRange(1, MOST_SAMPLES),
              help="Texts to draw, together; their seeds are --seed and those that follow it.")
@click.option("--temperature", default=0.8, show_default=True, type=click.FloatRange(min=0.0),
              help="Spread of the draws; 0 takes the most likely token.")
@click.option("--top-k", type=click.IntRange(min=1), help="Draw from that many of the most likely tokens.")
@click.option("--top-p", default=1.0, show_default=True, type=click.FloatRange(0.0, 1.0, min_open=True),
              help="Draw from the smallest set of tokens with this probability.")
@click.option("--stop", multiple=True, help="End before this text where it appears; may be given several times.")
@click.option("--lookup", type=click.IntRange(min=1),
              help="With --temperature 0: propose up to this many tokens from earlier text and check them at once.")
@click.option("--eager", is_flag=True,
              help="Run the layers' own code for every token; by default steps that recur are recorded and replayed.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Seed of the draws.")
@click.option("--step", type=click.IntRange(min=0), help="Take the weights of this step's checkpoint.")
@click.option("--device", type=GivenDevice(),
              help="auto, cpu, cuda or cuda:<index> [default: as the run's recipe says].")
def generate(
    run: Path, prompt: str | None, prompt_file: Path | None, tokens: int, samples: int, temperature: float,
    top_k: int | None, top_p: float, stop: tuple[str, ...], lookup: int | None, eager: bool, seed: int,
    step: int | None, device: str | None,
) -> None:
    """Continue a prompt with the newest weights of RUN, a run directory. No text of the run is read.

    Prints the prompt and what follows as it is drawn; several samples when all are drawn, each after a line
    "--- sample N, seed S". Memory stays constant where the model's state does.
    """
    with guarded(), _warnings_afterwards():
        prepare_torch()
        from muse_core.errors import RecipeError
        from muse_core.model import generation
        from muse_core.training.trained import open_trained

        _check(temperature, top_p, stop, lookup, samples)
        text = given_text(prompt, prompt_file, "--prompt", "the text to continue")
        with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints when it is imported is not the answer
            setup, _ = open_trained(run, device=device, step=step, untrained=False, say=warn)
        tokenizer = setup.corpus.tokenizer
        ids = [int(token) for token in tokenizer.encode(text)]
        if not ids and tokenizer.separator < 0:
            raise RecipeError("--prompt: is empty, and this run's tokens have none that starts a document - give one")
        read = ids or [tokenizer.separator]  # stands before every document
        where = {"stream_period": setup.stream_period, "device": setup.precision.device, "precision": setup.precision,
                 "eager": eager}
        drawing: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed} | where
        begun = tokenizer.decode(ids)  # as the tokens spell it: the numbers of a task need a space before the next
        if samples > 1:
            shown = [_Shown(tokenizer, stop) for _ in range(samples)]
            ended = lambda row, token: shown[row].add(token) is None  # noqa: E731
            drawn = generation.generate_batch(setup.model, [read] * samples, tokens, ended=ended, **drawing)
            for number, row in enumerate(drawn):
                sys.stdout.write(f"--- sample {number + 1}, seed {seed + number}\n{begun}")
                _show(tokenizer, row, stop)
        else:
            sys.stdout.write(begun)
            one = (
                generation.generate(setup.model, read, **drawing) if lookup is None
                else generation.generate_by_lookup(setup.model, read, draft=lookup, **where)
            )
            _show(tokenizer, itertools.islice(one, tokens), stop)


@contextlib.contextmanager
def _warnings_afterwards() -> Iterator[None]:
    """What is warned of meanwhile is said behind the text: on a terminal it would stand in the middle of a word."""
    held: list[str] = []

    class Held(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            held.append(record.getMessage())

    handler, logger = Held(logging.WARNING), logging.getLogger("muse_core")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        for sentence in held:
            warn(sentence)


def _check(temperature: float, top_p: float, stop: tuple[str, ...], lookup: int | None, samples: int) -> None:
    """Raises RecipeError for values that no generation could follow."""
    from muse_core.errors import RecipeError

    if not math.isfinite(temperature):
        raise RecipeError(f"--temperature {temperature}: must be a finite number, 0 or above")
    if math.isnan(top_p):
        raise RecipeError("--top-p nan: must be a number above 0, at most 1")
    if not all(stop):
        raise RecipeError("--stop: is empty, which every text contains; give at least one character")
    if lookup is not None and (temperature > 0 or samples > 1):
        raise RecipeError("--lookup: checks the most likely tokens of one text; add --temperature 0 and no --samples")


class _Shown:
    """Text as it is drawn, up to the end of its document or a stop string."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]):
        from muse_core.model.stopping import UntilStop

        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._until = UntilStop(stop)
        self._over = False
        self._held = ""

    def add(self, token: int) -> str | None:
        """What may be shown with this token; None when the text is at its end, whose last words ``rest`` has."""
        if self._over or token == self._tokenizer.separator:
            self._over = True
            return None
        text = self._until.add(self._decoder.decode(self._tokenizer.decode_bytes([token])))
        self._over = self._until.stopped
        self._held = text if self._over else ""
        return None if self._over else text

    def rest(self) -> str:
        """What was held back."""
        return self._held + self._until.add(self._decoder.decode(b"", final=True), final=True)


def _show(tokenizer: Any, drawn: Iterable[int], stop: tuple[str, ...]) -> None:
    """Write text as it is drawn, up to the end of its document or a stop string, and a line's end."""
    shown = _Shown(tokenizer, stop)
    for token in drawn:
        text = shown.add(token)
        if text is None:
            break
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write(shown.rest() + "\n")
