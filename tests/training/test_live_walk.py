"""A walk ranks as a service does, and knows nothing of what comes later."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from model import UNKNOWN_TIME, TiM4Rec
from model.live.mixture import Mixture
from model.live.ranker import LISTED, Request
from model.live.ranking import KNOWN as KNOWN_FEATURE
from model.live.ranking import SCORED
from tests.model.live.plain_ranking import PlainFeatures, Situation, random_mixture
from tests.training.logs import chain_log, make_log
from tests.training.models import KNOWN, tiny_model
from training.forward.events import Events
from training.forward.live_walk import LiveWalk, ModelLists
from training.forward.models import Served
from training.interactions import Log
from training.mixture import asked_at, user_ids, walked
from training.new_items import with_new_items
from training.tables import InputError
from training.unseen import without_event


@pytest.fixture(scope="module")
def log() -> Log:
    return chain_log(users=25, length=12)


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return random_mixture(np.random.default_rng(0))


def in_time(events: Events) -> np.ndarray:
    return np.argsort(events.times, kind="stable")


def test_lists_are_what_the_model_says_of_each_history(log: Log) -> None:
    events, model = Events.of(log), tiny_model()
    rows = in_time(events)[::7]
    times = asked_at(events, rows, np.random.default_rng(0))
    lists = ModelLists.of(events, rows, model, KNOWN, times)
    for place, row in enumerate(rows.tolist()):
        had = [
            (KNOWN.index(item) + 1, int(events.times[n]))
            for n in range(events.firsts[row], row)
            if (item := events.item_ids[events.items[n]]) in KNOWN
        ]
        assert lists.known[place] == bool(had)
        if not had:
            assert not lists.listed[place].any()
            continue
        items, known_at = (torch.tensor([part]) for part in zip(*had, strict=True))
        asked = torch.full_like(known_at, UNKNOWN_TIME)
        asked[0, -1] = int(times[place])
        with torch.inference_mode():
            query = model(items, known_at, asked)[:, -1]
            scores = model.scores(query)[0]
        np.testing.assert_allclose(lists.queries[place], query[0], atol=1e-5)
        unseen = sorted(set(range(1, 21)) - set(items[0].tolist()), key=lambda row: -scores[row])
        expected = unseen[:LISTED]
        assert lists.listed[place, : len(expected)].tolist() == expected
        assert not lists.listed[place, len(expected) :].any()
        found = lists.scores[place, : len(expected)]
        np.testing.assert_allclose(found, scores[expected], atol=1e-5)


def test_the_best_are_those_of_plain_python(log: Log, mixture: Mixture) -> None:
    events, model = Events.of(log), tiny_model()
    walk = LiveWalk(events, user_ids(log), model, KNOWN, mixture)
    order = in_time(events)
    lists = ModelLists.of(events, order, model, KNOWN, events.times[order])
    item_ids, before = KNOWN, 0
    for at in (30, 31, 90, len(order) - 70):
        walk.observe(order[before:at])
        before = at
        if at == 90:
            item_ids, model = [f"i{n:03}" for n in range(5, 30)], tiny_model(KNOWN + ["x"] * 5, 1)
            walk.replace_model(model, item_ids)
            lists = ModelLists.of(events, order, model, item_ids, events.times[order])
        situation = _situation(walk, events, order[:at], model, item_ids)
        some = slice(at, at + 70)
        chosen = ModelLists(
            lists.queries[some], lists.known[some], lists.listed[some], lists.scores[some]
        )
        found = list(walk.best(order[some], chosen, 5))
        assert len(found) == len(order[some])
        for place, (row, best) in enumerate(zip(order[some].tolist(), found, strict=True)):
            request = _request(events, row, situation, chosen, place)
            if request.query is None and not request.recent:
                continue
            expected = PlainFeatures(situation, request).scores(mixture)
            assert len(best) == min(5, len(expected))
            scores = [expected[found_row] for found_row in best.tolist()]
            np.testing.assert_allclose(scores, sorted(expected.values())[::-1][:5], atol=2e-3)


def test_new_items_are_listed_and_not_taken_for_known_ones(log: Log, mixture: Mixture) -> None:
    """As a service lists items that have a record and came after the training."""
    events = Events.of(log)
    draw, wide = np.random.default_rng(0), tiny_model().config.d_model
    new = ["i025", "i026", "never"]
    vectors = {item: draw.normal(size=wide).astype(np.float32) for item in new}
    served = with_new_items(Served(tiny_model(), KNOWN), vectors)
    assert list(served.item_ids) == [*KNOWN, *new]
    assert list(with_new_items(served, vectors).item_ids) == list(served.item_ids)
    order = in_time(events)
    rows = order[-40:]
    lists = ModelLists.of(events, rows, served.model, served.item_ids, events.times[rows])
    assert set(lists.listed[lists.known].ravel().tolist()) > {len(KNOWN) + 1, len(KNOWN) + 3}
    walk = LiveWalk(events, user_ids(log), served.model, served.item_ids, mixture)
    walk.observe(order[:30])
    place = int(np.flatnonzero(lists.known)[0])
    found = walk.features(int(rows[place]), lists, place)
    for row in range(1, len(served.item_ids) + 1):
        (at,) = np.nonzero(found.rows == row)
        if len(at):
            assert found.features[KNOWN_FEATURE, at[0]] == (row <= len(KNOWN))
    (at,) = np.nonzero(found.rows == len(KNOWN) + 3)
    assert found.features[SCORED, at].tolist() == [1.0]
    assert without_event(found.features)[at].tolist() == [True]


def _situation(
    walk: LiveWalk, events: Events, observed: np.ndarray, model: TiM4Rec, item_ids: Sequence[str]
) -> Situation:
    rows = {item: row for row, item in enumerate(item_ids, 1)}
    for item in walk.evidence.item_ids:
        rows.setdefault(item, len(rows) + 1)
    assert set(walk.evidence.item_ids) == {events.item_ids[n] for n in events.items[observed]}
    is_open = np.arange(len(rows) + 1) > 0
    return Situation(walk.evidence, rows, model.item_embedding.weight.detach().numpy(), is_open)


def _request(
    events: Events, row: int, situation: Situation, lists: ModelLists, place: int
) -> Request:
    had = [events.item_ids[events.items[n]] for n in range(events.firsts[row], row)]
    full = np.count_nonzero(lists.listed[place])
    return Request(
        lists.queries[place] if lists.known[place] else None,
        lists.listed[place, :full],
        lists.scores[place, :full],
        had[::-1],
        np.array([situation.rows[item] for item in had if item in situation.rows], np.int32),
        5,
    )


def test_nothing_is_known_of_the_event_itself_or_a_later_one() -> None:
    log, rng = chain_log(users=25, length=12), np.random.default_rng(0)
    times = log.frame["time_ms"].to_numpy()
    since, middle = (int(np.quantile(times, share)) for share in (0.2, 0.5))
    rows = list(log.frame.iter_rows())
    past = [row for row in rows if row[2] < middle]
    changed = [row if row in past else (row[0], f"i{rng.integers(30):03}", row[2]) for row in rows]
    model = tiny_model()
    one, other, before = (
        walked(make_log(own), model, KNOWN, since) for own in (rows, changed, past)
    )
    n = len(before)
    assert 50 < n < min(len(one), len(other))
    end = one.ends[n - 1]
    np.testing.assert_array_equal(one.ends[:n], other.ends[:n])
    np.testing.assert_array_equal(one.targets[:n], other.targets[:n])
    np.testing.assert_array_equal(one.features[:end], other.features[:end])
    np.testing.assert_array_equal(one.context[:n], other.context[:n])
    assert (one.targets[n : n + 50] != other.targets[n : n + 50]).any()
    # The first that is changed is the first of the future: it differs in what was had only.
    following = slice(end, one.ends[n])
    np.testing.assert_array_equal(one.features[following], other.features[following])


def test_a_log_without_times_is_refused() -> None:
    log = make_log([("u", "i000", UNKNOWN_TIME), ("u", "i001", 7)])
    with pytest.raises(InputError, match="time"):
        walked(log, tiny_model(), KNOWN, 0)
