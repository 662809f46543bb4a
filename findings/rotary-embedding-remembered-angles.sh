#!/usr/bin/env bash
# rotary-embedding-torch 0.9.1: RotaryEmbedding keeps the angles of a call and gives them to later calls that are not
# longer, without asking which positions or which dtype they were for. get_axial_freqs takes offsets and hands none on:
# after a call without offsets they do nothing, and after a call with offsets queries are rotated as if they began
# there. Positions are counted in the dtype of the queries; bfloat16 has no 257, so 256 and 257 are rotated alike, and
# once that has been kept, float32 queries are too. Nothing is said. cache_if_possible=False helps but in bfloat16.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 rotary-embedding-torch==0.9.1
cat > "$work/program.py" <<'P'
import torch
from rotary_embedding_torch import RotaryEmbedding

torch.manual_seed(0)
for kept in (True, False):
    new = lambda: RotaryEmbedding(8, cache_if_possible=kept)
    true = new().get_axial_freqs(4, 4, offsets=(10, 20))
    rotary = new()
    plain = rotary.get_axial_freqs(4, 4)
    after = rotary.get_axial_freqs(4, 4, offsets=(10, 20))
    ignored = torch.equal(after, plain) and not torch.equal(after, true)
    x = torch.randn(1, 1, 4, 8)
    rotary = new()
    rotary.get_axial_freqs(4, 4, offsets=(10, 10))
    moved = rotary.rotate_queries_or_keys(x)
    from_ten = torch.equal(moved, new().rotate_queries_or_keys(x, offset=10))
    from_zero = torch.equal(moved, new().rotate_queries_or_keys(x))
    print(f"kept {kept}: offsets do nothing after a call without: {ignored}; queries after a call with offsets"
          f" begin at {10 if from_ten else 0}")
    assert ignored == kept and from_ten == kept and from_zero == (not kept)

    x = torch.ones(1, 1, 600, 8)
    true = new().rotate_queries_or_keys(x)
    rotary = new()
    low = rotary.rotate_queries_or_keys(x.bfloat16()).float()
    after = rotary.rotate_queries_or_keys(x)
    worst = [(y - true).abs()[..., part, :].max().item() for y in (low, after) for part in
             (slice(0, 257), slice(257, None))]
    print("kept {}: bfloat16 differs by {:.3f} up to position 256 and {:.2f} after it, float32 later by {:.3f} and"
          " {:.2f}".format(kept, *worst))
    assert torch.equal(low[..., 256, :], low[..., 257, :]) and not torch.equal(true[..., 256, :], true[..., 257, :])
    assert worst[0] < 0.01 and worst[1] > 1 and worst[2] < 0.01 and (worst[3] > 1) == kept
P
"$work/venv/bin/python" "$work/program.py"
