#!/usr/bin/env bash
# safetensors 0.8.0: safetensors.torch writes a conjugated complex tensor without its conjugation: what comes back has
# the opposite sign in every imaginary part, without an error or a word. torch keeps z.conj() as a mark on the tensor,
# and the memory, which has z, is what is written. The tensor is contiguous and dense, as the documentation asks, and
# torch.save keeps its value. resolve_conj() before saving helps; contiguous() does not.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
cat > "$work/program.py" <<'P'
import io

import torch
from safetensors.torch import load, save

weight = torch.tensor([1 + 2j, 3 - 1j])
cases = {
    "weight": weight,
    "weight.conj()": weight.conj(),
    "weight.conj().contiguous()": weight.conj().contiguous(),
    "weight.conj().resolve_conj()": weight.conj().resolve_conj(),
}
lost = []
for name, value in cases.items():
    back = load(save({"weight": value}))["weight"]
    print(f"{name}: {value.tolist()}, contiguous {value.is_contiguous()}, comes back as {back.tolist()}")
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    assert torch.equal(torch.load(file), value)
    if not torch.equal(back, value):
        assert torch.equal(back, weight)
        lost.append(name)
assert lost == ["weight.conj()", "weight.conj().contiguous()"], lost
P
"$work/venv/bin/python" "$work/program.py"
