"""Full-ranking evaluation in three modes that must agree: parallel, recurrent and service.

A target's rank is 1 + the number of other items scored at least as high: ties count against us.
`kept` ranks among all items, as papers do; `weighed` is the same with the model's repeat bias, as a
service answers that keeps seen items; `filtered` leaves out every item of the user's whole history
(a target seen before then can't be recommended and is a miss).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model import Recommender, State
from training.batches import gather_padded
from training.dataset import Histories, Int64s, Targets
from training.loss import scores_at_once
from training.metrics import MISS, ranking_metrics

OfflineMode = Literal["parallel", "recurrent"]
SeenItems = Literal["kept", "weighed", "filtered"]
SERVED: tuple[SeenItems, ...] = ("weighed", "filtered")
"""What a service can be asked for."""
Float32s = npt.NDArray[np.float32]

TOLERANCE = 1e-4
"""Scores closer than this may change places between modes."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Best and worst rank (T) each if items within TOLERANCE of the target change places."""

    best: Int64s
    worst: Int64s


@dataclass(frozen=True, slots=True)
class Ranking:
    """What one mode found, a row a target.

    weighed, filtered: (T) ranks with seen items weighed and filtered out. weighed_interval,
    filtered_interval: what rounding may make of them. scores: (T) of the targets, NaN where
    unknown. top_items, top_scores: (T, K) best items with seen ones weighed, 0 and -inf where there
    are fewer. limit: ranks beyond it are only known to be beyond.
    """

    targets: Targets
    weighed: Int64s
    filtered: Int64s
    weighed_interval: Interval
    filtered_interval: Interval
    scores: Float32s
    top_items: Int64s
    top_scores: Float32s
    limit: int = MISS

    def ranks(self) -> dict[SeenItems, Int64s]:
        return {"weighed": self.weighed, "filtered": self.filtered}

    def metrics(self) -> dict[SeenItems, dict[str, float]]:
        return {seen: ranking_metrics(ranks) for seen, ranks in self.ranks().items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineRanking(Ranking):
    """kept: (T) ranks with seen items kept, which no service is asked for."""

    kept: Int64s

    def ranks(self) -> dict[SeenItems, Int64s]:
        return {"kept": self.kept, "weighed": self.weighed, "filtered": self.filtered}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the rankings of two modes compare over the same targets.

    same: equal ranks, weighed and filtered; near: users whose rank differs only by items scored
    within TOLERANCE of the target; different: indices of all others. largest_score_gap: between the
    two modes' scores of the same target.
    """

    users: int
    same: int
    near: int
    different: list[int]
    largest_score_gap: float

    @property
    def holds(self) -> bool:
        return not self.different


def rank_targets(
    model: Recommender,
    histories: Histories,
    targets: Targets,
    *,
    mode: OfflineMode = "parallel",
    last: int | None = None,
    at_target_time: Sequence[bool] = (False,),
    top: int = 100,
    tokens: int = 1 << 15,
    progress: Callable[[int], None] | None = None,
) -> dict[bool, OfflineRanking]:
    """Ranks every target among all items.

    Args:
        mode: `parallel` (one prefill of the history) or `recurrent` (a step an interaction).
        last: use only this many latest interactions as input; None: all of them.
        at_target_time: for each, a ranking asked for at the target's own time (True) or at an
            unknown time (False), under that key of the result.
        top: K of `top_items`.
        tokens: bounds the padded interactions of a batch, and with it the memory.
        progress: is told how many targets were ranked, after each batch.
    """
    top = min(top, model.n_scored)
    columns = {asked: _Columns(len(targets), top, model.repeat_bias) for asked in at_target_time}
    for batch in scored(
        model, histories, targets, mode=mode, last=last, at_target_time=at_target_time,
        tokens=tokens,
    ):  # fmt: skip
        for asked, out in columns.items():
            out.fill(batch, batch.scores[asked])
        if progress is not None:
            progress(len(batch.rows))
    return {asked: out.ranking(targets) for asked, out in columns.items()}


@dataclass(frozen=True, slots=True)
class Scored:
    """Some of the targets and the scores of all items for them.

    rows: (B) which; targets: those (B); scores: (B, V+1) by request time, without a repeat bias;
    seen: (B, L) the user's whole history, padded with 0; repeated: (B) whether the target is in it.
    """

    rows: Int64s
    targets: Targets
    scores: dict[bool, Tensor]
    seen: Tensor
    repeated: npt.NDArray[np.bool_]


@torch.inference_mode()
def scored(
    model: Recommender,
    histories: Histories,
    targets: Targets,
    *,
    mode: OfflineMode = "parallel",
    last: int | None = None,
    at_target_time: Sequence[bool] = (False,),
    tokens: int = 1 << 15,
) -> Iterator[Scored]:
    """All targets, a batch at a time; arguments as of `rank_targets`."""
    firsts = histories.offsets[targets.users]
    starts = firsts if last is None else np.maximum(firsts, targets.ends - last)
    lengths = targets.ends - starts
    run = _prefill if mode == "parallel" else _step_through
    was_training = model.training
    model.eval()
    try:
        for rows in _batches(lengths, tokens, model.n_scored, model.device):
            state = run(model, histories, starts[rows], lengths[rows])
            batch = targets.take(rows)
            scores = {}
            for asked in at_target_time:
                times = _on(model.device, batch.times)[0] if asked else None
                scores[asked] = model.scores(model.query(state, times))
            # The whole history, however much of it was used.
            seen, _ = gather_padded(histories, firsts[rows], batch.ends - firsts[rows])
            repeated = ((seen == batch.items[:, None]) & (seen > 0)).any(1)
            yield Scored(rows, batch, scores, _on(model.device, seen)[0], repeated)
    finally:
        model.train(was_training)


def _batches(lengths: Int64s, tokens: int, n_items: int, device: torch.device) -> Iterator[Int64s]:
    """Rows of similar length, with a bound on padded interactions and scores."""
    order = np.argsort(lengths, kind="stable")
    most = max(1, scores_at_once(device) // (n_items + 1))
    begin = 0
    while begin < len(order):
        end = begin + 1
        while (
            end < len(order)
            and end - begin < most
            and (end - begin + 1) * lengths[order[end]] <= tokens
        ):
            end += 1
        yield order[begin:end]
        begin = end


def _prefill(model: Recommender, histories: Histories, starts: Int64s, lengths: Int64s) -> State:
    items, times, ends = _on(model.device, *gather_padded(histories, starts, lengths), lengths)
    return model.prefill(items, times, ends, model.new_state(len(starts)))


def _step_through(
    model: Recommender, histories: Histories, starts: Int64s, lengths: Int64s
) -> State:
    items, times = _on(model.device, *gather_padded(histories, starts, lengths))
    state, final = model.new_state(len(starts)), model.new_state(len(starts))
    for step in range(items.shape[1]):
        # A row past its end goes on with padding; its state is taken when it ends.
        state = model.step(items[:, step], times[:, step], state)
        (ended,) = np.nonzero(lengths == step + 1)
        if len(ended):
            (at,) = _on(model.device, ended)
            final.write(at, state.rows(at))
    return final


def _on(device: torch.device, *arrays: Int64s) -> list[Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]


class _Columns:
    """The columns of a Ranking while batches fill them."""

    def __init__(self, size: int, top: int, repeat_bias: float) -> None:
        self.repeat_bias = repeat_bias
        self.kept = np.zeros(size, dtype=np.int64)
        self.ranks = {
            (seen, which): np.zeros(size, dtype=np.int64)
            for seen in SERVED
            for which in ("rank", "best", "worst")
        }
        self.scores = np.zeros(size, dtype=np.float32)
        self.top_items = np.zeros((size, top), dtype=np.int64)
        self.top_scores = np.zeros((size, top), dtype=np.float32)

    def fill(self, batch: Scored, scores: Tensor) -> None:
        rows, targets, seen = batch.rows, batch.targets, batch.seen
        (items,) = _on(scores.device, targets.items.astype(np.int64))
        own = scores.gather(1, items[:, None])  # -inf, the padding's, for an unknown target
        unknown = (targets.items == 0) | own[:, 0].isnan().cpu().numpy()
        self.kept[rows] = np.where(unknown, MISS, _count(~(scores[:, 1:] < own)))
        if self.repeat_bias:
            scores = scores.scatter(1, seen, scores.gather(1, seen) + self.repeat_bias)
            own = scores.gather(1, items[:, None])
        best = scores.topk(self.top_items.shape[1], dim=1)
        self.top_items[rows] = best.indices.cpu().numpy()
        self.top_scores[rows] = best.values.cpu().numpy()
        self.scores[rows] = np.where(unknown, np.nan, own[:, 0].float().cpu().numpy())
        self._rank("weighed", rows, scores, own, unknown)
        scores = scores.scatter(1, seen, -torch.inf)  # its padding masks column 0 once more
        self._rank("filtered", rows, scores, own, unknown | batch.repeated)

    def _rank(
        self,
        seen: SeenItems,
        rows: Int64s,
        scores: Tensor,
        own: Tensor,
        missed: npt.NDArray[np.bool_],
    ) -> None:
        items = scores[:, 1:]  # never the padding
        bounds = {
            "rank": _count(~(items < own)),
            "best": _count(items > own + TOLERANCE) + 1,
            "worst": _count(~(items < own - TOLERANCE)),
        }
        for which, rank in bounds.items():
            self.ranks[seen, which][rows] = np.where(missed, MISS, rank)

    def ranking(self, targets: Targets) -> OfflineRanking:
        ranks = self.ranks
        return OfflineRanking(
            targets=targets,
            kept=self.kept,
            weighed=ranks["weighed", "rank"],
            filtered=ranks["filtered", "rank"],
            weighed_interval=Interval(ranks["weighed", "best"], ranks["weighed", "worst"]),
            filtered_interval=Interval(ranks["filtered", "best"], ranks["filtered", "worst"]),
            scores=self.scores,
            top_items=self.top_items,
            top_scores=self.top_scores,
        )


def _count(items: Tensor) -> Int64s:
    """How many items are ahead: (B) of (B, V) bool. With "not less" in place of "at least" a NaN
    counts against us, and the target counts itself."""
    found: Int64s = items.sum(1).cpu().numpy()
    return found


def agreement(a: Ranking, b: Ranking) -> Agreement:
    """Compares two modes' rankings of the same targets.

    Ranks may differ where the items between the two places have scores within TOLERANCE of the
    target's in `a`. Where one mode knows ranks up to a limit only, those beyond are alike.

    Raises ValueError if the targets are not the same.
    """
    if not (
        np.array_equal(a.targets.users, b.targets.users)
        and np.array_equal(a.targets.ends, b.targets.ends)
    ):
        raise ValueError("only rankings of the same targets can be compared")
    limit = min(a.limit, b.limit)
    same = np.ones(len(a.weighed), dtype=np.bool_)
    near = np.ones(len(a.weighed), dtype=np.bool_)
    for first, second, interval in (
        (a.weighed, b.weighed, a.weighed_interval),
        (a.filtered, b.filtered, a.filtered_interval),
    ):
        beyond = limit + 1
        found = np.minimum(second, beyond)
        same &= np.minimum(first, beyond) == found
        near &= (np.minimum(interval.best, beyond) <= found) & (
            found <= np.minimum(interval.worst, beyond)
        )
    gaps = np.abs(a.scores - b.scores)
    gaps = gaps[np.isfinite(gaps)]
    return Agreement(
        users=len(same),
        same=int(same.sum()),
        near=int((near & ~same).sum()),
        different=np.flatnonzero(~(same | near)).tolist(),
        largest_score_gap=float(gaps.max(initial=0.0)),
    )


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One line of a table of results."""

    mode: str
    history: str
    request_time: bool
    seen: SeenItems
    metrics: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "history": self.history,
            "request_time": self.request_time,
            "seen": self.seen,
            **self.metrics,
        }


