"""A matrix (rows, columns) as it is stored, and its product with rows of numbers.

Everything here is a plain tensor of a module's ``state_dict``, so that checkpoints hold it as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.model.precision import product_dtype
from muse_core.training.shards import whole
from muse_kernels.refusals import refuse_triton
from muse_kernels.request import KernelRequest
from muse_koopman.options import GROUP

INT8_LEVELS, INT4_LEVELS = 127, 8
PACKED_COLUMNS = 16
"""torch's product of bf16 with packed integers is used for multiples of this alone, which tests compare with the dense
product: it checks no shapes."""
HALVES = (torch.bfloat16, torch.float16)
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Factors on the largest entry that int4 tries as the end of its range, group by group."""


class Stored(nn.Module):
    """A matrix in one of the forms below.

    In evaluation without gradients a copy of the matrix in the dtype of the product is kept beside what is stored, so
    that a token costs one product and no conversion. It is made anew when what is stored has changed.
    """

    rows: int
    columns: int

    def __init__(self) -> None:
        super().__init__()
        self._served: tuple[tuple[object, ...], Tensor] | None = None

    def dense(self) -> Tensor:
        """(rows, columns), at least fp32."""
        raise NotImplementedError

    def served(self, dtype: torch.dtype) -> Tensor:
        """(rows, columns) for a product in this dtype."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.dense()
        held = (*self._parameters.values(), *self._buffers.values())
        key = (dtype, *((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in held))
        if self._served is None or self._served[0] != key:
            self._served = key, self.dense().to(dtype)
        return self._served[1]

    def forward(self, x: Tensor) -> Tensor:
        """x (…, columns) → (…, rows)."""
        return F.linear(x, self.served(product_dtype(x)))

    def flops_per_token(self) -> int:
        """Two for each entry that is multiplied."""
        return 2 * self.rows * self.columns


class Dense(Stored):
    """Every entry, trainable."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.rows, self.columns = matrix.shape
        self.weight = nn.Parameter(matrix.detach().clone())

    def dense(self) -> Tensor:
        return self.weight

    def served(self, dtype: torch.dtype) -> Tensor:
        return self.weight if dtype == self.weight.dtype else super().served(dtype)


class Int8(Stored):
    """W_ij ≈ scale_i q_ij with q in −127 … 127: the largest entry of a row is 127."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.rows, self.columns = matrix.shape
        self.untrained_weights = self.rows * self.columns
        scale = matrix.detach().abs().amax(1) / INT8_LEVELS
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        self.register_buffer("scale", scale)
        self.register_buffer("values", (matrix.detach() / scale[:, None]).round().to(torch.int8))

    def dense(self) -> Tensor:
        return self.values * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        dtype = product_dtype(x)
        if x.device.type == "cuda" and dtype in HALVES and not x.requires_grad and self._by_kernel(x):
            from muse_kernels.triton.int8_product import int8_product

            return int8_product(x.to(dtype), self.values, self.scale)
        whole = self.columns % PACKED_COLUMNS == 0 and x.numel() > 0
        if whole and x.device.type == "cpu" and dtype == torch.bfloat16 and not x.requires_grad:
            # Reads the integers once: 5 to 22 µs for matrices that take 16 to 230 µs in fp32 (torch 2.13, one core).
            flat = torch._weight_int8pack_mm(x.reshape(-1, self.columns).to(dtype), self.values, self.scale.to(dtype))
            return flat.view(*x.shape[:-1], self.rows)
        return super().forward(x)

    def _by_kernel(self, x: Tensor) -> bool:
        """Whether a GPU reads the integers as they are: for one row, where reading the matrix takes the time."""
        one = x.numel() == self.columns
        return one and refuse_triton(KernelRequest("int8_product", "cuda", "float32", {})) is None


class Int4(Stored):
    """W_ij ≈ scale_ig q_ij with q in −8 … 7 and a scale for each group g of ``GROUP`` entries of a row: the entry of
    largest modulus is near −8, so that its sign is the scale's. Two entries share a byte, the first its lower half."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.rows, self.columns = matrix.shape
        self.untrained_weights = self.rows * self.columns
        groups = math.ceil(self.columns / GROUP)
        padded = F.pad(matrix.detach(), (0, groups * GROUP - self.columns)).unflatten(1, (groups, GROUP))
        scale, levels = _best_int4(padded)
        levels = (levels.flatten(1)[:, : self.columns] + INT4_LEVELS).to(torch.uint8)
        levels = F.pad(levels, (0, self.columns % 2))
        self.register_buffer("scale", scale)
        self.register_buffer("values", levels[:, 0::2] | (levels[:, 1::2] << 4))

    def dense(self) -> Tensor:
        halves = torch.stack((self.values & 15, self.values >> 4), dim=-1).flatten(1)[:, : self.columns]
        return (halves.to(self.scale.dtype) - INT4_LEVELS) * self._scales()

    def _scales(self) -> Tensor:
        return self.scale.repeat_interleave(GROUP, dim=1)[:, : self.columns]


