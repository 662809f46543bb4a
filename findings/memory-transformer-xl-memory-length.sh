#!/usr/bin/env bash
# memory-transformer-xl 0.1.0: memories are meant to take in whole segments, and a call asks whether its row is as long
# as the short memory (mem_len) where it means the segment (seq_len). With a longer memory than segment none is ever
# stored, short or long: no score depends on an earlier segment. With a shorter one, as in README (256 and 512), every
# call of generate from mem_len tokens on stores the begun segment once more, which the next call reads as the past and
# as the segment, so that generated tokens are those of another function than the loss was taken of. Nothing is said.
# With mem_len = seq_len, its default, generation and the scores of whole segments agree.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 mogrifier==0.0.5 memory-transformer-xl==0.1.0
cat > "$work/program.py" <<'P'
import torch
from memory_transformer_xl import MemoryTransformerXL
from memory_transformer_xl.autoregressive_wrapper import AutoregressiveWrapper

SEGMENT, PROMPT = 16, 8


def scores(model, row):
    """Scores segment after segment, each with the memories of those before, as in README."""
    memories, out = None, []
    for segment in row.split(SEGMENT, dim=1):
        logits, memories = model(segment, memories=memories)
        out.append(logits)
    return torch.cat(out, dim=1)


for length in (8, 16, 24):
    torch.manual_seed(0)
    model = MemoryTransformerXL(num_tokens=20, dim=32, heads=4, depth=2, seq_len=SEGMENT, mem_len=length, lmem_len=8,
                                num_mem_kv=4)
    model = model.double().eval()
    used = []
    hook = model.register_forward_hook(lambda module, given, out: used.append(out[0][:, -1]))
    prompt = torch.randint(0, 20, (1, PROMPT))
    row = torch.cat((prompt, AutoregressiveWrapper(model).generate(prompt, 56)), dim=1)
    hook.remove()
    other = row.clone()
    other[:, :SEGMENT] = (other[:, :SEGMENT] + 1) % 20
    with torch.no_grad():
        whole = scores(model, row)
        past = (whole - scores(model, other))[:, SEGMENT:].abs().max().item()
    apart = (whole[:, PROMPT - 1 : -1] - torch.stack(used, dim=1)).abs().amax((0, 2))
    others = int((apart > 1e-9).sum())
    print(f"segments of {SEGMENT}, mem_len {length}: of 56 generated tokens {others} have other scores than in whole"
          f" segments, by up to {apart.max():.1e} of {whole.abs().max():.2f}; another first segment"
          f" changes later scores by {past:.1e}")
    assert apart.max() > 0.01 if length < SEGMENT else apart.max() < 1e-12
    assert past == 0 if length > SEGMENT else past > 0.01
P
"$work/venv/bin/python" "$work/program.py"
