"""The ranks that one trained model gave to every user's test item, kept for paired comparisons."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from training.dataset import Dataset, Int64s
from training.metrics import ranking_metrics

LONG = 200
"""Users with more interactions than this before their target are also measured apart."""

RESULT, RANKS = "result.json", "ranks.npz"

EARLIER = {"masked": "filtered", "told": "known", "not told": "unknown"}
"""What results of earlier versions say, and what is said now."""


def digest(dataset: Dataset) -> str:
    """Names a data set as it was split; results of another are never taken for its own."""
    found = hashlib.blake2b(json.dumps(dataset.protocol.to_dict()).encode(), digest_size=16)
    histories = dataset.histories
    for array in (histories.offsets, histories.items, histories.times, dataset.train_ends):
        found.update(np.ascontiguousarray(array).tobytes())
    for ids in (dataset.user_ids, dataset.item_ids):
        found.update(json.dumps(ids).encode())
    return found.hexdigest()


class ResultError(ValueError):
    """A result that can't be read or compared; the message names it and the way out."""


class View(NamedTuple):
    """One way of asking.

    seen: `kept`, `filtered` or `weighed`, which is kept with the model's repeat bias; history: what
    the model was given of it; request_time: whether it knew the time of the request, here the
    target's own.
    """

    seen: str = "kept"
    history: str = "whole"
    request_time: bool = False

    def __str__(self) -> str:
        return f"seen {self.seen}, {self.history}, request time {self._asked}"

    @property
    def key(self) -> str:
        return f"{self.seen}|{self.history}|{self._asked}"

    @property
    def _asked(self) -> str:
        return "known" if self.request_time else "unknown"

    @classmethod
    def of(cls, key: str) -> View:
        seen, history, asked = (EARLIER.get(word, word) for word in key.split("|"))
        return cls(seen, history, {"known": True, "unknown": False}[asked])


@dataclass(frozen=True, slots=True)
class Ranks:
    """users, targets: ids, (T) strings; lengths: interactions before the target, (T); ranks: from
    1, ties counted against the model, `training.metrics.MISS` where it can't be recommended."""

    users: npt.NDArray[np.str_]
    targets: npt.NDArray[np.str_]
    lengths: Int64s
    ranks: dict[View, Int64s]

    @classmethod
    def of(cls, dataset: Dataset, ranks: Mapping[View, Int64s]) -> Ranks:
        """Ranks of a data set's test targets, in their order."""
        test = dataset.test
        items = np.array(["", *dataset.item_ids])
        lengths = test.ends - dataset.histories.offsets[test.users]
        users = np.array(dataset.user_ids)[test.users]
        return cls(users, items[test.items], lengths, dict(ranks))

    def save(self, path: Path) -> None:
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            np.savez_compressed(
                file,
                **{
                    "users": self.users,
                    "targets": self.targets,
                    "lengths": self.lengths,
                    **{view.key: ranks for view, ranks in self.ranks.items()},
                },  # type: ignore[arg-type]
            )
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Ranks:
        """Raises ResultError where `path` is no file of ranks."""
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            users, targets, lengths = (arrays.pop(name) for name in ("users", "targets", "lengths"))
            return cls(users, targets, lengths, {View.of(key): v for key, v in arrays.items()})
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ResultError(f"{path}: not a file of ranks ({error}); measure it again") from error

    def rows(self) -> list[dict[str, Any]]:
        """HR, NDCG and MRR of every view, of all users and of those with a long history."""
        groups = {"all": np.ones(len(self.users), dtype=np.bool_)}
        if (self.lengths > LONG).any():
            groups[f"over {LONG}"] = self.lengths > LONG
        return [
            {
                "seen": view.seen,
                "history": view.history,
                "request_time": view.request_time,
                "users": group,
                "n_users": int(chosen.sum()),
                **ranking_metrics(ranks[chosen]),
            }
            for group, chosen in groups.items()
            for view, ranks in self.ranks.items()
        ]


def write_result(folder: Path, ranks: Ranks, result: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps ranks and figures in `folder`; a folder with a result is complete."""
    whole = {**result, "rows": ranks.rows()}
    ranks.save(folder / RANKS)
    part = folder / (RESULT + ".part")
    part.write_text(json.dumps(whole, indent=1))
    part.replace(folder / RESULT)
    return whole


def read_result(folder: Path) -> dict[str, Any] | None:
    """What `write_result` kept; None where there is none yet.

    Raises ResultError where the file is damaged.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ResultError(f"{path}: not JSON ({error}); remove it to measure again") from error
    for row in found["rows"]:
        row["seen"] = EARLIER.get(row["seen"], row["seen"])
    return found
