"""A mixture learns from a walk when to believe the model and when the evidence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.live import ranking
from model.live.mixture import UNFITTED, Mixture
from model.live.ranking import AGE, FEATURES, N_CONTEXT, N_FEATURES, POPULAR, USUAL_ALONE
from tests.model.live.plain_ranking import random_mixture
from tests.training.logs import DAY_MS, START_MS, chain_log, make_log
from tests.training.models import KNOWN, tiny_model
from training.forward.events import Events
from training.forward.live_walk import LiveWalk, ModelLists
from training.mixture import (
    HIDDEN,
    LEAST_ALONE,
    LEAST_EVENTS,
    Collector,
    Examples,
    MixtureNetwork,
    _best_alone,
    fit_mixture,
    fitted,
    user_ids,
)

ITEMS, USERS, LENGTH = 100, 700, 8
SURE, LISTED = 6.0, 10


class PlantedLog:
    """Half of the events follow the user's event before by a rule (item n by 7 n + 3), which only
    evidence can know; the model foresees the others, and is sure of them."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        rows = [row for user in range(USERS) for row in self._history(user)]
        self.log = make_log([(user, item, time) for user, item, time, _ in rows])
        self.events = Events.of(self.log)
        by_rule = {(user, time): rule for user, _, time, rule in rows}
        keys = zip(self.log.frame["user_id"], self.log.frame["time_ms"], strict=True)
        self.by_rule = np.array([by_rule[key] for key in keys])
        self.order = np.argsort(self.events.times, kind="stable")
        self.item_ids = [f"i{n:02}" for n in range(ITEMS)]
        self.model = tiny_model(self.item_ids)
        self.lists = self._lists()

    def _history(self, user: int) -> Iterator[tuple[str, str, int, bool]]:
        now = START_MS + int(self._rng.integers(30 * DAY_MS))
        had: list[int] = []
        for _ in range(LENGTH):
            item, by_rule = (7 * had[-1] + 3) % ITEMS if had else 0, self._rng.random() < 0.5
            if not had or not by_rule or item in had:
                item, by_rule = int(self._rng.choice(np.setdiff1d(range(ITEMS), had))), False
            had.append(item)
            now += int(self._rng.integers(1000, DAY_MS))
            yield f"u{user:03}", f"i{item:02}", now, by_rule

    def _lists(self) -> ModelLists:
        """In the order of time."""
        n = len(self.order)
        listed = np.argsort(self._rng.random((n, ITEMS)), axis=1)[:, :LISTED] + 1
        scores = np.tile(np.linspace(1, 0, LISTED, dtype=np.float32), (n, 1))
        targets = self.events.items[self.order] + 1
        for place in np.flatnonzero(~self.by_rule[self.order]).tolist():
            others = listed[place][listed[place] != targets[place]]
            listed[place] = [targets[place], *others[: LISTED - 1]]
            scores[place, 0] = SURE
        queries = np.full((n, self.model.config.d_model), 1e-3, np.float32)
        return ModelLists(queries, np.ones(n, np.bool_), listed, scores)

    def walk(self, mixture: Mixture = UNFITTED) -> LiveWalk:
        return LiveWalk(self.events, user_ids(self.log), self.model, self.item_ids, mixture)

    def examples(self, places: slice) -> Examples:
        walk, collector = self.walk(), Collector()
        walk.observe(self.order[: places.start])
        for place in range(places.start, places.stop):
            collector.add(walk, int(self.order[place]), self.lists, place)
            walk.observe(self.order[place : place + 1])
        return collector.examples()

    def hits(self, mixture: Mixture, places: slice) -> float:
        """The share of the events whose item is ranked first."""
        walk, hits = self.walk(mixture), 0
        walk.observe(self.order[: places.start])
        lists = self.lists
        for place in range(places.start, places.stop):
            row, own = self.order[place : place + 1], slice(place, place + 1)
            asked = ModelLists(
                lists.queries[own], lists.known[own], lists.listed[own], lists.scores[own]
            )
            (best,) = walk.best(row, asked, 1)
            hits += int(best[0] == walk.row_of(int(row[0])))
            walk.observe(row)
        return hits / (places.stop - places.start)


@pytest.fixture(scope="module")
def planted() -> PlantedLog:
    return PlantedLog()


