#!/usr/bin/env bash
# evaluatio 0.5.2: bleu_bootstrap_test, documented to return a two-sided p-value, to be read against 0.05, returns half
# of one: the share of resamples in which the worse system wins, without doubling it, though the data say which is the
# worse. Of 1000 pairs of equally good systems a tenth differ at 5 % and a fifth at 10 %, and no p-value is noticeably
# above 0.5. paired_bootstrap_test of the same library, on the same sentences, finds 4 to 5 % and 9 to 10 % and returns
# values up to 1. Nothing is said. Twice the value, at most 1, is right.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.0.2 sacrebleu==2.6.0 evaluatio==0.5.2
cat > "$work/program.py" <<'P'
import numpy as np
from evaluatio.inference.hypothesis import paired_bootstrap_test
from evaluatio.metrics.bleu import bleu_bootstrap_test

PAIRS, SENTENCES, RESAMPLES = 1000, 40, 500
draws = np.random.default_rng(1)
words = np.array([f"w{number}" for number in range(30)])


def system(texts):
    """Each word is right with probability 0.7: all systems are equally good."""
    return [np.where(draws.random(len(text)) < 0.7, text, draws.choice(words, len(text))) for text in texts]


found = {"bleu_bootstrap_test": [], "paired_bootstrap_test": []}
for _ in range(PAIRS):
    texts = [draws.choice(words, 20) for _ in range(SENTENCES)]
    one, other = system(texts), system(texts)
    right = [[float((a == b).mean()) for a, b in zip(each, texts, strict=True)] for each in (one, other)]
    joined = [[" ".join(words) for words in each] for each in (one, other)]
    references = [[" ".join(text)] for text in texts]
    found["bleu_bootstrap_test"].append(bleu_bootstrap_test(references, *joined, RESAMPLES))
    found["paired_bootstrap_test"].append(paired_bootstrap_test(*right, RESAMPLES))
found["twice bleu_bootstrap_test"] = np.minimum(2 * np.array(found["bleu_bootstrap_test"]), 1)
for name, values in found.items():
    values = np.array(values)
    print(f"{name}: of {PAIRS} pairs of equal systems {(values < 0.05).mean():.1%} have p < 0.05 and"
          f" {(values < 0.1).mean():.1%} p < 0.1; {(values > 0.55).mean():.0%} have p > 0.55, the largest is"
          f" {values.max():.2f}")
    found[name] = values
bleu, *fair = found.values()
assert (bleu < 0.05).mean() > 0.08 and (bleu < 0.1).mean() > 0.16 and bleu.max() < 0.6
assert all((values < 0.05).mean() < 0.07 and (values > 0.55).mean() > 0.3 for values in fair)
P
"$work/venv/bin/python" "$work/program.py"
