#!/usr/bin/env bash
# rich 15.0.0: when the reader of its output goes away, Console.print does not raise BrokenPipeError, as print() does and
# as a program would catch to go on without a display; it ends the process with SystemExit(1), without a word. A training
# loop that guards its display by `except OSError` is ended all the same, with nothing saved.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet rich==15.0.0
cat > "$work/program.py" <<'P'
import sys
from rich.console import Console

console = Console()
for step in range(20000):
    try:
        console.print(f"step {step}")
    except OSError:
        print("went on without a display", file=sys.stderr)
        sys.exit(0)
print("finished", file=sys.stderr)
P
set +e
"$work/venv/bin/python" "$work/program.py" 2> "$work/errors" | head -n 1 > /dev/null
code=${PIPESTATUS[0]}
set -e
echo "rich 15.0.0: exit code $code, standard error: '$(cat "$work/errors")'"
[[ $code == 1 && ! -s "$work/errors" ]]
