#!/usr/bin/env bash
# litdata 0.2.76: StreamingDataLoader over a CombinedStreamingDataset, with workers, does not resume where it was: the
# rest of the epoch comes in another order, and at some places samples are read twice and as many others never. Two
# causes. load_state_dict asks for the length of the mixture, and asking sets the batch size and workers of its data
# sets to 1; each set then finds that its state is of another batch size, and divides its rest among the workers anew,
# without a word. With both set again after loading, some places are right and some are not: where a worker goes on in a
# data set is worked out from the sum over workers, as if each had read whole batches of that set, though the state has
# what each worker read. The documentation offers resuming in the middle of an epoch, of a mixture with the same number
# of processes and workers and the same batch size, as here. Without workers the rest is that of one run, and so is that
# of a single StreamingDataset with workers. That the epoch has the right number of samples hides it.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 litdata==0.2.76
cat > "$work/program.py" <<'P'
import sys
from pathlib import Path

from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, optimize

folder = Path(sys.argv[1])
FIRST, SECOND = range(100), range(1000, 1060)


def same(number):
    return number


def loader(workers, mixture):
    sets = [StreamingDataset(str(folder / name), seed=1) for name in ("first", "second")]
    data = CombinedStreamingDataset(sets) if mixture else sets[0]
    return StreamingDataLoader(data, batch_size=4, num_workers=workers)


def numbers(batches):
    return [number for batch in batches for number in batch.tolist()]


def main():
    for name, content in (("first", FIRST), ("second", SECOND)):
        optimize(same, list(content), str(folder / name), chunk_size=10, num_workers=1, verbose=False)
    asked = loader(2, True).dataset
    sizes = [asked._datasets[0].batch_size, len(asked) and asked._datasets[0].batch_size]
    print(f"asking a mixture for its length: its data sets have batch size {sizes[0]} before and {sizes[1]} after")
    assert sizes == [4, 1]
    for mixture, workers, again in ((False, 2, False), (True, 0, False), (True, 2, False), (True, 2, True)):
        right, lost, whole = [], [], numbers(loader(workers, mixture))
        for seen in (6, 8):
            saving, resumed = loader(workers, mixture), loader(workers, mixture)
            batches = iter(saving)
            read = numbers(next(batches) for _ in range(seen))
            resumed.load_state_dict(saving.state_dict())
            if again:
                resumed.dataset.set_batch_size(4)
                resumed.dataset.set_num_workers(workers)
            read += numbers(resumed)
            never, twice = len(set(whole) - set(read)), len(read) - len(set(read))
            right.append(read == whole)
            lost.append(never)
            print(f"{'mixture' if mixture else 'one set'}, {workers} workers{', sizes set again' if again else ''},"
                  f" saved after {seen} batches: {'as in one run' if right[-1] else 'another rest'}; of {len(whole)}"
                  f" samples {twice} are read twice, {never} never")
            assert sorted(whole) == sorted([*FIRST, *SECOND] if mixture else FIRST)
            assert read[: 4 * seen] == whole[: 4 * seen] and len(read) == len(whole) and never == twice
        if mixture and workers:
            assert right == [again, False] and max(lost) > 0
        else:
            assert all(right)


if __name__ == "__main__":
    main()
P
export DATA_OPTIMIZER_CACHE_FOLDER="$work/cache" TMPDIR="$work"
"$work/venv/bin/python" -W ignore "$work/program.py" "$work" > "$work/output" 2> "$work/errors" || {
    cat "$work/output" "$work/errors"
    exit 1
}
grep '^\(asking\|one set\|mixture\)' "$work/output"
