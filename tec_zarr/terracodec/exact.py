"""Layers that give the same result on every machine: the entropy transformer of TEC-TT and FlexTEC.

A table index must be the same wherever a stream is decoded. Floating-point sums are not the same,
because their order depends on the library. Here every sum adds whole numbers and stays below 2**53.
So it is the same in any order, with any instruction set, thread count, batch or device. Between two
sums there are only single IEEE 754 operations on each element (float32 or float64: add, subtract,
multiply, divide, square root, round, convert), which are rounded alike everywhere. The exponential
and the normal distribution come from tables. Weights are rounded once and need no special training.

The formats of the numbers:

- A *linear layer* multiplies rows by columns. Both have 15 bits and a sign, and a power of two for
  each row and each column. They are split into two signed digits to the base of 256. Products of
  two low digits are left out, so three products of int8 matrices with int32 sums remain.
- *Layer normalisation* sums over rows of 21 bits and a sign.
- *Attention* scores are sums of products of queries and keys, which are multiples of 2**-12.
  Weights and values are multiples of 2**-17.

The errors are no larger than those of bfloat16 or TF32, in which such networks are trained. Where
the processor does not multiply int8 matrices exactly, digits are multiplied in float32, in sums
short enough to be exact.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tec_zarr.errors import TecError
from tec_zarr.terracodec.gaussian_tables import normal_cdf
from tec_zarr.terracodec.layers import Attention, Gelu

__all__ = ["ExactAttention", "ExactGelu", "ExactLayerNorm", "ExactLinear", "exact", "int8_is_exact"]

_Model = TypeVar("_Model", bound=nn.Module)

_ROW_BITS = 15
"""Rows are rounded to whole numbers below 2**15 * (1 - 1/128), so that their digits fit int8."""

_COLUMN_SUM = 1 << 24
"""Limit of a column's absolute sum. Sums of products stay below 2**39, and below 2**31 after the
division by 256."""

_EXACT_TERMS = 1024
"""Number of products of digits in one float32 sum. The sum is at most 2**24, so float32 adds them
exactly. Digits have 8 bits, so TF32 and bfloat16, which a process may allow, hold them exactly."""

_NORM_BITS = 21
"""Rows of layer normalisation are rounded to whole numbers below 2**21."""

_WIDEST = 2048
"""Most channels of layer normalisation: the sum of their squares is below 2**53."""

_SMALLEST_EXPONENT = -100
"""Smallest exponent of a row. Smaller rows count as zero; the inverse must fit float32."""

_QUERY_BITS, _QUERY_REACH = 12, 2.0**11
_WEIGHT_BITS = 17
_VALUE_BITS, _VALUE_REACH = 17, 2.0**11
_MOST_TOKENS = 128
"""Most keys of one query: 2**17 (a weight) * 2**28 (a value) * 128 is below 2**53."""

_MOST_CHANNELS = 64
"""Most channels of a head: 2**23 (a query) * 2**23 (a key) * 64 is below 2**53."""

_LINES = 256
"""Line segments of the normal distribution per unit of its argument."""

_STEPS, _LAST = 1024, 13
"""Table of attention weights: steps per unit below the largest score, and its last unit, where the
weight rounds to zero."""

_VALUES_AT_ONCE = 1 << 16
"""Values of one pass over a table: few enough for temporary tensors to stay in the cache."""

_COLUMNS_AT_ONCE = 64
"""Columns converted at a time: large temporary tensors would fragment the memory between layers."""

_ROWS_AT_ONCE = 512
"""Rows of one matrix product: the limit bounds the memory of its int32 sums."""


class _Scratch(threading.local):
    """Memory that is kept and reused: allocating it takes as long as a matrix product."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def take(self, dtype: torch.dtype, like: Tensor, *shape: int) -> Tensor:
        """Return a tensor whose values last until the next call with the same dtype and device.

        Without `shape` it has the shape of `like`.
        """
        shape = shape or like.shape
        size, kind = math.prod(shape), (dtype, like.device)
        if kind not in self._buffers or self._buffers[kind].numel() < size:
            with torch.inference_mode(False):  # an inference tensor could not be used outside
                self._buffers[kind] = torch.empty(size, dtype=dtype, device=like.device)
        return self._buffers[kind][:size].view(shape)


