#!/usr/bin/env bash
# recurrent-memory-transformer-pytorch 0.7.0: with its defaults the wrapper scores another model than it trains and
# samples from. use_xl_memories is True: a segment attends to the segment before it. generate hands these memories on
# and so does memory_replay_backprop, README's way to train; forward, which gives logits and losses, takes the argument
# xl_memories and hands nothing on. Logits differ from the second segment on, and what generate takes at temperature 0
# is not what is greedy under the logits. The replay repeats with these memories what it first computed without, so that
# its gradient is 6 % off the true one. The argument labels is thrown away; the next tokens take its place. Nothing is
# said. With use_xl_memories=False all but the labels is right.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 packaging==26.3 hyper-connections==0.4.11 \
    recurrent-memory-transformer-pytorch==0.7.0
cat > "$work/program.py" <<'P'
import torch
from torch.nn.functional import cross_entropy
from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer, RecurrentMemoryTransformerWrapper

SIZES = dict(num_tokens=64, num_memory_tokens=4, dim=32, depth=2, causal=True, dim_head=16, heads=2, seq_len=8)


def by_hand(model, ids):
    """Logits of segments that are given both memories, as README shows it."""
    memories = xl_memories = None
    logits = []
    for segment in ids.split(8, dim=-1):
        out, memories, xl_memories = model.transformer(segment, memories, xl_memories=xl_memories)
        logits.append(out)
    return torch.cat(logits, 1)


def greedy(model, ids, length):
    for _ in range(length):
        ids = torch.cat((ids, model(ids)[0][:, -1:].argmax(-1)), 1)
    return ids[:, -length:]


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


for settings in ({}, {"use_xl_memories": False}):
    torch.manual_seed(0)
    model = RecurrentMemoryTransformerWrapper(RecurrentMemoryTransformer(**SIZES, **settings)).double().eval()
    ids = torch.randint(0, 64, (1, 33))
    with torch.no_grad():
        logits = model(ids)[0]
        difference = (logits - by_hand(model, ids)).abs().amax(-1)[0]
        sampled = model.generate(ids[:, :20], length=32, temperature=1e-9)
        same = int((sampled == greedy(model, ids[:, :20], 12)).sum())
        zeros = torch.zeros_like(ids)
        loss, given = (model(ids, return_loss=True, labels=labels)[0].item() for labels in (None, zeros))
    model.zero_grad()
    cross_entropy(by_hand(model, ids[:, :-1]).transpose(1, 2), ids[:, 1:]).backward()
    true = gradient(model)
    model.zero_grad()
    model(ids, memory_replay_backprop=True)
    wrong = ((gradient(model) - true).norm() / true.norm()).item()
    at = (difference > 1e-6).nonzero().flatten().tolist()
    print(f"{settings or 'defaults'}: logits differ at {len(at)} of 33 tokens, by {difference.max():.2f} of"
          f" {logits.abs().max():.2f}; {same} of 12 generated tokens are the greedy ones; the replayed gradient is"
          f" {wrong:.0%} off; loss {loss:.4f}, with other labels {given:.4f}")
    assert given == loss
    if settings:
        assert at == [] and same == 12 and wrong < 1e-9
    else:
        assert at == list(range(8, 33)) and same < 12 and wrong > 0.03
P
"$work/venv/bin/python" "$work/program.py"
