"""Ranks and metrics against brute force; parallel and recurrent agree."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import UNKNOWN_TIME, ModelConfig, TiM4Rec
from tests.depth import examples
from tests.training.logs import chain_log, make_log
from training.dataset import Dataset, Protocol, Targets, build_dataset
from training.evaluation import (
    TOLERANCE,
    Ranking,
    agreement,
    evaluate_offline,
    rank_targets,
)
from training.metrics import MISS, ranking_metrics


class FixedScores(TiM4Rec):
    """A model whose scores depend on the last item only, from a table: ties at will."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__(
            ModelConfig(n_items=table.shape[1] - 1, d_model=4, head_dim=4, time="none")
        )
        self.table = table
        self.item_embedding.weight.data.zero_()
        self.item_embedding.weight.data[:, 0] = torch.arange(len(table))

    def query(self, state: object, request_times_B: object = None) -> torch.Tensor:
        last: torch.Tensor = state["out"]  # type: ignore[index]
        return last

    def prefill(self, items_BL, times_BL, lengths_B, state):  # type: ignore[no-untyped-def]
        last = items_BL[torch.arange(len(items_BL)), lengths_B - 1]
        state.parts["out"] = last[:, None].float().expand(-1, 4)
        return state

    def scores(self, query: torch.Tensor) -> torch.Tensor:
        return self.table[query[:, 0].long()].clone()


@st.composite
def tables(draw: st.DrawFn) -> tuple[Dataset, torch.Tensor]:
    items = draw(st.integers(2, 9))
    users = draw(
        st.lists(
            st.lists(st.integers(0, items - 1), min_size=3, max_size=7), min_size=1, max_size=5
        )
    )
    rows = [
        (f"u{user}", f"i{item}", 1000 * place)
        for user, history in enumerate(users)
        for place, item in enumerate(history)
    ]
    dataset = build_dataset(
        make_log(rows), Protocol(1, 1), [f"i{n}" for n in draw(st.permutations(range(items)))]
    )
    values = draw(
        st.lists(
            st.sampled_from([-1.0, 0.0, 1.0, 2.0, math.nan]),
            min_size=(items + 1) ** 2,
            max_size=(items + 1) ** 2,
        )
    )
    table = torch.tensor(values).reshape(items + 1, items + 1)
    table[:, 0] = -torch.inf
    return dataset, table


@settings(max_examples=examples(25))
@given(tables(), st.sampled_from([0.0, 1.0, -2.5]))
def test_ranks_against_brute_force(drawn: tuple[Dataset, torch.Tensor], bias: float) -> None:
    dataset, table = drawn
    model = FixedScores(table)
    model.repeat_bias = bias
    ranking = rank_targets(model, dataset.histories, dataset.test, tokens=12)[False]
    for row, user in enumerate(dataset.test.users):
        begin, end = dataset.histories.offsets[user], dataset.test.ends[row]
        history = dataset.histories.items[begin:end].tolist()
        plain = table[history[-1]].tolist()
        scores = [score + bias * (item in history) for item, score in enumerate(plain)]
        target = int(dataset.test.items[row])
        others = [item for item in range(1, len(scores)) if item != target]
        if math.isnan(scores[target]):
            assert ranking.kept[row] == ranking.weighed[row] == ranking.filtered[row] == MISS
            continue
        # Ties, and what can't be compared, count against us.
        assert ranking.kept[row] == 1 + sum(not plain[item] < plain[target] for item in others)
        ahead = [item for item in others if not scores[item] < scores[target]]
        assert ranking.weighed[row] == 1 + len(ahead)
        if target in history:
            assert ranking.filtered[row] == MISS
        else:
            assert ranking.filtered[row] == 1 + len([i for i in ahead if i not in history])


@given(st.lists(st.integers(1, 80), min_size=1, max_size=30), st.integers(1, 60))
def test_metrics_against_their_definition(ranks: list[int], k: int) -> None:
    found = ranking_metrics(np.array(ranks), [k])
    hits = [rank for rank in ranks if rank <= k]
    assert found[f"HR@{k}"] == pytest.approx(len(hits) / len(ranks))
    assert found[f"NDCG@{k}"] == pytest.approx(sum(1 / math.log2(r + 1) for r in hits) / len(ranks))
    assert found[f"MRR@{k}"] == pytest.approx(sum(1 / r for r in hits) / len(ranks))


