"""From a log to training and evaluation data: k-core, vocabulary, order, splits.

Everything is stored flat: one array of items and one of times, and where each user's begin.
Names: U users, N interactions, T targets.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from model import UNKNOWN_TIME
from model.times import iso
from training.interactions import Log
from training.item_features import ItemFeatures
from training.tables import InputError

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Split = Literal["leave-one-out", "temporal", "forward"]

MOST_VALIDATED = 3000
"""Interactions that a forward split validates on, drawn from all after the cut."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a log becomes training, validation and test parts.

    core_users, core_items: users and items with fewer interactions are removed, until none is left.
    split: `leave-one-out` tests on each user's last interaction and validates on the one before
        (the test input includes it), cored on the full log; `temporal` cuts the log at two times,
        cores and takes its vocabulary from the part before the first, and validates and tests on
        each user's first interaction after a cut; `forward` has the first of these cuts alone and
        does not test: it validates on all that follows a known item after it, whoever's, or on
        `MOST_VALIDATED` drawn from that.
    validation_share, test_share: (temporal, forward) of the log's interactions, its latest.
    """

    core_users: int = 5
    core_items: int = 5
    split: Split = "leave-one-out"
    validation_share: float = 0.1
    test_share: float = 0.1

    def __post_init__(self) -> None:
        for name in ("core_users", "core_items"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.split not in get_args(Split):
            raise ValueError(f"split must be {' or '.join(get_args(Split))}, not {self.split!r}")
        if not (
            self.validation_share > 0
            and self.test_share > 0
            and self.validation_share + self.test_share < 1
        ):
            raise ValueError("validation_share and test_share must be positive, together below 1")

    @classmethod
    def from_dict(cls, values: object) -> Protocol:
        """From what `to_dict` gave, now or before users and items had a core each.

        Raises TypeError or ValueError for anything else.
        """
        if not isinstance(values, dict):
            raise TypeError(f"it must be an object, not {reprlib.repr(values)}")
        given = dict(values)
        if "core" in given:
            given["core_users"] = given["core_items"] = given.pop("core")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def core(self) -> str:
        """The core in words."""
        if self.core_users == self.core_items:
            return f"{self.core_users}-core"
        return f"core of {self.core_users} interactions a user and {self.core_items} an item"


@dataclass(frozen=True, slots=True)
class Histories:
    """The interactions of U users, oldest first: user u has [offsets[u], offsets[u + 1]).

    offsets (U + 1) int64, items (N) int32 in 1..V, times (N) int64 ms (UNKNOWN_TIME: not known).
    """

    offsets: Int64s
    items: Int32s
    times: Int64s

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def users(self) -> Int64s:
        """The user of each interaction: (N)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))


@dataclass(frozen=True, slots=True)
class Targets:
    """What is to be predicted: (T) each.

    users: index of the user; ends: the input is the user's interactions up to, without, this
    place in `Histories`; items: the target, 0 where it is not in the vocabulary (always a miss);
    times: the target's own, UNKNOWN_TIME where not known.
    """

    users: Int64s
    ends: Int64s
    items: Int32s
    times: Int64s

    def __len__(self) -> int:
        return len(self.users)

    def take(self, index: Int64s) -> Targets:
        return Targets(self.users[index], self.ends[index], self.items[index], self.times[index])

    def sample(self, size: int, seed: int = 0) -> Targets:
        """`size` of them drawn without replacement, in their order; all where there are fewer."""
        if size >= len(self):
            return self
        drawn = np.random.default_rng(seed).choice(len(self), size, replace=False)
        return self.take(np.sort(drawn))


@dataclass(frozen=True, slots=True)
class Replay:
    """What a model that goes on is trained on in an epoch: all training windows with a target after
    `since_ms`, and of the others a share, drawn anew each epoch."""

    since_ms: int
    share: float


