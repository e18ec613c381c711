"""The step on a GPU is the model's: on a GPU if there is one, else interpreted on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import model as model_package
from model import UNKNOWN_TIME, ModelConfig, State, TiM4Rec
from model.device_stepper import DeviceStepper
from model.graphs import Graphs, size_for
from model.kernels import Kernels
from model.stepper import rounds

# Largest difference, relative to the largest value of a part: float32 in another order.
SAME = 2e-5
CAPACITY = 11
YEAR_MS = 365 * 86_400_000
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

SMALL = {"n_items": 9, "d_model": 16, "head_dim": 16, "d_state": 16, "dropout": 0.0}
CONFIGS = {
    "default": {},
    "product, silu, K 2": {"gap_mix": "product", "activation": "silu", "d_conv": 2},
    "an ensemble of two": {"d_model": 32, "n_groups": 2},
    "one bare layer": {"n_layers": 1, "ffn": False, "gap_mix": "none", "request_time": False},
    "no time": {"time": "none", "d_model": 24, "head_dim": 12, "d_state": 5},
}


def make(config: dict[str, object], device: torch.device) -> TiM4Rec:
    torch.manual_seed(3)
    model = TiM4Rec(ModelConfig(**{**SMALL, **config})).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(device)


def assert_same(found: State, wanted: State) -> None:
    for name, part in wanted.parts.items():
        if part.is_floating_point():
            limit = SAME * max(1.0, float(part.abs().max()))
            torch.testing.assert_close(found[name], part, rtol=0, atol=limit, msg=name)
        else:
            assert torch.equal(found[name], part), name


ROUNDS = [
    ([4, 9], [1, 3], [1000, UNKNOWN_TIME]),
    ([9, 4], [3, 3], [5, 1000 + 40 * YEAR_MS]),
    ([9], [8], [10_000]),
]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.inference_mode()
def test_it_is_the_models_step(
    kernels: Kernels, device: torch.device, config: dict[str, object]
) -> None:
    model = make(config, device)
    pool, wanted = model.new_state(CAPACITY), model.new_state(CAPACITY)
    stepper = DeviceStepper(model, pool, kernels, graphs=device.type == "cuda")
    for slots, items, times in ROUNDS:
        stepper.step(np.array(slots), np.array(items), np.array(times))
        index = torch.tensor(slots, device=device)
        given = (torch.tensor(part, device=device) for part in (items, times))
        wanted.write(index, model.step(*given, wanted.rows(index)))
    assert not bool(pool["count"].any()), "steps wait for what is sent"
    slots, asked = np.array([9, 4, 9]), np.array([20_000, UNKNOWN_TIME, 10_000])
    (index, times) = stepper.send(slots, asked)
    found = stepper.query(index, times)
    assert_same(pool, wanted)
    expected = model.query(wanted.rows(index), times)
    torch.testing.assert_close(found, expected, rtol=0, atol=SAME * float(expected.abs().max()))


@torch.inference_mode()
def test_padding_changes_nothing(kernels: Kernels, device: torch.device) -> None:
    model = make({}, device)
    padded, plain = model.new_state(CAPACITY), model.new_state(CAPACITY)
    rows = torch.tensor([[3, -1, 7, -1], [1, 0, 2, 0], [10, 0, 20, 0]], device=device)
    DeviceStepper(model, padded, kernels, graphs=False)._step_rows(rows)
    DeviceStepper(model, plain, kernels, graphs=False)._step_rows(rows[:, ::2].contiguous())
    assert_same(padded, plain)
    assert int(padded["count"].sum()) == 2
    found = DeviceStepper(model, padded, kernels, graphs=False)._query_rows(rows[:2])
    assert not bool(found[1::2].any())


def test_a_row_twice_in_a_step_is_two_steps(kernels: Kernels, device: torch.device) -> None:
    model = make({}, device)
    pool, alone = model.new_state(CAPACITY), model.new_state(CAPACITY)
    stepper = DeviceStepper(model, pool, kernels, graphs=False)
    twice, items, times = np.array([5, 2, 5]), np.array([1, 2, 3]), np.array([10, 20, 30])
    stepper.step(twice, items, times)
    stepper.settle()
    assert pool["count"].tolist() == [0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0]
    apart = DeviceStepper(model, alone, kernels, graphs=False)
    for part in (slice(0, 2), slice(2, 3)):
        apart.step(twice[part], items[part], times[part])
    apart.settle()
    assert_same(pool, alone)
    # What is forgotten is not taken.
    stepper.step(twice[:2], items[:2], times[:2])
    stepper.step(twice[:2], items[:2], times[:2])
    stepper.forget()
    stepper.settle()
    assert int(pool["count"].sum()) == 3


@given(st.lists(st.integers(0, 5), max_size=20))
def test_rounds_have_each_row_once_and_its_interactions_in_order(given_slots: list[int]) -> None:
    slots = np.array(given_slots, np.int64)
    found = rounds(slots)
    assert sorted(np.concatenate([*found, []]).tolist()) == list(range(len(slots)))
    for once in found:
        assert len(set(slots[once].tolist())) == len(once) > 0
    for slot in set(given_slots):
        places = [place for once in found for place in once.tolist() if slots[place] == slot]
        assert places == np.flatnonzero(slots == slot).tolist()


def test_everything_is_sent_at_once(
    kernels: Kernels, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make({}, device)
    stepper = DeviceStepper(model, model.new_state(CAPACITY), kernels, graphs=False)
    uploads = []
    upload = DeviceStepper._upload
    monkeypatch.setattr(
        DeviceStepper,
        "_upload",
        lambda self, parts: uploads.append(sum(map(len, parts))) or upload(self, parts),
    )
    for slots, items, times in ROUNDS[:2]:
        stepper.step(np.array(slots), np.array(items), np.array(times))
    stepper.send(np.arange(4), np.arange(4))
    stepper.settle()
    assert uploads == [3 * 2 + 3 * 2 + 8]


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu_that_is_not_there(kernels: Kernels, tmp_path: Path) -> None:
    script = Path(__file__).with_name("compile_for_gpu.py")
    root = Path(model_package.__file__).parents[1]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, script, "own"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    compiled = {line.partition(":")[0] for line in done.stdout.splitlines()}
    assert compiled == {"enter", "convolve", "normalise", "read_out"}


def test_a_sequence_model_has_no_step(device: torch.device) -> None:
    model = make({"time": "sequence", "max_len": 5}, device)
    with pytest.raises(TypeError, match="no step of constant cost"):
        DeviceStepper(model, model.new_state(1), None, graphs=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("columns", "size"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (4097, 8192), (8192, 8192)]
)
def test_sizes_are_powers_of_two(columns: int, size: int) -> None:
    assert size_for(columns) == size


@on_gpu
def test_a_graph_for_each_size(device: torch.device) -> None:
    total = torch.zeros(1, dtype=torch.int64, device=device)
    captured = []

    def run(rows: torch.Tensor) -> torch.Tensor:
        captured.append(rows.shape[1])
        total.add_(torch.where(rows[0] >= 0, rows[1], 0).sum())
        return rows[1] * 2

    graphs = Graphs(run, 2, device)
    graphs.prepare(4)
    assert captured == [4, 4, 2, 2, 1, 1]
    for columns in (1, 3, 4, 2, 3):
        rows = torch.arange(2 * columns, device=device).view(2, columns)
        out = graphs(rows)
        assert out is not None
        assert torch.equal(out, rows[1] * 2)
    assert captured == [4, 4, 2, 2, 1, 1]
    assert int(total) == sum(sum(range(c, 2 * c)) for c in (1, 3, 4, 2, 3))


@on_gpu
@torch.inference_mode()
def test_many_users_of_the_default_model(kernels: Kernels, device: torch.device) -> None:
    torch.manual_seed(1)
    model = TiM4Rec(ModelConfig(n_items=1000)).eval().to(device)
    pool, wanted = model.new_state(20_000), model.new_state(20_000)
    stepper = DeviceStepper(model, pool, kernels)
    draw = np.random.default_rng(0)
    for users in (1, 700, 12_345):
        slots = draw.permutation(20_000)[:users]
        items, times = draw.integers(1, 1001, users), draw.integers(0, 10**12, users)
        stepper.step(slots, items, times)
        index, item, time = (torch.from_numpy(part).to(device) for part in (slots, items, times))
        wanted.write(index, model.step(item, time, wanted.rows(index)))
    index, asked = stepper.send(np.arange(20_000), np.full(20_000, 2 * 10**12))
    found = stepper.query(index, asked)
    stepper.settle()
    assert_same(pool, wanted)
    expected = model.query(wanted, asked)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
