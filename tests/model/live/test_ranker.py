"""The live ranker finds what plain Python finds, whatever it was asked before."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.live import counting, ranking
from model.live.counting import TOTAL
from model.live.evidence import Evidence, EvidenceRules, Observed
from model.live.mixture import UNFITTED, Mixture
from model.live.ranker import AT_ONCE, LiveRanker, Request
from tests.model.live.event_sequences import START_MS, random_events
from tests.model.live.plain_ranking import PlainFeatures, Situation, random_mixture

NOTHING = Request(
    None, np.zeros(0, np.int64), np.zeros(0, np.float32), (), np.zeros(0, np.int32), 9
)
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def equal_features(ranker: LiveRanker, situation: Situation, request: Request) -> None:
    plain = PlainFeatures(situation, request)
    found = ranker.features(request, situation.open)
    assert sorted(found.rows.tolist()) == sorted(plain.by_row)
    np.testing.assert_allclose(found.context, plain.context, atol=1e-4)
    for row, features in zip(found.rows.tolist(), found.features.T, strict=True):
        # Of a byte the last step may be another one, where rounding falls either way.
        np.testing.assert_allclose(features[:-2], plain.by_row[row][:-2], atol=5e-4)
        np.testing.assert_allclose(features[-2:], plain.by_row[row][-2:], atol=2e-2)


@given(seeds)
def test_candidates_and_features_are_those_of_plain_python(rng: np.random.Generator) -> None:
    situation = Situation.drawn(rng)
    ranker = situation.ranker(UNFITTED)
    for _ in range(4):
        equal_features(ranker, situation, situation.request(rng))


@given(seeds)
def test_features_follow_the_events(rng: np.random.Generator) -> None:
    situation = Situation.drawn(rng, events=20)
    ranker = situation.ranker(UNFITTED)
    for event in random_events(rng, 6, users=3, items=60):
        equal_features(ranker, situation, situation.request(rng))
        situation.evidence.observe([event])
    equal_features(ranker, situation, situation.request(rng))


@given(seeds)
def test_the_best_are_those_of_the_mixture(rng: np.random.Generator) -> None:
    situation, mixture = Situation.drawn(rng), random_mixture(rng)
    ranker = situation.ranker(mixture)
    request = situation.request(rng)
    if request.query is None and not request.recent:
        request = request._replace(recent=["i0"])
    ((rows, scores),) = ranker.best([request], situation.open)
    plain = PlainFeatures(situation, request)
    expected = plain.scores(mixture)
    assert len(rows) == len(set(rows.tolist())) == min(request.k, len(expected))
    np.testing.assert_allclose(scores, [expected[row] for row in rows.tolist()], atol=5e-2)
    assert (np.diff(scores) <= 0).all()
    left = [score for row, score in expected.items() if row not in rows]
    assert not left or scores.min() >= max(left) - 5e-2


@given(seeds)
def test_the_score_is_the_mixture_of_the_features(rng: np.random.Generator) -> None:
    situation, mixture = Situation.drawn(rng), random_mixture(rng)
    ranker = situation.ranker(mixture)
    request = situation.request(rng)._replace(recent=["i0"], k=500)
    ((rows, scores),) = ranker.best([request], situation.open)
    found = ranker.features(request, situation.open)
    weights = mixture.weights
    inner = (
        weights.hidden.astype(float) @ found.features
        + (weights.hidden_context.astype(float) @ found.context + weights.bias)[:, None]
    )
    slopes = weights.linear + weights.by_context.astype(float) @ found.context
    expected = slopes @ found.features + weights.out @ np.maximum(inner, 0)
    counted = [situation.rows.get(item) for item in situation.evidence.item_ids]
    expected += mixture.unseen * ~np.isin(found.rows, [row for row in counted if row])
    by_row = dict(zip(found.rows.tolist(), expected.tolist(), strict=True))
    np.testing.assert_allclose(scores, [by_row[row] for row in rows.tolist()], atol=1e-4)


@given(seeds)
def test_equal_ones_come_in_the_order_of_their_rows(rng: np.random.Generator) -> None:
    situation = Situation.drawn(rng)
    request = situation.request(rng)._replace(recent=["i0"])
    ((rows, scores),) = situation.ranker(UNFITTED).best([request], situation.open)
    assert not scores.any()
    assert rows.tolist() == sorted(PlainFeatures(situation, request).by_row)[: request.k]


@given(seeds)
def test_for_somebody_unknown_the_popular_of_the_month_are_best(rng: np.random.Generator) -> None:
    situation = Situation.drawn(rng)
    ((rows, scores),) = situation.ranker(random_mixture(rng)).best([NOTHING], situation.open)
    found = PlainFeatures(situation, NOTHING).by_row
    popular = {row: features[ranking.USUAL_ALONE] for row, features in found.items()}
    assert len(rows) == min(NOTHING.k, len(popular))
    np.testing.assert_allclose(scores, [popular[row] for row in rows.tolist()], atol=1e-4)
    best = sorted(popular.values(), reverse=True)
    np.testing.assert_allclose(scores, best[: len(rows)], atol=1e-4)


@given(seeds)
def test_answers_leave_no_trace(rng: np.random.Generator) -> None:
    situation, mixture = Situation.drawn(rng), random_mixture(rng)
    requests = [situation.request(rng) for _ in range(AT_ONCE + 3)]
    ranker = situation.ranker(mixture)
    alone = [situation.ranker(mixture).best([one], situation.open)[0] for one in requests]
    others = [ranker.best([one], situation.open)[0] for one in reversed(requests)][::-1]
    together = ranker.best(requests, situation.open)
    assert ranker.best([], situation.open) == []
    for a, b, c in zip(alone, others, together, strict=True):
        for expected, *found in zip(a, b, c, strict=True):
            np.testing.assert_array_equal(found[0], expected)
            np.testing.assert_array_equal(found[1], expected)


@given(seeds)
def test_an_answer_does_not_depend_on_when_others_were_asked(rng: np.random.Generator) -> None:
    situation, mixture = Situation.drawn(rng, events=60), random_mixture(rng)
    request = situation.request(rng)
    ranker = situation.ranker(mixture)
    for event in random_events(rng, 10, users=2, items=20):
        ranker.best([situation.request(rng)], situation.open)
        situation.evidence.observe([event])
    (found,), (expected,) = (
        one.best([request], situation.open) for one in (ranker, situation.ranker(mixture))
    )
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@given(seeds)
def test_rows_that_come_later_are_found(rng: np.random.Generator) -> None:
    situation = Situation.drawn(rng)
    ranker = situation.ranker(UNFITTED)
    for item in ("i0", "i1", "i2", "of no event"):
        equal_features(ranker, situation, situation.request(rng))
        if item not in situation.rows:
            situation.rows[item] = len(situation.rows) + 1
            # The rows that are open may follow later than the catalogue knows of the item.
            equal_features(ranker, situation, situation.request(rng))
            situation.open = np.append(situation.open, True)
    equal_features(ranker, situation, situation.request(rng))
    shorter = replace(situation, open=situation.open[: len(situation.vectors)].copy())
    equal_features(ranker, shorter, shorter.request(rng))


@given(seeds)
def test_evidence_in_place_of_other_evidence(rng: np.random.Generator) -> None:
    situation = Situation.drawn(rng)
    ranker = situation.ranker(UNFITTED)
    equal_features(ranker, situation, situation.request(rng))
    for n_events in (3, 400):
        situation.evidence = Evidence(EvidenceRules(neighbours=7))
        situation.evidence.observe(random_events(rng, n_events, users=5, items=60))
        equal_features(ranker, situation, situation.request(rng))
        assert ranker.n_events == n_events
    situation.evidence = Evidence()
    equal_features(ranker, situation, situation.request(rng))


@given(seeds)
def test_rows_that_are_not_there_are_not_found(rng: np.random.Generator) -> None:
    situation = Situation.drawn(rng)
    far = np.array([10**6, len(situation.open), -3, 2**31 - 1], np.int32)
    listed = np.append(situation.request(rng).listed, [10**9, -7])
    request = Request(
        np.ones(situation.vectors.shape[1], np.float32),
        listed,
        np.zeros(len(listed), np.float32),
        ["i0", "i1"],
        far,
        500,
    )
    ((rows, _),) = situation.ranker(UNFITTED).best([request], situation.open)
    assert situation.open[rows].all()
    assert (rows > 0).all()


@given(seeds)
def test_what_is_had_beside_an_item(rng: np.random.Generator) -> None:
    situation = Situation.drawn(rng)
    evidence = situation.evidence
    rows, cosines = situation.ranker(UNFITTED).beside("i0", 5, situation.open)
    number = evidence.number("i0")
    expected: dict[int, float] = {}
    if number is not None:
        totals = evidence.counts.stats[:, TOTAL] + 3
        for other, together in zip(
            evidence.counts.neighbours[number].tolist(),
            evidence.counts.together[number].tolist(),
            strict=True,
        ):
            row = situation.rows.get(evidence.item_ids[other], 0) if other >= 0 else 0
            if situation.open[row]:
                expected[row] = together / np.sqrt(totals[other] * totals[number])
    assert len(rows) == min(5, len(expected))
    np.testing.assert_allclose(cosines, [expected[row] for row in rows.tolist()], rtol=1e-5)
    np.testing.assert_allclose(cosines, sorted(expected.values(), reverse=True)[:5], rtol=1e-5)


def test_nothing_is_counted_while_rows_are_looked_up() -> None:
    """Else there may be more items than room was made for."""
    evidence = Evidence()
    evidence.observe([Observed(0, "a", START_MS), Observed(0, "b", START_MS)])
    counted = threading.Event()

    def count() -> None:
        evidence.observe([Observed(0, f"{n}", START_MS) for n in range(1000)])
        counted.set()

    threads: list[threading.Thread] = []

    def row_of(item_id: str) -> int:
        threads.append(threading.Thread(target=count))
        threads[-1].start()
        assert not counted.wait(0.05)
        return 1 + (item_id == "b")

    ranker = LiveRanker(lambda: evidence, np.ones((3, 2), np.float32), row_of, UNFITTED)
    ((rows, _),) = ranker.best([NOTHING], np.array([False, True, True]))
    assert rows.tolist() == [1, 2]
    for thread in threads:
        thread.join()
    assert counted.is_set()


def test_a_warm_up_compiles_all_that_answers_need() -> None:
    rng = np.random.default_rng(0)
    situation = Situation.drawn(rng)
    for mixture in (UNFITTED, random_mixture(rng), Mixture.from_bytes(UNFITTED.to_bytes())):
        situation.ranker(mixture).warm_up()
        assert len(ranking.best.signatures) == 1
        situation.evidence = Evidence.from_bytes(
            situation.evidence.to_bytes(), situation.evidence.rules
        )
        ranker = situation.ranker(mixture)
        for _ in range(10):
            ranker.best([situation.request(rng)], situation.open)
            situation.evidence.observe(random_events(rng, 5, users=5, items=90))
    assert len(ranking.best.signatures) == 1
    assert len(counting.observe.signatures) == 1


def test_ranking_reads_the_columns_that_counting_writes() -> None:
    for name in ("TOTAL", "FIRST_MS", "POPULARITY", "CHANGES", "DAY_MS"):
        assert getattr(ranking, name) == getattr(counting, name)
    assert ranking.FEATURES[ranking.POPULAR] == "popular_1d"
    assert ranking.POPULAR + len(counting.HALF_LIVES_MS) == ranking.AGE
