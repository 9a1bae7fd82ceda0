"""Softmax attention and GELU as modules: without parameters, with a counterpart in ``exact``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Attention", "Gelu"]


class Gelu(nn.Module):
    """The exact GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """x times the normal distribution of x."""
        return F.gelu(x)


class Attention(nn.Module):
    """Scaled dot-product attention."""

    def keys(self, x: Tensor) -> Tensor:
        """Keys to be kept of their projections (B, heads, n, d)."""
        return x

    def values(self, x: Tensor) -> Tensor:
        """Values to be kept of their projections (B, heads, n, d)."""
        return x

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of queries (B, heads, m, d) to keys and values (B, heads, n, d)."""
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