@pytest.fixture(scope="module")
def examples(planted: PlantedLog) -> Examples:
    return planted.examples(slice(800, 4800))


def one_feature(name: str) -> Mixture:
    """Ranks by it alone."""
    linear = np.zeros(N_FEATURES, np.float32)
    linear[FEATURES.index(name)] = 1
    return Mixture(UNFITTED.weights._replace(linear=linear))


def test_a_mixture_is_better_than_the_model_and_than_the_evidence(
    planted: PlantedLog, examples: Examples
) -> None:
    later = slice(4800, 5400)
    by_model, by_evidence, by_both = (
        planted.hits(mixture, later)
        for mixture in (one_feature("model"), one_feature("after"), fitted(examples))
    )
    assert 0.4 < by_model < 0.7
    assert 0.3 < by_evidence < 0.6
    assert by_both > max(by_model, by_evidence) + 0.2


@pytest.mark.parametrize("events", [LEAST_EVENTS, 500])
def test_few_events_are_enough(planted: PlantedLog, examples: Examples, events: int) -> None:
    later = slice(4800, 5400)
    alone = [planted.hits(one_feature(name), later) for name in ("model", "after")]
    assert planted.hits(fitted(examples.newest(events)), later) > max(alone) + 0.1


def test_equal_seeds_give_equal_mixtures(examples: Examples) -> None:
    some = examples.newest(600)
    before = torch.random.get_rng_state()
    one, again, other = (fitted(some, seed=seed).to_bytes() for seed in (1, 1, 2))
    assert one == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_mixture_scores_as_the_network_that_was_trained(examples: Examples) -> None:
    """But for a constant a request."""
    torch.manual_seed(0)
    network = MixtureNetwork(examples)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weights = network.mixture().weights
    features, context, inside, _ = examples.batch(np.arange(20))
    with torch.no_grad():
        expected = network(features, context).numpy()
    for b, c in enumerate(context.numpy().astype(float)):
        own = features[b][inside[b]].numpy().astype(float)
        inner = own @ weights.hidden.T + weights.hidden_context @ c + weights.bias
        found = own @ (weights.linear + weights.by_context @ c)
        found += np.maximum(inner, 0) @ weights.out
        difference = found - expected[b][inside[b].numpy()]
        np.testing.assert_allclose(difference, difference[0], atol=1e-3)


def test_examples_are_joined_and_cut(examples: Examples) -> None:
    n = len(examples)
    older = Examples(
        examples.features[: examples.ends[9]],
        examples.context[:10],
        examples.ends[:10],
        examples.targets[:10],
    )
    newer = examples.newest(n - 10)
    assert len(newer) == n - 10
    assert examples.newest(n) is examples
    joined = Examples.joined([older, newer])
    for name in ("features", "context", "ends", "targets"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(examples, name))
    expected, found = examples.batch(np.arange(10, 30)), newer.batch(np.arange(20))
    assert torch.equal(expected[0][expected[2]], found[0][found[2]])
    for one, other in zip(expected[1:], found[1:], strict=True):
        assert torch.equal(one, other)


def test_no_examples_are_no_examples() -> None:
    none = Collector().examples()
    assert len(none) == 0
    assert none.features.shape == (0, N_FEATURES)
    assert none.context.shape == (0, N_CONTEXT)


