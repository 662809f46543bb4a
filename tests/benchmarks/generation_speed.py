"""How fast text is drawn: ``python tests/benchmarks/generation_speed.py [RECIPE] [--device cpu] [--llama]``.

Side by side in one process, in turn for some rounds, medians: the layers' own code (``eager``), recorded steps, and
lookup with either on repetitive text. On a GPU also 64 rows after 4,096 tokens of context; with --llama everything
beside a Llama of transformers with as many parameters, random weights and its own cache. Greedy throughout. The
recipe's model has its first weights; for the repetitive text it learns one line by heart for some steps. Seconds are
the processor's own on a CPU, which other processes disturb less, and those of the clock on a GPU. Prints one table.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from muse_core.building import build_model
from muse_core.model.generation import Stream, generate, generate_by_lookup, sample
from muse_core.model.plan import periods
from muse_core.model.precision import Precision
from muse_core.recipe import read_recipe

ROOT = Path(__file__).parents[2]
VOCABULARY = 257
LINE = b"2026-11-28 status ok, 17 rows read, 0 rows refused, next in 60 seconds\n"
ROWS, CONTEXT = 64, 4096
COPIED = 256
"""Tokens of repetitive text that are compared."""


class Bench:
    """A recipe's model and what it is read with."""

    def __init__(self, recipe: str, device: str, precision: str):
        checked = read_recipe(recipe)
        self.device = torch.device(device)
        self.precision = Precision(device=self.device, autocast=precision == "bf16")
        self.model, _ = build_model(
            checked.recipe, checked.registry, vocabulary_size=VOCABULARY, device=self.device,
            dtype=self.precision.dtype,
        )
        self.model.eval()
        grid = 1
        for period in periods(checked.recipe.model.options):
            grid *= period
        self.reading = {"stream_period": grid, "device": self.device, "precision": self.precision}
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def learn(self, steps: int) -> float:
        """Learn ``LINE`` by heart; returns the last loss in nats a token."""
        ids = torch.tensor(list(LINE * 12), device=self.device)
        optimizer = torch.optim.AdamW(self.model.parameters(), 2e-3)
        self.model.train()
        loss = torch.zeros(())
        for step in range(steps):
            starts = torch.arange(4) * 17 + step
            rows = torch.stack([ids[int(start) % len(LINE) :][: 4 * len(LINE)] for start in starts])
            with self.precision():
                logits = self.model.logits(self.model(rows[:, :-1]).hidden)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
        self.model.eval()
        return float(loss.detach())


def in_turn(bench: Bench, drawn: dict[str, Iterator[Any]], warm: int, tokens: int, rounds: int) -> dict[str, float]:
    """Median seconds a token of each."""
    for one in drawn.values():
        list(itertools.islice(one, warm))
    seconds: dict[str, list[float]] = {name: [] for name in drawn}
    for number in range(rounds):
        for name in drawn if number % 2 == 0 else reversed(drawn):
            started = bench.now()
            list(itertools.islice(drawn[name], tokens))
            seconds[name].append((bench.now() - started) / tokens)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def batch(bench: Bench, eager: bool, found: dict[str, int]) -> Iterator[list[int]]:
    """Greedy tokens of ``ROWS`` rows after ``CONTEXT`` random tokens."""
    stream = Stream(bench.model, eager=eager, **bench.reading)
    ids = torch.randint(VOCABULARY, (ROWS, CONTEXT), generator=torch.Generator().manual_seed(0))
    scores = stream.prefill(ids)
    found["state"] = sum(leaf.numel() * leaf.element_size() for leaf in stream.carried.leaves)
    while True:
        tokens = sample(scores, temperature=0.0, top_p=1.0, generators=[])
        yield tokens
        scores = stream.read(torch.tensor(tokens)[:, None])[:, -1]