@dataclass(frozen=True, slots=True)
class Dataset:
    """A log, split. The training part of user u is [offsets[u], train_ends[u]) of `histories`.

    cut_ms: the time before which everybody's training part ends; None where each has its own.
    replay: None where an epoch takes the whole training part. features: what the items have in
    common; None: nothing is known of it.
    """

    protocol: Protocol
    user_ids: list[str]
    item_ids: list[str]
    histories: Histories
    train_ends: Int64s
    validation: Targets
    test: Targets
    cut_ms: int | None = None
    replay: Replay | None = None
    features: ItemFeatures | None = None

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def train_lengths(self) -> Int64s:
        return self.train_ends - self.histories.offsets[:-1]

    @property
    def n_train_targets(self) -> int:
        """Every training interaction but each user's first."""
        return int(np.maximum(self.train_lengths - 1, 0).sum())

    def _train_target_places(self) -> npt.NDArray[np.bool_]:
        place = np.arange(len(self.histories.items))
        user = self.histories.users
        chosen: npt.NDArray[np.bool_] = (place > self.histories.offsets[user]) & (
            place < self.train_ends[user]
        )
        return chosen

    def n_targets_after(self, ms: int) -> int:
        """How many training targets are later than that."""
        return int((self.histories.times[self._train_target_places()] > ms).sum())

    def popularity(self) -> Int64s:
        """How often each item is a training target: (V), index i is item i + 1."""
        items = self.histories.items[self._train_target_places()]
        return np.bincount(items, minlength=self.n_items + 1)[1:].astype(np.int64)

    def repeats(self) -> float:
        """Share of the validation targets that their user has had before."""
        histories, wide = self.histories, self.n_items + 1
        user = histories.users
        earlier = np.arange(len(user)) < self.train_ends[user]
        had = user[earlier] * wide + histories.items[earlier]
        asked = self.validation.users * wide + self.validation.items
        return float(np.isin(asked, had).mean()) if len(asked) else 0.0

    def gap_range_ms(self) -> tuple[int, int] | None:
        """Smallest and largest positive gap of the training part; None where there is none."""
        later = np.flatnonzero(self._train_target_places())
        times = self.histories.times
        known = (times[later] != UNKNOWN_TIME) & (times[later - 1] != UNKNOWN_TIME)
        gaps = times[later[known]] - times[later[known] - 1]
        gaps = gaps[gaps > 0]
        return (int(gaps.min()), int(gaps.max())) if len(gaps) else None

    def newest_ms(self) -> int | None:
        """The latest time of all interactions; None where none is known."""
        newest = int(self.histories.times.max())
        return None if newest == UNKNOWN_TIME else newest

    def tie_agreement(self) -> float | None:
        """How likely two users, each of whom has the same two items one right after the other at
        the same time, have them in the same order: 0.5 if that order is chance, and tells nothing.

        Of training interactions; None where no two users have such a pair.
        """
        later = np.flatnonzero(self._train_target_places())
        items, times = self.histories.items.astype(np.int64), self.histories.times
        later = later[(times[later] == times[later - 1]) & (times[later] != UNKNOWN_TIME)]
        a, b = items[later - 1], items[later]
        _, pair = np.unique(
            np.minimum(a, b) * (self.n_items + 1) + np.maximum(a, b), return_inverse=True
        )
        up = np.bincount(pair, a < b)
        down = np.bincount(pair, a > b)
        alike = (up * (up - 1) + down * (down - 1)).sum()
        met = ((up + down) * (up + down - 1)).sum()
        return float(alike / met) if met else None

    def describe(self) -> dict[str, int | float]:
        """Sizes for metrics and the model card."""
        lengths = np.diff(self.histories.offsets)
        return {
            "users": len(self.histories),
            "items": self.n_items,
            "interactions": len(self.histories.items),
            "mean_length": round(float(lengths.mean()), 2),
            "longest": int(lengths.max()),
            "training_targets": self.n_train_targets,
            "validation_targets": len(self.validation),
            "test_targets": len(self.test),
            "test_targets_unseen": int((self.test.items == 0).sum()),
            "unknown_times": int((self.histories.times == UNKNOWN_TIME).sum()),
        }


def k_core(users: Int64s, items: Int64s, k_users: int, k_items: int) -> npt.NDArray[np.bool_]:
    """Which rows are left once every user has at least `k_users` of them and every item `k_items`:
    (N) bool."""
    keep = np.ones(len(users), dtype=np.bool_)
    while True:
        sparse = np.zeros(len(users), dtype=np.bool_)
        for codes, k in ((users, k_users), (items, k_items)):
            counts = np.bincount(codes[keep], minlength=int(codes.max(initial=-1)) + 1)
            sparse |= keep & (counts[codes] < k)
        if not sparse.any():
            return keep
        keep &= ~sparse


