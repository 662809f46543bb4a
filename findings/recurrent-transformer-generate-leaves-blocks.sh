#!/usr/bin/env bash
# recurrent-transformer-pytorch 0.0.17: with block_size above 1 generate samples from another model than was trained. In
# a block of four tokens, as forward reads a row in both of its modes, a token attends to the temporary keys and values
# of its block and a GRU runs through the block; keys and values from what a layer gave out are for later blocks.
# generate goes on by one token a call, each of which is a block of its own: the GRU begins anew at every token and the
# tokens just before are seen by other keys and values. A model that is trained to write a recurrence has it right in
# every token with blocks of one and in some nine of ten with blocks of four, and the loss of the same text, read as
# generate reads, is ten times the one of forward. Nothing is said. From the end of a block by whole blocks all is
# right, so that the memories that are handed on would do. With block_size=1, the default, generate is right.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 einops==0.8.2 einx==0.4.3 torch-einops-utils==0.2.0 \
    x-mlps-pytorch==0.6.9 recurrent-transformer-pytorch==0.0.17
cat > "$work/program.py" <<'P'
import torch
from recurrent_transformer import RecurrentTransformer
from torch.nn.functional import cross_entropy

PROMPT, LENGTH = 8, 24
torch.set_num_threads(1)


def texts(rows, generator):
    """Each token is given by the two before it."""
    text = torch.randint(16, (rows, 2), generator=generator)
    while text.shape[1] <= LENGTH:
        text = torch.cat((text, (text[:, -1:] + 3 * text[:, -2:-1] + 1) % 16), 1)
    return text


def continued(model, text, size):
    """Logits of the prompt and then of ``size`` tokens a call, with the memories that are handed on."""
    first, memories = model(text[:, :PROMPT], return_memories=True)
    logits = [first]
    for start in range(PROMPT, text.shape[1], size):
        piece = text[:, start : start + size]
        more, memories = model(piece, recurrent_mode="naive", memories=memories, return_memories=True)
        logits.append(more)
    return torch.cat(logits, 1)


for block in (1, 4):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = RecurrentTransformer(
        num_tokens=16, dim=64, depth=2, heads=2, dim_head=32, gate_low_rank=8, recurrent=True, block_size=block
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        model(texts(32, generator), return_loss=True).backward()
        optimizer.step()
    model.eval()
    text = texts(64, generator)
    with torch.no_grad():
        whole = model(text[:, :-1])
        naive = model(text[:, :-1], recurrent_mode="naive")
        singly, in_blocks = continued(model, text[:, :-1], 1), continued(model, text[:, :-1], 4)
        answers = text[:, PROMPT + 1 :].flatten()
        loss, loss_singly = (cross_entropy(logits[:, PROMPT:].flatten(0, 1), answers) for logits in (whole, singly))
        written = model.generate(text[:, :PROMPT], LENGTH + 1 - PROMPT, temperature=0.0)
    right = (written == text[:, PROMPT:]).double().mean()
    off = [(logits - whole).abs().max() for logits in (naive, in_blocks, singly)]
    print(f"blocks of {block}: loss {loss:.4f}, one token a call {loss_singly:.4f}; tokens written rightly"
          f" {right:.1%}; logits, of up to {whole.abs().max():.1f}, off by {off[0]:.0e} in the other mode,"
          f" {off[1]:.0e} by four tokens a call, {off[2]:.0e} by one")
    assert max(off[:2]) < 1e-3 and loss < 0.02
    if block == 1:
        assert off[2] < 1e-3 and right == 1
    else:
        assert off[2] > 0.5 and loss_singly > 2 * loss and right < 0.99
P
"$work/venv/bin/python" "$work/program.py"
