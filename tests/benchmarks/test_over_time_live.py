"""What is served in the walk forward, beside a walk that a reader can follow; and its picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import over_time_pictures
from benchmarks.forward.behind import behind
from benchmarks.forward.live import ONE_MIXTURE, SERVED, live_ranks
from benchmarks.forward.summary import Figures, summarise
from benchmarks.forward.training import Refitted
from benchmarks.ranks import ResultError
from model import ModelConfig, TiM4Rec
from model.live.mixture import Mixture
from model.live.ranker import Features
from model.live.ranking import HAS_QUERY, LENGTH
from tests.training.logs import ring_log
from training.dataset import Int64s
from training.forward.events import Events
from training.forward.live_walk import DEPTH, LiveWalk, ModelLists
from training.forward.models import AFTER, AT, BEFORE, UNKNOWN, Served, request_times
from training.forward.walk import DAY_MS, Walk
from training.interactions import Log
from training.metrics import MISS
from training.mixture import Collector, Examples, asked_at, fitted, user_ids

pytestmark = pytest.mark.usefixtures("few_steps")

ASKED = (AFTER, BEFORE, AT, UNKNOWN)
CUT, PERIODS = 0.7, 2


def walk_of(log: Log) -> Walk:
    return Walk.of(Events.of(log), CUT, PERIODS)


def small_model(item_ids: list[str], seed: int) -> Served:
    torch.manual_seed(seed)
    config = ModelConfig(
        n_items=len(item_ids), d_model=8, head_dim=8, d_state=4, n_layers=1,
        gap_range_s=(1.0, 1e6), request_range_s=(1.0, 1e6),
    )  # fmt: skip
    model = TiM4Rec(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return Served(model, item_ids)


def models_of(walk: Walk, *, most: int = 60) -> Refitted:
    """Not trained: it is in the order of things that ranks are compared."""
    times = walk.events.times[walk.order]
    since = int(times[int(CUT * 0.9 * len(times))])
    return Refitted(
        small_model([f"i{n}" for n in range(40)], 1),
        since,
        small_model([f"i{n}" for n in reversed(range(most))], 2),
    )


# -- the walk by hand ------------------------------------------------------------------------


class ByHand:
    """Evidence of what came before an event, and what a model says there."""

    def __init__(self, log: Log, walk: Walk, served: Served) -> None:
        self.walk, self.served = walk, served
        self.live = LiveWalk(walk.events, user_ids(log), served.model, served.item_ids)
        self.times = walk.events.times[walk.order]
        self.seen = 0

    def see(self, until: int) -> None:
        """The first events of the log, in order of time."""
        self.live.observe(self.walk.order[self.seen : until])
        self.seen = until

    def lists(self, rows: Int64s, times: Int64s) -> ModelLists:
        events, served = self.walk.events, self.served
        return ModelLists.of(events, rows, served.model, served.item_ids, times)

    def examples(
        self, begin: int, end: int, rng: np.random.Generator, *, one_by_one: bool
    ) -> Examples:
        """Of the events at those places; an event is preceded by those of earlier moments, or one
        by one by all before it."""
        rows = self.walk.order[begin:end]
        lists = self.lists(rows, asked_at(self.walk.events, rows, rng))
        collector = Collector()
        for number, row in enumerate(rows.tolist()):
            place = begin + number
            before = place if one_by_one else int(np.searchsorted(self.times, self.times[place]))
            self.see(before)
            collector.add(self.live, row, lists, number)
        return collector.examples()


def mixtures_by_hand(log: Log, walk: Walk, models: Refitted) -> list[Mixture]:
    """Of each period: fitted on everything between the base model's training and its border."""
    rng = np.random.default_rng(0)
    times = walk.events.times[walk.order]
    since, cut, border = np.searchsorted(times, [models.since_ms, *walk.borders]).tolist()
    base, refitted = ByHand(log, walk, models.base), ByHand(log, walk, models.refitted)
    first = base.examples(since, cut, rng, one_by_one=True)
    later = refitted.examples(cut, border, rng, one_by_one=False)
    return [fitted(first), fitted(Examples.joined([first, later]))]


