"""Triton kernels in the place of the references in `model.ssd`."""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from model.mamba_kernels import import_kernels, missing_package
from model.ssd import ssd_scan, ssd_step

logger = logging.getLogger(__name__)

KernelChoice = Literal["auto", "reference", "triton"]

CHUNK = 64
"""Positions of a chunk. The kernels sum dt A over one in float32, so a short one is exacter."""
LARGEST_GRID = 65_535
"""Blocks that CUDA takes along a grid's second and third axis."""
SIZES = 16
"""Triton compiles a kernel apart for a size of 1, and for sizes that 16 divides. Nothing should be
compiled while a service serves, so whatever has a state is computed in the latter."""
LARGEST_OFFSET = 2**31 - 1
"""The kernels' offsets within an array are int32."""
AGREES = 1e-3


class KernelsUnavailable(RuntimeError):
    """The kernels can't be used; the message says why, in one line."""


class Kernels:
    """The scan and the step by Triton, for float32 and (the scan) bfloat16 on one device.

    float32 products are float32 ones, not TF32. Sums are of one order, so results repeat.
    """

    def __init__(self) -> None:
        self._scan, self._step = import_kernels()
        self._zeros: dict[torch.device, Tensor] = {}

    def __deepcopy__(self, memo: object) -> Kernels:
        return self  # a model's copies share it

    def scan(
        self,
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
        """As `model.ssd.ssd_scan`. x, B and C may be bfloat16, and y is what x is; a state that
        is asked for is float32, and so is everything on its way."""
        batch, length = x_BLHP.shape[:2]
        if need_state:
            x_BLHP, B_BLGN, C_BLGN = (part.float() for part in (x_BLHP, B_BLGN, C_BLGN))
        if need_state and sequence_BL is None:
            inputs = x_BLHP, dt_BLH, B_BLGN, C_BLGN
            x_BLHP, dt_BLH, B_BLGN, C_BLGN = (_evened(part, 2) for part in inputs)
            h_BHPN = None if h_BHPN is None else _evened(h_BHPN, 1)
        at_once = rows_at_once(x_BLHP.shape, B_BLGN.shape[-1], chunk)
        parts = []
        for start in range(0, len(x_BLHP), at_once):
            rows = slice(start, start + at_once)
            y, h = self._scan(
                x_BLHP[rows],
                dt_BLH[rows],
                A_H,
                B_BLGN[rows],
                C_BLGN[rows],
                chunk,
                initial_states=None if h_BHPN is None else h_BHPN[rows],
                seq_idx=None if sequence_BL is None else sequence_BL[rows].int(),
                return_final_states=True,
            )
            parts.append((y, h))
        y, h = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        if not need_state:
            return y, None
        return y[:batch, :length] if need_output else None, h[:batch]

    def step(
        self,
        x_BHP: Tensor,
        dt_BH: Tensor,
        A_H: Tensor,
        B_BGN: Tensor,
        C_BGN: Tensor,
        pool_h: Tensor,
        slots_B: Tensor,
        D_H: Tensor,
        z_BHP: Tensor,
    ) -> Tensor:
        """`model.ssd.ssd_step` of rows of a pool, in place, then (y + D x) silu(z): (B, H, P).

        Args:
            pool_h: (rows, H, P, N), any strides.
            slots_B: int64, each row at most once: on one row two programs would race. Negative:
                nothing is read or written, y is 0.
        """
        heads, width, n_state = pool_h.shape[1:]
        if A_H.device not in self._zeros:
            self._zeros[A_H.device] = A_H.new_zeros(1, 1)
        return self._step(
            pool_h,
            x_BHP,
            # Strides of 0 are how the kernel knows a number for a head from one for each cell.
            dt_BH[..., None].expand(-1, -1, width),
            A_H[:, None, None].expand(-1, width, n_state),
            B_BGN,
            C_BGN,
            D=D_H[:, None].expand(-1, width),
            z=z_BHP,
            dt_bias=self._zeros[A_H.device].expand(heads, width),
            state_batch_indices=slots_B,
        )


def _evened(part: Tensor, sizes: int) -> Tensor:
    """The first sizes filled up with zeros to multiples of SIZES."""
    missing = [-size % SIZES for size in part.shape[:sizes]]
    if not any(missing):
        return part
    pads = [0, 0] * (part.ndim - sizes)
    for size in reversed(missing):
        pads += [0, size]
    return torch.nn.functional.pad(part, pads)


def rows_at_once(shape_BLHP: torch.Size, n_state: int, chunk: int = CHUNK) -> int:
    """How many rows of a batch one launch takes."""
    _, length, heads, width = shape_BLHP
    chunks = -(-length // chunk)
    row = max(length * heads * width, chunks * heads * width * n_state, length * chunk)
    return max(1, min(LARGEST_GRID // chunks, LARGEST_OFFSET // row))


@cache
def load(device: torch.device) -> Kernels:
    """The kernels, tried out on the device.

    Raises:
        KernelsUnavailable: mamba-ssm or Triton is missing, can't be imported or computes wrongly.
    """
    if (reason := _missing()) is not None:
        raise KernelsUnavailable(reason)
    try:
        kernels = Kernels()
        error = _error(kernels, device)
    except Exception as failure:  # whatever a compiler, a driver or another version raises
        said = " ".join(str(failure).split()) or "no message"
        raise KernelsUnavailable(
            f"mamba-ssm's kernels do not run here: {type(failure).__name__}: {said[:300]}"
        ) from failure
    if not error < AGREES:
        raise KernelsUnavailable(f"mamba-ssm's kernels are wrong here, by {error:.1e}")
    return kernels


def why_not(device: torch.device | str) -> str | None:
    """Why the kernels can't be used there, as far as is known without trying them."""
    device = torch.device(device)
    if device.type != "cuda":
        return f"the kernels need a CUDA device, not {device}"
    return _missing()


def _missing() -> str | None:
    package = missing_package()
    return package and f"{package} is not installed: pip install 'tim4rec[gpu]'"


def choose(choice: KernelChoice, device: torch.device | str) -> Kernels | None:
    """The kernels, or None: the reference.

    `auto` is the kernels on a CUDA device where they run; where they don't, a warning says why.

    Raises:
        KernelsUnavailable: `triton` was chosen, and they don't.
    """
    device = torch.device(device)
    if choice == "reference" or (choice == "auto" and device.type != "cuda"):
        return None
    try:
        if (reason := why_not(device)) is not None:
            raise KernelsUnavailable(reason)
        return load(device)
    except KernelsUnavailable as error:
        if choice == "triton":
            raise
        logger.warning("the reference is used on %s, which is slower: %s", device, error)
        return None


def _error(kernels: Kernels, device: torch.device) -> float:
    """The largest difference from the reference in a small scan and a small step."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(device)

    with torch.inference_mode():
        x, dt, A = normal(1, 4, 2, 16), normal(1, 4, 2).abs(), -normal(2).abs()
        B, C, z, h = (
            normal(1, 4, 2, 16),
            normal(1, 4, 2, 16),
            normal(1, 2, 16),
            normal(1, 2, 16, 16),
        )
        found, left = kernels.scan(x, dt, A, B, C, h, chunk=16)
        wanted, state = ssd_scan(x, dt, A, B, C, h)
        assert found is not None
        assert left is not None
        assert wanted is not None
        assert state is not None
        y, state_after = ssd_step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], state)
        slots = torch.zeros(1, dtype=torch.int64, device=device)
        out = kernels.step(
            x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], left, slots, torch.zeros_like(A), z
        )
        pairs = ((found, wanted), (left, state_after), (out, y * torch.nn.functional.silu(z)))
        return max(float((one - other).abs().max()) for one, other in pairs)
