#!/usr/bin/env bash
# memorizing-transformers-pytorch 0.4.1: KNNMemory finds the nearest keys by an index and reads keys and values from an
# array, and after max_memories the two no longer count alike. README says that the oldest memories are thrown out; the
# index is emptied instead, numbers what comes next from 0, and the array goes on where it was. Keys that were just
# added are then the nearest, and other keys and values are returned for them, with a mask that calls them good; right
# after an overflow nothing is found. With half a memory at a time, as in README, the first overflow goes well and the
# second does not. A memory that is not full fails too where rows of the batch are added to one after the other
# (at_batch_indices): each addition moves the places of all rows. Nothing is said.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# It asks for faiss-gpu, which needs a GPU and has the same module, and imports einops-exts, which it does not ask for.
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 faiss-cpu==1.15.1 joblib==1.6.0 einops-exts==0.0.4
"$work/venv/bin/pip" install --quiet --no-deps memorizing-transformers-pytorch==0.4.1
cat > "$work/program.py" <<'P'
import sys

import torch
from memorizing_transformers_pytorch import KNNMemory


def build(rows):
    return KNNMemory(dim=16, max_memories=16, num_indices=rows, memmap_filename=sys.argv[1], multiprocessing=False)


def random(rows, tokens):
    return torch.nn.functional.normalize(torch.randn(rows, tokens, 2, 16), dim=-1)


def right(memory, added):
    """Of memories that were just added and are asked for by their own keys: the share found, and the share returned."""
    found, mask = memory.search(added[:, :, 0], topk=1)
    same = (found[:, :, 0] - added).abs().amax((-2, -1)) < 1e-6
    return mask[..., 0].float().mean(-1).tolist(), same.float().mean(-1).tolist()


torch.manual_seed(0)
for tokens, expected in ((6, [(1, 1), (1, 1), (0, 0), (1, 0), (1, 0), (0, 0), (1, 0)]),
                         (8, [(1, 1), (1, 1), (0, 0), (1, 1), (1, 1), (0, 0), (1, 0)])):
    memory, seen = build(1), []
    for addition in range(1, 8):
        added = random(1, tokens)
        memory.add(added)
        (found,), (same,) = right(memory, added)
        print(f"{tokens} at a time, {addition * tokens} added to a memory of 16: {found:.0%} of the last are found,"
              f" {same:.0%} are what was added")
        seen.append((found, same))
    assert seen == expected, seen
memory, added = build(2), random(2, 5)
for row in (0, 1):
    with memory.at_batch_indices([row]):
        memory.add(added[row : row + 1])
found, same = right(memory, added)
print(f"rows added one after the other, 5 in a memory of 16: found {found}, what was added {same}")
assert found == [1, 1] and same == [1, 0]
P
"$work/venv/bin/python" "$work/program.py" "$work/memories"
