"""forward, prefill and step are one function, whatever the shapes, weights, gaps and splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import UNKNOWN_TIME, ModelConfig, State, TiM4Rec
from model.compiled_stepper import CompiledStepper
from tests.depth import examples

# Largest difference, relative to the largest value of the part. float32 sums in another order.
FLOAT64 = 1e-10
FLOAT32 = 5e-4

TWENTY_YEARS = 20 * 365 * 86_400_000
gaps = st.sampled_from([0, 0, 1, 999, 1000, 60_000, 86_400_000, TWENTY_YEARS]) | st.integers(
    0, TWENTY_YEARS
)


@st.composite
def models(draw: st.DrawFn, time: str | None = None) -> TiM4Rec:
    head_dim, n_groups = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from([1, 1, 2, 3]))
    config = ModelConfig(
        n_items=draw(st.integers(2, 30)),
        d_model=draw(st.sampled_from([4, 8, 16])) * head_dim // 2 * n_groups,
        n_layers=draw(st.integers(1, 3)),
        expand=draw(st.sampled_from([1, 2])),
        head_dim=head_dim,
        d_state=draw(st.sampled_from([1, 3, 8])),
        d_conv=draw(st.integers(2, 5)),
        n_groups=n_groups,
        ffn=draw(st.booleans()),
        activation=draw(st.sampled_from(["hardswish", "silu"])),
        dropout=0.0,
        time=time or draw(st.sampled_from(["causal", "none"])),
        gap_embedding=draw(st.booleans()),
        gap_mix=draw(st.sampled_from(["factor", "product", "none"])),
        request_time=draw(st.booleans()),
        gap_range_s=draw(st.sampled_from([(1.0, 1e8), (0.5, 0.5), (3600.0, 86400.0)])),
    )
    torch.manual_seed(draw(st.integers(0, 2**31)))
    model = TiM4Rec(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # off the initial values, tables off zero
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@st.composite
def histories(draw: st.DrawFn, n_items: int, longest: int = 24) -> tuple[list[int], list[int]]:
    length = draw(st.integers(1, longest))
    items = draw(st.lists(st.integers(1, n_items), min_size=length, max_size=length))
    now, times = draw(st.integers(0, 2 * 10**12)), []
    for gap in draw(st.lists(st.none() | gaps, min_size=length, max_size=length)):
        now += gap or 0
        times.append(UNKNOWN_TIME if gap is None else now)
    return items, times


def tensors(history: tuple[list[int], list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([history[0]]), torch.tensor([history[1]])


def by_steps(model: TiM4Rec, items: torch.Tensor, times: torch.Tensor, state: State) -> State:
    for i in range(items.shape[1]):
        state = model.step(items[:, i], times[:, i], state)
    return state


def assert_same(a: State, b: State, tolerance: float) -> None:
    for name, part in a.parts.items():
        if part.is_floating_point():
            scale = max(part.abs().max().item(), 1.0)
            torch.testing.assert_close(part, b[name], rtol=0, atol=tolerance * scale, msg=name)
        else:
            assert torch.equal(part, b[name]), name


@pytest.mark.slow
@settings(max_examples=examples(40))
@given(data=st.data(), model=models(), single=st.booleans())
def test_forward_is_prefill_is_steps(data: st.DataObject, model: TiM4Rec, single: bool) -> None:
    tolerance = FLOAT64
    if single:
        model, tolerance = model.float(), FLOAT32
    items, times = tensors(data.draw(histories(model.config.n_items, 12)))
    length = items.shape[1]
    later = torch.where(times == UNKNOWN_TIME, UNKNOWN_TIME, times + data.draw(gaps))
    with torch.no_grad():
        steps = by_steps(model, items, times, model.new_state(1))
        for split in range(length + 1):
            rest = torch.tensor([length - split])
            state = model.prefill(items, times, torch.tensor([split]), model.new_state(1))
            assert_same(
                by_steps(model, items[:, split:], times[:, split:], state), steps, tolerance
            )
            if split < length:
                state = model.prefill(items[:, split:], times[:, split:], rest, state)
                assert_same(state, steps, tolerance)
        parallel = model(items, times, later)
        torch.testing.assert_close(
            model.query(steps, later[:, -1]), parallel[:, -1], rtol=tolerance, atol=tolerance
        )


@settings(max_examples=examples(15))
@given(data=st.data(), model=models())
def test_a_ragged_batch_gives_each_row_its_own_state(data: st.DataObject, model: TiM4Rec) -> None:
    rows = data.draw(st.lists(histories(model.config.n_items), min_size=1, max_size=5))
    width = max(len(items) for items, _ in rows) + data.draw(st.integers(0, 3))
    items = torch.zeros(len(rows), width, dtype=torch.long)
    times = torch.full_like(items, data.draw(st.sampled_from([0, UNKNOWN_TIME, 10**13])))
    for row, (own_items, own_times) in enumerate(rows):
        items[row, : len(own_items)] = torch.tensor(own_items)
        times[row, : len(own_times)] = torch.tensor(own_times)
    lengths = torch.tensor([len(own) for own, _ in rows])
    with torch.no_grad():
        batch = model.prefill(items, times, lengths, model.new_state(len(rows)))
        for row, history in enumerate(rows):
            alone = by_steps(model, *tensors(history), model.new_state(1))
            assert_same(batch.rows(torch.tensor([row])), alone, FLOAT64)


@settings(max_examples=examples(15))
@given(data=st.data(), model=models(), keep=st.integers(1, 10))
def test_no_position_sees_a_later_one(data: st.DataObject, model: TiM4Rec, keep: int) -> None:
    items, times = tensors(data.draw(histories(model.config.n_items)))
    other_items, other_times = tensors(data.draw(histories(model.config.n_items)))
    with torch.no_grad():
        whole = model(items, times)
        changed = model(
            torch.cat([items[:, :keep], other_items], 1),
            torch.cat([times[:, :keep], other_times], 1),
        )
    shared = min(keep, items.shape[1])
    torch.testing.assert_close(whole[:, :shared], changed[:, :shared], rtol=0, atol=FLOAT64)


@pytest.mark.parametrize("length", [63, 64, 65, 200])
def test_chunk_borders(length: int) -> None:
    torch.manual_seed(length)
    model = TiM4Rec(ModelConfig(n_items=50, dropout=0.0)).double().eval()
    items = torch.randint(1, 51, (2, length))
    times = torch.randint(0, 10**9, (2, length)).cumsum(1)
    with torch.no_grad():
        steps = by_steps(model, items, times, model.new_state(2))
        lengths = torch.tensor([length, length])
        assert_same(model.prefill(items, times, lengths, model.new_state(2)), steps, FLOAT64)


def test_ten_thousand_float32_steps_stay_near_float64() -> None:
    torch.manual_seed(0)
    single = TiM4Rec(ModelConfig(n_items=500, dropout=0.0)).eval()
    double = TiM4Rec(single.config).double().eval()
    double.load_state_dict(single.state_dict())
    items = torch.randint(1, 501, (1, 10_000))
    times = (10 ** (torch.rand(1, 10_000) * 9)).long().cumsum(1)
    stepped = single.new_state(1)
    stepper = CompiledStepper(single, stepped)
    with torch.inference_mode():
        for item, at in zip(items[0].numpy(), times[0].numpy(), strict=True):
            stepper.step(np.array([0]), np.array([item]), np.array([at]))
        exact = double.prefill(items, times, torch.tensor([10_000]), double.new_state(1))
    for name in ("h", "conv", "out"):
        error = (stepped[name].double() - exact[name]).norm() / exact[name].norm()
        assert error < 1e-4, (name, error)


def test_first_unknown_and_zero_gaps_are_three_inputs() -> None:
    torch.manual_seed(1)
    model = TiM4Rec(ModelConfig(n_items=5, dropout=0.0)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        pair = torch.tensor([[1, 2]])
        zero = model(pair, torch.tensor([[1000, 1000]]))[0, 1]
        unknown = model(pair, torch.tensor([[1000, UNKNOWN_TIME]]))[0, 1]
        some = model(pair, torch.tensor([[1000, 2000]]))[0, 1]
        first = model(pair[:, 1:], torch.tensor([[1000]]))[0, 0]
    outputs = torch.stack([zero, unknown, some, first])
    assert torch.pdist(outputs).min() > 1e-3


def test_a_gap_reaches_back_to_the_last_known_time() -> None:
    torch.manual_seed(2)
    model = TiM4Rec(ModelConfig(n_items=5, dropout=0.0)).double().eval()
    state = model.prefill(
        torch.tensor([[1, 2, 3]]),
        torch.tensor([[5000, UNKNOWN_TIME, 9000]]),
        torch.tensor([2]),
        model.new_state(1),
    )
    assert state["last_time"].item() == 5000
    assert state["count"].item() == 2


def test_the_time_path_is_alive_in_a_new_model() -> None:
    model = TiM4Rec(ModelConfig(n_items=9))
    items = torch.randint(1, 10, (4, 6))
    times = torch.randint(0, 10**8, (4, 6)).cumsum(1)
    out = model(items, times, times + 5000)
    (out * torch.randn_like(out)).sum().backward()
    tables = {n: p for n, p in model.named_parameters() if "table" in n or "gap_embedding" in n}
    assert tables
    for name, table in tables.items():
        assert table.grad is not None, name
        assert table.grad.abs().max() > 1e-6, name


def test_a_sequence_model_has_no_output_per_position() -> None:
    model = TiM4Rec(ModelConfig(n_items=5, time="sequence", max_len=4))
    with pytest.raises(TypeError, match="window_output"):
        model(torch.tensor([[1]]), torch.tensor([[0]]))


@pytest.mark.slow
@settings(max_examples=examples(40))
@given(data=st.data(), model=models(), single=st.booleans())
def test_the_stepper_is_step_and_query(data: st.DataObject, model: TiM4Rec, single: bool) -> None:
    """In a pool, over any users in any order, and with the same readings of the request's time."""
    tolerance = FLOAT64
    if single:
        model, tolerance = model.float(), FLOAT32
    rows = data.draw(st.lists(histories(model.config.n_items, 8), min_size=1, max_size=15))
    order = data.draw(st.permutations(range(17)))[: len(rows)]
    pool = model.new_state(17)
    stepper = CompiledStepper(model, pool)
    with torch.inference_mode():
        alone = [model.new_state(1) for _ in rows]
        for i in range(max(len(items) for items, _ in rows)):
            going = [user for user, (items, _) in enumerate(rows) if len(items) > i]
            slots = np.array([order[user] for user in going])
            columns = (np.array([rows[user][part][i] for user in going]) for part in (0, 1))
            stepper.step(slots, *columns)
            for user in going:
                items, times = tensors(rows[user])
                alone[user] = model.step(items[:, i], times[:, i], alone[user])
        later = np.array([data.draw(st.integers(0, 10**13) | st.just(UNKNOWN_TIME)) for _ in rows])
        queries = stepper.query(*stepper.send(np.array(order), later))
        for user, state in enumerate(alone):
            assert_same(pool.rows(torch.tensor([order[user]])), state, tolerance)
            query = model.query(state, torch.from_numpy(later[user : user + 1]))[0]
            scale = max(1.0, float(query.abs().max()))
            torch.testing.assert_close(queries[user], query, rtol=tolerance, atol=tolerance * scale)
        others = pool.rows(torch.tensor([row for row in range(17) if row not in order]))
        assert_same(others, model.new_state(17 - len(rows)), 0)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(data=st.data(), model=models(), single=st.booleans())