def test_a_mixture_is_fitted_on_what_follows_a_training() -> None:
    log = chain_log(users=60, length=16)
    model = tiny_model()
    times = np.sort(log.frame["time_ms"].to_numpy())
    one, again = (fit_mixture(log, model, KNOWN, int(times[100]), seed=3) for _ in range(2))
    assert one is not None
    assert again is not None
    assert one.to_bytes() == again.to_bytes()
    assert fit_mixture(log, model, KNOWN, int(times[-LEAST_EVENTS // 2])) is None
    assert fit_mixture(log, model, KNOWN, int(times[-1]) + 1) is None


def test_a_network_begins_with_a_mixture() -> None:
    rng = np.random.default_rng(0)
    ends = np.arange(20, 4001, 20)
    examples = Examples(
        rng.normal(3, 2, (4000, N_FEATURES)).astype(np.float16),
        rng.normal(-1, 3, (200, N_CONTEXT)).astype(np.float32),
        ends,
        rng.integers(0, 20, 200),
    )
    mixture, network = random_mixture(rng, HIDDEN), MixtureNetwork(examples)
    network.begin_with(mixture)
    features = rng.normal(size=(N_FEATURES, 30)).astype(np.float32)
    context = rng.normal(size=N_CONTEXT).astype(np.float32)
    apart = network.mixture().scores(features, context) - mixture.scores(features, context)
    np.testing.assert_allclose(apart, apart[0], atol=1e-4)


def test_a_start_is_worth_more_than_few_examples() -> None:
    """Where a mixture fitted on many goes on with few, it forgets nothing."""
    many, few = made_up(np.random.default_rng(0), 3000), made_up(np.random.default_rng(1), 60)
    asked = made_up(np.random.default_rng(2), 500)
    start = fitted(many)
    anew, gone_on = fitted(few), fitted(few, start=start)
    assert hits(gone_on, asked) > hits(anew, asked) + 0.1
    assert hits(gone_on, asked) > hits(start, asked) - 0.05


@pytest.mark.parametrize("best", [POPULAR, POPULAR + 3])
def test_strangers_are_given_what_is_popular_by_the_best_half_life(best: int) -> None:
    examples = made_up(np.random.default_rng(0), 400)
    features = examples.features.copy()
    features[examples.ends - 10 + examples.targets, best] = 9  # it is the most popular one
    context = examples.context.copy()
    context[:LEAST_ALONE, [ranking.HAS_QUERY, ranking.LENGTH]] = 0
    known = replace(examples, features=features)
    assert fitted(known).alone == USUAL_ALONE
    assert fitted(known, start=replace(UNFITTED, alone=POPULAR + 1)).alone == POPULAR + 1
    assert fitted(replace(known, context=context)).alone == best


def test_chance_does_not_choose_what_strangers_are_given() -> None:
    """A tenth of them find something by a day's popularity and by a month's, others by each."""
    examples = made_up(np.random.default_rng(0), 400)
    features, context = examples.features.copy(), examples.context.copy()
    features[:, POPULAR:AGE] = np.random.default_rng(1).normal(size=(len(features), AGE - POPULAR))
    context[:, [ranking.HAS_QUERY, ranking.LENGTH]] = 0
    for seed in range(5):
        drawn = np.random.default_rng(seed).permuted(features[:, POPULAR:AGE], axis=0)
        features[:, POPULAR:AGE] = drawn
        assert _best_alone(replace(examples, features=features, context=context)) == USUAL_ALONE


def test_without_items_that_had_no_event_it_is_not_known_how_far_to_lift_them() -> None:
    """A walk that knows of no item but by its events has none: any number would cost nothing."""
    examples = made_up(np.random.default_rng(0), 400)
    assert fitted(examples).unseen == 0
    assert fitted(examples, start=replace(UNFITTED, unseen=1.5)).unseen == 1.5
    features = examples.features.copy()
    last = examples.ends - 1
    features[last, POPULAR:AGE] = ranking.LEAST_POPULARITY
    features[last, AGE] = np.log2(ranking.LEAST_DAYS)
    assert fitted(replace(examples, features=features)).unseen > 0


def made_up(rng: np.random.Generator, events: int) -> Examples:
    """Of ten candidates the one is had that two features and a context together say."""
    features = rng.normal(size=(events, 10, N_FEATURES)).astype(np.float32)
    context = rng.normal(size=(events, N_CONTEXT)).astype(np.float32)
    scores = 3 * features[:, :, 2] + 3 * features[:, :, 5] * np.sign(context[:, 1])[:, None]
    return Examples(
        features.reshape(-1, N_FEATURES).astype(np.float16),
        context,
        10 * np.arange(1, events + 1),
        scores.argmax(1),
    )


def hits(mixture: Mixture, examples: Examples) -> float:
    """The share of events whose item is ranked first."""
    parts = np.split(examples.features.astype(np.float32), examples.ends[:-1])
    best = [
        mixture.scores(np.ascontiguousarray(part.T), own).argmax()
        for part, own in zip(parts, examples.context, strict=True)
    ]
    return float((np.array(best) == examples.targets).mean())
