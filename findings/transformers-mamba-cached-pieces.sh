#!/usr/bin/env bash
# transformers 5.23.0: Mamba, FalconMamba and Jamba layers continue from a cache by one token rightly, by several wrongly:
# the convolution is handed on, the recurrent state is not, and the piece starts from zero. Logits differ from those of
# one call, the state that is left behind is wrong too, and nothing is said. Pieces are what a chunked prefill and the
# verification of drafted tokens feed. Mamba-2 in the same version is right.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cat > "$work/program.py" <<'P'
import torch
from transformers import AutoModelForCausalLM, FalconMambaConfig, Mamba2Config, MambaConfig

COMMON = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8)
CONFIGS = {
    "mamba": MambaConfig(**COMMON, time_step_min=0.5, time_step_max=1.0),
    "falcon_mamba": FalconMambaConfig(**COMMON, time_step_min=0.5, time_step_max=1.0),
    "mamba2": Mamba2Config(**COMMON, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
}


def worst(model, ids, size):
    """Largest difference of the logits after token 12, read in pieces of `size`, from those of one call."""
    whole = model(ids, use_cache=False).logits
    cache = model(ids[:, :12], use_cache=True).cache_params
    pieces = []
    for start in range(12, ids.shape[1], size):
        out = model(ids[:, start : start + size], cache_params=cache, use_cache=True)
        pieces.append(out.logits)
    return (torch.cat(pieces, 1) - whole[:, 12:]).abs().max().item()


for name, config in CONFIGS.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(0, 64, (1, 24))
    with torch.no_grad():
        one, several = worst(model, ids, 1), worst(model, ids, 12)
    print(f"{name}: one token at a time {one:.1e}, twelve at once {several:.1e}")
    assert one < 1e-4, name
    assert several < 1e-4 if name == "mamba2" else several > 1e-3, name
P
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/program.py" 2> "$work/errors" || { cat "$work/errors"; exit 1; }
