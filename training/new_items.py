"""Items that a model was not trained on, scored by what they are: how it ranks them, and how they
should be ranked.

Names: T events, V items of the model, N new items, D width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from torch import Tensor

from model.content import Content, Float32s
from model.items import Items
from model.scoring import Scoring
from training.forward.events import Events, KnownHistories, queries_at
from training.forward.models import Served
from training.interactions import Log
from training.item_features import abouts
from training.mixture import asked_at
from training.unseen import BONUSES, LISTED, found_with_bonuses, largest_bonus

MOST_EVENTS, MOST_NEW = 20_000, 4_000
"""The newest events, and the new items, that are looked at; each of these stands for several where
there are more."""
LEAST_EVENTS = 50
"""With fewer events of new items nothing is known of how they should be ranked."""
HOLD = 1e-2
"""How much the squared length of the shift counts beside the loss."""
_STEPS, _AT_ONCE = 50, 1 << 22


def with_new_items(served: Served, vectors: Mapping[str, Float32s]) -> Served:
    """As served, but that these items are scored as well by vectors (D); by id."""
    known = set(served.item_ids)
    new = {item: own for item, own in vectors.items() if item not in known}
    if not new:
        return served
    model, ids = copy.copy(served.model), [*served.item_ids, *new]
    old = model.scoring_vectors.detach()
    table = torch.cat([old, torch.from_numpy(np.stack(list(new.values()))).to(old)])
    bias = table.new_zeros(len(table))
    if model.item_bias is not None:
        bias[: len(old)] = model.item_bias
    items = Items(ids, np.zeros(len(ids), np.int64))
    model.scoring = Scoring(items, table, bias, n_new=len(new))
    return Served(model, ids)


def content_vectors(content: Content, table: pl.DataFrame) -> dict[str, Float32s]:
    """The vectors (D) that the items of a table have as new ones; by id."""
    return {item: content.vector(about) for item, about in abouts(table).items()}


def fit_new_items(
    log: Log, served: Served, content: Content, table: pl.DataFrame, since_ms: int
) -> Content:
    """The scale and shift by which what was had from `since_ms` on is likeliest, among known and
    new items: cross-entropy. And then as much more as costs next to nothing (`training.unseen`).

    Args:
        served: trained on what lies before.
        content: of the model.

    Returns:
        the content with them; as it is where too few events are of new items.

    Raises InputError where a time is not known.
    """
    new = table.filter(~pl.col("item_id").is_in(list(served.item_ids)))
    had = pl.col("item_id").is_in(log.frame["item_id"].unique().to_list())
    looked_at = pl.concat([new.filter(had), new.filter(~had)]).head(MOST_NEW)
    plain = replace(content, scale=1.0, shift=np.zeros_like(content.shift))
    vectors = content_vectors(plain, looked_at)
    if not vectors:
        return content
    cases = _Cases.of(log, served, vectors, since_ms, len(new) / len(looked_at))
    if int((cases.new > 0).sum()) < LEAST_EVENTS:
        return content
    scale = torch.ones((), requires_grad=True)
    shift = torch.zeros(len(content.shift), requires_grad=True)
    optimizer = torch.optim.LBFGS([scale, shift], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cases.loss(scale, shift) + HOLD * shift.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    lifted = shift.detach() + cases.bonus(scale.detach(), shift.detach()) * cases.one
    return replace(content, scale=scale.item(), shift=lifted.numpy())


@dataclass(frozen=True, slots=True)
class _Cases:
    """queries: (T, D); known: (T) log of the sum of exp of the known items' scores; own, ahead: (T)
    the score of what was had where it is known, and how many known ones are at least as good; new:
    (T) its place among the new items, from 1 on, 0 where it is known; vectors: (N, D), each of
    `each` new items."""

    queries: Tensor
    known: Tensor
    own: Tensor
    ahead: Tensor
    new: Tensor
    vectors: Tensor
    each: float

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        log: Log,
        served: Served,
        vectors: Mapping[str, Float32s],
        since_ms: int,
        each: float,
    ) -> _Cases:
        events, model = Events.of(log), served.model
        place = {item: number for number, item in enumerate(vectors, 1)}
        place_of = np.array([place.get(item, 0) for item in events.item_ids], np.int64)
        order = np.argsort(events.times, kind="stable")
        rows = order[int(np.searchsorted(events.times[order], since_ms)) :][-MOST_EVENTS:]
        inputs = KnownHistories.of(events, rows, served.item_ids, model.config.n_items)
        chosen = (inputs.lengths > 0) & ((inputs.targets > 0) | (place_of[events.items[rows]] > 0))
        rows = rows[chosen]
        inputs = KnownHistories.of(events, rows, served.item_ids, model.config.n_items)
        rng = np.random.default_rng(0)
        queries = queries_at(model, inputs, asked_at(events, rows, rng))
        known, own = torch.zeros(len(rows)), torch.zeros(len(rows))
        ahead = torch.zeros(len(rows), dtype=torch.int64)
        size = max(1, _AT_ONCE // (model.n_scored + 1))
        for begin in range(0, len(rows), size):
            batch = np.arange(begin, min(begin + size, len(rows)))
            scores = model.scores(queries[batch])
            targets = torch.from_numpy(inputs.targets[batch])
            own[batch] = scores.gather(1, targets[:, None])[:, 0].where(targets > 0, 0.0)
            left = scores.scatter(1, inputs.seen(batch), -torch.inf)
            known[batch] = left.logsumexp(1)
            ahead[batch] = (left >= own[batch, None]).sum(1) - 1
        table = torch.from_numpy(np.stack(list(vectors.values())))
        new = torch.from_numpy(place_of[events.items[rows]])
        return cls(queries, known, own, ahead, new, table, each)

    @property
    def one(self) -> Tensor:
        """(D) What adds about 1 to every score."""
        of_all = self.queries.T @ self.queries + torch.eye(self.queries.shape[1])
        found: Tensor = torch.linalg.solve(of_all, self.queries.sum(0))
        return found

    def bonus(self, scale: Tensor, shift: Tensor) -> float:
        """By how much new items may be lifted."""
        hits = np.zeros(len(BONUSES))
        (known,) = torch.nonzero(self.new == 0, as_tuple=True)
        for batch in torch.split(known, max(1, _AT_ONCE // len(self.vectors))):
            queries = self.queries[batch]
            scores = scale * (queries @ self.vectors.T) + (queries @ shift)[:, None]
            best = scores.topk(min(LISTED, len(self.vectors)), dim=1).values
            hits += found_with_bonuses(
                self.own[batch].numpy(), self.ahead[batch].numpy(), best.numpy()
            )
        return largest_bonus(hits)

    def loss(self, scale: Tensor, shift: Tensor) -> Tensor:
        """Mean cross-entropy of what was had."""
        total = torch.zeros(())
        for batch in torch.split(
            torch.arange(len(self.new)), max(1, _AT_ONCE // len(self.vectors))
        ):
            moved = self.queries[batch] @ shift
            scores = scale * (self.queries[batch] @ self.vectors.T)
            of_new = scores.logsumexp(1) + moved + math.log(self.each)
            all_of_them = torch.logaddexp(self.known[batch], of_new)
            new = self.new[batch]
            own = scores.gather(1, (new - 1).clamp(min=0)[:, None])[:, 0] + moved
            total = total + (all_of_them - own.where(new > 0, self.own[batch])).sum()
        return total / len(self.new)
