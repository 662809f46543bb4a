#!/usr/bin/env bash
# vector-quantize-pytorch 1.32.0: with affine_param=True the codes that a VectorQuantize writes are not those that it
# reads. forward shifts and scales its codebook to the running mean and variance of its inputs; get_output_from_indices,
# which decodes stored or generated tokens, takes the codebook as it lies. What is decoded after 200 steps of training
# has nothing left of the input (error 1.0 of it, as of zeros, where what forward returned has 0.6). The running mean
# and variance move in eval() too: a call changes the buffers, and the same input gets other codes after other inputs.
# Nothing is said. Without affine_param, decoding and evaluation are exact.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 einops==0.8.2 einx==0.4.3 torch-einops-utils==0.2.0 \
    vector-quantize-pytorch==1.32.0
cat > "$work/program.py" <<'P'
import torch
from vector_quantize_pytorch import VectorQuantize

for affine in (False, True):
    torch.manual_seed(0)
    layer = VectorQuantize(dim=8, codebook_size=64, affine_param=affine)
    for _ in range(200):
        layer(2 * torch.randn(4, 32, 8) + 1)
    layer.eval()
    x, others = 2 * torch.randn(1, 32, 8) + 1, torch.randn(20, 32, 8) - 1
    with torch.no_grad():
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        quantized, codes, _ = layer(x)
        decoded = layer.get_output_from_indices(codes)
        changed = [name for name, value in layer.state_dict().items() if not torch.equal(value, before[name])]
        for row in others:
            layer(row[None])
        moved = int((layer(x)[1] != codes).sum())
    errors = [((y - x).norm() / x.norm()).item() for y in (quantized, decoded)]
    print("affine_param={}: error {:.2f} as returned, {:.2f} as decoded; a call in eval() changes {}; after 20 other"
          " inputs {} of 32 codes are others".format(affine, *errors, changed or "nothing", moved))
    assert errors[0] < 0.7
    if affine:
        assert errors[1] > 0.9 and moved > 0
        assert changed == ["_codebook.batch_mean", "_codebook.batch_variance"]
    else:
        assert torch.equal(decoded, quantized) and changed == [] and moved == 0
P
"$work/venv/bin/python" "$work/program.py"
