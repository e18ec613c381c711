"""Two processes train what one does."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from model.artefact import load_artefact
from tests.training.logs import chain_log
from training.config import TrainingConfig
from training.dataset import Protocol, build_dataset
from training.recipe import model_config
from training.trainer import train

ROOT = Path(__file__).parents[2]
MODEL = {"d_model": 16, "head_dim": 16, "d_state": 8, "n_layers": 1, "dropout": 0.0}
CONFIG: dict[str, Any] = {
    "lr": 5e-3, "targets": 90, "max_epochs": 2, "warmup": 5, "threads": 1, "ema": 0.9,
    "negatives": 20, "max_len": 9, "context": 6,
}  # fmt: skip
RUN = """
import json, sys
from pathlib import Path
from rich.console import Console
from safetensors.torch import save_file
from tests.training.logs import chain_log
from training.dataset import Protocol, build_dataset
from training.parallel import rank
from training.recipe import model_config
from training.config import TrainingConfig
from training.trainer import train

folder, model, config = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
dataset = build_dataset(chain_log(users=41), Protocol(1, 1))
for loss in ("full", "sampled"):
    options = TrainingConfig(**config | {"loss": loss})
    result = train(dataset, model_config(dataset, **model), options, folder / loss,
                   console=Console(width=100))
    save_file(result.model.state_dict(), folder / f"{loss}-{rank()}.safetensors")
    (folder / f"{loss}-{rank()}.json").write_text(json.dumps([result.best_ndcg, result.epochs]))
"""


def torchrun(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=200,
    )  # fmt: skip


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What two processes left, and what they printed."""
    folder = tmp_path_factory.mktemp("parallel")
    script = folder / "run.py"
    script.write_text(RUN)
    done = torchrun(script, folder, json.dumps(MODEL), json.dumps(CONFIG), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def losses(printed: str) -> list[float]:
    return [float(line.split()[3]) for line in printed.splitlines() if line.startswith("epoch ")]


@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_two_processes_train_the_weights_of_one(together: tuple[Path, str], loss: str) -> None:
    folder, printed = together
    dataset = build_dataset(chain_log(users=41), Protocol(1, 1))
    output = io.StringIO()
    config = TrainingConfig(**CONFIG | {"loss": loss})
    console = Console(file=output, width=100)
    alone = train(dataset, model_config(dataset, **MODEL), config, console=console)
    expected = losses(output.getvalue())
    assert len(expected) == 2
    found = losses(printed)[:2] if loss == "full" else losses(printed)[2:]
    assert found == pytest.approx(expected, abs=2e-4)
    first, second = (load_file(folder / f"{loss}-{rank}.safetensors") for rank in range(2))
    for name, value in alone.model.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=2e-5, msg=name)
    for rank in range(2):
        ndcg, epochs = json.loads((folder / f"{loss}-{rank}.json").read_text())
        assert ndcg == pytest.approx(alone.best_ndcg, abs=0.01)
        assert epochs == 2


def test_the_first_process_alone_writes(together: tuple[Path, str]) -> None:
    folder, printed = together
    assert len(losses(printed)) == 4, printed
    assert (folder / "full" / "checkpoint.safetensors").exists()


@pytest.mark.slow
def test_train_under_torchrun_writes_one_artefact_and_goes_on_from_it(tmp_path: Path) -> None:
    frame = chain_log(users=30).frame
    (tmp_path / "log").mkdir()
    columns = frame.select("user_id", "item_id", timestamp="time_ms")
    for part in range(2):  # as several jobs export it
        columns[part::2].write_csv(tmp_path / "log" / f"part-{part}.csv")
    middle = int(frame["time_ms"].quantile(0.5))  # type: ignore[arg-type]
    options = ("log", "--device=cpu", "--epochs=1", "--threads=1", "--verbose")
    done = torchrun(
        "-m", "cli.main", "train", *options, "--out=model", "--d-model=32", "--d-state=8",
        f"--until={middle}", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": model ") == 1
    assert done.stderr.count("training: ") == 1
    assert load_artefact(tmp_path / "model").metrics["epochs"] == 1
    assert not (tmp_path / "model.training").exists()
    again = torchrun(
        "-m", "cli.main", "train", *options, "--from=model", "--out=next", cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(": model ") == 1
    assert again.stderr.count("training: ") == 1
    parent, found = load_artefact(tmp_path / "model"), load_artefact(tmp_path / "next")
    assert found.metrics["parent"] == parent.edition
    assert found.metrics["until"] > parent.metrics["until"]
    assert not (tmp_path / "next.training").exists()
    scored = torchrun(
        "-m", "cli.main", "train", "log", "--from=model", "--scoring-only", "--out=scored",
        cwd=tmp_path,
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    assert scored.stdout.count(": model ") == 1
    assert load_artefact(tmp_path / "scored").identity == parent.identity
