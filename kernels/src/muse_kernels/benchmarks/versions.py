"""What the figures depend on."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch


def versions() -> dict[str, str]:
    """Of Python and the packages, and the name of the GPU; a package that is not installed reads "absent"."""
    found = {"python": platform.python_version()}
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    for name in ("torch", "triton", "fla-core"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
