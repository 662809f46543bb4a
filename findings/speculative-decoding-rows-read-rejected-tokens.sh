#!/usr/bin/env bash
# speculative-decoding 0.2.0: what speculative_decoding writes for a text depends on the other texts of the batch. At
# temperature 0 it should write what base_decoding writes, and for one row it does. Rows of a batch keep different
# numbers of drafted tokens and are aligned to the right, so that a row that kept fewer has rejected tokens at its left.
# Decoder takes seq_start_pos for that, makes a mask of it and hands it to no layer: these tokens are attended to. In
# batches of four 18 of 32 rows here are the greedy ones; four copies of one row are right, since they keep the same
# numbers. With the mask that the library makes handed to its layers all rows are right. Nothing is said.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 speculative-decoding==0.2.0 \
    beartype==0.23.1 einops==0.8.2
cat > "$work/program.py" <<'P'
import copy

import torch
from speculative_decoding.speculative_decoding import Decoder, base_decoding, speculative_decoding

ROWS, LENGTH = 32, 40
torch.manual_seed(0)
model = Decoder(num_tokens=50, dim=32, depth=2, heads=2, dim_head=16).double()
draft = copy.deepcopy(model)
with torch.no_grad():
    for weight in draft.parameters():
        weight += 0.3 * weight.std() * torch.randn_like(weight)
prompts = torch.randint(50, (ROWS, 10))
greedy = torch.cat([base_decoding(model, row, LENGTH, temperature=0.0) for row in prompts.split(1)])


def right(size, rows=prompts, expected=greedy):
    """Rows that are the greedy ones, in batches of ``size``."""
    found = [speculative_decoding(model, draft, some, LENGTH, temperature=0.0)[0] for some in rows.split(size)]
    return int((torch.cat(found) == expected).all(1).sum())


def hand_on_the_mask(decoder):
    """The mask that forward() makes of seq_start_pos, given to the layers."""
    given = {}

    def before(_, arguments, options):
        length = arguments[0].shape[-1]
        given["mask"] = torch.arange(length) >= options["seq_start_pos"][:, None]

    decoder.register_forward_pre_hook(before, with_kwargs=True)
    for attention, _ in decoder.layers:
        attention.register_forward_pre_hook(
            lambda _, arguments, options: (arguments, options | {"context_mask": given["mask"]}), with_kwargs=True)


alone, four, all_together = (right(size) for size in (1, 4, ROWS))
copies = right(4, prompts[:1].repeat(4, 1), greedy[:1])
print(f"of {ROWS} rows as base_decoding writes them: {alone} one at a time, {four} in batches of four, {all_together}"
      f" in one batch; of four copies of one row {copies}")
hand_on_the_mask(model)
hand_on_the_mask(draft)
helped = right(4), right(ROWS)
print(f"with the mask handed on: {helped[0]} in batches of four, {helped[1]} in one batch")
assert alone == ROWS and copies == 4 and helped == (ROWS, ROWS)
assert 10 <= four < 28 and 5 <= all_together < 25
P
"$work/venv/bin/python" "$work/program.py"
