#!/usr/bin/env bash
# datasets 5.2.0: an IterableDataset that has loaded a state gives, until its first example is read, the state of the
# beginning as its own: state_dict() right after load_state_dict(), or after iter() too. A run that is resumed and saved
# again before its first batch, as a job that is stopped while it compiles, loses its place without a word: the next
# resume reads the text from its start. After one example the state is right. A loaded state also stays for good: every
# later epoch begins at the saved place and not at the beginning, so that what lay before is never read again, unless
# set_epoch is called with another number. The documentation says that iteration restarts at the next example and names
# two exceptions (shuffle buffers, batches in arrow format); neither is used here.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 pyarrow==26.0.1 datasets==5.2.0
cat > "$work/program.py" <<'P'
import itertools

from datasets import Dataset, concatenate_datasets, interleave_datasets


def numbers(count, first=0):
    return Dataset.from_dict({"number": list(range(first, first + count))}).to_iterable_dataset(num_shards=3)


MAKE = {
    "plain": lambda: numbers(12),
    "mapped": lambda: numbers(12).map(lambda row: {"number": row["number"] + 100}),
    "concatenated": lambda: concatenate_datasets([numbers(6), numbers(6, 50)]),
    "interleaved": lambda: interleave_datasets([numbers(6), numbers(6, 50)]),
    "repeated": lambda: numbers(6).repeat(2),
}


def read(rows, count=None):
    return [row["number"] for row in itertools.islice(rows, count)]


for name, make in MAKE.items():
    whole = read(make())
    first = make()
    assert read(iter(first), 5) == whole[:5]
    state = first.state_dict()
    for seen in (0, 1, 3):
        second, third = make(), make()
        second.load_state_dict(state)
        rows = iter(second)
        assert read(rows, seen) == whole[5 : 5 + seen]
        third.load_state_dict(second.state_dict())
        left = read(third)
        print(f"{name}: saved after 5 of {len(whole)}, resumed, saved after {seen} more: the next resume reads"
              f" {len(left)}, beginning with {left[0]} where {whole[5 + seen]} comes next")
        assert left == (whole if seen == 0 else whole[5 + seen :])
    resumed = make()
    resumed.load_state_dict(state)
    epochs = [read(resumed) for _ in range(3)]
    resumed.set_epoch(1)
    again = len(read(resumed))
    print(f"{name}: examples in epochs after a resume {[len(epoch) for epoch in epochs]}, after set_epoch(1) {again}")
    assert epochs == [whole[5:]] * 3 and again == len(whole)
P
HF_HUB_OFFLINE=1 HF_HOME="$work/hf" "$work/venv/bin/python" "$work/program.py"
