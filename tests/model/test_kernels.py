"""The Triton kernels compute what the references do: on a GPU if there is one, else interpreted."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import model.kernels
from model import UNKNOWN_TIME, ModelConfig, TiM4Rec
from model.kernels import Kernels, KernelsUnavailable, choose, load, rows_at_once
from model.layers import MAX_DECAY
from model.ssd import ssd_scan, ssd_step

# Of the norm of the difference, over the norm of the reference in float64.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
GRADIENTS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
SATURATED = 2e-4
"""With dt |A| at its bound everywhere: of sums up to 64 x 30, float32 keeps digits from 1e-4 on."""

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
Inputs = dict[str, Tensor]


def error(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    assert found.shape == wanted.shape
    assert bool(found.isfinite().all())
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))


def draw_inputs(
    device: torch.device,
    shape: tuple[int, int, int, int, int, int] = (2, 20, 2, 1, 16, 16),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    """Batch, L, H, G, P, N; chunks of 16 leave a last one that is not whole."""
    batch, length, heads, groups, width, n_state = shape
    draw = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=draw)

    found = {
        "x": normal(batch, length, heads, width).to(dtype),
        "dt": F.softplus(normal(batch, length, heads)),
        "A": -normal(heads).exp(),
        "B": normal(batch, length, groups, n_state).to(dtype),
        "C": normal(batch, length, groups, n_state).to(dtype),
        "h": normal(batch, heads, width, n_state),
    }
    return {name: part.to(device) for name, part in found.items()}


def sequences(inputs: Inputs) -> Tensor:
    """Several in a row: over a chunk's border, ending at one, of one position."""
    batch, length = inputs["x"].shape[:2]
    starts = torch.zeros(batch, length, dtype=torch.int64)
    starts[0, [5, 6, length - 4]] = 1
    starts[1:, [16, length - 1]] = 1
    return starts.cumsum(1).to(inputs["x"].device)


def varied(inputs: Inputs, case: str) -> tuple[Inputs, Tensor | None]:
    if case == "ragged":
        ends = torch.tensor([0, 17]).repeat(len(inputs["x"]))[: len(inputs["x"])]
        inside = torch.arange(inputs["x"].shape[1]) < ends[:, None]
        inputs = {**inputs, "dt": inputs["dt"] * inside[..., None].to(inputs["dt"])}
    if case == "huge gaps":
        dt = inputs["dt"].clone()
        dt[:, 3::5] = 1e9
        inputs = {**inputs, "dt": torch.minimum(dt, MAX_DECAY / -inputs["A"])}
    if case == "saturated":
        inputs = {**inputs, "dt": (MAX_DECAY / -inputs["A"]).expand_as(inputs["dt"]).contiguous()}
    if case == "packed":
        return {**inputs, "h": torch.zeros_like(inputs["h"])}, sequences(inputs)
    return inputs, None


CASES = ("plain", "ragged", "huge gaps", "saturated", "packed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, torch.float32) for case in CASES), ("packed", torch.bfloat16)],
)
def test_the_scan(kernels: Kernels, device: torch.device, case: str, dtype: torch.dtype) -> None:
    groups = 2 if case == "plain" else 1
    shape = (2, 20, 2, groups, 16, 16)
    inputs, sequence = varied(draw_inputs(device, shape, dtype), case)
    exact = {name: part.double() for name, part in inputs.items()}
    wanted, wanted_h = ssd_scan(*exact.values(), sequence_BL=sequence)
    assert wanted is not None
    assert wanted_h is not None
    y, h = kernels.scan(*inputs.values(), sequence_BL=sequence, chunk=16)
    assert y is not None
    assert h is not None
    assert h.dtype == torch.float32
    limit = SATURATED if case == "saturated" else TOLERANCE[torch.float32]
    assert error(h, wanted_h) < limit
    assert error(y, wanted) < limit
    if dtype == torch.bfloat16:  # without a state it stays what it is
        y, no_h = kernels.scan(*inputs.values(), sequence_BL=sequence, chunk=16, need_state=False)
        assert no_h is None
        assert y is not None
        assert y.dtype == dtype
        assert error(y, wanted) < TOLERANCE[dtype]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("huge gaps", torch.float32),
        ("packed", torch.float32),
        ("packed", torch.bfloat16),
    ],
)
def test_the_gradients(
    kernels: Kernels, device: torch.device, case: str, dtype: torch.dtype
) -> None:
    shape = (1, 20, 1, 1, 16, 16)
    inputs, sequence = varied(draw_inputs(device, shape, dtype), case)
    leaves = {name: part.requires_grad_() for name, part in inputs.items() if name != "h"}
    exact = {name: part.detach().double().requires_grad_() for name, part in leaves.items()}
    wanted, _ = ssd_scan(*exact.values(), sequence_BL=sequence, need_state=False)
    y, _ = kernels.scan(*leaves.values(), sequence_BL=sequence, chunk=16, need_state=False)
    assert y is not None
    assert wanted is not None
    slope = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).to(wanted)
    found_gradients = torch.autograd.grad(y, list(leaves.values()), slope.to(y))
    wanted_gradients = torch.autograd.grad(wanted, list(exact.values()), slope)
    for name, found, exactly in zip(leaves, found_gradients, wanted_gradients, strict=True):
        assert error(found, exactly) < GRADIENTS[dtype], name


