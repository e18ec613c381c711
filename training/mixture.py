"""Fits the mixture of a model's scores and the live layer's evidence on a walk forward in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model import UNKNOWN_TIME, TiM4Rec
from model.live.mixture import Mixture, Weights
from model.live.ranking import KNOWN, N_CONTEXT, N_FEATURES, SCORED
from training.batches import asked_between
from training.dataset import Int64s
from training.forward.events import Events
from training.forward.live_walk import LiveWalk, ModelLists
from training.interactions import Log

HIDDEN = 16
EPOCHS = 6
LR = 3e-3
BATCH = 256
LEAST_STEPS = 400
"""With fewer, of few events, it stays near where it began, which is at random."""
MOST_EVENTS = 20_000
"""The newest events that a mixture is fitted on."""
LEAST_EVENTS = 200
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


def fitted(examples: Examples, *, seed: int = 0) -> Mixture:
    """The mixture by which the items that were had are likeliest among their candidates: cross
    entropy, on the newest events."""
    examples = examples.newest(MOST_EVENTS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MixtureNetwork(examples)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=1e-4)
    batches = -(-len(examples) // BATCH)
    epochs = max(EPOCHS, -(-LEAST_STEPS // batches))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, epochs * batches)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps are so small that threads mostly wait for each other
    try:
        for _ in range(epochs):
            order = rng.permutation(len(examples))
            for begin in range(0, len(order), BATCH):
                features, context, inside, targets = examples.batch(order[begin : begin + BATCH])
                scores = network(features, context).masked_fill(~inside, -1e9)
                loss = nn.functional.cross_entropy(scores, targets)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    finally:
        torch.set_num_threads(threads)
    return network.mixture()


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


def fit_mixture(
    log: Log, model: TiM4Rec, item_ids: Sequence[str], since_ms: int, *, seed: int = 0
) -> Mixture | None:
    """Walks through the log and fits what happens from `since_ms` on.

    Args:
        model, item_ids: trained on what lies before.

    Returns:
        None where too little happens to fit anything.

    Raises:
        InputError: a time is not known.
    """
    examples = walked(log, model, item_ids, since_ms, seed=seed)
    return fitted(examples, seed=seed) if len(examples) >= LEAST_EVENTS else None


def user_ids(log: Log) -> list[str]:
    """The log's users, in the order of `Events`."""
    frame = log.frame["user_id"]
    return frame.rle().struct.field("value").to_list()
