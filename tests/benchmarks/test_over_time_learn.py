"""A learner in the walk forward in time: what it trains on, judges and serves."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.forward import learning
from benchmarks.forward.learning import Learner, Step, Trained, learned_ranks
from benchmarks.forward.live import SERVED, live_ranks
from benchmarks.forward.training import Refitted
from tests.training.logs import ring_log
from tests.training.models import tiny_model
from training.dataset import Int64s
from training.forward.events import Events
from training.forward.models import Served
from training.forward.walk import Walk
from training.interactions import Log
from training.verdict import Verdict

pytestmark = pytest.mark.usefixtures("few_steps")

PERIODS = 2
KNOWN = [f"i{n}" for n in range(60)]


@pytest.fixture(autouse=True)
def _half_of_a_period_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "JUDGED", 0.5)  # there are few events


@pytest.fixture(scope="module")
def log() -> Log:
    return ring_log()


@pytest.fixture(scope="module")
def walk(log: Log) -> Walk:
    return Walk.of(Events.of(log), 0.7, PERIODS)


@pytest.fixture(scope="module")
def models(walk: Walk) -> Refitted:
    """Not trained."""
    times = walk.events.times[walk.order]
    return Refitted(
        Served(tiny_model(KNOWN[:40], 1), KNOWN[:40]),
        int(times[int(0.6 * len(times))]),
        Served(tiny_model(KNOWN, 2), KNOWN),
    )


def learned(
    log: Log, walk: Walk, models: Refitted, step: Step
) -> tuple[dict[str, Int64s], list[str]]:
    """The ranks, and what was said."""
    said = StringIO()
    learner = Learner(log, step, Path("models"), Console(file=said, width=300))
    return learned_ranks(walk, models, learner), said.getvalue().splitlines()


def test_with_steps_that_change_nothing_it_is_what_is_served(
    log: Log, walk: Walk, models: Refitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "PASSED", tuple(Verdict))
    asked: list[tuple[int, Path]] = []

    def step(before_it: Trained, so_far: Log, folder: Path) -> Trained:
        asked.append((int(so_far.frame["time_ms"].to_numpy().max()), folder))
        return replace(before_it, mixture=None)

    found, said = learned(log, walk, models, step)
    for name, ranks in live_ranks(log, walk, models)[SERVED].items():
        assert (found[name] == ranks).all()
    assert len(said) == 1
    assert said[0].startswith("border 1: ")
    (until, one), (end, other) = asked
    assert (one, other) == (Path("models/1/judged"), Path("models/1/published"))
    times = walk.events.times
    period = times[walk.rows[walk.periods == 0]]
    assert end == times[times < walk.borders[1]].max()
    assert 0.4 < (period > until).mean() <= 0.5


def test_another_model_is_served_if_it_is_not_worse_and_from_the_border_on(
    log: Log, walk: Walk, models: Refitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = Served(tiny_model(KNOWN, 3), KNOWN)

    def step(before_it: Trained, so_far: Log, folder: Path) -> Trained:
        return Trained(candidate, before_it.until_ms)

    kept = live_ranks(log, walk, models)[SERVED]
    for passed in (False, True):
        monkeypatch.setattr(learning, "PASSED", tuple(Verdict) if passed else ())
        found, _ = learned(log, walk, models, step)
        for name, ranks in found.items():
            same = ranks == kept[name]
            assert same[walk.periods == 0].all()
            assert same[walk.periods == 1].all() != passed
