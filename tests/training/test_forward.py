"""The walk forward in time, beside one that a reader can follow: event by event, with dicts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import UNKNOWN_TIME, ModelConfig, TiM4Rec
from training.forward.events import Events
from training.forward.item_knn import ItemKNN
from training.forward.models import (
    AFTER,
    AT,
    BEFORE,
    NOTHING_KNOWN,
    UNKNOWN,
    Served,
    model_ranks,
    with_fallback,
)
from training.forward.popularity import Popularity
from training.forward.transitions import Transitions
from training.forward.walk import DAY_MS, Walk, walk_forward
from training.interactions import Log
from training.metrics import MISS
from training.tables import InputError

Row = tuple[str, str, int]
COUNTED = {"popularity": Popularity, "transitions": Transitions, "item-knn": ItemKNN}
ITEMS = "abcdefgh"
EVENT = st.tuples(st.sampled_from("uvwx"), st.sampled_from(ITEMS), st.integers(0, 40))
ROWS = st.lists(EVENT, min_size=12, max_size=60)
FEW_ROWS = st.lists(EVENT, min_size=8, max_size=25)
SPAN = DAY_MS // 4  # of a time in ROWS: several moments a day, and a half-life of 120


def log_of(rows: list[Row]) -> Log:
    """Times as ms; by user, then time, then place, as `read_log` has them."""
    schema = {"user_id": pl.String, "item_id": pl.String, "time_ms": pl.Int64}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return Log(frame.sort("user_id", "time_ms", maintain_order=True))


def walk_of(rows: list[Row], *, periods: int = 1) -> tuple[Log, Walk] | None:
    """None where all moments are on one side of a border."""
    log = log_of(rows)
    try:
        return log, Walk.of(Events.of(log), 0.5, periods)
    except InputError:
        return None


def spread(rows: list[Row]) -> list[Row]:
    return [(user, item, 10**12 + time * SPAN) for user, item, time in rows]


# -- the independent walk ------------------------------------------------------------------


def popularity_score(past: list[Row], history: list[str], now: int) -> dict[str, float]:
    mass: defaultdict[str, float] = defaultdict(float)
    for _, item, time in past:
        mass[item] += 0.5 ** ((now - time) / (30 * DAY_MS))
    return dict(mass)


def with_popularity(past: list[Row], now: int, evidence: dict[str, float]) -> dict[str, float]:
    mass = popularity_score(past, [], now)
    most = max(mass.values())
    return {item: evidence.get(item, 0.0) + 1e-6 * own / most for item, own in mass.items()}


def transitions_score(past: list[Row], history: list[str], now: int) -> dict[str, float]:
    count: Counter[str] = Counter()
    had = Counter(item for _, item, _ in past)
    for own in histories(past).values():
        for place, item in enumerate(own):
            for distance in range(1, 6):
                if place - distance >= 0 and history and own[place - distance] == history[-1]:
                    count[item] += 1 / distance  # type: ignore[assignment]
    evidence = {item: n / (had[history[-1]] + 1) for item, n in count.items()}
    return with_popularity(past, now, evidence)


def knn_score(past: list[Row], history: list[str], now: int) -> dict[str, float]:
    together: Counter[tuple[str, str]] = Counter()
    had = Counter(item for _, item, _ in past)
    for own in histories(past).values():
        for place, item in enumerate(own):
            for earlier in own[max(0, place - 20) : place]:
                together[earlier, item] += 1
                together[item, earlier] += 1
    evidence: defaultdict[str, float] = defaultdict(float)
    for age, item in enumerate(reversed(history[-20:])):
        for other in had:
            norm = math.sqrt((had[item] + 3) * (had[other] + 3))
            evidence[other] += 0.8**age * together[item, other] / norm
    return with_popularity(past, now, evidence)


def histories(past: list[Row]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for user, item, _ in past:
        found[user].append(item)
    return found


SCORES: dict[str, Callable[[list[Row], list[str], int], dict[str, float]]] = {
    "popularity": popularity_score,
    "transitions": transitions_score,
    "item-knn": knn_score,
}


def place_of(
    target: str, scores: dict[str, float], seen: set[str], tolerance: float
) -> tuple[int, int]:
    """The best and the worst rank of the target that rounding may make."""
    if target not in scores or target in seen:
        return MISS, MISS
    own = scores[target]
    others = [s for item, s in scores.items() if item not in seen and item != target]
    best = 1 + sum(score > own + tolerance for score in others)
    return best, 1 + sum(score >= own - tolerance for score in others)


def test_event(walk: Walk, place: int) -> tuple[str, int, list[tuple[str, int]]]:
    """Item and time of an event to be ranked, and the user's own earlier items and times."""
    events, row = walk.events, walk.rows[place]
    own = range(events.firsts[row], row)
    history = [(events.item_ids[events.items[r]], int(events.times[r])) for r in own]
    return events.item_ids[events.items[row]], int(events.times[row]), history


