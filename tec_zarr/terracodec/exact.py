"""The entropy transformer of TEC-TT and FlexTEC in arithmetic that no machine can change.

A table index must be the same wherever a stream is decoded. Floating-point sums are not: their
order is the library's. Here every sum has whole numbers as its terms, and is below 2**53, so
that any order, instruction set, thread count, batch or device gives the same one; everything
between two sums is a single IEEE 754 operation on each element (float32 or float64; add,
subtract, multiply, divide, square root, round, convert), which is rounded alike everywhere. The
exponential and the normal distribution come from tables. Weights need not have been trained for
it: they are rounded once.

What the numbers are made of:

- a *linear layer* multiplies rows by columns of 15 bits and a sign, each with a power of two of its
  own. They have two signed digits to the base of 256, and the products of two low digits are left
  out: three products of int8 matrices with int32 sums;
- *layer normalisation* takes sums over rows of 21 bits and a sign;
- *attention* scores are sums of products of queries and keys in multiples of 2**-12; weights and
  values are multiples of 2**-17.

Nothing here is approximate by more than the bfloat16 or TF32 that such networks are trained in.
Where the processor does not multiply int8 matrices exactly, digits are multiplied in float32, so
few at a time that it adds them exactly.
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

from tec_zarr.entropy.gaussian_tables import normal_cdf
from tec_zarr.errors import TecError
from tec_zarr.terracodec.layers import Attention, Gelu

__all__ = ["ExactAttention", "ExactGelu", "ExactLayerNorm", "ExactLinear", "exact", "int8_is_exact"]

_Model = TypeVar("_Model", bound=nn.Module)

_ROW_BITS = 15
"""Rows are rounded to whole numbers below 2**15 (less 1/128, so that digits fit int8)."""

_COLUMN_SUM = 1 << 24
"""Limit of a column's absolute sum: sums of products stay below 2**39, by 256 below 2**31."""

_EXACT_TERMS = 1024
"""The sum of so many products of digits is 2**24 at most: float32 adds them exactly, and digits
have the 8 bits that TF32 and bfloat16 leave of a factor, should a process allow them."""

_NORM_BITS = 21
"""Rows of layer normalisation are rounded to whole numbers below 2**21 ..."""

_WIDEST = 2048
"""... so that this many squares are below 2**53."""

_SMALLEST_EXPONENT = -100
"""Of a row: smaller ones are zero for all that follows, and their inverse must be a float32."""

_QUERY_BITS, _QUERY_REACH = 12, 2.0**11
_WEIGHT_BITS = 17
_VALUE_BITS, _VALUE_REACH = 17, 2.0**11
_MOST_TOKENS = 128
"""Keys of one query: 2**17 (a weight) * 2**28 (a value) * 128 is below 2**53."""

_MOST_CHANNELS = 64
"""Of a head: 2**23 (a query) * 2**23 (a key) * 64 is below 2**53."""

_LINES = 256
"""Lines of the normal distribution for every unit of its argument."""

_STEPS, _LAST = 1024, 13
"""Weights of attention for every unit below the largest score; at 13 they are nothing."""

_VALUES_AT_ONCE = 1 << 16
"""Values of one pass over a table: its temporary tensors stay in the processor's cache."""

_COLUMNS_AT_ONCE = 64
"""Columns converted at a time: large temporary tensors would leave holes between the layers."""

_ROWS_AT_ONCE = 512
"""Rows of one product of matrices: it bounds the memory of its int32 sums."""


class _Scratch(threading.local):
    """Memory that is kept: the system hands out fresh memory as slowly as products are made."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def take(self, dtype: torch.dtype, like: Tensor, *shape: int) -> Tensor:
        """A tensor (of the shape of `like`) whose values last until the next call."""
        shape = shape or like.shape
        size, kind = math.prod(shape), (dtype, like.device)
        if kind not in self._buffers or self._buffers[kind].numel() < size:
            with torch.inference_mode(False):  # else of no use outside of it
                self._buffers[kind] = torch.empty(size, dtype=dtype, device=like.device)
        return self._buffers[kind][:size].view(shape)


_scratch = _Scratch()


def _power_of_two(exponent: Tensor) -> Tensor:
    """2**exponent (int32) as float32, by its bits: no function whose last bit may differ."""
    return ((exponent + 127) << 23).view(torch.float32)


def _exponent(x: Tensor) -> Tensor:
    """Floor of log2 of positive x (float32), int32; at least `_SMALLEST_EXPONENT`."""
    return ((x.view(torch.int32) >> 23) - 127).clamp_(min=_SMALLEST_EXPONENT)


def _whole(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Rows of x (m, n) as whole numbers below 2**bits, and the exponent (m, 1) of their unit.

    The whole numbers last until the next call in this thread.
    """
    # Not of abs(x): twice the passes over x, but no memory.
    largest = torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))
    exponent = _exponent(largest.mul_(1 + 2.0**-7)) + (1 - bits)
    out = _scratch.take(torch.float32, x)
    return torch.mul(x, _power_of_two(-exponent), out=out).round_(), exponent


