#!/usr/bin/env bash
# toml 0.10.2: dumps changes text that has a backslash before an x, without a word. The four characters \x41 are written as
# the escape \u0041 and come back as the letter A; a folder such as C:\x86\data is written as "C:\x86\\data", which no
# TOML parser accepts, its own neither, so that a configuration that was saved cannot be read. DEL (U+007F), which TOML
# writes as an escape, comes back as the three characters x7f. Text without \x is written rightly.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet toml==0.10.2
cat > "$work/program.py" <<'P'
import tomllib

import toml


def back(text, loads):
    try:
        return loads(toml.dumps({"key": text}))["key"]
    except ValueError as error:
        return f"not read: {error}"


for text in (r"C:\data", r"\x41", r"C:\x86\data", "a\x7fb"):
    print(f"{text!r:20} written as {toml.dumps({'key': text}).strip():24} tomllib: {back(text, tomllib.loads)!r:64}"
          f" toml: {back(text, toml.loads)!r}")
for loads in (toml.loads, tomllib.loads):
    assert back(r"C:\data", loads) == r"C:\data"
    assert back(r"\x41", loads) == "A"
    assert back(r"C:\x86\data", loads).startswith("not read")
    assert back("a\x7fb", loads) == "ax7fb"
P
"$work/venv/bin/python" "$work/program.py"
