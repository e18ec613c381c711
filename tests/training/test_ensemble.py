"""The models of an ensemble are trained apart and served as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.artefact import load_artefact
from model.config import ConfigError
from model.ensemble import combine
from tests.training.logs import chain_log
from tests.training.test_commands import QUICK, tim4rec
from training.dataset import Dataset, Protocol, build_dataset
from training.ensemble import train_ensemble
from training.evaluation import rank_targets
from training.metrics import ranking_metrics
from training.recipe import model_config, training_config
from training.trainer import train

SMALL = {"d_model": 32, "d_state": 8}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return build_dataset(chain_log(users=40, length=12, items=30), Protocol())


def test_each_member_is_the_run_of_its_seed(dataset: Dataset, tmp_path: Path) -> None:
    architecture = model_config(dataset, **SMALL)
    config = training_config(dataset, targets=128, max_epochs=2, threads=1, seed=1)
    result = train_ensemble(dataset, architecture, config, 2, tmp_path)
    alone = [train(dataset, architecture, replace(config, seed=seed)) for seed in (2, 3)]
    expected = combine([run.model for run in alone]).state_dict()
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert result.epochs == sum(run.epochs for run in alone)
    ranking = rank_targets(
        result.model, dataset.histories, dataset.validation, at_target_time=(True,)
    )
    assert result.best_ndcg == ranking_metrics(ranking[True].filtered)["NDCG@10"]
    # What was trained is not trained again.
    again = train_ensemble(dataset, architecture, config, 2, tmp_path)
    assert again.seconds == pytest.approx(result.seconds)
    # Nor is what an earlier version has begun, which called its folders so.
    (tmp_path / "member-1").rename(tmp_path / "tower-1")
    again = train_ensemble(dataset, architecture, config, 2, tmp_path)
    assert again.seconds == pytest.approx(result.seconds)


def test_an_ensemble_of_one_is_a_plain_run(dataset: Dataset) -> None:
    architecture = model_config(dataset, **SMALL)
    config = training_config(dataset, targets=128, max_epochs=1, threads=1)
    alone = train_ensemble(dataset, architecture, config, 1).model.state_dict()
    for name, value in train(dataset, architecture, config).model.state_dict().items():
        assert torch.equal(value, alone[name]), name


def test_what_cannot_be_an_ensemble_is_refused_before_training(dataset: Dataset) -> None:
    config = training_config(dataset)
    with pytest.raises(ConfigError, match="n_groups must be 1 with time=sequence"):
        train_ensemble(dataset, model_config(dataset, time="sequence"), config, 2)


def test_an_artefact_of_an_ensemble(tmp_path: Path) -> None:
    frame = chain_log(users=40, length=12, items=30).frame
    frame.select("user_id", "item_id", timestamp="time_ms").write_csv(tmp_path / "log.csv")
    done = tim4rec("train", tmp_path / "log.csv", "--out", tmp_path / "m", "--ensemble=2", *QUICK)
    assert done.exit_code == 0, done.output
    assert "model 2 of 2, seed 1" in done.output
    artefact = load_artefact(tmp_path / "m")
    assert artefact.model.config.n_groups == 2
    assert artefact.model.config.d_model == 64
    assert artefact.metrics["ensemble"] == 2
    card = (tmp_path / "m" / "README.md").read_text()
    assert "an ensemble of 2 models, each trained with a seed of its own" in card
    evaluated = tim4rec("evaluate", tmp_path / "m", tmp_path / "log.csv")
    assert evaluated.exit_code == 0, evaluated.output
    assert "parallel and recurrent: " in evaluated.output
    refused = tim4rec(
        "train", tmp_path / "log.csv", "--out", tmp_path / "n", "--towers=2", "--time=sequence"
    )
    assert "--towers is now --ensemble" in refused.output
    assert refused.exit_code == 1
    assert "n_groups must be 1 with time=sequence" in refused.output
    assert "Traceback" not in refused.output
