#!/usr/bin/env bash
# infini-transformer-pytorch 0.2.1: generate() with a prompt longer than a segment reads the prompt's last segment
# alone. The segments before it, which the model is trained to keep in its memory, are never shown to it, and the memory
# is empty: another first token of the prompt changes nothing in what is generated. Scores of the same tokens under the
# model in segments, as it is trained, depend on all of them. With learned_delta_update=True the memory of a segment
# that was generated is wrong besides: how strongly each token is stored is taken from the last one. Nothing is said.
# Prompts up to one segment, as in README, are read whole.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 infini-transformer-pytorch==0.2.1
cat > "$work/program.py" <<'P'
import torch
from infini_transformer_pytorch import InfiniTransformer, InfiniTransformerWrapper

SEGMENT = 8


def build(**options):
    torch.manual_seed(0)
    model = InfiniTransformer(num_tokens=50, dim=32, depth=2, dim_head=8, heads=2, **options).double().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("head_gates"):
            parameter.data.zero_()  # half from the memory; a new model has 10, which leaves it 0.005 %
    return model


def segments(model, tokens):
    """Scores and the last memories, a segment after another as in training."""
    memories, scores = None, []
    for segment in tokens.split(SEGMENT, dim=-1):
        logits, _, memories = model(segment, past_memories=memories, return_new_memories=True)
        scores.append(logits)
    return torch.cat(scores, 1), memories


with torch.no_grad():
    model = build()
    wrapper = InfiniTransformerWrapper(model, segment_length=SEGMENT)
    for length in (7, 8, 9, 12, 20, 44):
        prompts = torch.randint(0, 50, (16, length), generator=torch.Generator().manual_seed(length))
        others = prompts.clone()
        others[:, 0] = (others[:, 0] + 1) % 50
        one, two = (wrapper.generate(prompt=each, seq_len=length + 24, temperature=0.0) for each in (prompts, others))
        changed = int((one != two).any(-1).sum())
        scores = (segments(model, prompts)[0] - segments(model, others)[0])[:, -1].abs().max().item()
        print(f"prompt of {length}, another first token: {changed} of 16 continuations change;"
              f" the model's scores of the next token change by up to {scores:.1e}")
        assert scores > 1e-6 and (changed > 0) == (length <= SEGMENT)
    tokens = torch.randint(0, 50, (1, SEGMENT))
    for options in ({}, {"learned_delta_update": True}):
        model = build(**options)
        _, whole = segments(model, tokens)
        cached = None
        for end in range(1, SEGMENT + 1):  # as generate() does
            _, cached, stepped = model(tokens[:, :end], cached_kv=cached, return_new_memories=end == SEGMENT)
        apart = max((a.kv_mem - b.kv_mem).abs().max().item() for a, b in zip(whole, stepped))
        print(f"memory of a segment token by token, {options}: {apart:.1e} from the one at once,"
              f" of {whole[0].kv_mem.abs().max():.2f}")
        assert (apart > 1e-3) == bool(options)
P
"$work/venv/bin/python" "$work/program.py" 2> "$work/progress" || { cat "$work/progress"; exit 1; }
