"""Whether this machine multiplies int8 matrices exactly."""

from __future__ import annotations

from functools import cache

import torch

__all__ = ["int8_is_exact"]


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
