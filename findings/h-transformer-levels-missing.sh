#!/usr/bin/env bash
# h-transformer-1d 0.1.9: tokens of HTransformer1D cannot see much of the text, where the paper's hierarchy lets each
# token see all of it, coarser the farther away. With causal=False, the default, the coarsest level is left out: the two
# halves of a row know nothing of each other, however many layers there are. With causal=True, which README offers as
# "autoregressive or not", the coarse levels are there and masked wherever a group of tokens is not complete, which
# leaves them to the last token of each group: tokens 0, 2, 4 and every other one see nothing before their own block,
# 128 tokens by default. Of the finest level the causal form has the diagonal only, so that an odd block never sees the
# block before it: token 63 of 64 in blocks of 8 sees 0 to 47 and 56 to 63. The first token of every block sees itself
# alone at any depth, and its scores do not depend on the text. Nothing is said; shapes are right, and no token sees the
# future.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 einops==0.8.2 rotary-embedding-torch==0.9.1 \
    h-transformer-1d==0.1.9
cat > "$work/program.py" <<'P'
import torch
from h_transformer_1d import HTransformer1D

TOKENS, BLOCK = 64, 8


def seen(causal, depth):
    """For every token the tokens that its scores change with."""
    torch.manual_seed(0)
    model = HTransformer1D(
        num_tokens=32, dim=32, depth=depth, causal=causal, max_seq_len=TOKENS, heads=2, dim_head=16, block_size=BLOCK
    ).double().eval()
    text = torch.randint(32, (1, TOKENS))
    changes = []
    with torch.no_grad():
        scores = model(text)
        for place in range(TOKENS):
            other = text.clone()
            other[0, place] = (other[0, place] + 1) % 32
            changes.append((model(other) - scores).abs().amax(-1)[0] > 0)
    return torch.stack(changes, 1)


one, four, both_ways = seen(True, 1), seen(True, 4), seen(False, 4)
for token in (8, 15, 16, 17, 62, 63):
    print(f"{token:2} sees " + "".join("x" if see else "." for see in one[token].tolist()))
blocks = torch.arange(TOKENS) // BLOCK
own = (blocks[:, None] == blocks) & torch.ones(TOKENS, TOKENS).tril().bool()
even, odd_blocks = torch.arange(0, TOKENS, 2), torch.nonzero(blocks % 2 == 1).flatten()
assert not one.triu(1).any() and not four.triu(1).any()  # causal
assert torch.equal(one[even], own[even]), "even tokens see more than their block"
for token in odd_blocks.tolist():
    assert not one[token][blocks == blocks[token] - 1].any(), "an odd block sees the block before it"
expected = torch.ones(TOKENS).bool()
expected[48:56] = False
assert torch.equal(one[63], expected)
starts = four[::BLOCK].sum(1).tolist()
print(f"four layers: the first tokens of the blocks see {starts} tokens")
assert starts == [1] * (TOKENS // BLOCK)
half = torch.arange(TOKENS) // (TOKENS // 2)
print(f"causal=False, four layers: tokens see {both_ways.sum(1).unique().tolist()} of {TOKENS} tokens")
assert torch.equal(both_ways, half[:, None] == half)
P
"$work/venv/bin/python" "$work/program.py"
