"""Batches of training targets.

A step carries a fixed number of *targets*, not of sequences: with a fixed number of
length-sorted sequences, short histories would weigh many times more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model import UNKNOWN_TIME
from training.config import RequestMoments
from training.dataset import Dataset, Histories, Int64s


class Before(NamedTuple):
    """What came just before each window, right-padded: items, times (B, C), lengths (B) from 0."""

    items: Tensor
    times: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded sequences, all (B, L) int64.

    items: 0 pads; times: ms, UNKNOWN_TIME where not known; request_times: the time of the target
    after each position, or UNKNOWN_TIME; targets: what follows each position, 0 where no loss is
    taken. lengths: (B). before: None where every sequence is a history's beginning, or is to be
    taken for one. sequences: int32, where rows hold several: which one a position is of.
    """

    items: Tensor
    times: Tensor
    request_times: Tensor
    targets: Tensor
    lengths: Tensor
    before: Before | None = None
    sequences: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """A batch of what `function` makes of each tensor."""
        return Batch(
            items=function(self.items),
            times=function(self.times),
            request_times=function(self.request_times),
            targets=function(self.targets),
            lengths=function(self.lengths),
            before=None if self.before is None else Before(*map(function, self.before)),
            sequences=None if self.sequences is None else function(self.sequences),
        )

    def to(self, device: torch.device | str) -> Batch:
        return self.map(lambda part: part.to(device, non_blocking=True))


def gather_padded(
    histories: Histories, starts: Int64s, lengths: Int64s, width: int | None = None
) -> tuple[Int64s, Int64s]:
    """Rows [starts, starts + lengths) of the histories, right-padded: items (B, L), times (B, L).

    Padding is item 0 at UNKNOWN_TIME. L is `width`, or the longest row.
    """
    position = np.arange(int(lengths.max(initial=1)) if width is None else width)
    inside = position < lengths[:, None]
    place = np.where(inside, starts[:, None] + position, 0)
    items = np.where(inside, histories.items[place], 0).astype(np.int64)
    return items, np.where(inside, histories.times[place], UNKNOWN_TIME)


def window_batches(
    dataset: Dataset,
    *,
    targets: int = 2048,
    max_len: int = 200,
    request_dropout: float = 0.1,
    request_moments: RequestMoments = "between",
    time_masking: float = 0.0,
    context: int = 0,
    seed: int = 0,
    epoch: int = 0,
) -> Iterator[Batch]:
    """One epoch: every training target exactly once, or those of the data set's replay; a loss at
    every position.

    A history of more than `max_len` targets is cut into windows, at another place each epoch.
    Windows of similar length share a batch. With probability `request_dropout` a window's
    request times are unknown, so that a model learns to do without; with probability
    `time_masking` an interaction's own time is, and the next gap is counted from an earlier one.
    A window that starts within a history has up to `context` interactions before it. Deterministic
    in (seed, epoch).
    """
    rng = np.random.default_rng([seed, epoch])
    starts, lengths = _windows(dataset, max_len, rng)
    taken = _taken(dataset, starts, lengths, rng)
    starts, lengths = starts[taken], lengths[taken]
    offsets = dataset.histories.offsets
    firsts = offsets[np.searchsorted(offsets, starts, side="right") - 1]
    order = np.lexsort((rng.random(len(starts)), lengths))
    groups = _cut(lengths[order], targets)
    for group in rng.permutation(len(groups)):
        rows = order[groups[group]]
        items, times = gather_padded(dataset.histories, starts[rows], lengths[rows])
        followed, request_times = gather_padded(dataset.histories, starts[rows] + 1, lengths[rows])
        if request_moments == "between":
            request_times = asked_between(times, request_times, rng)
        request_times[rng.random(len(rows)) < request_dropout] = UNKNOWN_TIME
        _mask(times, time_masking, rng)
        batch = _tensors(items, times, request_times, followed, lengths[rows])
        before = np.minimum(starts[rows] - firsts[rows], context)
        if before.any():
            items, times = gather_padded(dataset.histories, starts[rows] - before, before)
            _mask(times, time_masking, rng)
            batch = replace(batch, before=Before(*_as_tensors(items, times, before)))
        yield batch


def asked_between(last: Int64s, following: Int64s, rng: np.random.Generator) -> Int64s:
    """Moments at which a service may be asked after an interaction and before the next one.

    A third each: about a second after the interaction, as the page that follows it asks; at a
    moment whose distance is log-uniform from a second to the next one's; at the next one's time.
    All that is known of the next one at such a moment is that it has not happened.

    Args:
        last, following: (B, L) ms of each interaction and of the one after it.
    """
    gap = np.where((last == UNKNOWN_TIME) | (following == UNKNOWN_TIME), 0, following - last)
    which = rng.random(gap.shape)
    drawn = rng.random(gap.shape)
    soon = 500 * 4**drawn
    # Of equal times the true distance is below the log's grain: a second is as good as any.
    soon = np.where(gap > 0, np.minimum(soon, gap), soon)
    between = np.minimum(1000, gap) * np.maximum(gap / 1000, 1) ** drawn
    distance = np.where(which < 1 / 3, soon, np.where(which < 2 / 3, between, gap))
    known = (last != UNKNOWN_TIME) & (following != UNKNOWN_TIME)
    return np.where(known, last + distance.astype(np.int64), following)


