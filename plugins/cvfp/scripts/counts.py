"""Unigram and bigram models of a recipe's training text, in bits per byte of its validation text.

    python plugins/cvfp/scripts/counts.py recipes/cvfp_base.toml --tokens 819200

Bigrams are interpolated with unigrams, and these with the uniform distribution, by the weights that suit a tenth of the
training tokens, which are not counted. The same windows are scored as by the run's final evaluation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math

import numpy as np

from muse_core.data.batches import evaluation_batches
from muse_core.data.corpus import open_corpus
from muse_core.recipe import read_recipe


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--tokens", type=int, help="training tokens to count, from the first [default: all]")
    given = parser.parse_args()
    recipe = read_recipe(given.recipe, []).recipe
    corpus = open_corpus(recipe.data, seed=recipe.data.split_seed)
    size = corpus.vocabulary_size
    tokens = np.asarray(corpus.split("train").tokens[: given.tokens]).astype(np.int64)
    cut = len(tokens) * 9 // 10
    loss_mask, tuned = tokens[:cut], tokens[cut:]
    unigrams = np.bincount(loss_mask, minlength=size).astype(np.float64)
    pairs = np.bincount(loss_mask[:-1] * size + loss_mask[1:], minlength=size**2).reshape(size, size).astype(np.float64)
    followed = pairs.sum(1)

    def probabilities(before: np.ndarray, after: np.ndarray, alpha: float, mass: float) -> list[np.ndarray]:
        one = (unigrams[after] + alpha) / (unigrams.sum() + alpha * size)
        return [one, (pairs[before, after] + mass * one) / (followed[before] + mass)]

    choices = list(itertools.product((0.1, 1.0, 10.0), (3.0, 10.0, 30.0, 100.0, 300.0)))
    alpha, mass = min(choices, key=lambda c: -np.log(probabilities(tuned[:-1], tuned[1:], *c)[1]).sum())
    nats, num_bytes = np.zeros(2), 0
    length = recipe.train.sequence_length
    for batch in evaluation_batches(
        corpus.split("validation"), sequence_length=length, batch_size=64, max_tokens=recipe.evaluate.final_tokens,
        span=length * max(recipe.evaluate.lengths),
    ):
        scored = batch.loss_mask.numpy()
        before, after = batch.inputs.numpy()[scored], batch.labels.numpy()[scored]
        nats += [-np.log(found).sum() for found in probabilities(before, after, alpha, mass)]
        num_bytes += int(corpus.byte_lengths[after].sum())
    bits = nats / math.log(2) / num_bytes
    print(json.dumps({
        "training_tokens": len(tokens), "alpha": alpha, "mass": mass, "bytes": num_bytes,
        "unigram_bits_per_byte": round(bits[0], 4), "bigram_bits_per_byte": round(bits[1], 4),
    }))


if __name__ == "__main__":
    main()
