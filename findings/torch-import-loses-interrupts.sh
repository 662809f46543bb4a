#!/usr/bin/env bash
# torch 2.13.0: Ctrl-C, or a SIGTERM handler that calls sys.exit(), is lost if it comes while "import torch" imports numpy:
# torch's C++ makes that import and drops whatever it raises, KeyboardInterrupt and SystemExit too. The import succeeds, the
# program goes on, and numpy may be left half imported (seen under load: "module 'numpy' has no attribute 'logical_or'", and a
# RecursionError, seconds after the signal). So a job that a launcher asks to stop in its first seconds trains on or fails
# with another error. The same signal while torch imports a module of its own ends the program.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/program.py" <<'P'
import os
import signal
import sys

module, number = sys.argv[1], getattr(signal, sys.argv[2])


class Signalled:
    """Sends this process the signal when the module is looked for."""

    def find_spec(self, name, path, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # SIGINT keeps Python's own handler
sys.meta_path.insert(0, Signalled())
import torch

print("went on with torch", torch.__version__.partition("+")[0])
P
for number in SIGINT SIGTERM; do
    for module in numpy torch.functional; do
        code=0
        "$work/venv/bin/python" "$work/program.py" $module $number > "$work/output" 2> /dev/null || code=$?
        echo "$number while $module is imported: exit code $code, output '$(cat "$work/output")'"
        if [[ $module == numpy ]]; then
            [[ $code == 0 && $(cat "$work/output") == "went on with torch 2.13.0" ]]
        else
            [[ $code != 0 && ! -s "$work/output" ]]
        fi
    done
done
