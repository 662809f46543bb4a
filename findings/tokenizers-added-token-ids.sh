#!/usr/bin/env bash
# tokenizers 0.23.3: a tokenizer.json gives every added token an "id". When it is loaded the number is not heeded: added
# tokens are numbered on from the vocabulary, in their order, without an error or a word. A file whose special token is
# 500, beside a vocabulary of three, is loaded with that token as 3, so that a model trained with the file's numbers reads
# another embedding. Ids that leave a gap on purpose (reserved rows of an embedding) are valid in the format.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet tokenizers==0.23.3
cat > "$work/program.py" <<'P'
import json

from tokenizers import Tokenizer

token = {"content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
table = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None,
    "post_processor": None, "decoder": None,
    "added_tokens": [{"id": 500, "special": True, **token}],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
}
loaded = Tokenizer.from_str(json.dumps(table))
print("in the file 500, loaded as", loaded.token_to_id("<|end|>"), "and written as",
      json.loads(loaded.to_str())["added_tokens"][0]["id"])
assert loaded.token_to_id("<|end|>") == 3
assert loaded.encode("ab<|end|>").ids == [2, 3]
P
"$work/venv/bin/python" "$work/program.py"
