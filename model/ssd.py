"""The structured state space duality scan, parallel and one step at a time.

Both compute, per head (Mamba-2, arXiv 2405.21060, section 6, one group of B and C):

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
    B_BLN: Tensor,
    C_BLN: Tensor,
    h_BHPN: Tensor | None = None,
    *,
    need_state: bool = True,
    need_output: bool = True,
    chunk: int = CHUNK,
) -> tuple[Tensor | None, Tensor | None]:
    """Runs the recurrence over L positions in parallel chunks.

    A position with dt = 0 changes nothing, which is how ragged batches are masked.

    Args:
        h_BHPN: state before the first position; zero when None.
        need_state, need_output: which of the two to compute.

    Returns:
        y (B, L, H, P) and the final state (B, H, P, N), None what is not asked for.
    """
    batch, length, heads, width = x_BLHP.shape
    n_state = B_BLN.shape[-1]
    size = min(chunk, length)
    if pad := -length % size:
        x_BLHP = F.pad(x_BLHP, (0, 0, 0, 0, 0, pad))
        dt_BLH = F.pad(dt_BLH, (0, 0, 0, pad))
        B_BLN = F.pad(B_BLN, (0, 0, 0, pad))
        C_BLN = F.pad(C_BLN, (0, 0, 0, pad))
    n_chunks = (length + pad) // size

    x = x_BLHP.view(batch, n_chunks, size, heads, width).permute(0, 1, 3, 2, 4)  # B c H Q P
    dt = dt_BLH.view(batch, n_chunks, size, heads).permute(0, 1, 3, 2)  # B c H Q
    B = B_BLN.view(batch, n_chunks, size, n_state)
    C = C_BLN.view(batch, n_chunks, size, n_state)
    # Differences of long cumulative sums lose their small digits in float32.
    total = (dt * A_H[:, None]).double().cumsum(-1)  # B c H Q

    y = _within_chunks(x, dt, total, B, C) if need_output else None

    state = h_BHPN
    if need_state or state is not None or n_chunks > 1:
        to_end = (total[..., -1:] - total).to(x.dtype).exp() * dt  # B c H Q
        added = (x * to_end[..., None]).transpose(-1, -2) @ B.unsqueeze(2)  # B c H P N
        kept = total[..., -1].exp().to(x.dtype)[..., None, None]  # B c H 1 1
        state = added.new_zeros(batch, heads, width, n_state) if state is None else state
        before = []
        for c in range(n_chunks):
            before.append(state)
            state = state * kept[:, c] + added[:, c]
        if y is not None:
            h = torch.stack(before, 1)  # B c H P N
            from_start = total.exp().to(x.dtype)[..., None]  # B c H Q 1
            y = y + from_start * (C.unsqueeze(2) @ h.transpose(-1, -2))

    if y is not None:
        y = y.permute(0, 1, 3, 2, 4).reshape(batch, n_chunks * size, heads, width)[:, :length]
    return y, state if need_state else None


def _within_chunks(x: Tensor, dt: Tensor, total: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """What each position (B c H Q P) gets from those of its own chunk."""
    size = dt.shape[-1]
    past = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    # A mask of -inf, not a product with 0: exp of a positive difference could overflow.
    span = (total[..., :, None] - total[..., None, :]).to(x.dtype)
    decay = span.masked_fill(~past, -torch.inf).exp()  # B c H Q Q
    mixing = (C @ B.transpose(-1, -2)).unsqueeze(2) * decay * dt[..., None, :]
    return mixing @ x


def ssd_step(
    x_BHP: Tensor, dt_BH: Tensor, A_H: Tensor, B_BN: Tensor, C_BN: Tensor, h_BHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """One position: returns y (B, H, P) and the new state (B, H, P, N)."""
    decay = (dt_BH * A_H).exp()[..., None, None]
    h = h_BHPN * decay + (dt_BH[..., None] * x_BHP)[..., None] * B_BN[:, None, None, :]
    return (h * C_BN[:, None, None, :]).sum(-1), h
