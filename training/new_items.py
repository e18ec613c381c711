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
from training.unseen import LISTED, LOSS

MOST_EVENTS, MOST_NEW = 20_000, 4_000
"""The newest events, and the new items, that are looked at; each of these stands for several where
there are more."""
LEAST_EVENTS = 50
"""With fewer events of new items nothing is known of how they should be ranked."""
HOLD = 1e-2
"""How much the squared length of the shift counts beside the loss."""
WEIGHTS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Of an event of a new item; the largest that costs next to nothing is taken."""
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


def with_table(served: Served, table: pl.DataFrame | None) -> Served:
    """As served, but that all items of a table are scored as well, where the model has a
    content."""
    content = served.model.content
    if content is None or table is None:
        return served
    return with_new_items(served, content_vectors(content, table))


def content_vectors(content: Content, table: pl.DataFrame) -> dict[str, Float32s]:
    """The vectors (D) that the items of a table have as new ones; by id."""
    return {item: content.vector(about) for item, about in abouts(table).items()}


def fit_new_items(
    log: Log, served: Served, content: Content, table: pl.DataFrame, since_ms: int
) -> Content:
    """The scale and shift by which what was had from `since_ms` on is likeliest, among known and
    new items: cross-entropy. Events of new items weigh as much more as costs next to nothing: lists
    are how an item gets its first events.

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
    found, least = content, (1 - LOSS) * cases.known_found(None)
    for weight in WEIGHTS:
        scale, shift = cases.fitted(weight)
        lifted = replace(content, scale=scale.item(), shift=shift.numpy())
        if weight > 1 and cases.known_found((scale, shift)) < least:
            break
        found = lifted
    return found


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
    @torch.no_grad()
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
        queries = queries_at(model, inputs, asked_at(events, rows, rng)).clone()
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

    def fitted(self, weight: float) -> tuple[Tensor, Tensor]:
        """Scale and shift (D); weight: of an event of a new item, others have 1."""
        scale = torch.ones((), requires_grad=True)
        shift = torch.zeros(self.vectors.shape[1], requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [scale, shift], max_iter=_STEPS, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(scale, shift, weight) + HOLD * shift.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return scale.detach(), shift.detach()

    def known_found(self, ranked: tuple[Tensor, Tensor] | None) -> int:
        """How many events of known items have theirs among the first `LISTED`, where new items are
        ranked by this scale and shift; None: not at all."""
        (known,) = torch.nonzero(self.new == 0, as_tuple=True)
        if ranked is None:
            return int((self.ahead[known] < LISTED).sum())
        scale, shift = ranked
        found = 0
        for batch in torch.split(known, self._at_once):
            queries = self.queries[batch]
            scores = scale * (queries @ self.vectors.T) + (queries @ shift)[:, None]
            ahead = self.ahead[batch] + (scores >= self.own[batch, None]).sum(1)
            found += int((ahead < LISTED).sum())
        return found

    @property
    def _at_once(self) -> int:
        return max(1, _AT_ONCE // len(self.vectors))

    def loss(self, scale: Tensor, shift: Tensor, weight: float) -> Tensor:
        """Mean cross-entropy of what was had."""
        total = torch.zeros(())
        for batch in torch.split(torch.arange(len(self.new)), self._at_once):
            moved = self.queries[batch] @ shift
            scores = scale * (self.queries[batch] @ self.vectors.T)
            of_new = scores.logsumexp(1) + moved + math.log(self.each)
            all_of_them = torch.logaddexp(self.known[batch], of_new)
            new = self.new[batch]
            own = scores.gather(1, (new - 1).clamp(min=0)[:, None])[:, 0] + moved
            loss = all_of_them - own.where(new > 0, self.own[batch])
            total = total + torch.where(new > 0, weight, 1.0) @ loss
        return total / len(self.new)
