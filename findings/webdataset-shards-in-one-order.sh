#!/usr/bin/env bash
# webdataset 1.0.2: WebDataset(shardshuffle=100) without a seed shuffles the shards once: every epoch of the same data
# set has them in the order of the first. A seed is drawn when the data set is made, and each epoch begins anew with it.
# shuffle(1000), for samples, has another order in each epoch without a seed, and that hides it unless one looks at
# where samples come from: a buffer that is small beside the data mixes neighbours, and neighbours stay the same for the
# whole training. Nothing is said; the documentation says that the seed defaults to None. In 0.2.86 each epoch had
# another order. detshuffle=True has another in each epoch of one process. Reported as pull request 502 of webdataset,
# open in July 2026.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
for version in 0.2.86 1.0.2; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet webdataset=="$version" numpy==2.4.6 PyYAML==6.0.3 braceexpand==0.1.7
done
cat > "$work/program.py" <<'P'
import itertools
import sys
import warnings

import webdataset

SHARDS, SAMPLES, EPOCHS = 20, 10, 5
folder, version = sys.argv[1:]
for shard in range(SHARDS):
    with webdataset.TarWriter(f"{folder}/{shard:02}.tar") as file:
        for sample in range(SAMPLES):
            file.write({"__key__": f"{shard:02}-{sample}", "txt": "text"})
urls = f"{folder}/{{00..{SHARDS - 1}}}.tar"


def epochs(data):
    """The keys of each epoch."""
    return [[row["__key__"] for row in data] for _ in range(EPOCHS)]


def shard_orders(lists):
    """How many orders of shards there are among epochs."""
    return len({tuple(shard for shard, _ in itertools.groupby(key[:2] for key in keys)) for keys in lists})


with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    warnings.simplefilter("ignore", ResourceWarning)
    plain = webdataset.WebDataset(urls, shardshuffle=100)
    samples = webdataset.WebDataset(urls, shardshuffle=100).shuffle(SAMPLES)
    counted = webdataset.WebDataset(urls, shardshuffle=100, detshuffle=True)
    other = webdataset.WebDataset(urls, shardshuffle=100)
    lists = [epochs(data) for data in (plain, samples, counted, other)]
orders = [len(set(map(tuple, some))) for some in lists]
shards = shard_orders(lists[0])
print(f"{version}, {EPOCHS} epochs: {shards} orders of {SHARDS} shards with shardshuffle alone, {orders[2]} with"
      f" detshuffle=True; {orders[1]} orders of samples with shuffle({SAMPLES}); another data set has another"
      f" order: {lists[0][0] != lists[3][0]}")
assert all(sorted(keys) == sorted(lists[0][0]) and len(keys) == SHARDS * SAMPLES for some in lists for keys in some)
assert orders[1] == orders[2] == EPOCHS and lists[0][0] != lists[3][0]
assert shards == (EPOCHS if version == "0.2.86" else 1)
first = {key: place for place, key in enumerate(lists[1][0])}
away = [abs(first[key] - place) for keys in lists[1][1:] for place, key in enumerate(keys)]
mean = sum(away) / len(away)
print(f"    with both, a sample is on average {mean:.0f} of {SHARDS * SAMPLES} places away from where the first epoch"
      " had it")
assert mean > 40 if version == "0.2.86" else mean < 25 and not said
P
for version in 0.2.86 1.0.2; do
    mkdir "$work/data-$version"
    "$work/$version/bin/python" "$work/program.py" "$work/data-$version" "$version"
done