test_event.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("grain", [1, DAY_MS])
@given(rows=ROWS)
def test_counted_ranks_are_those_of_a_walk_by_hand(name: str, grain: int, rows: list[Row]) -> None:
    made = walk_of(spread(rows))
    if made is None:
        return
    log, walk = made
    ranks = walk_forward(walk, {name: COUNTED[name](walk.events)}, grain_ms=grain)[name]
    everything = [tuple(row) for row in log.frame.iter_rows()]
    for place, rank in enumerate(ranks):
        item, now, own = test_event(walk, place)
        past = [
            row for row in everything if row[2] < walk.borders[0] or row[2] // grain < now // grain
        ]
        history = [earlier for earlier, _ in own]
        scores = SCORES[name](past, history, now)
        tolerance = 1e-9 * max(scores.values(), default=1.0)
        best, worst = place_of(item, scores, set(history), tolerance)
        assert best <= rank <= worst, (place, item)


@pytest.mark.parametrize("name", COUNTED)
def test_ties_count_against_the_policy(name: str) -> None:
    once_each = [
        (f"{user}{item}", item, time) for user, time in (("u", 0), ("v", 1)) for item in ITEMS
    ]
    walk = Walk.of(Events.of(log_of(once_each)), 0.5, 1)
    ranks = walk_forward(walk, {name: COUNTED[name](walk.events)})[name]
    assert ranks.tolist() == [8] * 8


# -- models --------------------------------------------------------------------------------


