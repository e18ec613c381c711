"""A candidate beside the incumbent, on a walk that a reader can follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model import UNKNOWN_TIME, ModelConfig, TiM4Rec
from model.artefact import load_artefact, save_artefact
from model.items import Items
from model.live.mixture import Mixture
from tests.model.mixtures import mixture_of, same
from tests.training.logs import make_log, ring_log
from tests.training.models import tiny_model
from training import judge as module
from training.dataset import Int64s
from training.forward.events import Events
from training.forward.item_knn import ItemKNN
from training.forward.live_walk import LiveWalk, ModelLists
from training.forward.models import AFTER, UNKNOWN, Served, model_ranks, with_fallback
from training.forward.popularity import Popularity
from training.forward.walk import Walk, walk_forward
from training.interactions import Log
from training.judge import Contender, judge
from training.metrics import MISS, gains
from training.mixture import user_ids
from training.tables import InputError
from training.verdict import CANDIDATE, INCUMBENT, Verdict

FOLLOWING = mixture_of(after=1.0)
CONTRARY = mixture_of(after=-1.0)
ITEMS = [f"i{n}" for n in range(40)]


@pytest.fixture(scope="module")
def log() -> Log:
    return ring_log(users=300)


@pytest.fixture(scope="module")
def middle(log: Log) -> int:
    return int(np.quantile(log.frame["time_ms"].to_numpy(), 0.7))


def contender(mixture: Mixture | None, *, seed: int = 0) -> Contender:
    return Contender(Served(tiny_model(ITEMS, seed), ITEMS), mixture)


def ranks_by_hand(log: Log, after_ms: int, own: Contender) -> Int64s:
    """Event by event: all of earlier moments are counted, then the user is asked for."""
    assert own.mixture is not None
    events, served = Events.of(log), own.served
    order = np.argsort(events.times, kind="stable")
    live = LiveWalk(events, user_ids(log), served.model, served.item_ids, own.mixture)
    found, seen = [], 0
    for row in order[events.times[order] > after_ms]:
        before = int(np.searchsorted(events.times[order], events.times[row]))
        live.observe(order[seen:before])
        seen = before
        has_history = row > events.firsts[row]
        asked = events.times[row - 1] + 1000 if has_history else events.times[row]
        lists = ModelLists.of(
            events, np.array([row]), served.model, served.item_ids, np.array([asked])
        )
        (best,) = live.best(np.array([row]), lists, 10)
        (at,) = np.nonzero(best == live.row_of(int(row)))
        found.append(at[0] + 1 if len(at) else MISS)
    return np.array(found, np.int64)


def test_figures_are_those_of_a_walk_by_hand(log: Log, middle: int) -> None:
    incumbent, candidate = contender(CONTRARY), contender(FOLLOWING, seed=1)
    found = judge(log, incumbent, candidate, middle)
    for name, own in ((INCUMBENT, incumbent), (CANDIDATE, candidate)):
        ranks = ranks_by_hand(log, middle, own)
        assert found.events == len(ranks) > 500
        for metric, mean in found.figures[name].items():
            assert mean == pytest.approx(gains(ranks, metric).mean(), abs=2e-3), (name, metric)
    walk = Walk.since(Events.of(log), middle + 1, len(log.frame))
    assert found.users == len(np.unique(walk.events.users[walk.rows]))
    policies = {"popularity": Popularity(walk.events), "item-knn": ItemKNN(walk.events)}
    for name, ranks in walk_forward(walk, policies).items():
        assert found.figures[name]["NDCG@10"] == pytest.approx(gains(ranks, "NDCG@10").mean())


@pytest.mark.parametrize("request_time", [True, False])
def test_without_a_mixture_the_model_ranks_alone(log: Log, middle: int, request_time: bool) -> None:
    config = ModelConfig(len(ITEMS), d_model=8, head_dim=8, d_state=4, request_time=request_time)
    served = Served(TiM4Rec(config).eval(), ITEMS)
    found = judge(log, contender(FOLLOWING), Contender(served, None), middle)
    walk = Walk.since(Events.of(log), middle + 1, len(log.frame))
    popular = walk_forward(walk, {"popularity": Popularity(walk.events)})["popularity"]
    alone = with_fallback(model_ranks(walk, [served]), popular)[AFTER if request_time else UNKNOWN]
    assert found.figures[CANDIDATE]["HR@10"] == pytest.approx(gains(alone, "HR@10").mean())


def test_what_follows_the_users_is_better_and_the_reverse_is_never_published(
    log: Log, middle: int
) -> None:
    good, bad = contender(FOLLOWING), contender(CONTRARY)
    assert judge(log, bad, good, middle).verdict is Verdict.BETTER
    assert judge(log, good, bad, middle).verdict is Verdict.BELOW_COUNTING
    assert judge(log, good, good, middle).verdict is Verdict.NOT_WORSE


def test_of_many_events_some_are_ranked(
    log: Log, middle: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = contender(FOLLOWING), contender(CONTRARY)
    every = judge(log, bad, good, middle)
    monkeypatch.setattr(module, "MOST_EVENTS", 300)
    some = judge(log, bad, good, middle)
    assert some.events == 300 < every.events
    for name, figures in some.figures.items():
        assert figures["HR@10"] == pytest.approx(every.figures[name]["HR@10"], abs=0.12)


def test_few_events_are_not_walked_through(log: Log) -> None:
    newest = int(np.sort(log.frame["time_ms"].to_numpy())[-100])
    found = judge(log, contender(FOLLOWING), contender(CONTRARY), newest)
    assert found.verdict is Verdict.UNDECIDED
    assert found.events < 100
    assert not found.figures
    nothing = judge(log, contender(FOLLOWING), contender(CONTRARY), 2 * newest)
    assert (nothing.verdict, nothing.events, nothing.users) == (Verdict.UNDECIDED, 0, 0)


def test_an_unknown_time_is_refused() -> None:
    log = make_log([("u", "i0", UNKNOWN_TIME), ("u", "i1", 7)])
    with pytest.raises(InputError, match="time of every"):
        judge(log, contender(FOLLOWING), contender(CONTRARY), 0)


def test_an_artefact_is_judged_with_its_mixture(tmp_path: Path) -> None:
    model = TiM4Rec(ModelConfig(len(ITEMS), d_model=8, head_dim=8, d_state=4))
    items = Items(ITEMS, np.ones(len(ITEMS), np.int64))
    for name, mixture in (("with", FOLLOWING), ("without", None)):
        save_artefact(tmp_path / name, model, items, {}, "", mixture)
        found = Contender.of(load_artefact(tmp_path / name))
        assert found.served.item_ids == ITEMS
        assert (found.mixture is None) == (mixture is None)
        assert mixture is None or (found.mixture is not None and same(found.mixture, mixture))
