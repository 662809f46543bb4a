#!/usr/bin/env bash
# lm-eval 0.4.13: HFLM(device="cuda:0"), or any other index, on a machine where torch sees no such GPU evaluates on the CPU.
# Nothing is printed or logged at the level of warnings, while device="cuda" on the same machine raises. So a job
# whose GPU is missing runs on, slowly, instead of ending at once.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 lm-eval==0.4.13 transformers==5.23.0 accelerate==1.15.0
cat > "$work/program.py" <<'P'
import logging
import sys
import warnings

import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

assert torch.cuda.device_count() == 0, "a machine without a GPU is needed"
folder = sys.argv[1]
sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}
LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[UNK]").save_pretrained(folder)

said = []


class Listen(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())


logging.getLogger().addHandler(Listen(logging.WARNING))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for device in ("cuda:0", "cuda:7"):
        model = HFLM(pretrained=folder, device=device)
        print(f'device="{device}": the model is on {model.device}, weights on {next(model.model.parameters()).device}')
        assert model.device.type == "cpu"
about = [text for text in [*said, *(str(w.message) for w in caught)] if "cuda" in text.lower() or "cpu" in text.lower()]
print("warnings that speak of a device:", about)
assert about == []
try:
    HFLM(pretrained=folder, device="cuda")
except (AssertionError, RuntimeError) as error:
    print(f'device="cuda": {type(error).__name__}: {error}')
else:
    raise SystemExit('device="cuda" does not raise any more')
P
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/program.py" "$work/model" 2> "$work/errors" || { cat "$work/errors"; exit 1; }
