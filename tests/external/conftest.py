"""Layers of other libraries are checked by ``tox run -e external`` and, beside a GPU, by hand: see
docs/results/others.md. The default run has torch's own layers only."""

import os

if os.environ.get("MUSE_EXTERNAL") != "1":
    collect_ignore = [
        f"test_{library}.py" for library in ("fla", "local_attention", "titans", "transformers", "xlstm")
    ]
