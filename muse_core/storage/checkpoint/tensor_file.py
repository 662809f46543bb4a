"""Named tensors in the safetensors format, written tensor by tensor.

``safetensors.torch.save`` holds the whole file in memory beside the tensors and refuses shared ones; writing the
format (https://huggingface.co/docs/safetensors: length, JSON header, data) needs the memory of one tensor and lets the
hash be taken on the way. Reading is the library's.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from muse_core.out_of_memory import ran_out
from muse_core.storage.disk import Disk, Written, write_new_file

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Fingerprint(NamedTuple):
    """What a tensor is, to the last bit."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


def check_tensors(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises ValueError, naming the tensor, for what the format cannot hold."""
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise ValueError(f"{where}: {name!r} cannot name a tensor in a safetensors file")
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_meta:
            raise ValueError(f"{where}: {name} is not a dense tensor with content")
        if tensor.is_complex():
            raise ValueError(f"{where}: {name} is complex; state is kept real, with a trailing axis of 2")
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{where}: {name} has dtype {tensor.dtype}, which checkpoints do not hold")


def file_size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that ``write_tensors`` will write."""
    return 8 + len(_header(tensors)) + sum(_num_bytes(tensor) for tensor in tensors.values())


def tensors_size(path: Path) -> int:
    """Bytes of a file's tensors, without the header that describes them. Raises OSError."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def write_tensors(disk: Disk, path: Path, tensors: Mapping[str, Tensor]) -> tuple[Written, dict[str, Fingerprint]]:
    """Writes a new durable file; tensors may lie on any device, be strided or share memory."""
    fingerprints: dict[str, Fingerprint] = {}

    def chunks() -> Iterator[memoryview | bytes]:
        header = _header(tensors)
        yield len(header).to_bytes(8, "little") + header
        for name in _order(tensors):
            data = tensor_bytes(tensors[name])
            fingerprints[name] = _fingerprint(tensors[name], data)
            if len(data):
                yield data

    return write_new_file(disk, path, chunks()), fingerprints


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """Tensors of a file's content, on the CPU, in the order of the file: the library gives them in another one each
    time. Raises ValueError if it is not a safetensors file."""
    try:
        found = safetensors.torch.load(data)
    except (SafetensorError, KeyError, RuntimeError, AssertionError) as error:
        if ran_out(error):  # which says nothing of the file
            raise
        raise ValueError(f"not a readable safetensors file ({error})") from error
    header = json.loads(bytes(data[8 : 8 + int.from_bytes(data[:8], "little")]))
    return {name: found[name] for name in header if name in found}


def fingerprint(tensor: Tensor) -> Fingerprint:
    """Identifies dtype, shape and every bit of a tensor."""
    return _fingerprint(tensor, tensor_bytes(tensor))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The elements' bytes in row-major order."""
    flat = tensor.detach().to("cpu").resolve_neg().reshape(-1)
    if flat.stride(0) != 1:  # also of one element, which counts as contiguous but cannot be viewed as bytes
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def _fingerprint(tensor: Tensor, data: memoryview) -> Fingerprint:
    return Fingerprint(DTYPES[tensor.dtype], tuple(tensor.shape), hashlib.sha256(data).hexdigest())


def _num_bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Widest elements first, as the library writes them, so that every tensor is aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    entries = {}
    start = 0
    for name in _order(tensors):
        stop = start + _num_bytes(tensors[name])
        shape = list(tensors[name].shape)
        entries[name] = {"dtype": DTYPES[tensors[name].dtype], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)