_scratch = _Scratch()


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return 2**exponent (int32) as float32, made from its bits.

    A library function might differ in the last bit between machines.
    """
    return ((exponent + 127) << 23).view(torch.float32)


def _exponent(x: Tensor) -> Tensor:
    """Return floor(log2(x)) of positive x (float32) as int32, at least `_SMALLEST_EXPONENT`."""
    return ((x.view(torch.int32) >> 23) - 127).clamp_(min=_SMALLEST_EXPONENT)


def _whole(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round rows of x (m, n) to whole numbers below 2**bits; also return the exponent (m, 1) of
    each row's unit.

    The whole numbers last until the next call in this thread.
    """
    # Largest and smallest x instead of abs(x): two passes over x, but no memory.
    largest = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))
    exponent = _exponent(largest.mul_(1 + 2.0**-7)) + (1 - bits)
    out = _scratch.take(torch.float32, x)
    return torch.mul(x, _power_of_two(-exponent), out=out).round_(), exponent


def _digits(whole: Tensor) -> Tensor:
    """Split whole numbers (m, n) float32 into signed digits to the base of 256: (2 m, n) int8.

    High digits come first. `whole` is overwritten.
    """
    shifted = whole.add_(128).to(torch.int16)
    out = torch.empty(2 * len(whole), whole.shape[1], dtype=torch.int8)
    low = out[len(whole) :]
    low.copy_(shifted).bitwise_xor_(-128)  # the low byte minus 128
    out[: len(whole)].copy_(shifted.bitwise_right_shift_(8))
    return out