def _digits(whole: Tensor) -> Tensor:
    """Signed digits to the base of 256 of whole numbers (m, n) float32, overwritten: (2 m, n)."""
    shifted = whole.add_(128).to(torch.int16)
    out = torch.empty(2 * len(whole), whole.shape[1], dtype=torch.int8)
    low = out[len(whole) :]
    low.copy_(shifted).bitwise_xor_(-128)  # the low byte, less 128
    out[: len(whole)].copy_(shifted.bitwise_right_shift_(8))
    return out


class ExactLinear(nn.Module):
    """A linear layer on whole numbers: ``(rows @ columns - low digits) / 256``, then the bias.

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
        """Whole numbers of columns, small enough for their sums of products."""
        whole, exponent = _whole(weight, _ROW_BITS)
        while True:
            large = whole.abs().sum(1, keepdim=True, dtype=torch.float64) >= _COLUMN_SUM
            if not large.any():
                return whole, exponent
            exponent += large
            torch.mul(weight, _power_of_two(-exponent), out=whole).round_()

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., N) of inputs (..., K), float32 both."""
        flat = x.reshape(-1, x.shape[-1])
        out = flat.new_empty(len(flat), len(self.bias))
        step = _ROWS_AT_ONCE if flat.is_cpu else max(1, len(flat))
        for given, part in zip(flat.split(step), out.split(step), strict=True):
            self.of_digits(*self.digits(given), part)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def digits(rows: Tensor) -> tuple[Tensor, Tensor]:
        """High, then low digits (2 m, K) of rows (m, K), and exponents (m, 1) of their units."""
        whole, exponent = _whole(rows, _ROW_BITS)
        return _digits(whole), exponent

    def of_digits(self, digits: Tensor, exponent: Tensor, out: Tensor) -> Tensor:
        """Write outputs (m, N) of what `digits` made, or of rows made of that, to `out`."""
        out.copy_(self._sums(digits)).mul_(_power_of_two(exponent))
        # The product with a power of two is exact: it may be fused with the sum or not.
        return torch.addcmul(self.bias, out, self.unit, out=out)

    def _sums(self, digits: Tensor) -> Tensor:
        """Sums of products without those of two low digits, divided by 256: int32."""
        count, size = len(digits) // 2, len(self.bias)
        products = _scratch.take(torch.int32, digits, 3 * count, size)
        self._product(digits, self.columns[0], products[: 2 * count])
        self._product(digits[:count], self.columns[1], products[2 * count :])
        high, middle, other = products.view(3, count, size)
        return middle.add_(other).add_(high, alpha=256)

    def _product(self, rows: Tensor, columns: Tensor, out: Tensor) -> None:
        """Write the product of matrices of digits, int8, to int32."""
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
        Over the last dimension, float32.
    """

    def __init__(self, layer: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight.detach().clone(), layer.bias.detach().clone()
        self.eps = layer.eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalised rows of x (..., d), float32."""
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
    """GELU with the normal distribution from its table, written over its input."""

    def __init__(self, _: Gelu) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """x times the normal distribution of x, float32."""
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
        """Keys or queries of projections (B, heads, n, d): multiples of 2**-12 below 2**11."""
        return _on_grid(x, _QUERY_BITS, _QUERY_REACH)

    def values(self, x: Tensor) -> Tensor:
        """Values of projections (B, heads, n, d): multiples of 2**-17 below 2**11."""
        return _on_grid(x, _VALUE_BITS, _VALUE_REACH)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of queries (B, heads, m, d), float32, to what `keys` and `values` made."""
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
    # Contiguous: a product of matrices would copy them every time.
    return whole.to(torch.float64, memory_format=torch.contiguous_format)


def _normal(x: Tensor) -> Tensor:
    """Normal distribution of x (n,) less 8, from 0 to 16, by lines; overwrites x."""
    starts, slopes = _normal_lines(x.device)
    place = x.mul_(_LINES)
    start = place.floor()
    place.sub_(start)
    index = start.int()
    torch.index_select(slopes, 0, index, out=start)
    return place.mul_(start).add_(torch.index_select(starts, 0, index, out=start))


@cache
def _normal_lines(device: torch.device) -> tuple[Tensor, Tensor]:
    """Starts and slopes of the standard normal distribution from -8 to 8."""
    above = normal_cdf()
    both = np.concatenate([2**32 - above[:0:-1], above]) / 2**32
    starts = torch.tensor(both, dtype=torch.float32, device=device)
    slopes = torch.zeros_like(starts)
    slopes[:-1] = starts[1:] - starts[:-1]
    return starts, slopes


@cache
def _weights(device: torch.device) -> Tensor:
    """exp(-x) from 0 to 13, whole numbers in units of 2**-17, float64."""
    with localcontext() as context:
        context.prec = 40  # decimal arithmetic rounds correctly, hence alike everywhere
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
    """A copy of a network whose layers compute in whole numbers.

    Parameters
    ----------
    model : nn.Module
        Of linear layers, layer normalisations, `Attention`, `Gelu` and element-wise operations,
        with float32 weights. The copy shares no memory with it: a file whose tensors are mapped
        into memory can be closed.
    """
    # Not a deep copy of the weights: they would be there twice before they are converted.
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
    """Whether int8 products do not saturate on the way (some libraries' do on x86 before VNNI)."""
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
