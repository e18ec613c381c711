"""What each interaction of a history adds to a score."""

from __future__ import annotations

import torch
from torch import Tensor

from model.recommender import Recommender

CELLS = 8192
"""Histories at once are so many that they have so many interactions together, at most."""


def left_out(
    model: Recommender, items_L: Tensor, times_L: Tensor, vectors_KD: Tensor, at_ms: int, most: int
) -> Tensor:
    """By how much each of the newest interactions raised each item's score.

    An interaction's part is the score after the whole history less the score after the history
    without it, both asked for at the same moment: the gaps around what is missing close, as if it
    had never been. A history of one interaction has its whole score from it.

    Args:
        items_L, times_L: the whole history, L at least 1.
        vectors_KD: of the items scored.
        most: interactions that are left out, each in a pass of its own.

    Returns:
        (min(L, most), K), oldest first.
    """
    length, device = len(items_L), items_L.device
    count = min(length, most)
    start = length - count
    before = list(zip(items_L[:start].tolist(), times_L[:start].tolist(), strict=True))
    state = model.chunked_prefill([before], model.new_state(1))
    place = torch.arange(count, device=device)
    # Row 0 keeps all; row i + 1 is without i, and its last place is no part of it.
    kept = place + (place >= place[:, None])
    rows = torch.cat([place[None], kept.clamp(max=count - 1)]) + start
    lengths = torch.full((count + 1,), count - 1, device=device)
    lengths[0] = count
    moments = torch.full((count + 1,), at_ms, device=device)
    found = []
    for part in torch.arange(count + 1, device=device).split(max(1, CELLS // count)):  # type: ignore[no-untyped-call]
        begun = state.rows(torch.zeros_like(part))
        after = model.prefill(items_L[rows[part]], times_L[rows[part]], lengths[part], begun)
        found.append(model.query(after, moments[part]) @ vectors_KD.T)
    scores = torch.cat(found)
    if length == 1:
        return scores[:1]
    return scores[0] - scores[1:]