def test_several_interactions_of_several_users_are_steps(
    data: st.DataObject, model: TiM4Rec, single: bool
) -> None:
    """Of any users in any order, from any state, in a pool of which nothing else changes."""
    tolerance = FLOAT64
    if single:
        model, tolerance = model.float(), FLOAT32
    rows = data.draw(st.lists(histories(model.config.n_items), min_size=1, max_size=5))
    slots = np.array(data.draw(st.permutations(range(7)))[: len(rows)])
    splits = [data.draw(st.integers(0, len(items) - 1)) for items, _ in rows]
    pool = model.new_state(7)
    stepper = CompiledStepper(model, pool)

    def advance(parts: list[tuple[list[int], list[int]]]) -> None:
        going = [user for user, (items, _) in enumerate(parts) if items]
        if going:
            columns = (np.array([one for user in going for one in parts[user][n]]) for n in (0, 1))
            lengths = np.array([len(parts[user][0]) for user in going])
            stepper.step(slots[going].repeat(lengths), *columns)

    with torch.inference_mode():
        advance([(items[:n], times[:n]) for (items, times), n in zip(rows, splits, strict=True)])
        advance([(items[n:], times[n:]) for (items, times), n in zip(rows, splits, strict=True)])
        for slot, history in zip(slots, rows, strict=True):
            alone = by_steps(model, *tensors(history), model.new_state(1))
            assert_same(pool.rows(torch.tensor([slot])), alone, tolerance)
        others = pool.rows(torch.tensor([row for row in range(7) if row not in slots]))
        assert_same(others, model.new_state(7 - len(rows)), 0)


