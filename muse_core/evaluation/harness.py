"""The model ``muse`` of lm-evaluation-harness 0.4.13. Importing this module imports lm_eval and registers it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before anything is registered: the harness adds its own models when this is imported, and looks for them only as long
# as its registry is empty.
import lm_eval.models  # noqa: F401
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string

from muse_core.data.tokenizers import Numbers
from muse_core.errors import RecipeError
from muse_core.evaluation.scoring import Reader, score_ids
from muse_core.training.trained import open_trained

STOP_AT = 256
"""Tokens that are drawn where a task does not say how many."""


@register_model("muse")
class MuseLM(TemplateLM):
    """A trained run, as ``--model muse --model_args run=DIR``.

    run: the run's directory. step: that of a checkpoint. device: auto, cpu, cuda or cuda:<index>. max_length: tokens of
    a window in which ``loglikelihood_rolling`` reads long text; by default a text is read whole with the state carried,
    so that every token has all of its context.

    The separator, which stands before every document in training, is the prefix token and ends what is generated.
    """

    def __init__(
        self, run: str, step: int | str | None = None, device: str | None = None, max_length: int | str | None = None,
        batch_size: int | str | None = None, max_batch_size: int | str | None = None, **unknown: Any,
    ):
        super().__init__()
        if unknown:
            there = "run, step, device and max_length"
            raise RecipeError(f"--model_args: muse has no {', '.join(unknown)}; it has {there}")
        at = None if step is None else int(step)
        setup, _ = open_trained(
            Path(run), step=at, device=device, untrained=False, say=logging.getLogger(__name__).warning
        )
        if isinstance(setup.corpus.tokenizer, Numbers):
            raise RecipeError(f"--model_args: {run} was trained on a task, whose tokens stand for no text")
        self.setup = setup
        self.reader = Reader(setup)
        self.max_length = None if max_length is None else int(max_length)
        self.run = run

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> MuseLM:
        """What the harness calls. Its own ``device`` is cuda:0 where nobody has named one; where there is no GPU the
        run's recipe decides, and ``device`` among the model's arguments does everywhere."""
        if "run" not in arg_dict:
            raise RecipeError("--model_args: muse needs run=DIR, the directory of a run")
        more = {key: value for key, value in (additional_config or {}).items() if value is not None}
        if str(more.get("device", "")).startswith("cuda") and not torch.cuda.is_available():
            del more["device"]
        return cls(**(more | arg_dict))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> MuseLM:
        """As ``create_from_arg_obj``, of ``"run=DIR,step=100"``."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        return int(self.setup.corpus.tokenizer.separator)

    @property
    def tokenizer_name(self) -> str:
        return f"muse-{self.setup.corpus.tokenizer.digest[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> list[int]:
        """Token ids; special tokens are never added."""
        return [int(token) for token in self.setup.corpus.tokenizer.encode(string)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **more: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is what greedy decoding says. The
        separator stands before every context, as before every document."""
        found = []
        for _, context, continuation in requests:
            if context[:1] != [self.eot_token_id]:
                context = [self.eot_token_id, *context]
            losses, best = self.reader.losses(torch.tensor([[*context, *continuation]]))
            first = losses.shape[1] - len(continuation)
            found.append((-float(losses[0, first:].sum()), bool(best[0, first:].all())))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text after the separator."""
        found = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            if self.max_length is None:
                found.append(-score_ids(self.reader, self.eot_token_id, ids) if ids else 0.0)
                continue
            windows = get_rolling_token_windows(
                token_list=ids, prefix_token=self.eot_token_id, max_seq_len=self.max_length, context_len=1
            )
            total = 0.0
            for context, continuation in map(make_disjoint_window, windows):
                losses, _ = self.reader.losses(torch.tensor([[*context, *continuation]]))
                total -= float(losses[0, len(losses[0]) - len(continuation) :].sum())
            found.append(total)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each prompt until one of the task's stop strings, a new document or ``max_gen_toks``."""
        return [self._generated(*request.args) for request in requests]

    def _generated(self, prompt: str, settings: dict[str, Any]) -> str:
        tokenizer = self.setup.corpus.tokenizer
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else [one for one in until if one]
        temperature = float(settings.get("temperature") or 0.0)
        if settings.get("do_sample") is False:
            temperature = 0.0
        drawn = self.reader.draw(
            [self.eot_token_id, *self.tok_encode(prompt)], temperature=temperature,
            top_p=float(settings.get("top_p") or 1.0),
        )
        said: list[int] = []
        for token in drawn:
            if token == self.eot_token_id or len(said) >= int(settings.get("max_gen_toks") or STOP_AT):
                break
            said.append(token)
            text = tokenizer.decode(said)
            if places := [text.index(one) for one in until if one in text]:
                return text[: min(places)]
        return tokenizer.decode(said)
