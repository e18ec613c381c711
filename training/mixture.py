"""Fits the mixture of a model's scores and the live layer's evidence on a walk forward in time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model import UNKNOWN_TIME, TiM4Rec
from model.live.mixture import Mixture, Weights
from model.live.ranking import (
    AGE,
    HAS_QUERY,
    KNOWN,
    LENGTH,
    N_CONTEXT,
    N_FEATURES,
    POPULAR,
    SCORED,
    USUAL_ALONE,
)
from training.batches import asked_between
from training.dataset import Int64s
from training.forward.events import Events
from training.forward.live_walk import LiveWalk, ModelLists
from training.interactions import Log
from training.unseen import BONUSES, LISTED, found_with_bonuses, largest_bonus, without_event

HIDDEN = 16
EPOCHS = 6
LR = 3e-3
BATCH = 256
LEAST_STEPS = 400
"""With fewer, of few events, it stays near where it began, which is at random."""
MOST_EVENTS = 20_000
"""The newest events that a mixture is fitted on."""
LEAST_EVENTS = 200
LEAST_ALONE, ALONE_LIST = 100, 10
"""Somebody's first events that choose by which popularity such lists are made; their length."""
SURELY = 2.5
"""By how many standard errors another popularity than the usual has to be better."""
_LOOKED_AT = 3 * MOST_EVENTS
"""Of so many newest ones; the item that was had is not among the candidates of all."""
_MEASURED = 500_000
"""The most candidates that means and spreads are taken of."""

Float16s = npt.NDArray[np.float16]
Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Examples:
    """Candidates of T events, one event's after the other's.

    features: (C, F); context: (T, X); ends: (T), where in `features` an event's end; targets: (T),
    which of an event's candidates was had.
    """

    features: Float16s
    context: Float32s
    ends: Int64s
    targets: Int64s

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """One part's events after the other's."""
        before = np.cumsum([0, *(len(part.features) for part in parts[:-1])])
        return cls(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.context for part in parts]),
            np.concatenate([part.ends + n for part, n in zip(parts, before, strict=True)]),
            np.concatenate([part.targets for part in parts]),
        )

    def newest(self, most: int) -> Examples:
        """The last ones, at most so many."""
        if len(self) <= most:
            return self
        begin = int(self.ends[-most - 1])
        return Examples(
            self.features[begin:],
            self.context[-most:],
            self.ends[-most:] - begin,
            self.targets[-most:],
        )

    def batch(self, chosen: Int64s) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """features (B, C, F), context (B, X), which are candidates (B, C), targets (B)."""
        starts = np.where(chosen > 0, self.ends[chosen - 1], 0)
        lengths = self.ends[chosen] - starts
        place = np.arange(int(lengths.max()))
        inside = place < lengths[:, None]
        taken = self.features[np.where(inside, starts[:, None] + place, 0)]
        return (
            torch.from_numpy(taken.astype(np.float32)),
            torch.from_numpy(self.context[chosen]),
            torch.from_numpy(inside),
            torch.from_numpy(self.targets[chosen]),
        )


class Collector:
    """Gathers examples while a walk goes on."""

    def __init__(self) -> None:
        self._features = [np.zeros((0, N_FEATURES), np.float16)]
        self._context: list[Float32s] = []
        self._targets: list[int] = []

    def add(self, walk: LiveWalk, row: int, lists: ModelLists, place: int) -> None:
        """Adds an event that is about to be observed, that of `lists` at `place`, if its item is
        among the candidates."""
        target = walk.row_of(row)
        if not target:
            return
        found = walk.features(row, lists, place)
        (at,) = np.nonzero(found.rows == target)
        if len(at):
            self._features.append(found.features.T.astype(np.float16))
            self._context.append(found.context)
            self._targets.append(int(at[0]))

    def examples(self) -> Examples:
        """Those so far."""
        return Examples(
            np.concatenate(self._features),
            np.array(self._context, np.float32).reshape(-1, N_CONTEXT),
            np.cumsum([len(part) for part in self._features[1:]], dtype=np.int64),
            np.array(self._targets, np.int64),
        )


