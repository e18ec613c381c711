"""A state's bytes give back that state, or are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import UNKNOWN_TIME, ModelConfig, State, StateLayout, TiM4Rec
from model.state import Part, Precision, StateBytesError
from tests.depth import examples

HALF_MAX = 65504.0  # largest finite float16; 65520 and above round to infinity
INT64 = st.integers(-(2**63), 2**63 - 1)
PRECISIONS: list[Precision] = ["float32", "float16"]

shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
parts = st.builds(
    Part,
    name=st.text("abcdefgh", min_size=1, max_size=4),
    shape=shapes,
    dtype=st.sampled_from([torch.float32, torch.int64]),
)
layouts = st.lists(parts, min_size=1, max_size=4, unique_by=lambda p: p.name).map(
    lambda drawn: StateLayout(tuple(drawn))
)


@st.composite
def states(draw: st.DrawFn, layout: StateLayout, largest: float = HALF_MAX) -> State:
    batch = draw(st.integers(1, 3))
    tensors = {}
    for part in layout.parts:
        if part.dtype == torch.int64:
            values = st.lists(INT64, min_size=batch * part.size, max_size=batch * part.size)
            flat = torch.tensor(draw(values), dtype=torch.int64)
        else:
            floats = st.floats(-largest, largest, width=32)
            values = st.lists(floats, min_size=batch * part.size, max_size=batch * part.size)
            flat = torch.tensor(draw(values), dtype=torch.float32)
        tensors[part.name] = flat.reshape(batch, *part.shape)
    return State(tensors)


def assert_identical(a: State, b: State) -> None:
    assert list(a.parts) == list(b.parts)
    for name, part in a.parts.items():
        assert part.dtype == b[name].dtype, name
        assert part.shape == b[name].shape, name
        assert part.numpy().tobytes() == b[name].numpy().tobytes(), name


def config(time: str) -> ModelConfig:
    return ModelConfig(
        n_items=9, d_model=4, n_layers=1, head_dim=4, d_state=2, time=time, max_len=5, dropout=0.0
    )


def lived(time: str, batch: int = 3) -> tuple[TiM4Rec, State]:
    """A random model, and the states of users with 0, 1, ... interactions."""
    torch.manual_seed(4)
    model = TiM4Rec(config(time)).eval()
    lengths = torch.arange(batch)
    items = torch.randint(1, 10, (batch, batch))
    times = 1_700_000_000_123 + torch.randint(0, 10**9, (batch, batch)).cumsum(1)
    with torch.no_grad():
        return model, model.prefill(items, times, lengths, model.new_state(batch))


@settings(max_examples=examples(40))
@given(data=st.data(), layout=layouts, precision=st.sampled_from(PRECISIONS))
def test_unpacking_gives_what_was_packed(
    data: st.DataObject, layout: StateLayout, precision: Precision
) -> None:
    state = data.draw(states(layout))
    sizes = st.lists(st.binary(max_size=20), min_size=state.batch, max_size=state.batch)
    extras = data.draw(st.none() | sizes)
    packed = layout.pack(state, extras, precision)
    assert len(packed) == state.batch
    expected = layout.rounded(state, precision)
    for row, (one, extra) in enumerate(zip(packed, extras or [b""] * state.batch, strict=True)):
        back, back_extra = layout.unpack(one)
        assert back_extra == extra
        assert_identical(back, expected.rows(torch.tensor([row])))
    # Rounding twice is rounding once: a rebuilt state packs to the same bytes.
    assert layout.pack(expected, extras, precision) == packed


@settings(max_examples=examples(25))
@given(data=st.data(), layout=layouts)
def test_float32_and_whole_numbers_are_exact(data: st.DataObject, layout: StateLayout) -> None:
    state = data.draw(states(layout, largest=float(np.finfo(np.float32).max)))
    for row, one in enumerate(layout.pack(state)):
        assert_identical(layout.unpack(one)[0], state.rows(torch.tensor([row])))


@settings(max_examples=examples(25))
@given(value=st.floats(-HALF_MAX, HALF_MAX, width=32), whole=INT64)
def test_float16_rounds_to_the_nearest_and_keeps_whole_numbers(value: float, whole: int) -> None:
    layout = StateLayout((Part("x", (), torch.float32), Part("n", (), torch.int64)))
    state = State({"x": torch.tensor([value]), "n": torch.tensor([whole])})
    back, _ = layout.unpack(layout.pack(state, precision="float16")[0])
    assert back["x"].item() == float(np.float16(value))
    assert back["n"].item() == whole


@pytest.mark.parametrize("time", ["causal", "none", "sequence"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_states_of_models(time: str, precision: Precision) -> None:
    model, state = lived(time)
    layout = model.state_layout
    packed = layout.pack(state, [b"", b"seen", b"\0" * 9], precision)
    back = [layout.unpack(one) for one in packed]
    assert [extra for _, extra in back] == [b"", b"seen", b"\0" * 9]
    assert len({len(one) - len(extra) for one, (_, extra) in zip(packed, back, strict=True)}) == 1
    expected = layout.rounded(state, precision)
    for row, (one, _) in enumerate(back):
        assert_identical(one, expected.rows(torch.tensor([row])))
    assert back[0][0]["last_time"].item() == UNKNOWN_TIME
    assert back[2][0]["last_time"].item() == state["last_time"][2].item() > 1_700_000_000_123
    if time == "sequence":  # a window has nothing to round
        assert_identical(expected, state)
        assert layout.nbytes("float16") == layout.nbytes("float32")
    else:
        assert layout.nbytes("float16") < 0.6 * layout.nbytes("float32")


def test_a_state_goes_on_from_its_bytes() -> None:
    model, state = lived("causal")
    back, _ = model.state_layout.unpack(model.state_layout.pack(state)[2])
    item, time = torch.tensor([7]), state["last_time"][2:] + 5000
    with torch.no_grad():
        assert_identical(
            model.step(item, time, back), model.step(item, time, state.rows(torch.tensor([2])))
        )


@pytest.mark.parametrize("time", ["causal", "sequence"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_flipped_bit_and_every_length_is_refused(time: str, precision: Precision) -> None:
    model, state = lived(time)
    layout = model.state_layout
    sound = layout.pack(state, [b"", b"", b"seen"], precision)[2]
    for bit in range(8 * len(sound)):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StateBytesError):
            layout.unpack(bytes(damaged))
    for size in range(len(sound)):
        with pytest.raises(StateBytesError):
            layout.unpack(sound[:size])
    with pytest.raises(StateBytesError, match="too long"):
        layout.unpack(sound + b"\0")
    layout.unpack(sound)


def test_bytes_of_another_layout_are_refused() -> None:
    layout = StateLayout((Part("a", (2, 3), torch.float32), Part("b", (), torch.int64)))
    packed = layout.pack(layout.new(1))[0]
    others = [
        (Part("a", (3, 2), torch.float32), Part("b", (), torch.int64)),
        (Part("c", (2, 3), torch.float32), Part("b", (), torch.int64)),
        (Part("b", (), torch.int64), Part("a", (2, 3), torch.float32)),
        (Part("a", (3,), torch.int64), Part("b", (), torch.int64)),
    ]
    for parts_ in others:
        with pytest.raises(StateBytesError, match="another state layout"):
            StateLayout(parts_).unpack(packed)
    with pytest.raises(StateBytesError, match="not a packed state"):
        layout.unpack(b"\0" * len(packed))


@pytest.mark.parametrize("value", [65520.0, -1e6, float("inf"), float("nan")])
def test_what_float16_can_not_hold_is_refused_for_that_user_alone(value: float) -> None:
    model, state = lived("causal")
    layout = model.state_layout
    state["h"][1, 0, 0, 0, 0] = value
    assert layout.fits(state, "float16").tolist() == [True, False, True]
    with pytest.raises(StateBytesError, match="float16"):
        layout.pack(state, precision="float16")
    finite = bool(np.isfinite(value))
    assert layout.fits(state, "float32").tolist() == [True, finite, True]
    if finite:
        layout.pack(state)
    else:
        with pytest.raises(StateBytesError, match="float32"):
            layout.pack(state)


def test_the_largest_float16_fits() -> None:
    layout = StateLayout((Part("x", (), torch.float32),))
    state = State({"x": torch.tensor([HALF_MAX, 65519.0])})  # 65519 rounds down to it
    assert [layout.unpack(one)[0]["x"].item() for one in layout.pack(state, None, "float16")] == [
        HALF_MAX,
        HALF_MAX,
    ]


def test_a_float64_state_packs_as_float32() -> None:
    model, state = lived("causal")
    layout = model.state_layout
    double = state.double()
    assert layout.pack(double) == layout.pack(state)
    double["out"][0] += 1e-12
    assert torch.equal(layout.rounded(double, "float32")["out"].float(), double["out"].float())
    double["out"][0, 0] = 1e39
    assert layout.fits(double, "float32").tolist() == [False, True, True]
    with pytest.raises(StateBytesError, match="float32"):
        layout.pack(double)


def test_rows_and_write_move_single_users() -> None:
    _, state = lived("causal")
    copy = state.rows(torch.tensor([2, 0]))
    assert copy["count"].tolist() == [2, 0]
    copy["out"].zero_()
    assert state["out"][2].abs().sum() > 0
    state.write(torch.tensor([1]), state.rows(torch.tensor([2])))
    assert state["count"].tolist() == [0, 2, 2]
    assert torch.equal(state["h"][1], state["h"][2])
