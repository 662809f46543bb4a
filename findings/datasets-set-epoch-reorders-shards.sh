#!/usr/bin/env bash
# datasets 5.2.0: IterableDataset.set_epoch(n) with n above 0 shuffles the shards of a dataset that nobody has shuffled,
# and of a concatenation those of all its parts together: a curriculum that is easy text and then hard text is in that
# order in epoch 0 and in any order later. Where sources are interleaved until the first ends, later epochs have other
# examples too. Trainers call set_epoch by themselves, so that only those who count on an order notice; set_epoch has no
# docstring, and the guide speaks of it for datasets after shuffle(). After take() or skip() the order stays; within a
# concatenation each part's stays and the parts change places. Nothing is said.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 pyarrow==26.0.1 datasets==5.2.0
cat > "$work/program.py" <<'P'
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets


def numbers(count, first=0, shards=1):
    rows = {"number": list(range(first, first + count))}
    return Dataset.from_dict(rows).to_iterable_dataset(num_shards=shards)


def made(shards):
    for shard in shards:
        yield from ({"number": 2 * shard + more} for more in range(2))


MAKE = {  # whether epochs are to keep one order, and one set of examples
    "one shard": (lambda: numbers(6), True, True),
    "three shards": (lambda: numbers(6, shards=3), False, True),
    "a generator of three shards": (
        lambda: IterableDataset.from_generator(made, gen_kwargs={"shards": [0, 1, 2]}), False, True),
    "easy, then hard": (lambda: concatenate_datasets([numbers(3), numbers(3, 50), numbers(3, 90)]), False, True),
    "take(5) of three shards": (lambda: numbers(6, shards=3).take(5), True, True),
    "interleaved": (lambda: interleave_datasets([numbers(6, shards=3), numbers(6, 50, 3)]), False, False),
}
for name, (make, one_order, one_set) in MAKE.items():
    rows, epochs = make(), []
    for epoch in range(4):
        rows.set_epoch(epoch)
        epochs.append([row["number"] for row in rows])
    assert epochs[0] == [row["number"] for row in make()]
    print(f"{name}:", *epochs)
    assert all(epoch == epochs[0] for epoch in epochs) == one_order, name
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs) == one_set, name
assert IterableDataset.set_epoch.__doc__ is None
P
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" "$work/venv/bin/python" "$work/program.py"