class MixtureNetwork(nn.Module):
    """`Mixture` on standardised features, for training."""

    def __init__(self, examples: Examples) -> None:
        super().__init__()
        every = max(1, len(examples.features) // _MEASURED)
        features = examples.features[::every].astype(np.float32)
        mean, spread = features.mean(0), features.std(0) + 1e-3
        for flag in (SCORED, KNOWN):
            mean[flag], spread[flag] = 0, 1
        self.mean, self.spread = torch.from_numpy(mean), torch.from_numpy(spread)
        self.context_mean = torch.from_numpy(examples.context.mean(0))
        self.context_spread = torch.from_numpy(examples.context.std(0) + 1e-2)
        self.linear = nn.Linear(N_FEATURES, 1)
        self.by_context = nn.Linear(N_CONTEXT, N_FEATURES)
        self.hidden = nn.Linear(N_FEATURES, HIDDEN)
        self.hidden_context = nn.Linear(N_CONTEXT, HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(self.by_context.weight)
        nn.init.zeros_(self.by_context.bias)

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """The scores (B, C) of candidates (B, C, F) of requests with a context (B, X)."""
        features = (features - self.mean) / self.spread
        context = (context - self.context_mean) / self.context_spread
        hidden = torch.relu(self.hidden(features) + self.hidden_context(context)[:, None])
        slopes = self.linear.weight[0] + self.by_context(context)
        scores: Tensor = (features * slopes[:, None]).sum(-1) + self.out(hidden)[..., 0]
        return scores

    @torch.no_grad()
    def begin_with(self, mixture: Mixture) -> None:
        """Scores as a mixture does, but for a constant a request."""
        linear, by_context, hidden, hidden_context, bias, out = map(
            torch.from_numpy, mixture.weights
        )
        by_context = by_context * self.spread[:, None]
        self.by_context.weight.copy_(by_context * self.context_spread)
        self.by_context.bias.zero_()
        self.linear.weight.copy_(linear * self.spread + by_context @ self.context_mean)
        self.hidden.weight.copy_(hidden * self.spread)
        self.hidden_context.weight.copy_(hidden_context * self.context_spread)
        self.hidden.bias.copy_(bias + hidden @ self.mean + hidden_context @ self.context_mean)
        self.out.weight.copy_(out)

    @torch.no_grad()
    def mixture(self) -> Mixture:
        """The same for features and contexts as they are; scores but for a constant a request."""
        scale, context_scale = 1 / self.spread, 1 / self.context_spread
        by_context = self.by_context.weight * context_scale
        linear = self.linear.weight[0] + self.by_context.bias - by_context @ self.context_mean
        hidden = self.hidden.weight * scale
        hidden_context = self.hidden_context.weight * context_scale
        bias = self.hidden.bias - hidden @ self.mean - hidden_context @ self.context_mean
        parts = (
            linear * scale, by_context * scale[:, None], hidden, hidden_context, bias,
            self.out.weight[0],
        )  # fmt: skip
        return Mixture(Weights(*(part.numpy().astype(np.float32) for part in parts)))


def fitted(
    examples: Examples, *, start: Mixture | None = None, new: float = 1.0, seed: int = 0
) -> Mixture:
    """The mixture by which the items that were had are likeliest among their candidates: cross
    entropy, on the newest events.

    Args:
        start: one to begin with, fitted on what came earlier: better than to begin anew, and by
            far where examples are few (Amazon Beauty).
        new: the share of the examples that it was not fitted on; as many steps are taken as these
            alone would take, so that no example counts more the longer it is kept.
    """
    examples = examples.newest(MOST_EVENTS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MixtureNetwork(examples)
    if start is not None and len(start.weights.out) == HIDDEN:
        network.begin_with(start)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=1e-4)
    steps = math.ceil(EPOCHS * new * math.ceil(len(examples) / BATCH))
    if start is None:
        steps = max(LEAST_STEPS, steps)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps are so small that threads mostly wait for each other
    try:
        for chosen in islice(_batches(len(examples), rng), steps):
            features, context, inside, targets = examples.batch(chosen)
            scores = network(features, context).masked_fill(~inside, -1e9)
            loss = nn.functional.cross_entropy(scores, targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    finally:
        torch.set_num_threads(threads)
    found, alone = network.mixture(), _best_alone(examples)
    unseen = _unseen_bonus(found, examples)
    before = found if start is None else start
    return replace(
        found,
        alone=before.alone if alone is None else alone,
        unseen=before.unseen if unseen is None else unseen,
    )


def _unseen_bonus(mixture: Mixture, examples: Examples) -> float | None:
    """By how much items without an event may be lifted; None: too few lists had such items for
    that to be known, as where a walk knows of no item but by its events."""
    starts = np.append(0, examples.ends[:-1])
    unseen_C = without_event(examples.features.T)
    known = examples.context[:, [HAS_QUERY, LENGTH]].any(1)
    counted = known & ~unseen_C[starts + examples.targets]
    beside = counted & np.logical_or.reduceat(unseen_C, starts)
    if beside.sum() < LEAST_EVENTS:
        return None
    hits = np.zeros(len(BONUSES))
    for n in np.flatnonzero(counted):
        own_C, target = slice(starts[n], examples.ends[n]), examples.targets[n]
        features, unseen = examples.features[own_C].T.astype(np.float32), unseen_C[own_C]
        scores = mixture.scores(features, examples.context[n])
        own = scores[target : target + 1]
        ahead = np.array([(scores[~unseen] >= own).sum() - 1])
        if beside[n]:
            hits += found_with_bonuses(own, ahead, scores[None, unseen])
        else:
            hits += ahead[0] < LISTED
    return largest_bonus(hits)


def _best_alone(examples: Examples) -> int | None:
    """The popularity by which somebody of whom nothing is known finds most (NDCG); None: too few
    of them are known of.

    Another one than the usual has to be better by more than chance explains: with some hundred
    strangers, ten of whom find something, chance would choose.
    """
    (rows,) = np.nonzero((examples.context[:, HAS_QUERY] == 0) & (examples.context[:, LENGTH] == 0))
    if len(rows) < LEAST_ALONE:
        return None
    features, _, inside, targets = examples.batch(rows)
    popular = features[:, :, POPULAR:AGE].masked_fill(~inside[:, :, None], -torch.inf)
    own = popular[torch.arange(len(rows)), targets]
    ranks = (popular >= own[:, None]).sum(1)
    gains = torch.where(ranks <= ALONE_LIST, 1 / torch.log2(1.0 + ranks), 0.0)
    more = gains - gains[:, [USUAL_ALONE - POPULAR]]
    surely = more.mean(0) - SURELY * more.std(0) / len(rows) ** 0.5
    return POPULAR + int(surely.argmax()) if surely.max() > 0 else USUAL_ALONE


def _batches(size: int, rng: np.random.Generator) -> Iterator[Int64s]:
    """Without end: all, in another order each time."""
    while True:
        order = rng.permutation(size)
        yield from (order[begin : begin + BATCH] for begin in range(0, size, BATCH))


def asked_at(events: Events, rows: Int64s, rng: np.random.Generator) -> Int64s:
    """(T) ms: a moment between the user's last event before each and its own time."""
    last = np.where(rows > events.firsts[rows], events.times[np.maximum(rows - 1, 0)], UNKNOWN_TIME)
    return asked_between(last, events.times[rows], rng)


def collected(walk: LiveWalk, rows: Int64s, lists: ModelLists) -> Examples:
    """Of the events of these rows (T), those of `lists`, each before it is counted."""
    collector = Collector()
    for place, row in enumerate(rows.tolist()):
        collector.add(walk, row, lists, place)
        walk.observe(rows[place : place + 1])
    return collector.examples()


def walked(
    log: Log, model: TiM4Rec, item_ids: Sequence[str], since_ms: int, *, seed: int = 0
) -> Examples:
    """What a walk through a log meets from `since_ms` on, each event before it is counted.

    Raises:
        InputError: a time is not known.
    """
    events = Events.of(log)
    order = np.argsort(events.times, kind="stable")
    begin = int(np.searchsorted(events.times[order], since_ms))
    begin = max(begin, len(order) - _LOOKED_AT)
    walk = LiveWalk(events, user_ids(log), model, item_ids)
    walk.observe(order[:begin])
    rows = order[begin:]
    times = asked_at(events, rows, np.random.default_rng(seed))
    lists = ModelLists.of(events, rows, model, item_ids, times)
    return collected(walk, rows, lists)


@dataclass(frozen=True, slots=True)
class Walked:
    """A model that has not been trained on what came from `since_ms` on; item_ids: in its order."""

    model: TiM4Rec
    item_ids: Sequence[str]
    since_ms: int

    def examples(self, log: Log, seed: int) -> Examples:
        """What it meets in a log from then on."""
        return walked(log, self.model, self.item_ids, self.since_ms, seed=seed)


def fit_mixture(
    log: Log,
    model: TiM4Rec,
    item_ids: Sequence[str],
    since_ms: int,
    *,
    start: Mixture | None = None,
    start_until_ms: int | None = None,
    seed: int = 0,
) -> Mixture | None:
    """Walks through the log and fits what happens from `since_ms` on.

    Args:
        model, item_ids: trained on what lies before.
        start: as of `fitted`; start_until_ms: until when it was fitted, None: not on any of it.

    Returns:
        None where too little happens to fit anything.

    Raises:
        InputError: a time is not known.
    """
    examples = walked(log, model, item_ids, since_ms, seed=seed)
    if len(examples) < LEAST_EVENTS:
        return None
    new = 1.0
    if start_until_ms is not None:
        times = log.frame["time_ms"].to_numpy()
        new = float((times > start_until_ms).sum() / (times >= since_ms).sum())
    return fitted(examples, start=start, new=new, seed=seed)


def refit_mixture(
    log: Log,
    before: Walked,
    after: Walked,
    *,
    start: Mixture | None,
    seed: int = 0,
) -> Mixture | None:
    """A mixture for a model that was trained on: fitted on what both it and the one before it have
    met, each on what it was not trained on.

    Args:
        before: the model before, whose mixture is `start`; after: the newer one, which was trained
            until its `since_ms`.

    Returns, raises as `fit_mixture`.
    """
    parts = [before.examples(log.until(after.since_ms - 1), seed), after.examples(log, seed)]
    examples = Examples.joined([part for part in parts if len(part)] or parts[:1])
    return fitted(examples, start=start, seed=seed) if len(examples) >= LEAST_EVENTS else None


def user_ids(log: Log) -> list[str]:
    """The log's users, in the order of `Events`."""
    frame = log.frame["user_id"]
    return frame.rle().struct.field("value").to_list()
