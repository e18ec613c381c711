"""A small training that touches no state: what queries are scored against, on the newest events.

The core is frozen, so its queries are computed once. Then the vectors and biases that score items
are trained by softmax cross-entropy on the newest events and some older ones, held near what they
were before; items that came since get vectors of their own. The problem is convex.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from model import TiM4Rec
from model.artefact import Artefact
from model.items import Items
from model.scoring import Scoring
from model.times import iso
from training.dataset import Dataset, Histories, Int64s, Protocol, Targets
from training.forward.events import Events, KnownHistories, queries_at
from training.interactions import Log
from training.loss import sampled_table_softmax_loss, table_softmax_loss
from training.mixture import asked_at
from training.negatives import NegativeSampler
from training.refit import mapped_vectors
from training.tables import InputError

EPOCHS = 5
LR = 2e-3
BATCH = 256
HOLD = 1.0
"""The weight of half the squared distance from what was before, against one event's loss."""
MOST_EVENTS = 50_000
"""The newest that are learned from."""
REPLAYED = 1.0
"""Older events for each new one."""
SHRINKAGE = 3.0
"""A new item that was had so often has half of the length that co-occurrence says."""
MOST_WHOLE = 100_000
"""Up to so many items the softmax is over all of them, beyond over `NEGATIVES` drawn ones."""
NEGATIVES = 8192


@dataclass(frozen=True, slots=True)
class ScoringStep:
    """What the step has made.

    since_ms, until_ms: the times of what is new, its last event's included; events: how many of
    these were learned from; new_items: how many have got a vector.
    """

    scoring: Scoring
    since_ms: int
    until_ms: int
    events: int
    new_items: int
    seconds: float


def scoring_step(
    log: Log, parent: Artefact, *, since_ms: int | None, seed: int = 0, console: Console | None
) -> ScoringStep:
    """Trains what the parent's queries are scored against; its states stay as they are.

    Args:
        since_ms: events from then on are new: the parent must not be trained on them. None: those
            after the newest that it says it was trained on.

    Raises:
        InputError: a time is not known, the parent's time path is `sequence`, or nothing is new.
    """
    started, model = time.perf_counter(), parent.model
    if not model.causal:
        raise InputError("a model of the time path `sequence` has no scoring apart: train it anew")
    events = Events.of(log)
    order = np.argsort(events.times, kind="stable")
    times = events.times[order]
    if since_ms is None:
        if parent.until_ms is None:
            raise InputError("the artefact does not say until when it was trained: say since when")
        since_ms = parent.until_ms + 1
    begin = int(np.searchsorted(times, since_ms))
    if begin == len(order):
        raise InputError(f"no interaction from {iso(since_ms)} on: there is nothing to learn")
    rng = np.random.default_rng(seed)
    rows = _learned_from(order, begin, rng)
    items = _with_new(parent.scored_items, events)
    first = _first_scoring(model, parent.scored_items, items, events, seed)
    queries, targets = _examples(model, events, rows, items.ids, rng)
    scoring = trained(first, queries, targets, seed=seed, console=console)
    return ScoringStep(
        scoring,
        since_ms,
        until_ms=int(times[-1]),
        events=len(targets),
        new_items=len(items) - len(parent.scored_items),
        seconds=time.perf_counter() - started,
    )


def _learned_from(order: Int64s, begin: int, rng: np.random.Generator) -> Int64s:
    """Rows of the newest events, and of older ones drawn from all before `begin`."""
    new = order[max(begin, len(order) - MOST_EVENTS) :]
    number = min(begin, int(REPLAYED * len(new)))
    old = rng.choice(order[:begin], number, replace=False)
    return np.concatenate([old, new])


