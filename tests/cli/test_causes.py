"""What is said names the real cause."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from muse_core.model.plan import MODULE


def test_no_name_of_torchs_modules_is_left_for_a_layer() -> None:
    from torch import nn

    assert {name for name in dir(nn.ModuleDict()) if not name.startswith("_")} <= MODULE


def test_too_many_open_files_is_no_lack_of_space(tmp_path: Path) -> None:
    program = (
        "import os, resource, sys\nfrom pathlib import Path\n"
        "from muse_core.storage.disk import Disk, storage_errors, write_file_atomically\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\nheld = []\n"
        "try:\n    while True:\n        held.append(os.open(os.devnull, os.O_RDONLY))\nexcept OSError:\n    pass\n"
        "with storage_errors('write', Path(sys.argv[1])):\n"
        "    write_file_atomically(Disk(), Path(sys.argv[1]), b'x')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x")], capture_output=True, text=True)
    assert "too many files open: raise the limit" in done.stderr, done.stderr
