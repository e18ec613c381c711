"""Gaps between interactions, and how the causal time path sees them.

A gap is one of three special kinds (the user's first interaction, unknown, zero) or a positive
number of milliseconds. Positive gaps are read from tables by linear interpolation between knots
one power of two apart, so a feature is continuous in the gap and a rounding of the logarithm
cannot jump from one bucket to the next.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

UNKNOWN_TIME = -(2**63)
"""The time (int64 milliseconds) of an interaction whose time is not known."""

FIRST, UNKNOWN, ZERO, N_SPECIAL = 0, 1, 2, 3


class Knots(NamedTuple):
    """Where gaps lie in a table: between rows `row` and `row` + 1, `weight` of the way."""

    row: Tensor
    weight: Tensor


class GapGrid(nn.Module):
    """Maps gaps to knots: rows 0..2 are the special kinds, the rest powers of two of seconds.

    Args:
        range_s: smallest and largest positive gap in seconds; others are moved inside.
    """

    def __init__(self, range_s: tuple[float, float]) -> None:
        super().__init__()
        self.range_s = range_s
        self.first_knot = math.floor(math.log2(range_s[0]))
        last_knot = max(math.ceil(math.log2(range_s[1])), self.first_knot + 1)
        self.rows = N_SPECIAL + last_knot - self.first_knot + 1

    def forward(self, gap_ms: Tensor, kind: Tensor, dtype: torch.dtype) -> Knots:
        """Knots of gaps.

        Args:
            gap_ms: (...) int64, read where `kind` is -1, taken as 0 where negative.
            kind: (...) int64, FIRST or UNKNOWN, or -1 for a known gap.
            dtype: of the weights.
        """
        seconds = (gap_ms.double() / 1000).clamp(*self.range_s)
        place = seconds.log2() - self.first_knot
        whole = place.floor().clamp(0, self.rows - N_SPECIAL - 2)
        special = torch.where((kind < 0) & (gap_ms <= 0), ZERO, kind)
        index = torch.where(special < 0, whole.long() + N_SPECIAL, special)
        weight = torch.where(special < 0, place - whole, 0.0)
        return Knots(index, weight.to(dtype))


class GapTable(nn.Module):
    """A learned vector for each knot, zero at first: untrained, a gap changes nothing."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, width))

    def forward(self, knots: Knots) -> Tensor:
        """(...) knots to (..., width) vectors."""
        low = nn.functional.embedding(knots.row, self.weight)
        high = nn.functional.embedding(
            (knots.row + 1).clamp(max=self.weight.shape[0] - 1), self.weight
        )
        return torch.lerp(low, high, knots.weight[..., None])


def past_gaps(
    times_BL: Tensor,
    last_time_B: Tensor,
    count_B: Tensor,
    sequence_BL: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gap before each interaction, from the latest earlier one whose time is known.

    Args:
        times_BL: int64 milliseconds, UNKNOWN_TIME where not known.
        last_time_B, count_B: last known time and number of interactions before the first.
        sequence_BL: which sequence a position is of, where a row holds several, one after the
            other; what is before the first of one is then what is before that of the row.

    Returns:
        gap (B, L) in milliseconds, kind (B, L) as in `GapGrid.forward`, and the last known
        time at each position including its own (B, L).
    """
    known = times_BL != UNKNOWN_TIME
    position = torch.arange(times_BL.shape[1], device=times_BL.device)
    first = (position == 0).expand_as(times_BL)
    if sequence_BL is not None:
        first = first.clone()
        first[:, 1:] = sequence_BL[:, 1:] != sequence_BL[:, :-1]
    start = torch.where(first, position, 0).cummax(1).values
    latest = torch.where(known, position, -1).cummax(1).values
    before = last_time_B[:, None]
    last = torch.where(latest >= start, times_BL.gather(1, latest.clamp(min=0)), before)
    previous = torch.where(first, before, last.roll(1, 1))
    usable = known & (previous != UNKNOWN_TIME)
    kind = torch.where(usable, -1, UNKNOWN)
    kind = torch.where(first & (count_B == 0)[:, None], FIRST, kind)
    return torch.where(usable, times_BL - previous, 0), kind, last


def request_gaps(request_times: Tensor, last_times: Tensor) -> tuple[Tensor, Tensor]:
    """Gap from the last interaction to the request: (gap_ms, kind), same shape as the inputs."""
    usable = (request_times != UNKNOWN_TIME) & (last_times != UNKNOWN_TIME)
    gap = torch.where(usable, request_times - last_times, 0)
    return gap, torch.where(usable, -1, UNKNOWN)