def _with_new(before: Items, events: Events) -> Items:
    """The items scored before, then those of the log that are new to them."""
    known = set(before.ids)
    ids = [*before.ids, *(item for item in events.item_ids if item not in known)]
    row_of = {item: row for row, item in enumerate(ids)}
    counts = np.zeros(len(ids), np.int64)
    counts[[row_of[item] for item in events.item_ids]] = np.bincount(events.items)
    counts[: len(before)] = np.maximum(counts[: len(before)], before.popularity)
    new = len(ids) - len(before)
    return Items(
        ids,
        counts,
        None if before.titles is None else [*before.titles, *[None] * new],
        None if before.categories is None else [*before.categories, *([] for _ in range(new))],
    )


@torch.no_grad()
def _first_scoring(
    model: TiM4Rec, before: Items, items: Items, events: Events, seed: int
) -> Scoring:
    """What the training begins with: new items have what co-occurrence says, the less the more
    seldom they were had."""
    old, size = model.scoring_vectors.detach().float().cpu(), len(before)
    vectors = torch.zeros(len(items) + 1, old.shape[1])
    vectors[: size + 1] = old
    bias = torch.zeros(len(vectors))
    if model.item_bias is not None:
        bias[: size + 1] = model.item_bias.float().cpu()
    if len(items) > size:
        kept = torch.arange(len(items)) < size
        mapped, met = mapped_vectors(_dataset(events, items.ids), vectors[1:], kept, seed)
        count = torch.from_numpy(items.popularity).float()
        shrunk = mapped * (count / (count + SHRINKAGE))[:, None]
        vectors[1:][~kept & met] = shrunk[~kept & met]
    return Scoring(items, vectors, bias)


def _dataset(events: Events, item_ids: Sequence[str]) -> Dataset:
    """All events, to learn from."""
    index = {item: row for row, item in enumerate(item_ids, 1)}
    rows = np.array([index[item] for item in events.item_ids], np.int32)
    bounds = np.append(np.unique(events.firsts), len(events.items))
    none = np.empty(0, np.int64)
    nobody = Targets(none, none, none.astype(np.int32), none)
    histories = Histories(bounds, rows[events.items], events.times)
    return Dataset(
        Protocol(1, 1), [""] * len(histories), list(item_ids), histories, bounds[1:], nobody, nobody
    )


def _examples(
    model: TiM4Rec, events: Events, rows: Int64s, item_ids: Sequence[str], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Queries (T, D) of users of whom the model knows something, and what they had then (T)."""
    inputs = KnownHistories.of(events, rows, item_ids, model.config.n_items)
    queries = queries_at(model, inputs, asked_at(events, rows, rng))
    some = torch.from_numpy(inputs.lengths > 0)
    return queries[some], torch.from_numpy(inputs.targets)[some]


def trained(
    first: Scoring, queries: Tensor, targets: Tensor, *, seed: int, console: Console | None = None
) -> Scoring:
    """The scoring by which targets (T) are likeliest given queries (T, D), near the first one."""
    start = torch.cat([first.vectors, first.bias[:, None]], 1)
    wide = torch.cat([queries, torch.ones(len(queries), 1)], 1)
    table = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=LR)
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, 0.01, EPOCHS * -(-len(targets) // BATCH)
    )
    sampler = None
    if len(first.items) > MOST_WHOLE:
        sampler = NegativeSampler(first.items.popularity, NEGATIVES, 0.5)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(EPOCHS):
        total = 0.0
        order = torch.randperm(len(targets), generator=generator)
        for batch in torch.split(order, BATCH):
            if sampler is None:
                loss = table_softmax_loss(table, wide[batch], targets[batch])
            else:
                drawn = sampler.draw(generator)
                loss = sampled_table_softmax_loss(table, wide[batch], targets[batch], *drawn)
            total += loss.item() * len(batch)
            held = HOLD / 2 / len(targets) * (table - start).square().sum()
            optimizer.zero_grad()
            (loss + held).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        if console is not None:
            console.print(f"scoring, epoch {epoch + 1}: loss {total / len(targets):.4f}")
    found = table.detach()
    return Scoring(first.items, found[:, :-1].contiguous(), found[:, -1].contiguous())