class Llama:
    """A Llama of transformers about as large as the bench's model."""

    def __init__(self, bench: Bench, width: int, depth: int, heads: int):
        from transformers import LlamaConfig, LlamaForCausalLM

        left = bench.parameters - VOCABULARY * width - depth * 4 * width * width
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
            num_key_value_heads=heads, intermediate_size=8 * round(left / (depth * 3 * width) / 8),
            max_position_embeddings=2 * CONTEXT, tie_word_embeddings=True, eos_token_id=None, bos_token_id=None,
            pad_token_id=0,
        )
        torch.manual_seed(0)
        self.bench = bench
        self.model = LlamaForCausalLM(config).eval().to(bench.device)
        if bench.precision.autocast:
            self.model.to(torch.bfloat16)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())

    def seconds(self, rows: int, context: int, tokens: int, rounds: int, found: dict[str, int]) -> float:
        """A token's, beyond the first."""
        ids = torch.randint(VOCABULARY, (rows, context), generator=torch.Generator().manual_seed(0))
        ids = ids.to(self.bench.device)
        taken: dict[int, list[float]] = {1: [], tokens + 1: []}
        for number in range(rounds + 1):
            for count in taken:
                started = self.bench.now()
                output = self.model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
                    do_sample=False, return_dict_in_generate=True,
                )
                if number:
                    taken[count].append(self.bench.now() - started)
        cache = output.past_key_values
        found["cache"] = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
        return (statistics.median(taken[tokens + 1]) - statistics.median(taken[1])) / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default=str(ROOT / "recipes" / "phase2_base.toml"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--llama", action="store_true", help="beside a Llama; needs transformers")
    parser.add_argument("--tokens", type=int, default=64, help="drawn in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", type=int, default=96, help="tokens before the first round, or six times that")
    parser.add_argument("--learn", type=int, default=80, help="steps on the repetitive text")
    given = parser.parse_args()
    bench = Bench(given.recipe, given.device, given.precision)
    print("| | by | tokens/s | ms a step | |\n|---|---|---|---|---|", flush=True)

    def add(title: str, seconds: dict[str, float], factor: int = 1, notes: Callable[[str], str] = lambda _: "") -> None:
        for name, taken in seconds.items():
            print(f"| {title} | {name} | {factor / taken:,.0f} | {1000 * taken:.3f} | {notes(name)} |", flush=True)

    prompt = list(LINE)
    one = {
        "eager": generate(bench.model, prompt, temperature=0.0, eager=True, **bench.reading),
        "recorded": generate(bench.model, prompt, temperature=0.0, **bench.reading),
    }
    found = in_turn(bench, one, given.warm, given.tokens, given.rounds)
    llama = None
    if given.llama:
        llama = Llama(bench, 384, 6, 6)
        found["Llama"] = llama.seconds(1, len(prompt), given.tokens, given.rounds, {})
    add("1 row", found)
    if given.device != "cpu":
        bytes_: dict[str, int] = {}
        many = {name: batch(bench, name == "eager", bytes_) for name in ("eager", "recorded")}
        found = in_turn(bench, many, 40, 32, given.rounds)
        if llama is not None:
            found["Llama"] = llama.seconds(ROWS, CONTEXT, 32, given.rounds, bytes_)
        add(f"{ROWS} rows at {CONTEXT:,} tokens", found, ROWS,
            lambda name: f"{bytes_['cache' if name == 'Llama' else 'state']:,} bytes carried")
    loss = bench.learn(given.learn)
    repeated = list(LINE * 3)
    texts = {
        f"{way}{', lookup' if lookup else ''}": (
            generate_by_lookup(bench.model, repeated, eager=way == "eager", **bench.reading) if lookup
            else generate(bench.model, repeated, temperature=0.0, eager=way == "eager", **bench.reading)
        )
        for way in ("eager", "recorded") for lookup in (False, True)
    }
    copies = {name: list(itertools.islice(text, COPIED)) for name, text in texts.items()}
    same = all(copy == copies["eager"] for copy in copies.values())
    add(f"1 row, repetitive ({loss:.3f} nats a byte)",
        in_turn(bench, texts, 6 * given.warm - COPIED, 2 * given.tokens, given.rounds),
        notes=lambda _: "same text" if same else "OTHER TEXT")
    cards = torch.cuda.get_device_name() if given.device != "cpu" else f"load {os.getloadavg()[0]:.1f}"
    print(f"\n{Path(given.recipe).name}, {bench.parameters:,} parameters, {given.precision}, "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads, {cards}")
    if llama is not None:
        print(f"Llama: {llama.parameters:,} parameters")


if __name__ == "__main__":
    main()