def rows_of(ranking: Ranking, mode: str, history: str, request_time: bool) -> list[ResultRow]:
    """A row for each way to treat what the user has had."""
    return [
        ResultRow(mode, history, request_time, seen, metrics)
        for seen, metrics in ranking.metrics().items()
    ]


def evaluate_offline(
    model: Recommender,
    histories: Histories,
    targets: Targets,
    *,
    mode: OfflineMode = "parallel",
    lasts: tuple[int, ...] = (50, 200),
    progress: Callable[[int], None] | None = None,
) -> tuple[list[ResultRow], dict[bool, OfflineRanking]]:
    """The whole table of one mode, and its whole-history rankings by `request_time`.

    A model that takes the request time has rows with it and without.
    """
    rows: list[ResultRow] = []
    whole: dict[bool, OfflineRanking] = {}
    asked = (False, True) if model.config.uses_request_time else (False,)
    for last in (None, *lasts):
        rankings = rank_targets(
            model, histories, targets,
            mode=mode, last=last, at_target_time=asked, progress=progress,
        )  # fmt: skip
        if last is None:
            whole = rankings
        history = "whole" if last is None else f"last {last}"
        for request_time, ranking in rankings.items():
            rows += rows_of(ranking, mode, history, request_time)
    return rows, whole