def test_an_unknown_target_is_a_miss_even_of_a_tiny_catalogue() -> None:
    dataset = build_dataset(
        make_log([("u", item, n) for n, item in enumerate("abcd")]), Protocol(1, 1), list("abc")
    )
    torch.manual_seed(0)
    model = TiM4Rec(ModelConfig(n_items=3, time="none"))
    ranking = rank_targets(model, dataset.histories, dataset.test)[False]
    assert ranking.kept.tolist() == ranking.filtered.tolist() == [MISS]
    assert np.isnan(ranking.scores).all()
    assert ranking.metrics()["kept"]["HR@50"] == 0.0


def untrained(dataset: Dataset, **options: object) -> TiM4Rec:
    torch.manual_seed(5)
    model = TiM4Rec(ModelConfig(n_items=dataset.n_items, max_len=8, **options))  # type: ignore[arg-type]
    with torch.no_grad():  # off the initial values, so that times matter
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return build_dataset(chain_log(users=80, length=40), Protocol(1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("time", ["causal", "none", "sequence"])
@pytest.mark.parametrize("last", [None, 5])
def test_parallel_and_recurrent_give_the_same_ranks(
    dataset: Dataset, time: str, last: int | None
) -> None:
    model = untrained(dataset, time=time)
    asked = (False, True) if model.config.uses_request_time else (False,)
    parallel, recurrent = (
        rank_targets(
            model,
            dataset.histories,
            dataset.test,
            mode=mode,  # type: ignore[arg-type]
            last=last,
            at_target_time=asked,
            tokens=300,
        )
        for mode in ("parallel", "recurrent")
    )
    assert set(parallel) == set(asked)
    for request_time in asked:
        result = agreement(parallel[request_time], recurrent[request_time])
        assert result.holds
        assert result.same + result.near == result.users == len(dataset.test)
        assert result.same > 0.9 * result.users
        assert result.largest_score_gap < 1e-4
        assert len(np.unique(parallel[request_time].kept)) > 5, "a constant rank proves nothing"
    if len(asked) == 2:
        assert (parallel[False].kept != parallel[True].kept).any()


def test_ragged_batches_do_not_matter(dataset: Dataset) -> None:
    model = untrained(dataset)
    small, large = (
        rank_targets(model, dataset.histories, dataset.test, tokens=tokens)[False]
        for tokens in (1, 1 << 20)
    )
    assert agreement(small, large).holds
    np.testing.assert_allclose(small.scores, large.scores, atol=1e-5)


def test_last_n_uses_only_those_but_masks_the_whole_history(dataset: Dataset) -> None:
    model = untrained(dataset)
    ranking = rank_targets(model, dataset.histories, dataset.test, last=3)[False]
    row, user = 0, dataset.test.users[0]
    begin, end = dataset.histories.offsets[user], dataset.test.ends[row]
    items = torch.from_numpy(dataset.histories.items[begin:end].astype(np.int64))
    times = torch.from_numpy(dataset.histories.times[begin:end])
    model.eval()
    with torch.no_grad():
        scores = model.scores(model(items[None, -3:], times[None, -3:])[0, -1])
    target = int(dataset.test.items[row])
    assert ranking.kept[row] == int((scores >= scores[target]).sum())
    assert ranking.top_items[row].tolist() == scores.topk(dataset.n_items).indices.tolist()
    seen = set(items.tolist())
    assert len(seen) > 3
    if target in seen:
        assert ranking.filtered[row] == MISS
    else:
        scores[list(seen)] = -torch.inf
        assert ranking.filtered[row] == int((scores >= scores[target]).sum())


def test_evaluation_leaves_the_model_as_it_was(dataset: Dataset) -> None:
    model = untrained(dataset).train()
    evaluate_offline(model, dataset.histories, dataset.test, lasts=())
    assert model.training


def test_the_table_has_a_row_for_each_history_request_time_and_seen(dataset: Dataset) -> None:
    rows, whole = evaluate_offline(untrained(dataset), dataset.histories, dataset.test)
    assert {(row.history, row.request_time, row.seen) for row in rows} == {
        (history, asked, seen)
        for history in ("whole", "last 50", "last 200")
        for asked in (False, True)
        for seen in ("kept", "weighed", "filtered")
    }
    assert set(whole) == {False, True}
    # No history here is longer than 50: those rows must repeat the whole one's.
    by_history = [
        [row.metrics for row in rows if row.history == history] for history in ("whole", "last 50")
    ]
    assert by_history[0] == by_history[1]


def ranking_of(dataset: Dataset, scores: list[list[float]]) -> Ranking:
    """A ranking of users whose scores for items 1, 2, ... are these."""
    size, n_items = len(scores), len(scores[0])
    table = torch.cat([torch.full((size, 1), -torch.inf), torch.tensor(scores)], 1)
    targets = dataset.test.take(np.arange(size))
    targets = Targets(targets.users, targets.ends, np.ones(size, dtype=np.int32), targets.times)

    class Fixed(TiM4Rec):
        def scores(self, query: torch.Tensor) -> torch.Tensor:
            return table.clone()

    model = Fixed(ModelConfig(n_items=n_items, d_model=4, head_dim=4, time="none"))
    histories = replace(
        dataset.histories, items=np.minimum(dataset.histories.items, 2).astype(np.int32)
    )
    return rank_targets(model, histories, targets)[False]


def test_agreement_tolerates_only_places_changed_with_near_scores() -> None:
    log = make_log([("u", item, n) for n, item in enumerate("abcd")])
    dataset = build_dataset(log, Protocol(1, 1))
    near, far = TOLERANCE / 2, 3 * TOLERANCE
    base = ranking_of(dataset, [[1.0, 0.5, 1.0 - near, 1.0 + far]])
    assert base.kept.tolist() == [2]
    swapped = ranking_of(dataset, [[1.0 - near, 0.5, 1.0, 1.0 + far]])
    assert swapped.kept.tolist() == [3]
    result = agreement(base, swapped)
    assert (result.same, result.near, result.different) == (0, 1, [])
    assert result.largest_score_gap == pytest.approx(near, rel=1e-2)
    overtaken = ranking_of(dataset, [[1.0 + 2 * far, 0.5, 1.0 - near, 1.0 + far]])
    assert overtaken.kept.tolist() == [1]
    result = agreement(base, overtaken)
    assert (result.same, result.near, result.different) == (0, 0, [0])
    assert not result.holds
    assert agreement(base, base).same == 1


def test_agreement_knows_ranks_up_to_the_limit_only() -> None:
    log = make_log([("u", item, n) for n, item in enumerate("abcd")])
    dataset = build_dataset(log, Protocol(1, 1))
    base = ranking_of(dataset, [[1.0, 0.5, 2.0, 3.0]])
    beyond = np.array([MISS])
    assert agreement(base, replace(base, weighed=beyond, filtered=beyond, limit=2)).same == 1
    assert agreement(base, replace(base, weighed=beyond, filtered=beyond, limit=3)).different == [0]


def test_rankings_of_other_targets_are_refused(dataset: Dataset) -> None:
    model = untrained(dataset)
    test = rank_targets(model, dataset.histories, dataset.test)[False]
    validation = rank_targets(model, dataset.histories, dataset.validation)[False]
    with pytest.raises(ValueError, match="same targets"):
        agreement(test, validation)


def test_unknown_times_are_ranked_the_same_in_both_modes() -> None:
    rows = [
        (f"u{user}", f"i{(user + place) % 11}", UNKNOWN_TIME if place % 3 == 1 else 10**9 * place)
        for user in range(20)
        for place in range(12)
    ]
    dataset = build_dataset(make_log(rows), Protocol(1, 1))
    for time in ("causal", "sequence"):
        model = untrained(dataset, time=time)
        parallel, recurrent = (
            rank_targets(model, dataset.histories, dataset.test, mode=mode)[False]  # type: ignore[arg-type]
            for mode in ("parallel", "recurrent")
        )
        assert agreement(parallel, recurrent).holds