@pytest.mark.parametrize("length", [1, 64, 300])
def test_many_interactions_of_a_user(length: int) -> None:
    torch.manual_seed(length)
    model = TiM4Rec(ModelConfig(n_items=50, dropout=0.0)).double().eval()
    items = torch.randint(1, 51, (1, length))
    times = torch.randint(0, 10**9, (1, length)).cumsum(1)
    pool = model.new_state(2)
    with torch.inference_mode():
        exact = model.prefill(items, times, torch.tensor([length]), model.new_state(1))
        CompiledStepper(model, pool).step(
            np.ones(length, np.int64), items[0].numpy(), times[0].numpy()
        )
        assert_same(pool.rows(torch.tensor([1])), exact, FLOAT64)


def test_a_sequence_model_has_no_stepper() -> None:
    model = TiM4Rec(ModelConfig(n_items=5, time="sequence", max_len=4))
    states = model.new_state(1)
    with pytest.raises(TypeError, match="no step"):
        CompiledStepper(model, states)


@pytest.mark.parametrize("time_path", ["causal", "sequence"])
def test_a_chunked_prefill_is_one_pass(time_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from a state, of histories that end in different chunks, and of none."""
    monkeypatch.setattr("model.recommender.PREFILL_CHUNK", 4)
    torch.manual_seed(0)
    config = ModelConfig(n_items=9, time=time_path, max_len=5, dropout=0.0)  # type: ignore[arg-type]
    model = TiM4Rec(config).double().eval()
    begun = [[(1, 1000), (2, 2000)], [(3, 500)], [(4, 900)]]
    more = [[(n % 9 + 1, 3000 + n * n) for n in range(length)] for length in (11, 0, 4)]
    with torch.inference_mode():
        found = model.chunked_prefill(more, model.chunked_prefill(begun, model.new_state(3)))
        for user, history in enumerate([*map(list.__add__, begun, more)]):
            items, times = torch.tensor(history).T[:, None]
            lengths = torch.tensor([len(history)])
            whole = model.prefill(items, times, lengths, model.new_state(1))
            assert_same(found.rows(torch.tensor([user])), whole, FLOAT64)