def _best_int4(groups: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, groups, GROUP) → scale (rows, groups) and levels: of a few ends of the range the one of least error."""
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best_scale = best_levels = best_error = None
    for shrink in SHRINKS:
        scale = shrink * largest / -INT4_LEVELS
        scale = torch.where(scale.abs() > 0, scale, torch.ones_like(scale))
        levels = (groups / scale).round().clamp(-INT4_LEVELS, INT4_LEVELS - 1)
        error = (levels * scale - groups).square().sum(-1, keepdim=True)
        if best_error is None:
            best_scale, best_levels, best_error = scale, levels, error
        else:
            better = error < best_error
            best_scale = torch.where(better, scale, best_scale)
            best_levels = torch.where(better, levels, best_levels)
            best_error = torch.where(better, error, best_error)
    return best_scale[..., 0], best_levels


class Sparse(Stored):
    """The ``kept`` entries of largest modulus, trainable, and a bit for every place, eight to a byte."""

    def __init__(self, matrix: Tensor, kept: int):
        super().__init__()
        self.rows, self.columns = matrix.shape
        flat = matrix.detach().flatten()
        if not kept <= len(flat):
            raise ValueError(f"kept = {kept} of the {len(flat)} entries of a matrix {tuple(matrix.shape)}")
        places = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        places[flat.abs().topk(kept).indices] = True
        self.values = nn.Parameter(flat[places].clone())
        bits = F.pad(places, (0, -len(flat) % 8)).view(-1, 8).to(torch.uint8)
        self.register_buffer("places", (bits << _shifts(flat.device)).sum(1).to(torch.uint8))

    def dense(self) -> Tensor:
        bits = (self.places[:, None] >> _shifts(self.places.device)) & 1
        chosen = bits.flatten()[: self.rows * self.columns].bool()
        zeros = torch.zeros(len(chosen), dtype=self.values.dtype, device=self.values.device)
        return zeros.masked_scatter(chosen, self.values).view(self.rows, self.columns)


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


def stored(matrix: Tensor, store: str, kept: int | None = None) -> Stored:
    """The matrix in the form that ``options.MapOptions.store`` names; all of it, where ranks have parts."""
    matrix = whole(matrix)
    if store == "sparse":
        assert kept is not None
        return Sparse(matrix, kept)
    return {"fp32": Dense, "int8": Int8, "int4": Int4}[store](matrix)


def stored_bytes(rows: int, columns: int, store: str, kept: int | None = None) -> int:
    """Bytes of its tensors."""
    if store == "sparse":
        assert kept is not None
        return 4 * kept + math.ceil(rows * columns / 8)
    if store == "int8":
        return rows * columns + 4 * rows
    if store == "int4":
        return rows * (math.ceil(columns / 2) + 4 * math.ceil(columns / GROUP))
    return 4 * rows * columns
