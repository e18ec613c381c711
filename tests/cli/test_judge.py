"""`tim4rec judge` on artefacts and a log of its own: what it says, writes and ends with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model import ModelConfig, TiM4Rec
from model.artefact import save_artefact
from model.items import Items
from model.live.mixture import Mixture
from model.times import iso
from tests.cli.conftest import Write, tim4rec
from tests.model.mixtures import mixture_of
from tests.training.logs import ring_log

FOLLOWING = mixture_of(after=1.0)
CONTRARY = mixture_of(after=-1.0)
ROWS = list(ring_log(users=200).frame.iter_rows())
TIMES = sorted(time for _, _, time in ROWS)
UNTIL = TIMES[int(0.6 * len(TIMES))]


def artefact(
    folder: Path, mixture: Mixture | None, *, until: int | None = UNTIL, **shape: object
) -> Path:
    torch.manual_seed(0)
    config = {"d_model": 8, "n_layers": 1, "head_dim": 8, "d_state": 4} | shape
    model = TiM4Rec(ModelConfig(n_items=30, **config))  # type: ignore[arg-type]
    items = Items([f"i{n}" for n in range(30)], np.ones(30, np.int64))
    metrics = {} if until is None else {"until": iso(until)}
    save_artefact(folder, model, items, metrics, "a card", mixture)
    return folder


def kind_of(user: str) -> str:
    return "view" if user.endswith("7") else "buy"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return artefact(tmp_path / "good", FOLLOWING)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    return artefact(tmp_path / "bad", CONTRARY)


def test_a_better_candidate(good: Path, bad: Path, write: Write, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = tim4rec("judge", bad, good, write(ROWS), "--json", report)
    assert result.exit_code == 0, result.output
    assert "better: NDCG@10" in result.output
    found = json.loads(report.read_text())
    later = [(user, time) for user, _, time in ROWS if time > UNTIL]
    assert (found["verdict"], found["since"]) == ("better", iso(UNTIL))
    assert (found["events"], found["users"]) == (len(later), len({user for user, _ in later}))
    assert set(found["figures"]) == {"incumbent", "candidate", "popularity", "item-knn"}
    assert found["incumbent"] != found["candidate"]
    for metric in ("NDCG@10", "HR@10"):
        difference = found["difference"][metric]
        own, before = (found["figures"][name][metric] for name in ("candidate", "incumbent"))
        assert difference["mean"] == pytest.approx(own - before)
        assert 0 < difference["low"] <= difference["mean"] <= difference["high"]


def test_each_verdict_has_its_exit_status(
    good: Path, bad: Path, write: Write, tmp_path: Path
) -> None:
    log = write(ROWS)
    equal = tim4rec("judge", good, good, log)
    assert (equal.exit_code, "not worse: NDCG@10" in equal.output) == (0, True), equal.output
    below = tim4rec("judge", good, bad, log)
    assert (below.exit_code, "below counting" in below.output) == (3, True), below.output
    few = tim4rec("judge", good, bad, log, "--since", iso(TIMES[-50]), "--json", tmp_path / "few")
    assert (few.exit_code, "too few" in few.output) == (4, True), few.output
    assert json.loads((tmp_path / "few").read_text())["verdict"] == "undecided"


def test_the_newer_of_the_two_ends_decides_what_is_judged_on(
    good: Path, write: Write, tmp_path: Path
) -> None:
    newer = artefact(tmp_path / "newer", FOLLOWING, until=UNTIL + 10_000_000)
    log, report = write(ROWS), tmp_path / "report.json"
    for pair in ((good, newer), (newer, good)):
        assert tim4rec("judge", *pair, log, "--json", report).exit_code == 0
        assert json.loads(report.read_text())["since"] == iso(UNTIL + 10_000_000)
    seen = tim4rec("judge", good, newer, log, "--since", iso(UNTIL + 1))
    assert seen.exit_code == 1
    assert f"newer was trained on what came until {iso(UNTIL + 10_000_000)}" in seen.output


def test_only_steps_are_judged_on(good: Path, bad: Path, tmp_path: Path) -> None:
    log, report = tmp_path / "log.csv", tmp_path / "report.json"
    lines = [f"{user},{item},{time},{kind_of(user)}" for user, item, time in ROWS]
    log.write_text("\n".join(["user_id,item_id,timestamp,kind", *lines]))
    rules = ("--kinds", "view:log,buy:step")
    result = tim4rec("judge", bad, good, log, *rules, "--json", report)
    assert result.exit_code == 0, result.output
    steps = [user for user, _, time in ROWS if time > UNTIL and kind_of(user) == "buy"]
    assert json.loads(report.read_text())["events"] == len(steps)


def test_what_can_not_be_judged_is_refused_in_one_line(
    good: Path, write: Write, tmp_path: Path
) -> None:
    log = write(ROWS)
    unsaid = artefact(tmp_path / "unsaid", FOLLOWING, until=None)
    paper = artefact(tmp_path / "paper", None, time="sequence")
    for arguments, said in (
        ((good, unsaid, log), "--since is needed"),
        ((good, unsaid, log, "--since", "soon"), "--since: "),
        ((good, paper, log), "time path `sequence` can't be judged"),
        ((good, tmp_path / "none", log), "no such folder"),
        ((good, good, tmp_path / "none.csv"), "none.csv"),
    ):
        result = tim4rec("judge", *arguments)
        assert result.exit_code == 1, result.output
        assert said in result.output
        assert "Traceback" not in result.output
    assert tim4rec("judge", good, unsaid, log, "--since", iso(UNTIL)).exit_code == 0
    assert tim4rec("judge", good, good, log, "--margin", "2").exit_code == 2
