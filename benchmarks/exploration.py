"""What places for items of which little is known cost, and what they find, in a simulation.

    python -m benchmarks.exploration --json exploration.json

Every item has an appeal: the chance that whoever is shown it takes it. It is drawn, and nobody
knows it. At the beginning there are items that users were shown often; from then on, new ones come.
Each answer is for a user drawn at random, who is not given again what they have taken. The list is
the items with the highest rates of takes per showing so far, by what was served: one that was
shown seldom is taken for average, and stays where it is unless it is given a place. With
exploration, the service's own code chooses which, and how often.

    takes       expected of 1,000 answers, over the whole time
    in the end  the same in the last quarter of it
    lost        how many more the best lists of all would have had, over the whole time
    found       of the new items that are among the 20 best when they come, those that came to stand
                in a list by their own rate
    after       the median of the answers from when such an item came until it did
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from cli.console import err, errors_without_traceback, out
from service.catalogue.ask import Ask
from service.catalogue.exploration import WELL_TRAINED, Exploration, seed_of
from service.catalogue.ranking import Ranking
from service.catalogue.view import CatalogueView

SHARES = (0.0, 0.02, 0.05, 0.1)
SEEDS = (1, 2)
K, USERS = 10, 2000
ITEMS, NEW_EVERY = 500, 40
"""Items at the beginning; and answers between two new ones."""
SHOWN_BEFORE = 1000
"""Showings of each item at the beginning."""
APPEAL = 1.5, 40.0
"""Of the Beta distribution of appeals: 3.6 % on average, and 9 % for one in twenty."""
AVERAGE = 50
"""Showings at the average rate that are added to those of each item."""
GOOD = 20
REFRESHED = 50
"""Answers between two times that exploration hears what was counted."""


@dataclass(frozen=True)
class Result:
    """Of one share and seed; the columns of the table."""

    share: float
    seed: int
    takes: float
    in_the_end: float
    lost: float
    found: float
    after: float | None


class World:
    """Items with their appeals, users with what they have taken, and what is counted of both."""

    def __init__(self, share: float, seed: int, answers: int) -> None:
        self._draw = np.random.default_rng(seed)
        size = ITEMS + answers // NEW_EVERY
        self.appeal = np.concatenate([[0], self._draw.beta(*APPEAL, size)])
        self.came = np.maximum(0, np.arange(size + 1) - ITEMS) * NEW_EVERY
        self.shown, self.taken = np.zeros(size + 1, np.int64), np.zeros(size + 1, np.int64)
        self.shown[1 : ITEMS + 1] = SHOWN_BEFORE
        self.taken[1 : ITEMS + 1] = self._draw.binomial(SHOWN_BEFORE, self.appeal[1 : ITEMS + 1])
        self._had: list[list[int]] = [[] for _ in range(USERS)]
        self._exploration = Exploration(share, np.full(ITEMS, WELL_TRAINED))
        self.stood = np.full(size + 1, -1)

    def answer(self, now: int) -> tuple[float, float]:
        """One more list: how many takes are expected of it, and of the best one."""
        if now % REFRESHED == 0:
            rows = np.flatnonzero(self.shown[ITEMS + 1 :]) + ITEMS + 1
            numbers = np.stack([rows, self.shown[rows], self.taken[rows]], 1)
            self._exploration.know([tuple(one) for one in numbers.tolist()])
        user = int(self._draw.integers(USERS))
        there = int(np.searchsorted(self.came, now, "right")) - 1
        ask = Ask(K, hidden=np.array(self._had[user], np.int32))
        best = _best(self._rates(there), ask)
        ideal = _best(self.appeal[: there + 1].copy(), ask)
        seed = seed_of(str(user), len(self._had[user]), now * 1000)
        found = self._exploration.arrange(best, ask, CatalogueView(there), seed)
        taken = found.items[self._draw.random(K) < self.appeal[found.items]]
        own = found.items if found.explored is None else found.items[~found.explored]
        self.stood[own] = np.where(self.stood[own] < 0, now, self.stood[own])
        self.shown[found.items] += 1
        self.taken[taken] += 1
        self._had[user] += taken.tolist()
        return float(self.appeal[found.items].sum()), float(self.appeal[ideal.items].sum())

    def _rates(self, there: int) -> NDArray[np.float64]:
        """(there + 1,) of takes per showing, of the items there are."""
        shown, taken = self.shown[: there + 1], self.taken[: there + 1]
        rates: NDArray[np.float64] = (taken + AVERAGE * taken.sum() / shown.sum()) / (
            shown + AVERAGE
        )
        return rates


def _best(rates: NDArray[np.float64], ask: Ask) -> Ranking:
    rates[0] = rates[ask.hidden] = -1
    items = np.argsort(-rates, kind="stable")[: ask.k]
    return Ranking(items, rates[items].astype(np.float32))


def run(share: float, seed: int, answers: int) -> Result:
    world = World(share, seed, answers)
    takes, most = np.array([world.answer(now) for now in range(answers)]).T
    rows = range(ITEMS + 1, len(world.appeal))
    good = np.array(
        [row for row in rows if (world.appeal[1:row] > world.appeal[row]).sum() < GOOD], np.int64
    )
    found = good[world.stood[good] >= 0]
    waited = world.stood[found] - world.came[found]
    return Result(
        share,
        seed,
        1000 * float(takes.mean()),
        1000 * float(takes[-answers // 4 :].mean()),
        1000 * float((most - takes).mean()),
        len(found) / max(1, len(good)),
        float(np.median(waited)) if len(waited) else None,
    )


def main(
    answers: Annotated[int, typer.Option(min=100, help="Of one simulation.")] = 20_000,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Simulate what exploration costs and finds."""
    with errors_without_traceback():
        results = [run(share, seed, answers) for seed in SEEDS for share in SHARES]
        table = Table(title=f"{answers:,} answers of {K} items")
        for name in ("share", "seed", "takes", "in the end", "lost", "found", "after"):
            table.add_column(name, justify="right")
        for one in results:
            table.add_row(
                f"{one.share:g}",
                str(one.seed),
                *(f"{number:.0f}" for number in (one.takes, one.in_the_end, one.lost)),
                f"{one.found:.0%}",
                "" if one.after is None else f"{one.after:,.0f}",
            )
        out.print(table)
        if json_file is not None:
            written = json.dumps([asdict(one) for one in results], indent=2) + "\n"
            json_file.write_text(written, encoding="utf-8")
            err.print(f"written to {json_file}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