def small_model(vocabulary: Sequence[str], *, request_time: bool = True) -> Served:
    torch.manual_seed(0)
    config = ModelConfig(
        n_items=len(vocabulary), d_model=8, head_dim=8, d_state=4, n_layers=2,
        request_time=request_time, gap_range_s=(1.0, 1e6), request_range_s=(1.0, 1e6),
    )  # fmt: skip
    model = TiM4Rec(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return Served(model, list(vocabulary))


def asked_at(name: str, now: int, own: list[tuple[str, int]]) -> int:
    last = own[-1][1]
    return {
        AFTER: last + 1000,
        BEFORE: max(last, now - 10_000),
        AT: now,
        UNKNOWN: UNKNOWN_TIME,
    }[name]


@torch.inference_mode()
def stepped_scores(
    served: Served, own: list[tuple[str, int]], asked: list[int]
) -> list[dict[str, float]] | None:
    """Scores by item for each time of asking, after a step for each known item; None where there
    is none."""
    model, index = served.model, {item: n for n, item in enumerate(served.item_ids, 1)}
    known = [(index[item], time) for item, time in own if item in index]
    if not known:
        return None
    state = model.new_state(1)
    for item, time in known:
        state = model.step(torch.tensor([item]), torch.tensor([time]), state)
    scores = [model.scores(model.query(state, torch.tensor([time])))[0] for time in asked]
    return [{item: float(each[n]) for item, n in index.items()} for each in scores]


@pytest.mark.parametrize("request_time", [True, False])
@given(rows=FEW_ROWS)
def test_model_ranks_are_those_of_stepping(request_time: bool, rows: list[Row]) -> None:
    made = walk_of(spread(rows))
    if made is None:
        return
    _, walk = made
    served = small_model("gbdea", request_time=request_time)
    found = model_ranks(walk, [served])
    assert set(found) == ({AFTER, BEFORE, AT, UNKNOWN} if request_time else {UNKNOWN})
    for place in range(len(walk.rows)):
        item, now, own = test_event(walk, place)
        asked = [asked_at(name, now, own) for name in found] if own else []
        scores = stepped_scores(served, own, asked)
        for number, (name, ranks) in enumerate(found.items()):
            if scores is None:
                assert ranks[place] == NOTHING_KNOWN
                continue
            seen = {earlier for earlier, _ in own}
            best, worst = place_of(item, scores[number], seen, 1e-4)
            assert best <= ranks[place] <= worst, (name, place, item)


def test_the_moment_of_asking_reaches_the_model() -> None:
    rows = [("u", "a", 0), *(("u", item, 10**9 + n * 10**8) for n, item in enumerate("bcdefgh"))]
    made = walk_of([*rows, *((f"v{n}", "a", 0) for n in range(5))])
    assert made is not None
    found = model_ranks(made[1], [small_model(ITEMS)])
    assert len({tuple(ranks) for ranks in found.values()}) > 1


def test_each_period_has_the_model_that_is_served_in_it() -> None:
    rows = [(f"u{n % 5}", ITEMS[n * n % 8], n) for n in range(60)]
    made = walk_of(spread(rows), periods=3)
    assert made is not None
    walk = made[1]
    models = [small_model("abcd"), small_model("abcdefgh"), small_model("hgfe")]
    together = model_ranks(walk, models)[AT]
    for period, served in enumerate(models):
        chosen = walk.periods == period
        alone = model_ranks(walk, [served] * 3)[AT]
        assert (together[chosen] == alone[chosen]).all()


def test_where_the_model_knows_nothing_another_ranks() -> None:
    ranks = {"asked": np.array([NOTHING_KNOWN, 3, MISS])}
    assert with_fallback(ranks, np.array([5, 6, 7]))["asked"].tolist() == [5, 3, MISS]


# -- the future ----------------------------------------------------------------------------


@given(rows=ROWS, order=st.randoms(use_true_random=False))
def test_no_policy_sees_the_future(rows: list[Row], order: Any) -> None:
    """What users have after a moment changes no rank until then."""
    made = walk_of(spread(rows))
    if made is None:
        return
    log, walk = made
    until = int(np.median(walk.events.times[walk.rows]))
    past = log.frame.filter(pl.col("time_ms") <= until)
    future = log.frame.filter(pl.col("time_ms") > until)
    items = future["item_id"].to_list()
    order.shuffle(items)
    changed = future.with_columns(pl.Series("item_id", items, pl.String))
    frame = pl.concat([past, changed]).sort("user_id", "time_ms", maintain_order=True)
    other = Walk.of(Events.of(Log(frame)), 0.5, 1)
    served = small_model("abcde")

    def ranks_until(walk: Walk) -> dict[str, list[int]]:
        counted = {name: make(walk.events) for name, make in COUNTED.items()}
        found = walk_forward(walk, counted) | model_ranks(walk, [served])
        known = walk.events.times[walk.rows] <= until
        return {name: ranks[known].tolist() for name, ranks in found.items()}

    assert ranks_until(walk) == ranks_until(other)


# -- parts of the walk ---------------------------------------------------------------------


def test_periods_have_equally_many_events_and_slices_are_what_they_say() -> None:
    minute = 60_000
    core = [(f"c{n}", item, n) for n in range(5) for item in "abcde"]
    old = [("r", "x", 50), ("u", "a", 60)]
    new = [
        ("u", "b", 10 * minute),  # 10 minutes after the last
        ("u", "x", 40 * minute),  # a visit, of a rarer item
        ("n", "y", 41 * minute),  # a user without history, an item that is new
        ("n", "a", 50 * minute),
    ]
    log = log_of([*core, *old, *new])
    walk = Walk.of(Events.of(log), len([*core, *old]) / len(log.frame), 2)
    assert walk.periods.tolist() == [0, 0, 1, 1]
    assert {name: part.tolist() for name, part in walk.slices().items()} == {
        "all events": [True] * 4,
        "items of the 5-core at the cut": [True, False, False, True],
        "rarer items at the cut": [False, True, False, False],
        "items new at the cut": [False, False, True, False],
        "items never seen before": [False, False, True, False],
        "users without history": [False, False, True, False],
        "first of a visit": [False, True, False, False],
    }


def test_a_log_that_lacks_a_time_or_is_one_moment_is_refused() -> None:
    with pytest.raises(InputError, match="time of every"):
        Events.of(log_of([("u", "a", 5), ("u", "b", UNKNOWN_TIME)]))
    with pytest.raises(InputError, match="too few moments"):
        Walk.of(Events.of(log_of([("u", "a", 5)] * 20)))


@pytest.mark.parametrize("grain", [1, DAY_MS])
@given(rows=ROWS, since=st.integers(0, 40), most=st.integers(1, 20))
def test_some_of_what_came_since_a_moment_is_ranked_and_all_is_counted(
    grain: int, rows: list[Row], since: int, most: int
) -> None:
    events = Events.of(log_of(spread(rows)))
    since_ms = 10**12 + since * SPAN
    every, some = (Walk.since(events, since_ms, n) for n in (len(rows), most))
    assert (events.times[every.before] < since_ms).all()
    assert (events.times[every.rows] >= since_ms).all()
    assert len(every.before) + len(every.rows) == len(rows)
    assert len(some.rows) == min(most, len(every.rows))
    counted = np.concatenate([rows for rows, _ in some.blocks(grain)])
    assert counted.tolist() == every.rows.tolist()
    places = np.concatenate(
        [np.arange(ranked.start, ranked.stop) for _, ranked in some.blocks(grain)]
    )
    assert places.tolist() == list(range(len(some.rows)))
    for name, make in COUNTED.items():
        one, other = (
            walk_forward(walk, {name: make(events)}, grain_ms=grain)[name] for walk in (every, some)
        )
        assert one[np.isin(every.rows, some.rows)].tolist() == other.tolist()
