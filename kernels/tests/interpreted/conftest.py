"""Triton decides when it is imported whether kernels are interpreted: these tests need a process of their own.

TRITON_INTERPRET=1 pytest kernels/tests/interpreted
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