def test_the_step_in_place(kernels: Kernels, device: torch.device) -> None:
    inputs = draw_inputs(device, (5, 1, 2, 2, 16, 16))
    x, dt, A, B, C, _ = (part if name == "A" else part[:, 0] for name, part in inputs.items())
    pool = torch.randn(9, 3, 2, 16, 16, generator=torch.Generator().manual_seed(2)).to(device)
    before, layer = pool.clone(), 1
    slots = torch.tensor([7, -1, 0, 3, -1], device=device)
    z, D = torch.randn_like(x), torch.randn_like(A)
    found = kernels.step(x, dt, A, B, C, pool[:, layer], slots, D, z)
    real = slots >= 0
    exact = (part.double() for part in (x[real], dt[real], A, B[real], C[real]))
    y, h = ssd_step(*exact, before[slots[real], layer].double())
    wanted = (y + D.double()[:, None] * x[real].double()) * F.silu(z[real].double())
    assert error(found[real], wanted) < TOLERANCE[torch.float32]
    assert not bool(found[~real].any())
    assert error(pool[slots[real], layer], h) < TOLERANCE[torch.float32]
    before[slots[real], layer] = pool[slots[real], layer]
    assert torch.equal(pool, before)


def test_a_batch_of_more_than_a_launch_takes(
    kernels: Kernels, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = torch.Size((2, 20, 2, 16))
    assert rows_at_once(torch.Size((4096, 200, 4, 32)), 32) == 65_535 // 4
    assert rows_at_once(torch.Size((1, 2**22, 4, 32)), 32) == 1
    inputs = draw_inputs(device)
    whole = kernels.scan(*inputs.values(), chunk=16)
    monkeypatch.setattr(model.kernels, "LARGEST_GRID", 2)
    assert rows_at_once(shape, 16, 16) == 1
    for part, wanted in zip(kernels.scan(*inputs.values(), chunk=16), whole, strict=True):
        assert part is not None
        assert wanted is not None
        assert torch.equal(part, wanted)


@pytest.mark.slow
def test_sizes_are_filled_up(
    kernels: Kernels, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = draw_inputs(device, (1, 5, 1, 1, 16, 16))
    monkeypatch.setattr(model.kernels, "SIZES", 1)
    whole = kernels.scan(*inputs.values(), chunk=16)
    monkeypatch.setattr(model.kernels, "SIZES", 3)
    shapes = []
    scan = kernels._scan

    def watched(x: Tensor, *others: object, **options: object) -> object:
        shapes.append(x.shape)
        return scan(x, *others, **options)

    monkeypatch.setattr(kernels, "_scan", watched)
    for part, wanted in zip(kernels.scan(*inputs.values(), chunk=16), whole, strict=True):
        assert part is not None
        assert wanted is not None
        assert error(part, wanted) < TOLERANCE[torch.float32]
    assert [shape[:2] for shape in shapes] == [(3, 6)]


@pytest.fixture(scope="module")
def tiny(device: torch.device) -> TiM4Rec:
    torch.manual_seed(5)
    config = ModelConfig(n_items=9, d_model=16, head_dim=16, d_state=16, dropout=0.0)
    found = TiM4Rec(config).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return found.to(device)


@pytest.mark.slow
@torch.no_grad()
def test_a_model_that_uses_them(kernels: Kernels, device: torch.device, tiny: TiM4Rec) -> None:
    items = torch.tensor([[1, 5, 2, 9, 9, 3], [4, 4, 0, 0, 0, 0]], device=device)
    times = torch.tensor([0, 10, 10, 10**12, UNKNOWN_TIME, 2 * 10**12], device=device)
    batch = items, times.expand(2, -1), torch.tensor([6, 2], device=device)
    new = tiny.new_state(2)
    wanted, outputs = tiny.prefill(*batch, new), tiny(*batch[:2])
    try:
        tiny.use(kernels)
        found, found_outputs = tiny.prefill(*batch, new), tiny(*batch[:2])
    finally:
        tiny.use(None)
    for name in ("h", "conv", "out"):
        assert error(found[name], wanted[name]) < 1e-5, name
    assert error(found_outputs[0], outputs[0]) < 1e-5
    assert torch.equal(found["count"], wanted["count"])


# -- where they can't be used ------------------------------------------------------------


@pytest.fixture
def _fresh() -> Iterator[None]:
    load.cache_clear()
    yield
    load.cache_clear()


@pytest.mark.usefixtures("_fresh")
def test_missing_kernels_are_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert choose("auto", "cuda") is None
    (record,) = caplog.records
    message = record.getMessage()
    assert "triton is not installed: pip install 'tim4rec[gpu]'" in message
    assert "\n" not in message
    with pytest.raises(KernelsUnavailable, match="triton is not installed"):
        choose("triton", "cuda")


@pytest.mark.usefixtures("_fresh")
def test_broken_kernels_are_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = ModuleSpec("mamba_ssm", None, is_package=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.delitem(sys.modules, "mamba_ssm", raising=False)
    for name in [name for name in sys.modules if name.startswith("mamba_ssm.")]:
        monkeypatch.delitem(sys.modules, name)
    with caplog.at_level(logging.WARNING):
        assert choose("auto", "cuda") is None
    (record,) = caplog.records
    assert "mamba-ssm's kernels do not run here: ModuleNotFoundError" in record.getMessage()
    assert "mamba_ssm" not in sys.modules


@pytest.mark.usefixtures("_fresh")
def test_wrong_kernels_are_not_used(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    right = Kernels.step

    def wrong(self: Kernels, *arguments: Tensor) -> Tensor:
        return right(self, *arguments) + 0.01

    monkeypatch.setattr(Kernels, "step", wrong)
    with pytest.raises(KernelsUnavailable, match=r"wrong here, by 1\.0e-02"):
        load(device)


def test_the_choice_without_a_gpu() -> None:
    assert choose("auto", "cpu") is None
    assert choose("reference", "cuda") is None
    with pytest.raises(KernelsUnavailable, match="the kernels need a CUDA device, not cpu"):
        choose("triton", "cpu")


# -- of the sizes that are served --------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_the_scan_of_served_sizes(
    kernels: Kernels, device: torch.device, case: str, dtype: torch.dtype
) -> None:
    inputs, sequence = varied(draw_inputs(device, (64, 200, 4, 1, 32, 32), dtype), case)
    leaves = {name: part.requires_grad_() for name, part in inputs.items() if name != "h"}
    exact = {name: part.detach().double().requires_grad_() for name, part in leaves.items()}
    wanted, _ = ssd_scan(*exact.values(), sequence_BL=sequence, need_state=False)
    y, _ = kernels.scan(*leaves.values(), sequence_BL=sequence, need_state=False)
    assert wanted is not None
    assert y is not None
    assert error(y, wanted) < (SATURATED if case == "saturated" else TOLERANCE[dtype])
    slope = torch.randn_like(wanted)
    found_gradients = torch.autograd.grad(y, list(leaves.values()), slope.to(y))
    wanted_gradients = torch.autograd.grad(wanted, list(exact.values()), slope)
    if case != "saturated":  # whose gradients are nothing but rounding
        for name, found, exactly in zip(leaves, found_gradients, wanted_gradients, strict=True):
            assert error(found, exactly) < GRADIENTS[dtype], name


@on_gpu
def test_a_row_beyond_two_to_the_31(kernels: Kernels, device: torch.device) -> None:
    rows = 2**31 // (2 * 4 * 32 * 32) + 2
    if torch.cuda.mem_get_info()[0] < 4 * rows * 2 * 4 * 32 * 32 + 2**30:
        pytest.skip("less than 10 GB of GPU memory free")
    inputs = draw_inputs(device, (1, 1, 4, 1, 32, 32))
    x, dt, A, B, C, _ = (part if name == "A" else part[:, 0] for name, part in inputs.items())
    pool = torch.zeros(rows, 2, 4, 32, 32, device=device)
    slots = torch.tensor([rows - 1], device=device)
    kernels.step(x, dt, A, B, C, pool[:, 1], slots, torch.zeros_like(A), torch.ones_like(x))
    _, h = ssd_step(x, dt, A, B, C, torch.zeros(1, 4, 32, 32, device=device))
    assert error(pool[rows - 1 :, 1], h) < TOLERANCE[torch.float32]
    assert not bool(pool[: rows - 1].any())
