#!/usr/bin/env bash
# safetensors 0.8.0 and torch.export of torch 2.13.0 save a conjugated complex tensor without its conjugation: what load
# returns has the opposite sign in every imaginary part, without an error. torch keeps z.conj() as a mark on the tensor,
# and the memory, which has z, is what both write. The tensor is contiguous and dense, as safetensors' documentation
# asks; torch.save keeps its value, and the exported program is right before it is saved. resolve_conj() before saving
# helps; contiguous() does not.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
cat > "$work/program.py" <<'P'
import io
import warnings

import torch
from safetensors.torch import load, save

warnings.filterwarnings("ignore", message="No complete tensor found")  # of any conjugate; it speaks of the CPU


class Product(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x):
        return x * self.weight


def through(save, load, value):
    file = io.BytesIO()
    save(value, file)
    file.seek(0)
    return load(file)


def exported(value):
    ones = torch.ones(2)
    program = torch.export.export(Product(value), (ones,))
    assert torch.equal(program.module()(ones), value)
    return through(torch.export.save, torch.export.load, program).module()(ones)


weight = torch.tensor([1 + 2j, 3 - 1j])
cases = {
    "conj()": weight.conj(),
    "conj().contiguous()": weight.conj().contiguous(),
    "conj().resolve_conj()": weight.conj().resolve_conj(),
}
for name, value in cases.items():
    ways = {
        "torch.save": through(torch.save, torch.load, value),
        "safetensors": load(save({"weight": value}))["weight"],
        "torch.export.save": exported(value),
    }
    for way, back in ways.items():
        print(f"{name}: {value.tolist()}, contiguous {value.is_contiguous()}, through {way}: {back.tolist()}")
        kept = name == "conj().resolve_conj()" or way == "torch.save"
        assert torch.equal(back, value if kept else weight), (name, way)
P
"$work/venv/bin/python" "$work/program.py"
