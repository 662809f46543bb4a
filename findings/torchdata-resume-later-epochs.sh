#!/usr/bin/env bash
# torchdata 0.11.0: StatefulDataLoader(shuffle=True, generator=...) without workers resumes the epoch in which its state
# was saved as that would have gone on, and every later epoch in another order, without a word; so it does from a state
# that was saved before the first batch. The loader draws a seed from the same generator after each permutation; loading
# sets the generator to before the permutation and draws no seed again. With two workers later epochs are right, and so
# they are with the generator in a RandomSampler instead. A check of the rest of one epoch passes where two runs part.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 torchdata==0.11.0
cat > "$work/program.py" <<'P'
import torch
from torch.utils.data import RandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader


def make(workers, apart):
    generator = torch.Generator().manual_seed(5)
    order = {"sampler": RandomSampler(range(12), generator=generator)} if apart else {
        "shuffle": True, "generator": generator}
    return StatefulDataLoader(list(range(12)), batch_size=4, num_workers=workers, **order)


def epoch(batches):
    return [number for batch in batches for number in batch.tolist()]


def main():
    for workers, apart in ((0, False), (0, True), (2, False)):
        loader = make(workers, apart)
        whole = [epoch(loader) for _ in range(3)]
        for seen in (0, 1, 3):
            saving, resumed = make(workers, apart), make(workers, apart)
            batches = iter(saving)
            first = epoch(next(batches) for _ in range(seen))
            resumed.load_state_dict(saving.state_dict())
            after = [first + epoch(resumed), epoch(resumed), epoch(resumed)]
            same = [a == b for a, b in zip(after, whole)]
            print(f"{workers} workers, generator of {'a sampler' if apart else 'the loader'}, saved after {seen} of 3"
                  f" batches: epochs as in one run {same}")
            assert all(sorted(numbers) == list(range(12)) for numbers in after)
            assert same == ([True, False, False] if workers == 0 and not apart else [True] * 3)


if __name__ == "__main__":
    main()
P
"$work/venv/bin/python" -W ignore "$work/program.py" 2> "$work/errors" || { cat "$work/errors"; exit 1; }