def scores_by_hand(found: Features, mixture: Mixture) -> np.ndarray:
    w, f, c = mixture.weights, found.features, found.context
    if not (c[HAS_QUERY] or c[LENGTH]):  # of somebody of whom nothing is known
        return f[mixture.alone]
    hidden = np.maximum(w.hidden @ f + (w.hidden_context @ c + w.bias)[:, None], 0)
    return (w.linear + w.by_context @ c) @ f + w.out @ hidden


def bounds(found: Features, scores: np.ndarray, target: int) -> tuple[int, int]:
    """The best and the worst rank of the target that rounding may make."""
    (at,) = np.nonzero(found.rows == target)
    if not len(at):
        return MISS, MISS
    own, others = scores[at[0]], np.delete(scores, at[0])
    ranks = 1 + int((others > own + 1e-4).sum()), 1 + int((others >= own - 1e-4).sum())
    return ranks[0] if ranks[0] <= DEPTH else MISS, ranks[1] if ranks[1] <= DEPTH else MISS


def test_ranks_are_those_of_a_walk_by_hand() -> None:
    log = ring_log()
    walk = walk_of(log)
    models = models_of(walk)
    ranks = live_ranks(log, walk, models)
    assert set(ranks) == {SERVED, ONE_MIXTURE}
    assert {tuple(by_time) for by_time in ranks.values()} == {ASKED}
    mixtures = mixtures_by_hand(log, walk, models)
    hand = ByHand(log, walk, models.refitted)
    by_name = request_times(walk.events, walk.rows)
    lists = {name: hand.lists(walk.rows, by_name[name]) for name in ASKED}
    apart = 0
    for place, row in enumerate(walk.rows.tolist()):
        hand.see(int(np.searchsorted(hand.times, walk.events.times[row])))
        period = walk.periods[place]
        for name in ASKED:
            found = hand.live.features(row, lists[name], place)
            for policy, mixture in ((SERVED, mixtures[period]), (ONE_MIXTURE, mixtures[0])):
                scores = scores_by_hand(found, mixture)
                best, worst = bounds(found, scores, hand.live.row_of(row))
                assert best <= ranks[policy][name][place] <= worst, (policy, name, place)
                apart += worst > best
    assert apart < 0.05 * 8 * len(walk.rows), "few are so near that rounding may decide"
    assert (ranks[SERVED][AFTER] != ranks[SERVED][AT]).any()
    assert (ranks[SERVED][AT] != ranks[ONE_MIXTURE][AT]).any()


def test_what_comes_later_changes_no_rank() -> None:
    """Neither the counts nor a mixture has seen it."""
    log = ring_log()
    walk = walk_of(log)
    # In the last period: its mixture is measured on both sides of that moment.
    until = int(np.median(walk.events.times[walk.rows[walk.periods == PERIODS - 1]]))
    later = log.frame["time_ms"] > until
    assert 100 < later.sum() < 0.3 * len(later)
    items = log.frame["item_id"].to_numpy().copy()
    items[later.to_numpy()] = np.random.default_rng(1).permutation(items[later.to_numpy()])
    changed = Log(log.frame.with_columns(pl.Series("item_id", items, pl.String)))
    known = walk.events.times[walk.rows] <= until
    # Knows every item: the model's own histories are as long as before.
    models = models_of(walk, most=100)
    one = live_ranks(log, walk, models)
    other = live_ranks(changed, walk_of(changed), models)
    for policy in (SERVED, ONE_MIXTURE):
        for name in ASKED:
            assert (one[policy][name][known] == other[policy][name][known]).all(), (policy, name)
            assert (one[policy][name][~known] != other[policy][name][~known]).any()


def test_days_are_ranked_before_they_are_counted() -> None:
    """Then what a day's first moment finds is the same, and what others find is not."""
    log = ring_log()
    walk = walk_of(log)
    models = models_of(walk)
    by_moment, by_day = (
        live_ranks(log, walk, models, grain_ms=grain)[ONE_MIXTURE][UNKNOWN] for grain in (1, DAY_MS)
    )
    days = walk.events.times[walk.rows] // DAY_MS
    times = walk.events.times[walk.rows]
    opening = times == times[np.searchsorted(days, days)]
    assert opening.sum() > 20
    # Not all alike: what is kept of an item's neighbours may be a few events old.
    assert (by_moment[opening] != by_day[opening]).mean() < 0.05
    assert (by_moment[~opening] != by_day[~opening]).mean() > 0.15


