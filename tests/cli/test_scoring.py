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
from model.kinds import KindRules
from model.times import iso
from tests.cli.conftest import BASE_MS, Write, tim4rec
from tests.model.mixtures import some_mixture
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
    rules = KindRules.parse("view:step,*:count")
    save_artefact(tmp_path / "parent", model, items, metrics, "# A card\n", kinds=rules)
    return load_artefact(tmp_path / "parent")


def test_an_edition_of_the_same_model(parent: Artefact, write: Write, tmp_path: Path) -> None:
    path = write(ROWS)
    publish_scoring("shop", read_log(path), parent.folder, tmp_path / "first")
    first = load_artefact(tmp_path / "first")
    assert first.identity == parent.identity
    assert first.kinds == parent.kinds == KindRules.parse("view:step,*:count")
    assert first.edition not in (parent.edition, parent.identity)
    assert first.items.ids == parent.items.ids
    assert first.scored_items.ids == [*parent.items.ids, "i10", "i11"]
    assert first.mixture is None
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
    assert second.metrics["core_until"] == iso(TRAINED_UNTIL)
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


def test_a_mixture_is_fitted_anew_on_all_that_the_core_has_not_seen(
    parent: Artefact, write: Write, tmp_path: Path
) -> None:
    folder = tmp_path / "with mixture"
    model, metrics = parent.model, parent.metrics
    save_artefact(folder, model, parent.items, metrics, "# A card\n", some_mixture())
    before, newest = load_artefact(folder), max(time for _, _, time in ROWS)
    for name, rows in (("first", ROWS), ("second", [*ROWS, ("u1", "i3", newest + 1000)])):
        made = tim4rec(
            "train", write(rows), "--from", folder, "--scoring-only", "--out", tmp_path / name
        )
        assert made.exit_code == 0, made.output
        after = load_artefact(tmp_path / name)
        assert after.identity == before.identity
        assert after.edition not in (before.edition, before.identity)
        assert after.model.scoring is None
        said = after.metrics
        assert (said["parent"], said["step"]) == (load_artefact(folder).edition, "scoring")
        assert said["core_until"] == iso(TRAINED_UNTIL)
        assert said["until"] == iso(max(time for _, _, time in rows))
        folder = tmp_path / name


def test_it_needs_a_parent_and_something_new(
    parent: Artefact, write: Write, tmp_path: Path
) -> None:
    alone = tim4rec("train", write(ROWS), "--scoring-only", "--out", tmp_path / "none")
    assert (alone.exit_code, "--scoring-only is for --from" in alone.output) == (1, True)
    folder = tmp_path / "with mixture"
    save_artefact(folder, parent.model, parent.items, parent.metrics, "", some_mixture())
    few = write([row for row in ROWS if row[2] <= TRAINED_UNTIL])
    made = tim4rec("train", few, "--from", folder, "--scoring-only", "--out", tmp_path / "none")
    assert made.exit_code == 1
    assert "too few to fit a mixture" in made.output
    assert not (tmp_path / "none").exists()
