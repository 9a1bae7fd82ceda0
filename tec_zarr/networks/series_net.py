"""The temporal entropy networks of ``tec-tt-s2``: a date's latents given a prediction of them.

Each date is predicted, band by band, from dates that are already decoded
(:mod:`tec_zarr.networks.series`).  The latents of the difference are coded, in the KLT of that
difference.  The networks are those of :class:`~tec_zarr.networks.image_net.S2Net` with two
additions.  They see the *latents of the prediction* ("past"), which show edges and texture.  And
they can add or subtract a part of the prediction ("gate"), where the ground has changed or a cloud
has come.  Both start at zero, so that training starts from the image model coding differences.

This is the conditional coding of TEC-TT (arXiv 2510.12670, section 3.2: a date's latents given the
earlier ones).  Its transformer is replaced by networks that a laptop can run and that every machine
computes alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tec_zarr.models.constants import ACT_GRID, CHANNELS, COARSE_PASSES, COMPAND_GRID, GROUPS
from tec_zarr.networks.image_net import (
    CoarsePass,
    Correction,
    FineGroup,
    IntConv,
    Pass,
    S2Net,
    activation,
    compand,
    full_precision,
    masks,
    quantised,
)

#: Gates are multiples of 1/64 from -2 to 2, so that their products with a prediction are exact.
GATE_GRID, GATE_LIMIT = 64.0, 2.0
#: Hidden units of newly trained networks: of the passes of group 0, and of each later group.
COARSE_HIDDEN, HIDDEN = 96, (128, 160, 160, 192)
#: Width and residual blocks of a new network's refinement.
REFINEMENT = 96, 2
#: Channels of the prediction that group 0 sees.
COARSE_PAST = GROUPS[0] + GROUPS[1]


def gated(gate: Tensor, past: Tensor) -> Tensor:
    """Return the gated part of a prediction, which is added to the mean."""
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
    """A later channel group that also sees the prediction of its own and earlier channels."""

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


class Refinement(Correction):
    """Corrects a date's decoded latents by the prediction and by neighbouring latents.

    It runs before the image model's own correction and synthesis.
    """

    def __init__(self, width: int, blocks: int):
        super().__init__(width, blocks, inputs=2 * CHANNELS)
        # Weights files also number a block's activations, so its convolutions are 1 and 3.
        self.blocks = nn.ModuleList(nn.ModuleDict({"1": one, "3": two}) for one, two in self.blocks)

    def refined(self, latents: Tensor, past: Tensor, condition: Tensor) -> Tensor:
        """Refine latents (B, 320, h, w), in steps; ``past`` has the same form.

        ``condition`` is (B, 13).
        """
        return latents + self(torch.cat([latents, past], 1), condition)


class TemporalNet(nn.Module):
    """Entropy networks of a date whose prediction is known (it may be zero).

    The transform is the image model's. This module holds no copy of it.

    Parameters
    ----------
    coarse : int
        Hidden units of the passes of group 0.
    hidden : tuple of int
        Hidden units of each later group.
    refinement : tuple of (int, int)
        Width and blocks of the :class:`Refinement`.
    """

    def __init__(
        self,
        coarse: int = COARSE_HIDDEN,
        hidden: tuple[int, ...] = HIDDEN,
        refinement: tuple[int, int] = REFINEMENT,
    ) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(sum(GROUPS), 13))
        self.prior_bias = nn.Parameter(torch.zeros(sum(GROUPS)))
        self.coarse = nn.ModuleList(
            TemporalCoarse(offsets, coarse) for _, offsets in COARSE_PASSES[1:]
        )
        before = [sum(GROUPS[:i]) for i in range(1, len(GROUPS))]
        self.fine = nn.ModuleList(
            TemporalGroup(b, size, width)
            for b, size, width in zip(before, GROUPS[1:], hidden, strict=True)
        )
        self.refine = Refinement(*refinement)

    @classmethod
    def like(cls, tensors: dict[str, Tensor]) -> TemporalNet:
        """Make a network with the sizes of a weights file's tensors."""
        blocks = {name.split(".")[2] for name in tensors if name.startswith("refine.blocks.")}
        return cls(
            len(tensors["coarse.0.second.bias"]),
            tuple(len(tensors[f"fine.{i}.second.bias"]) for i in range(len(GROUPS) - 1)),
            (len(tensors["refine.first.bias"]), len(blocks)),
        )

    scale_prior = S2Net.scale_prior

    def start_from(self, other: S2Net | TemporalNet) -> None:
        """Copy the weights of a network that is as wide or narrower, and compute the same as it.

        Additional units keep their random input weights. Their output weights are zero wherever
        they would reach the copied units.
        """
        mine = self.state_dict()
        for name, theirs in other.state_dict().items():
            if name not in mine or theirs.dim() != mine[name].dim():
                continue
            target = mine[name]
            if any(small > large for small, large in zip(theirs.shape, target.shape, strict=True)):
                continue
            target[: len(theirs)] = 0
            target[tuple(slice(n) for n in theirs.shape)] = theirs

    def passes(self, condition: Tensor, past: Tensor) -> Iterator[Pass]:
        """Yield the passes as :meth:`S2Net.passes` does; ``past`` is (B, 320, h, w), in steps."""
        prior = self.scale_prior(condition).split(GROUPS, 1)
        coarse, anchors = masks(*past.shape[-2:], past.device)
        known = torch.zeros_like(past[:, : GROUPS[0]])
        for number in range(len(COARSE_PASSES)):
            if number == 0:
                mean, scale = torch.zeros_like(known), prior[0].expand_as(known)
            else:
                mean, scale = self.coarse[number - 1].parameters_of(known, condition, past)
                scale = scale + prior[0]
            step = Pass(0, coarse[number], mean, scale)
            yield step
            known = known + step.decoded
        decoded = [known]
        for group, module in enumerate(self.fine, start=1):
            context = module.context_of(torch.cat(decoded, 1), condition, past)
            mean, scale = module.anchors_of(context, past)
            step = Pass(group, anchors, mean, scale + prior[group])
            yield step
            first = step.decoded
            mean, scale = module.others_of(context, first, past)
            step = Pass(group, ~anchors, mean, scale + prior[group])
            yield step
            decoded.append(first + step.decoded)
