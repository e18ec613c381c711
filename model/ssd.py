"""The structured state space duality scan, parallel and one step at a time.

Both compute, per head (Mamba-2, arXiv 2405.21060, section 6), with the B and C of its group, of
which each has the same number of neighbouring heads:

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t (outer) B_t
    y_t = h_t C_t

These are the plain PyTorch references of mamba-ssm's `mamba_chunk_scan_combined` and
`selective_state_update`, with `dt` final: bounded, masked and past its softplus.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 32


def ssd_scan(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    h_BHPN: Tensor | None = None,
    *,
    need_state: bool = True,
    need_output: bool = True,
    sequence_BL: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor | None, Tensor | None]:
    """Runs the recurrence over L positions in parallel chunks.

    A position with dt = 0 changes nothing, which is how ragged batches are masked.

    Args:
        h_BHPN: state before the first position; zero when None.
        need_state, need_output: which of the two to compute.
        sequence_BL: int, which sequence a position is of, from 0 on, where a row holds several,
            one after the other; each begins with a state of zero, a row's first with `h_BHPN`.

    Returns:
        y (B, L, H, P) and the final state (B, H, P, N), None what is not asked for.
    """
    batch, length, heads, width = x_BLHP.shape
    groups, n_state = B_BLGN.shape[-2:]
    size = min(chunk, length)
    if pad := -length % size:
        x_BLHP = F.pad(x_BLHP, (0, 0, 0, 0, 0, pad))
        dt_BLH = F.pad(dt_BLH, (0, 0, 0, pad))
        B_BLGN = F.pad(B_BLGN, (0, 0, 0, 0, 0, pad))
        C_BLGN = F.pad(C_BLGN, (0, 0, 0, 0, 0, pad))
        if sequence_BL is not None:
            sequence_BL = torch.cat([sequence_BL, sequence_BL[:, -1:].expand(-1, pad)], 1)
    n_chunks = (length + pad) // size

    # c of Q positions, G of R heads
    x = x_BLHP.view(batch, n_chunks, size, groups, -1, width).permute(0, 1, 3, 4, 2, 5)
    dt = dt_BLH.view(batch, n_chunks, size, groups, -1).permute(0, 1, 3, 4, 2)  # B c G R Q
    B = B_BLGN.view(batch, n_chunks, size, groups, 1, n_state).permute(0, 1, 3, 4, 2, 5)
    C = C_BLGN.view(batch, n_chunks, size, groups, 1, n_state).permute(0, 1, 3, 4, 2, 5)
    # Differences of long cumulative sums lose their small digits in float32.
    total = (dt * A_H.view(groups, -1, 1)).double().cumsum(-1)  # B c G R Q

    # What does not belong to the sequence of a chunk's last position, or of the one before it.
    ended: Tensor | None = None
    begun: Tensor | None = None
    sequence = None
    if sequence_BL is not None:
        sequence = sequence_BL.view(batch, n_chunks, 1, 1, size)  # B c 1 1 Q
        earlier = torch.cat([sequence_BL[:, :1], sequence[:, :-1, 0, 0, -1]], 1)
        before_it = earlier[..., None, None, None]
        ended, begun = sequence != sequence[..., -1:], sequence != before_it
    y = _within_chunks(x, dt, total, B, C, sequence) if need_output else None

    state = None if h_BHPN is None else torch.unflatten(h_BHPN, 1, (groups, -1))
    if need_state or state is not None or n_chunks > 1:
        to_end = (total[..., -1:] - total).to(x.dtype).exp() * dt  # B c G R Q
        if ended is not None:
            to_end = to_end.masked_fill(ended, 0)
        added = (x * to_end[..., None]).transpose(-1, -2) @ B  # B c G R P N
        kept = total[..., -1].exp().to(x.dtype)[..., None, None]  # B c G R 1 1
        if begun is not None:
            kept = kept.masked_fill(begun[..., -1, None, None], 0)
        state = torch.zeros_like(added[:, 0]) if state is None else state
        before = []
        for c in range(n_chunks):
            before.append(state)
            state = state * kept[:, c] + added[:, c]
        if y is not None:
            h = torch.stack(before, 1)  # B c G R P N
            from_start = total.exp().to(x.dtype)[..., None]  # B c G R Q 1
            if begun is not None:
                from_start = from_start.masked_fill(begun[..., None], 0)
            y = y + from_start * (C @ h.transpose(-1, -2))

    if y is not None:
        y = y.permute(0, 1, 4, 2, 3, 5).reshape(batch, n_chunks * size, heads, width)[:, :length]
    return y, state.flatten(1, 2) if need_state and state is not None else None


def _within_chunks(
    x: Tensor, dt: Tensor, total: Tensor, B: Tensor, C: Tensor, sequence: Tensor | None
) -> Tensor:
    """What each position (B c G R Q P) gets from those of its chunk and `sequence` (B c 1 1 Q)."""
    size = dt.shape[-1]
    past = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    if sequence is not None:
        past = past & (sequence[..., :, None] == sequence[..., None, :])
    # A mask of -inf, not a product with 0: exp of a positive difference could overflow.
    span = (total[..., :, None] - total[..., None, :]).to(x.dtype)
    decay = span.masked_fill(~past, -torch.inf).exp()  # B c G R Q Q
    mixing = (C @ B.transpose(-1, -2)) * decay * dt[..., None, :]
    return mixing @ x


def ssd_step(
    x_BHP: Tensor, dt_BH: Tensor, A_H: Tensor, B_BGN: Tensor, C_BGN: Tensor, h_BHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """One position: returns y (B, H, P) and the new state (B, H, P, N)."""
    groups = B_BGN.shape[1]
    decay = (dt_BH * A_H).exp()[..., None, None]
    added = torch.unflatten(dt_BH[..., None] * x_BHP, 1, (groups, -1))[..., None]
    h = h_BHPN * decay + (added * B_BGN[:, :, None, None]).flatten(1, 2)
    y = torch.unflatten(h, 1, (groups, -1)) * C_BGN[:, :, None, None]
    return y.sum(-1).flatten(1, 2), h
