"""`tim4rec live fit` on a model and a log of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model import ModelConfig, TiM4Rec
from model.artefact import METRICS, load_artefact, save_artefact
from model.items import Items
from model.kinds import KindRules
from model.times import iso
from tests.cli.conftest import BASE_MS, Write, tim4rec
from tests.model.mixtures import same

TRAINED_UNTIL = BASE_MS + 500_000
ROWS = [
    (f"u{user}", f"i{(user + step) % 12}", BASE_MS + 1000 * (2 * user + step))
    for user in range(600)
    for step in range(3)
]


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = TiM4Rec(ModelConfig(n_items=10, d_model=8, n_layers=1, head_dim=8, d_state=4))
    items = Items([f"i{n}" for n in range(10)], np.ones(10, np.int64))
    metrics, rules = {"until": iso(TRAINED_UNTIL)}, KindRules.parse("view:step,*:count")
    save_artefact(tmp_path / "made", model, items, metrics, "a card", kinds=rules)
    return tmp_path / "made"


def test_a_mixture_is_fitted_on_what_came_after_the_training(artefact: Path, write: Write) -> None:
    before = load_artefact(artefact)
    log = write(ROWS)
    result = tim4rec("live", "fit", artefact, log)
    assert result.exit_code == 0, result.output
    assert iso(TRAINED_UNTIL + 1) in result.output
    after = load_artefact(artefact)
    assert after.identity == before.identity
    assert after.kinds == before.kinds is not None
    assert after.edition != before.edition
    assert after.mixture is not None
    assert json.loads((artefact / METRICS).read_text())["mixture"]["seed"] == 0
    other = artefact.with_name("other")
    assert tim4rec("live", "fit", artefact, log, "--out", other).exit_code == 0
    again = load_artefact(other).mixture
    assert again is not None
    assert same(after.mixture, again)
    elsewhere = tim4rec("live", "fit", artefact, log, "--since", iso(BASE_MS + 900_000))
    assert elsewhere.exit_code == 0, elsewhere.output
    assert not same(load_artefact(artefact).mixture or again, again)


def test_what_can_not_be_fitted_on_changes_nothing(artefact: Path, write: Write) -> None:
    before = load_artefact(artefact).edition
    log = write(ROWS)
    late = tim4rec("live", "fit", artefact, log, "--since", iso(ROWS[-1][2] - 5000))
    assert late.exit_code != 0
    assert "too few to fit a mixture on" in late.output
    wrong = tim4rec("live", "fit", artefact, log, "--since", "yesterday")
    assert wrong.exit_code != 0
    assert "--since" in wrong.output
    (artefact / METRICS).write_text("{}")
    unsaid = tim4rec("live", "fit", artefact, log)
    assert "--since is needed" in unsaid.output
    assert load_artefact(artefact).edition == before
