"""The small step that trains what scores and moves no state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import UNKNOWN_TIME, TiM4Rec
from model.artefact import Artefact
from model.items import Items
from model.scoring import Scoring
from model.times import iso
from tests.training.logs import DAY_MS, START_MS, make_log
from tests.training.models import KNOWN, tiny_model
from training import scoring_step as module
from training.forward.events import Events, KnownHistories, queries_at
from training.interactions import Log
from training.scoring_step import ScoringStep, scoring_step
from training.tables import InputError

SINCE_MS = START_MS + 30 * DAY_MS


def a_log(users: int = 120) -> Log:
    """Before SINCE_MS, items of the model at random; from then on one follows the other, every
    third a new one, and one new item that everybody has once."""
    draw = np.random.default_rng(0)
    rows = []
    for user in range(users):
        rows += [(f"u{user}", str(draw.choice(KNOWN)), START_MS + n * DAY_MS) for n in range(4)]
        place, items = user % 12, [*KNOWN[:8], *(f"new {n}" for n in range(4))]
        for n in range(5):
            rows.append((f"u{user}", items[(place + n) % 12], SINCE_MS + n * DAY_MS))
        rows.append((f"u{user}", "everybody's", SINCE_MS + 6 * DAY_MS))
    return make_log(rows)


def an_artefact(model: TiM4Rec | None = None) -> Artefact:
    items = Items(KNOWN, np.arange(len(KNOWN)), [f"Title {item}" for item in KNOWN])
    until = {"until": iso(SINCE_MS - 1)}
    return Artefact(model or tiny_model(), items, until, "parent", Path())


@pytest.fixture(scope="module")
def log() -> Log:
    return a_log()


@pytest.fixture(scope="module")
def step(log: Log) -> ScoringStep:
    return scoring_step(log, an_artefact(), since_ms=None, console=None)


def loss(model: TiM4Rec, scoring: Scoring, log: Log) -> float:
    """Of the new events, under a softmax over all items."""
    events = Events.of(log)
    (rows,) = np.nonzero(events.times >= SINCE_MS)
    inputs = KnownHistories.of(events, rows, scoring.items.ids, len(KNOWN))
    scored = tiny_model()
    scored.scoring = scoring
    scores = scored.scores(queries_at(model, inputs, events.times[rows]))
    chosen = torch.from_numpy(inputs.lengths > 0)
    targets = torch.from_numpy(inputs.targets)
    return float(torch.nn.functional.cross_entropy(scores[chosen], targets[chosen]))


def test_new_items_are_scored_and_what_came_becomes_likelier(log: Log, step: ScoringStep) -> None:
    items = step.scoring.items
    assert items.ids[: len(KNOWN)] == KNOWN
    assert {*items.ids[len(KNOWN) :]} == {"everybody's", *(f"new {n}" for n in range(4))}
    assert step.new_items == 5
    assert items.titles is not None
    assert items.titles[:1] + items.titles[len(KNOWN) :] == ["Title i000", *[None] * 5]
    assert items.categories is None
    assert items.popularity[items.ids.index("everybody's")] == 120
    assert (step.since_ms, step.until_ms) == (SINCE_MS, SINCE_MS + 6 * DAY_MS)
    model, parent = tiny_model(), an_artefact()
    events = Events.of(log)
    first = module._first_scoring(model, parent.items, items, events, 0)
    assert loss(model, step.scoring, log) < loss(model, first, log) - 0.05


def test_no_weight_of_the_parent_moves(log: Log) -> None:
    parent = an_artefact()
    before = {name: tensor.clone() for name, tensor in parent.model.state_dict().items()}
    scoring_step(log, parent, since_ms=SINCE_MS, console=None)
    assert parent.model.scoring is None
    for name, tensor in parent.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_same_seed_gives_the_same(log: Log, step: ScoringStep) -> None:
    again = scoring_step(log, an_artefact(), since_ms=SINCE_MS, console=None)
    assert torch.equal(again.scoring.vectors, step.scoring.vectors)
    assert torch.equal(again.scoring.bias, step.scoring.bias)


def test_a_step_goes_on_from_the_step_before(log: Log, step: ScoringStep) -> None:
    model = tiny_model()
    model.scoring = step.scoring
    parent = replace(an_artefact(model), metrics={"until": iso(step.until_ms)})
    later = step.until_ms + DAY_MS
    more = [("u3", "newest", later), ("u4", "i001", later), ("u9", "new 1", later + 1)]
    frame = make_log([*log.frame.iter_rows(), *more])
    second = scoring_step(frame, parent, since_ms=None, console=None)
    assert second.scoring.items.ids == [*step.scoring.items.ids, "newest"]
    assert second.since_ms == step.until_ms + 1
    moved = (second.scoring.vectors[: len(step.scoring.vectors)] - step.scoring.vectors).abs()
    assert 0 < moved.max() < 0.5


def test_it_is_held_near_what_was_before(
    log: Log, step: ScoringStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = an_artefact()

    def moved(scoring: Scoring) -> float:
        known = parent.model.item_embedding.weight.detach()[1:]
        return float((scoring.vectors[1 : len(known) + 1] - known).norm())

    monkeypatch.setattr(module, "HOLD", 1e4)
    held = scoring_step(log, parent, since_ms=None, console=None)
    assert moved(held.scoring) < 0.5 * moved(step.scoring)


def test_a_sample_of_the_catalogue_is_learned_from_too(
    log: Log, step: ScoringStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WHOLE", 1)
    monkeypatch.setattr(module, "NEGATIVES", 40)
    sampled = scoring_step(log, an_artefact(), since_ms=None, console=None)
    model = tiny_model()
    assert loss(model, sampled.scoring, log) < loss(model, step.scoring, log) + 0.05


def test_what_it_can_not_learn_from(log: Log) -> None:
    parent = an_artefact()
    with pytest.raises(InputError, match="nothing to learn"):
        scoring_step(log, parent, since_ms=SINCE_MS + 7 * DAY_MS, console=None)
    with pytest.raises(InputError, match="until when"):
        scoring_step(log, replace(parent, metrics={}), since_ms=None, console=None)
    timeless = make_log([*log.frame.iter_rows(), ("u1", "i001", UNKNOWN_TIME)])
    with pytest.raises(InputError, match="time"):
        scoring_step(timeless, parent, since_ms=None, console=None)