class ExactLinear(nn.Module):
    """A linear layer on whole numbers.

    It computes ``rows @ columns`` without the products of two low digits, then adds the bias.

    Parameters
    ----------
    layer : nn.Linear
        float32.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.fast = weight.device.type == "cpu" and int8_is_exact("cpu")
        self.columns = weight.new_empty(2, *weight.T.shape, dtype=torch.int8)
        self.bias = layer.bias.detach().clone()
        self.unit = torch.empty_like(self.bias)
        for at in range(0, len(weight), _COLUMNS_AT_ONCE):
            here = slice(at, at + _COLUMNS_AT_ONCE)
            whole, exponent = self._column(weight[here])
            self.unit[here] = _power_of_two(exponent.flatten() + 8)
            self.columns[:, :, here] = _digits(whole).view(2, *whole.shape).mT

    @staticmethod
    def _column(weight: Tensor) -> tuple[Tensor, Tensor]:
        """Round columns to whole numbers whose absolute sum is below `_COLUMN_SUM`."""
        whole, exponent = _whole(weight, _ROW_BITS)
        while True:
            large = whole.abs().sum(1, keepdim=True, dtype=torch.float64) >= _COLUMN_SUM
            if not large.any():
                return whole, exponent
            exponent += large
            torch.mul(weight, _power_of_two(-exponent), out=whole).round_()

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (..., N) of inputs (..., K), both float32."""
        flat = x.reshape(-1, x.shape[-1])
        out = flat.new_empty(len(flat), len(self.bias))
        step = _ROWS_AT_ONCE if flat.is_cpu else max(1, len(flat))
        for given, part in zip(flat.split(step), out.split(step), strict=True):
            self.of_digits(*self.digits(given), part)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def digits(rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the digits (2 m, K) of rows (m, K), high ones first, and exponents (m, 1)."""
        whole, exponent = _whole(rows, _ROW_BITS)
        return _digits(whole), exponent

    def of_digits(self, digits: Tensor, exponent: Tensor, out: Tensor) -> Tensor:
        """Compute outputs (m, N) from digits of `digits`, or rows made of them, into `out`."""
        out.copy_(self._sums(digits)).mul_(_power_of_two(exponent))
        # The product with a power of two is exact, so fusing it with the sum changes nothing.
        return torch.addcmul(self.bias, out, self.unit, out=out)

    def _sums(self, digits: Tensor) -> Tensor:
        """Return the sums of products, divided by 256, int32; low times low digits are left out."""
        count, size = len(digits) // 2, len(self.bias)
        products = _scratch.take(torch.int32, digits, 3 * count, size)
        self._product(digits, self.columns[0], products[: 2 * count])
        self._product(digits[:count], self.columns[1], products[2 * count :])
        high, middle, other = products.view(3, count, size)
        return middle.add_(other).add_(high, alpha=256)

    def _product(self, rows: Tensor, columns: Tensor, out: Tensor) -> None:
        """Write the product of two int8 matrices of digits to `out`, int32."""
        if self.fast:
            torch._int_mm(rows, columns, out=out)
            return
        out.zero_()
        parts = zip(rows.split(_EXACT_TERMS, 1), columns.split(_EXACT_TERMS), strict=True)
        for some, others in parts:
            out += (some.float() @ others.float()).int()


class ExactLayerNorm(nn.Module):
    """Layer normalisation of whole numbers.

    Parameters
    ----------
    layer : nn.LayerNorm
        A float32 layer over the last dimension.
    """

    def __init__(self, layer: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight.detach().clone(), layer.bias.detach().clone()
        self.eps = layer.eps

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised rows of x (..., d), float32."""
        _check("channels of a layer normalisation", x.shape[-1], _WIDEST)
        rows, exponent = _whole(x.reshape(-1, x.shape[-1]), _NORM_BITS)
        wide = rows.double()
        each = 1 / x.shape[-1]
        mean = wide.sum(1, keepdim=True) * each
        power = wide.square_().sum(1, keepdim=True) * each
        unit = _power_of_two(-exponent).double()
        deviation = torch.sqrt((power - mean * mean).clamp(min=0) + unit * unit * self.eps)
        centred = torch.sub(rows, mean.float())
        centred.mul_((torch.ones_like(deviation) / deviation).float())
        return centred.mul_(self.weight).add_(self.bias).view(x.shape)


class ExactGelu(nn.Module):
    """GELU with the normal distribution from a table; it overwrites its input."""

    def __init__(self, _: Gelu) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the normal distribution at x, float32."""
        for part in x.view(-1).split(_VALUES_AT_ONCE):
            part.mul_(_normal(part.clamp(-8.0, 8.0).add_(8.0)))
        return x


class ExactAttention(nn.Module):
    """Softmax attention on whole numbers.

    Keys and values are held as whole numbers in float64.
    """

    def __init__(self, _: Attention) -> None:
        super().__init__()

    def keys(self, x: Tensor) -> Tensor:
        """Round projections (B, heads, n, d) of keys or queries to 2**-12, within 2**11."""
        return _on_grid(x, _QUERY_BITS, _QUERY_REACH)

    def values(self, x: Tensor) -> Tensor:
        """Round projections (B, heads, n, d) of values to 2**-17, within 2**11."""
        return _on_grid(x, _VALUE_BITS, _VALUE_REACH)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Return the attention of queries (B, heads, m, d), float32.

        Keys and values are results of `keys` and `values`.
        """
        count, size = keys.shape[-2:]
        _check("keys of one query", count, _MOST_TOKENS)
        _check("channels of an attention head", size, _MOST_CHANNELS)
        unit = _STEPS * 2.0 ** (-2 * _QUERY_BITS) / math.sqrt(size)
        scores = (self.keys(queries) @ keys.transpose(-2, -1)).mul_(unit).float()
        if mask is not None:
            scores.masked_fill_(~mask, -math.inf)
        steps = scores.amax(-1, keepdim=True).add_(0.5).sub(scores).clamp_(max=_STEPS * _LAST)
        weights = torch.empty(steps.shape, dtype=torch.float64, device=steps.device)
        parts = (x.view(-1).split(_VALUES_AT_ONCE) for x in (steps, weights))
        for part, out in zip(*parts, strict=True):
            torch.index_select(_weights(steps.device), 0, part.int(), out=out)
        total = weights.sum(-1, keepdim=True).mul_(2.0**_VALUE_BITS)
        return (weights @ values).div_(total).float()


def _check(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise TecError(
            f"This model has {count} {what}; its streams could be decoded on every machine with "
            f"{limit} at most."
        )


def _on_grid(x: Tensor, bits: int, reach: float) -> Tensor:
    whole = x.clamp(-reach, reach).mul_(2.0**bits).round_()
    # Contiguous, because every matrix product would copy them otherwise.
    return whole.to(torch.float64, memory_format=torch.contiguous_format)


def _normal(x: Tensor) -> Tensor:
    """Return the normal distribution at x - 8, for x (n,) from 0 to 16; overwrites x.

    The values are interpolated linearly in a table.
    """
    starts, slopes = _normal_lines(x.device)
    place = x.mul_(_LINES)
    start = place.floor()
    place.sub_(start)
    index = start.int()
    torch.index_select(slopes, 0, index, out=start)
    return place.mul_(start).add_(torch.index_select(starts, 0, index, out=start))


@cache
def _normal_lines(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return starts and slopes of the line segments of the normal distribution, -8 to 8."""
    above = normal_cdf()
    both = np.concatenate([2**32 - above[:0:-1], above]) / 2**32
    starts = torch.tensor(both, dtype=torch.float32, device=device)
    slopes = torch.zeros_like(starts)
    slopes[:-1] = starts[1:] - starts[:-1]
    return starts, slopes


@cache
def _weights(device: torch.device) -> Tensor:
    """Return the table of exp(-x) for x from 0 to 13: whole numbers of 2**-17, float64."""
    with localcontext() as context:
        context.prec = 40  # decimal arithmetic rounds correctly, so it is the same everywhere
        step = (Decimal(-1) / _STEPS).exp()
        values = [Decimal(2**_WEIGHT_BITS)]
        for _ in range(_STEPS * _LAST):
            values.append(values[-1] * step)
        whole = [int(value.to_integral_value()) for value in values]
    return torch.tensor(whole, dtype=torch.float64, device=device)


_EXACT: dict[type[nn.Module], Callable[..., nn.Module]] = {
    Attention: ExactAttention,
    Gelu: ExactGelu,
    nn.LayerNorm: ExactLayerNorm,
    nn.Linear: ExactLinear,
}


def exact(model: _Model) -> _Model:
    """Return a copy of a network whose layers compute in whole numbers.

    Parameters
    ----------
    model : nn.Module
        Consists of linear layers, layer normalisations, `Attention`, `Gelu` and element-wise
        operations, with float32 weights. The copy shares no memory with it, so that a file whose
        tensors are mapped into memory can be closed.
    """
    # Share the weights until they are converted. A deep copy would hold them in memory twice.
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    _convert(twin)
    return twin


def _convert(module: nn.Module) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, buffer.clone())
    for name, child in module.named_children():
        found = _EXACT.get(type(child))
        if found is None:
            _convert(child)
        else:
            setattr(module, name, found(child))


@cache
def int8_is_exact(device_type: str) -> bool:
    """Whether int8 matrix products are exact; some libraries saturate on x86 before VNNI."""
    try:
        ones = torch.full((32, 64), 127, dtype=torch.int8, device=device_type)
        signs = torch.where(torch.arange(64, device=device_type) % 4 < 2, 127, -127).to(torch.int8)
        for right in (ones.T.contiguous()[:, :32], (signs[:, None].expand(64, 32)).contiguous()):
            for left in (ones, (-1 * ones - 1).to(torch.int8)):
                exact = left.double() @ right.double()
                if not torch.equal(torch._int_mm(left, right).double(), exact):
                    return False
    except (RuntimeError, AttributeError):
        return False
    return True