def build_dataset(
    log: Log,
    protocol: Protocol | None = None,
    vocabulary: Sequence[str] | None = None,
    n_inputs: int | None = None,
) -> Dataset:
    """Splits a log.

    Args:
        vocabulary: item ids of a trained model, in its order; None: those of the training part,
            sorted. Interactions with other items are left out of the inputs; as targets they
            are misses.
        n_inputs: of the vocabulary, how many are inputs, which come first; the others are targets
            only. None: all.

    Raises:
        InputError: nothing is left to train, validate or test on, or a split in time lacks times.
    """
    protocol = protocol or Protocol()
    frame = log.frame
    user_codes, user_ids = codes(frame["user_id"])
    item_codes, item_ids = codes(frame["item_id"])
    times = frame["time_ms"].to_numpy().astype(np.int64)
    first_cut: int | None = None
    if protocol.split == "leave-one-out":
        training = np.ones(len(times), dtype=np.bool_)
    else:
        first_cut, second_cut = _cuts(times, protocol)
        training = times < first_cut
        if not training.any():
            raise InputError(
                f"nothing lies before the cut of a {protocol.split} split, {iso(first_cut)}: "
                f"times are from {iso(int(times.min()))} to {iso(int(times.max()))}; "
                "--split leave-one-out needs no cut"
            )
    core = np.zeros(len(times), dtype=np.bool_)
    core[training] = k_core(
        user_codes[training], item_codes[training], protocol.core_users, protocol.core_items
    )
    if not core.any():
        raise InputError(
            f"no interactions are left in the {protocol.core} of {int(training.sum())} "
            "interactions to train on; use a smaller --core"
        )
    if vocabulary is None:
        # The codes follow the sorted ids, so these are sorted as well.
        vocabulary = [item_ids[code] for code in np.unique(item_codes[core])]
    index_of = {item: index for index, item in enumerate(vocabulary, 1)}
    index = np.array([index_of.get(item, 0) for item in item_ids], dtype=np.int32)

    users_kept = np.unique(user_codes[core])
    keep = core | (~training & np.isin(user_codes, users_kept))
    if protocol.split == "forward":  # newer users are validated on as well
        newer = np.setdiff1d(_that_go_on(user_codes, index[item_codes] > 0, training), users_kept)
        keep |= np.isin(user_codes, newer)
        users_kept = np.union1d(users_kept, newer)
    user_of = np.full(len(user_ids), -1)
    user_of[users_kept] = np.arange(len(users_kept))
    users = user_of[user_codes[keep]]
    items, times, core, training = (
        index[item_codes[keep]], times[keep], core[keep], training[keep]
    )  # fmt: skip
    known = (items > 0) & (items <= (len(vocabulary) if n_inputs is None else n_inputs))
    before = np.concatenate([[0], np.cumsum(known)])  # known rows before each row

    starts = np.searchsorted(users, np.arange(len(users_kept) + 1))
    if first_cut is not None:
        train_ends = starts[:-1] + np.bincount(users[core], minlength=len(users_kept))
        before_test = np.bincount(users[times < second_cut], minlength=len(users_kept))
        test_rows = starts[:-1] + before_test
        has_validation = train_ends < test_rows
        has_test = test_rows < starts[1:]
        validation_rows = train_ends
    else:
        has_validation = has_test = np.diff(starts) >= 3
        test_rows, validation_rows = starts[1:] - 1, starts[1:] - 2
        train_ends = np.where(has_test, validation_rows, starts[1:])

    def targets(rows: Int64s, chosen: npt.NDArray[np.bool_]) -> Targets:
        of = np.flatnonzero(chosen)
        of = of[before[rows[of]] > before[starts[of]]]  # no known input: nothing to predict from
        return Targets(of, before[rows[of]], items[rows[of]], times[rows[of]])

    validation = targets(validation_rows, has_validation)
    if protocol.split == "forward":
        (asked,) = np.nonzero(~training & (before[:-1] > before[starts[users]]))
        if len(asked) > MOST_VALIDATED:
            drawn = np.random.default_rng(0).choice(len(asked), MOST_VALIDATED, replace=False)
            asked = asked[np.sort(drawn)]
        validation = Targets(users[asked], before[asked], items[asked], times[asked])

    dataset = Dataset(
        protocol=protocol,
        user_ids=[user_ids[code] for code in users_kept],
        item_ids=list(vocabulary),
        histories=Histories(before[starts], items[known], times[known]),
        train_ends=before[train_ends],
        validation=validation,
        test=targets(test_rows, has_test),
        cut_ms=first_cut,
    )
    tested = protocol.split == "forward" or len(dataset.test)
    if not (tested and len(dataset.validation)):
        raise InputError(
            f"no user is left to validate and test on ({protocol.split}, {protocol.core}, "
            f"{len(dataset.histories)} users): a user needs at least 3 interactions"
        )
    return dataset


def _that_go_on(
    users: Int64s, known: npt.NDArray[np.bool_], training: npt.NDArray[np.bool_]
) -> Int64s:
    """The users who have an interaction outside the training part after one of a known item."""
    row = np.arange(len(users))
    n_users = int(users.max()) + 1
    first, last = np.full(n_users, len(users)), np.full(n_users, -1)
    np.minimum.at(first, users[known], row[known])
    np.maximum.at(last, users[~training], row[~training])
    return np.flatnonzero(last > first)


def codes(ids: pl.Series) -> tuple[Int64s, list[str]]:
    """Each id's place in the sorted distinct ids (by code point), and those."""
    distinct = ids.unique().sort()
    codes = ids.replace_strict(distinct, pl.int_range(len(distinct), eager=True))
    return codes.to_numpy().astype(np.int64), distinct.to_list()


def _cuts(times: Int64s, protocol: Protocol) -> tuple[int, int]:
    """Where validation begins and where the test does; nothing is as late as the end of int64."""
    unknown = int((times == UNKNOWN_TIME).sum())
    if unknown:
        raise InputError(
            f"a {protocol.split} split needs every time; {unknown} are not known; --split "
            "leave-one-out needs none"
        )
    ordered = np.sort(times)
    if protocol.split == "forward":
        first = int(len(ordered) * (1 - protocol.validation_share))
        return int(ordered[first]), np.iinfo(np.int64).max
    first = int(len(ordered) * (1 - protocol.validation_share - protocol.test_share))
    second = int(len(ordered) * (1 - protocol.test_share))
    return int(ordered[first]), int(ordered[second])
