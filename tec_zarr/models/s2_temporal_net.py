"""The temporal entropy networks of ``tec-tt-s2``: a date's latents given a prediction of them.

Each date is predicted, band by band, from dates that are already decoded (see
:mod:`tec_zarr.models.s2_temporal`); what is coded are the latents of the difference, in the KLT of
that difference.  The networks are those of :class:`~tec_zarr.models.s2_net.S2Net` with two
additions: they see the *prediction's own latents* ("past", where there are edges and texture), and
they can put part of it back or take it away ("gate", where the ground has changed or a cloud has
come).  Both start at zero, so that training starts from the image model coding differences.

This is the conditional coding of TEC-TT (arXiv 2510.12670, section 3.2: a date's latents given the
earlier ones), with the transformer replaced by what a laptop can run and every machine computes
alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tec_zarr.models.s2_net import (
    ACT_GRID,
    COARSE_PASSES,
    COMPAND_GRID,
    GROUPS,
    CoarsePass,
    FineGroup,
    IntConv,
    Pass,
    S2Net,
    activation,
    anchor_mask,
    coarse_mask,
    compand,
    full_precision,
    quantised,
)

#: Gates live on a grid of 1/64, from -2 to 2: products with a prediction stay exact.
GATE_GRID, GATE_LIMIT = 64.0, 2.0
HIDDEN = (64, 64, 96, 128)
#: Channels of the prediction that group 0 looks at.
COARSE_PAST = GROUPS[0] + GROUPS[1]


def gated(gate: Tensor, past: Tensor) -> Tensor:
    """What a gate adds to the mean."""
    return (
        quantised(gate * GATE_GRID).clamp(-GATE_LIMIT * GATE_GRID, GATE_LIMIT * GATE_GRID)
        / GATE_GRID
        * past
    )


class TemporalCoarse(CoarsePass):
    """A pass of group 0 that also sees the prediction."""

    def __init__(self, offsets: list[tuple[int, int]], hidden: int = 64):
        super().__init__(offsets, hidden)
        self.past = IntConv(COARSE_PAST, hidden, 3, COMPAND_GRID, zero=True)
        self.gate = IntConv(hidden, GROUPS[0], 1, ACT_GRID, zero=True)

    def parameters_of(
        self, known: Tensor, condition: Tensor, past: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and scale correction, (B, 4, h, w) each; ``past`` (B, 320, h, w) in steps."""
        seen = self.past(compand(past[:, :COARSE_PAST])) + self.condition(condition)
        hidden = activation(self.second(activation(self.first(compand(known), seen))))
        whole = quantised(known).clamp(-2047, 2047)
        with full_precision(known):
            mean, scale = self.head(hidden.float()).chunk(2, 1)
            linear = nn.functional.conv2d(whole, self.integer_linear(), padding=2)
            return mean + linear + gated(self.gate(hidden.float()), past[:, : GROUPS[0]]), scale


class TemporalGroup(FineGroup):
    """A later channel group that also sees the prediction of its own and of earlier channels."""

    def __init__(self, before: int, size: int, hidden: int):
        super().__init__(before, size, hidden)
        self.seen = before + size
        self.channels = slice(before, before + size)
        self.past = IntConv(self.seen, hidden, 3, COMPAND_GRID, zero=True)
        self.anchors_gate = IntConv(hidden, size, 1, ACT_GRID, zero=True)
        self.others_gate = IntConv(hidden, size, 1, ACT_GRID, zero=True)

    def context_of(self, before: Tensor, condition: Tensor, past: Tensor) -> Tensor:
        seen = self.past(compand(past[:, : self.seen])) + self.condition(condition)
        return activation(self.second(activation(self.first(compand(before), seen))))

    def anchors_of(self, context: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        mean, scale = self.anchor_parameters(context)
        with full_precision(context):
            return mean + gated(self.anchors_gate(context.float()), past[:, self.channels]), scale

    def others_of(self, context: Tensor, anchors: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        hidden = activation(self.third(activation(self.neighbours(compand(anchors)) + context)))
        with full_precision(context):
            mean, scale = self.others(hidden.float()).chunk(2, 1)
            return mean + gated(self.others_gate(hidden.float()), past[:, self.channels]), scale


class TemporalNet(nn.Module):
    """Entropy networks of a date whose prediction is known.

    The transform is the image model's; this module holds no copy of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(sum(GROUPS), 13))
        self.prior_bias = nn.Parameter(torch.zeros(sum(GROUPS)))
        self.coarse = nn.ModuleList(TemporalCoarse(offsets) for _, offsets in COARSE_PASSES[1:])
        before = [sum(GROUPS[:i]) for i in range(1, len(GROUPS))]
        self.fine = nn.ModuleList(
            TemporalGroup(b, size, hidden)
            for b, size, hidden in zip(before, GROUPS[1:], HIDDEN, strict=True)
        )

    scale_prior = S2Net.scale_prior

    def start_from(self, image: S2Net) -> None:
        """Begin as the image model, blind to the prediction."""
        known = {n: t for n, t in image.state_dict().items() if n in self.state_dict()}
        self.load_state_dict(known, strict=False)

    def passes(self, condition: Tensor, past: Tensor) -> Iterator[Pass]:
        """Walk the decoding order as :meth:`S2Net.passes` does; ``past`` (B, 320, h, w) steps."""
        prior = self.scale_prior(condition).split(GROUPS, 1)
        height, width = past.shape[-2:]
        known = torch.zeros_like(past[:, : GROUPS[0]])
        for number in range(len(COARSE_PASSES)):
            if number == 0:
                mean, scale = torch.zeros_like(known), prior[0].expand_as(known)
            else:
                mean, scale = self.coarse[number - 1].parameters_of(known, condition, past)
                scale = scale + prior[0]
            step = Pass(0, coarse_mask(number, height, width).to(past.device), mean, scale)
            yield step
            known = known + step.decoded
        decoded = [known]
        mask = anchor_mask(height, width).to(past.device)
        for group, module in enumerate(self.fine, start=1):
            context = module.context_of(torch.cat(decoded, 1), condition, past)
            mean, scale = module.anchors_of(context, past)
            step = Pass(group, mask, mean, scale + prior[group])
            yield step
            anchors = step.decoded
            mean, scale = module.others_of(context, anchors, past)
            step = Pass(group, ~mask, mean, scale + prior[group])
            yield step
            decoded.append(anchors + step.decoded)
