"""An artefact scored anew by a log, and what commands make of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cli.scoring import publish_scoring
from model import ModelConfig, TiM4Rec
from model.artefact import CARD, Artefact, load_artefact, save_artefact
from model.items import Items
from model.times import iso
from tests.cli.conftest import BASE_MS, Write, tim4rec
from training.interactions import read_log
from training.tables import InputError

TRAINED_UNTIL = BASE_MS + 500_000
ROWS = [
    (f"u{user}", f"i{(user + step) % 12}", BASE_MS + 1000 * (2 * user + step))
    for user in range(600)
    for step in range(4)
]


@pytest.fixture
def parent(tmp_path: Path) -> Artefact:
    torch.manual_seed(0)
    model = TiM4Rec(ModelConfig(n_items=10, d_model=8, n_layers=1, head_dim=8, d_state=4))
    items = Items([f"i{n}" for n in range(10)], np.ones(10, np.int64))
    metrics = {"until": iso(TRAINED_UNTIL), "protocol": {"core_users": 1, "core_items": 1}}
    save_artefact(tmp_path / "parent", model, items, metrics, "# A card\n")
    return load_artefact(tmp_path / "parent")


def test_an_edition_of_the_same_model(parent: Artefact, write: Write, tmp_path: Path) -> None:
    path = write(ROWS)
    publish_scoring("shop", read_log(path), parent.folder, tmp_path / "first")
    first = load_artefact(tmp_path / "first")
    assert first.identity == parent.identity
    assert first.edition not in (parent.edition, parent.identity)
    assert first.items.ids == parent.items.ids
    assert first.scored_items.ids == [*parent.items.ids, "i10", "i11"]
    assert first.mixture is not None
    newest = max(time for _, _, time in ROWS)
    said = first.metrics
    assert (said["parent"], said["step"]) == (parent.edition, "scoring")
    assert (said["until"], said["protocol"]) == (iso(newest), parent.metrics["protocol"])
    assert (said["scoring"]["since"], said["scoring"]["new_items"]) == (iso(TRAINED_UNTIL + 1), 2)
    with pytest.raises(InputError, match="nothing to learn"):
        publish_scoring("shop", read_log(path), first.folder, tmp_path / "second")
    path = write([*ROWS, ("u1", "i3", newest + 1000), ("u2", "i12", newest + 2000)])
    publish_scoring("shop", read_log(path), first.folder, tmp_path / "second")
    second = load_artefact(tmp_path / "second")
    assert second.identity == parent.identity
    assert second.metrics["parent"] == first.edition
    assert second.scored_items.ids[-1] == "i12"
    assert second.mixture is not None, "the parent's, where too little has happened"
    card = (second.folder / CARD).read_text()
    assert card.startswith("# A card\n")
    assert card.count("## Scoring") == 1
    assert first.edition in card


def test_it_is_fitted_and_evaluated_like_any_other(
    parent: Artefact, write: Write, tmp_path: Path
) -> None:
    path, folder = write(ROWS), tmp_path / "scored"
    publish_scoring("shop", read_log(path), parent.folder, folder)
    before = load_artefact(folder)
    evaluated = tim4rec("evaluate", folder, path)
    assert evaluated.exit_code == 0, evaluated.output
    assert "12 items" in evaluated.output
    fitted = tim4rec("live", "fit", folder, path, "--since", iso(TRAINED_UNTIL))
    assert fitted.exit_code == 0, fitted.output
    after = load_artefact(folder)
    assert after.identity == before.identity
    assert after.edition != before.edition
    assert torch.equal(after.model.scoring_vectors, before.model.scoring_vectors)
