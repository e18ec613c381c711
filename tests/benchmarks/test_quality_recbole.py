"""RecBole's rows, where its environment is there: RECBOLE_PYTHON names its Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.depth import DEPTH
from training.metrics import MISS, ranking_metrics

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed
from benchmarks import quality, recbole_baseline
from benchmarks.ranks import Ranks, View

HIDDEN = 16
SMALL = {"hidden_size": HIDDEN, "inner_size": HIDDEN, "train_batch_size": 64}

recbole = pytest.mark.skipif(
    "RECBOLE_PYTHON" not in os.environ, reason="RECBOLE_PYTHON names no Python with RecBole"
)

DIFFERENCE = """
import sys
from types import SimpleNamespace
import torch
from benchmarks.recbole_trim import trim
from benchmarks.recbole_worker import import_recbole

name, sys.argv = sys.argv[1], sys.argv[:1]
config_module, _, utils = import_recbole()
settings = {"loss_type": "CE", "train_neg_sample_args": None, "use_gpu": False}
config = config_module.Config(model=name, dataset="none", config_dict=settings)
fields = {"MASK_ITEM_SEQ": "masked", "POS_ITEMS": "had", "NEG_ITEMS": "had", "MASK_INDEX": "slots"}
for field, key in fields.items():
    config[field] = key
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)  # sums in another order differ by far less than the bound
sizes = SimpleNamespace(num=lambda field: 81, user_num=30)
model = utils.get_model(name)(config, sizes).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
lengths = torch.randint(1, 51, (600,))
lengths[:150], lengths[150:152] = 1, 50  # more of length 1 than go together
items = torch.randint(1, 81, (600, 50)) * (torch.arange(50) < lengths[:, None])
# Up to three places of a history are masked, the first perhaps, in the last of ten slots.
slots = torch.zeros(600, 10, dtype=torch.long)
slots[:, 7:] = (torch.rand(600, 3) * lengths[:, None]).long().sort().values
had = items.gather(1, slots) * (torch.arange(10) > 6)
masked = items.clone().scatter_(1, slots[:, 7:], 81)
batch = {
    "item_id_list": items, "item_length": lengths, "item_id": torch.randint(1, 81, (600,)),
    "user_id": torch.randint(1, 30, (600,)), "masked": masked, "had": had, "slots": slots,
}


def outcome():
    model.zero_grad()
    loss = model.calculate_loss(batch)
    loss.backward()
    with torch.no_grad():
        found = {"loss": loss, "scores": model.full_sort_predict(batch)}
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return found | gradients


whole, widths = outcome(), []
model.item_embedding.register_forward_hook(lambda _, given, __: widths.append(given[0].shape[1]))
trim(name, model)
trimmed = outcome()
assert trimmed.keys() == whole.keys()
for key, value in trimmed.items():
    # A gradient that is 0 but for rounding, as that of a key's bias, has no scale of its own.
    scale = max(1e-3, float(whole[key].abs().max()))
    print(key, float((value - whole[key]).abs().max()) / scale)
print("widths", *widths)
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Users walk a ring of 80 items; times are the same for pairs of rows."""
    draw = np.random.default_rng(0)
    rows = []
    for user in range(60):
        items = (draw.integers(80) + draw.integers(1, 4, 15).cumsum()) % 80
        rows += [f"{user},{item},{1_000_000_000 + place // 2}" for place, item in enumerate(items)]
    (tmp_path / "data" / "ring").mkdir(parents=True)
    (tmp_path / "data" / "ring" / "interactions.csv").write_text(
        "user_id,item_id,timestamp\n" + "\n".join(rows) + "\n"
    )
    return tmp_path / "data"


def run(data: Path, *arguments: str) -> Path:
    runs = data.parent / "runs"
    common = ["--dataset", "ring", "--data", str(data), "--runs", str(runs), "--threads", "1"]
    recbole_baseline.main([*common, *arguments])
    return runs / "ring"


@pytest.mark.slow
@recbole
@pytest.mark.parametrize("model", recbole_baseline.MODELS if DEPTH > 1 else ["SASRec"])
def test_without_padding_a_model_computes_the_same(model: str, tmp_path: Path) -> None:
    command = [os.environ["RECBOLE_PYTHON"], "-c", DIFFERENCE, model]
    root = str(Path(recbole_baseline.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    *lines, (_, *widths) = [line.split() for line in done.stdout.splitlines()]
    assert int(widths[0]) < 50
    assert len(lines) > 5
    assert {name for name, difference in lines if not float(difference) < 1e-5} == set()


@pytest.mark.slow
@recbole
def test_ranks_are_recboles(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--models", "SASRec", "--options")
    rows = run(data, *options, json.dumps(SMALL | {"epochs": 2}))
    folder = rows / "recbole-SASRec" / "0"
    first = json.loads((folder / "result.json").read_text())
    assert first["epochs"] == 2
    run(data, *options, json.dumps(SMALL | {"epochs": 6}))
    result = json.loads((folder / "result.json").read_text())
    assert result["epochs"] == 6
    assert result["seconds"] > first["seconds"]
    log = "".join(path.read_text() for path in (folder / "log").rglob("*.log"))
    assert log.count("epoch 0 training") == log.count("epoch 5 training") == 1
    ranks = Ranks.load(folder / "ranks.npz")
    kept, filtered = ranks.ranks[View()], ranks.ranks[View("filtered")]
    found = ranking_metrics(kept)
    for ours, own in (("HR@10", "hit@10"), ("NDCG@10", "ndcg@10"), ("MRR@10", "mrr@10")):
        assert found[ours] == pytest.approx(result["own"][own], abs=1e-6)
    assert found["HR@10"] > 2 * 10 / 80  # it has learnt something
    dataset = quality.load("ring", data, "leave-one-out")
    for place, user in enumerate(dataset.test.users):
        begin, end = dataset.histories.offsets[user], dataset.test.ends[place]
        seen = set(dataset.histories.items[begin:end].tolist())
        if dataset.test.items[place] in seen:
            assert filtered[place] == MISS
        else:
            assert 0 <= kept[place] - filtered[place] <= len(seen)
    assert (kept != filtered).any()
    capsys.readouterr()
    quality.main(["--dataset", "ring", "--data", str(data), "--runs", str(rows.parent), "--rows"])
    assert "recbole-SASRec" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="holds a run with other settings"):
        run(data, *options, json.dumps(SMALL | {"epochs": 6, "learning_rate": 0.01}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--python", "/nowhere/python"), "--python /nowhere/python: No such file"),
        (("--python", sys.executable), "SASRec: RecBole's environment ended with status 1"),
        (("--python", "x", "--models", "SAS"), "no SAS; there are SASRec, GRU4Rec"),
        (("--python", "x", "--options", "{"), "--options: not JSON"),
    ],
)
def test_what_can_not_run_is_said_in_one_line(
    data: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit, match=message) as error:
        run(data, *arguments)
    assert "\n" not in str(error.value)