def prefix_batches(
    dataset: Dataset,
    *,
    targets: int = 2048,
    max_len: int = 50,
    time_masking: float = 0.0,
    seed: int = 0,
    epoch: int = 0,
) -> Iterator[Batch]:
    """One epoch for a `sequence` model: a sample a target, its input the last `max_len` before it.

    Rows are `max_len` wide, and the loss is at the last real position only. `time_masking` is as
    in `window_batches`. Deterministic in (seed, epoch).
    """
    rng = np.random.default_rng([seed, epoch])
    histories = dataset.histories
    user = histories.users
    place = np.arange(len(histories.items))
    first = histories.offsets[user]
    ends = place[(place > first) & (place < dataset.train_ends[user])]
    ends = ends[_taken(dataset, ends - 1, np.ones_like(ends), rng)]
    ends = rng.permutation(ends)
    for chunk in np.array_split(ends, max(1, round(len(ends) / targets))):
        starts = np.maximum(first[chunk], chunk - max_len)
        lengths = chunk - starts
        items, times = gather_padded(histories, starts, lengths, max_len)
        followed = np.zeros_like(items)
        followed[np.arange(len(chunk)), lengths - 1] = histories.items[chunk]
        unknown = np.full_like(times, UNKNOWN_TIME)
        _mask(times, time_masking, rng)
        yield _tensors(items, times, unknown, followed, lengths)


def n_batches(dataset: Dataset, *, targets: int, max_len: int) -> int:
    """About how many batches an epoch has whose windows are of at most `max_len` targets."""
    rng = np.random.default_rng(0)
    starts, lengths = _windows(dataset, max_len, rng)
    taken = _taken(dataset, starts, lengths, rng)
    return max(1, round(int(lengths[taken].sum()) / targets))


def ties_shuffled(dataset: Dataset, *, seed: int, epoch: int) -> Dataset:
    """The same, training interactions of one user and one known time in a random order.

    Many logs know the day and not the hour, and tell nothing by the order within it.
    Deterministic in (seed, epoch).
    """
    histories = dataset.histories
    user, times = histories.users, histories.times
    tied = (user[1:] == user[:-1]) & (times[1:] == times[:-1]) & (times[1:] != UNKNOWN_TIME)
    tied &= np.arange(1, len(times)) < dataset.train_ends[user[1:]]
    run = np.cumsum(np.insert(~tied, 0, True))  # ties share a number, which never falls
    within = np.flatnonzero(np.append(tied, False) | np.insert(tied, 0, False))
    drawn = np.random.default_rng([seed, epoch, 1]).random(len(within))
    items = histories.items.copy()
    items[within] = items[within[np.lexsort((drawn, run[within]))]]
    return replace(dataset, histories=replace(histories, items=items))


def _windows(dataset: Dataset, max_len: int, rng: np.random.Generator) -> tuple[Int64s, Int64s]:
    """Start and number of targets of each window."""
    totals = np.maximum(dataset.train_lengths - 1, 0)
    # Where a long history is cut moves, so that no target always lacks its context.
    head = np.where(totals > max_len, rng.integers(1, max_len + 1, len(totals)), totals)
    count = np.where(totals > 0, 1 + -(-(totals - head) // max_len), 0)
    user = np.repeat(np.arange(len(totals)), count)
    number = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    begin = np.where(number == 0, 0, head[user] + (number - 1) * max_len)
    end = np.minimum(head[user] + number * max_len, totals[user])
    return dataset.histories.offsets[user] + begin, end - begin


def _taken(
    dataset: Dataset, starts: Int64s, lengths: Int64s, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Which windows of an epoch are trained on."""
    if dataset.replay is None:
        return np.ones(len(starts), dtype=np.bool_)
    new = dataset.histories.times > dataset.replay.since_ms
    new_before = np.concatenate([[0], np.cumsum(new)])
    has_new: npt.NDArray[np.bool_] = new_before[starts + lengths + 1] > new_before[starts + 1]
    replayed = rng.random(len(starts)) < dataset.replay.share
    return has_new | replayed


def _cut(lengths: Int64s, targets: int) -> list[Int64s]:
    """Groups of consecutive windows with about the same number of targets each."""
    before = np.cumsum(lengths) - lengths
    total = int(lengths.sum())
    groups = max(1, round(total / targets))
    group = before * groups // max(total, 1)
    bounds = np.flatnonzero(np.diff(group)) + 1
    return [rows for rows in np.split(np.arange(len(lengths)), bounds) if len(rows)]


def _mask(times: Int64s, share: float, rng: np.random.Generator) -> None:
    if share:
        times[rng.random(times.shape) < share] = UNKNOWN_TIME


def _tensors(
    items: Int64s, times: Int64s, request_times: Int64s, targets: Int64s, lengths: Int64s
) -> Batch:
    parts = _as_tensors(items, times, request_times, targets, lengths)
    return Batch(*parts)  # type: ignore[arg-type]


def _as_tensors(*arrays: Int64s) -> list[Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