def test_too_little_before_the_cut_is_refused() -> None:
    log = ring_log(users=40)
    walk = walk_of(log)
    with pytest.raises(ResultError, match="too few to fit a mixture"):
        live_ranks(log, walk, models_of(walk))


# -- where it is behind ----------------------------------------------------------------------


def figures(policy: str, hits: list[float], *, events: list[int], slice_: str = "all") -> Figures:
    periods = [{"HR@10": hit, "NDCG@10": hit / 2, "MRR@10": hit} for hit in hits]
    total = {"HR@10": float(np.mean(hits)), "NDCG@10": 0.5, "MRR@10": 0.0}
    return Figures(policy, slice_, sum(events), events, total, {}, list(periods))


def test_behind_names_every_large_part_that_is_more_than_one_percent_below() -> None:
    events = [3000, 2999, 5000]
    rows = [
        figures("item-knn", [0.2, 0.9, 0.1], events=events),
        figures("live-off, now", [0.1, 0.1, 0.302], events=events),
        figures("live-off, then", [0.9, 0.9, 0.9], events=events),
        figures("served, now", [0.19, 0.1, 0.3], events=events),
        figures("item-knn", [0.9, 0.9, 0.9], events=events, slice_="another"),
    ]
    found = behind(rows, "served")
    assert {(place.period, place.metric, place.other) for place in found} == {
        (None, "HR@10", "item-knn"),
        (1, "HR@10", "item-knn"),
        (1, "NDCG@10", "item-knn"),
    }
    assert {(place.own, place.best) for place in found if place.period == 1} == {
        (0.19, 0.2),
        (0.095, 0.1),
    }
    assert {place.asked for place in found} == {"now"}


def test_a_period_without_an_event_of_a_slice_is_passed_over() -> None:
    log = ring_log(users=80)
    walk = walk_of(log)
    ranks = np.ones(len(walk.rows), dtype=np.int64)
    rows = summarise(walk, {"served, now": ranks, "item-knn": ranks})
    assert behind(rows, "served") == []


# -- the picture -----------------------------------------------------------------------------


def report(folder: Path, name: str, policies: dict[str, list[float | None]]) -> Path:
    written: dict[str, Any] = {
        "dataset": name,
        "events": 1234,
        "periods": ["2014-01-01T10:00", "2014-02-01T10:00"],
        "figures": [
            {"policy": policy, "slice": part, "periods": [v and {"NDCG@10": v} for v in values]}
            for policy, values in policies.items()
            for part in ("all events", "another")
        ],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(written))
    return path


@pytest.fixture
def draw() -> typer.Typer:
    app = typer.Typer()
    app.command()(over_time_pictures.main)
    return app


def test_a_panel_a_report(draw: typer.Typer, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the extra docs")
    reports = [
        report(tmp_path, "shop", {f"served, {AFTER}": [0.1, 0.2], "item-knn": [0.1, None]}),
        report(tmp_path, "films", {f"live-off, {UNKNOWN}": [0.1, 0.2], "odd": [0.3, 0.3]}),
    ]
    pictures = [tmp_path / "a" / "one.svg", tmp_path / "two.svg"]
    for picture in pictures:
        arguments = [*map(str, reports), "--out", str(picture)]
        result = CliRunner().invoke(draw, arguments)
        assert result.exit_code == 0, result.output
    one, other = (picture.read_text() for picture in pictures)
    assert one == other, "the same figures give the same file"
    for text in ("shop, 1,234 events", "films", "served", "its model alone", "item-kNN", "02-01"):
        assert text in one
    assert "popularity" not in one


def test_a_file_that_is_no_report_is_named(draw: typer.Typer, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"figures": []}')
    refused = CliRunner().invoke(draw, [str(tmp_path / "x.json"), "--out", str(tmp_path / "o.svg")])
    assert refused.exit_code == 1
    assert "x.json: no report of benchmarks.over_time" in refused.output
