"""Rounds of the learner as a process, from the log to what is served."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
from pathlib import Path

import httpx
import pytest

from model.artefact import load_artefact, save_artefact
from model.kinds import KindRules
from model.times import iso, parse_time
from tests.learning.admin_server import AdminServer
from tests.learning.conftest import BASE_MS, EVENTS, KNOWN, World, option
from tests.ports import free_port
from tests.service.conftest import ValkeyServer
from tests.waited import LONG_S, until

AT_ONCE = {"TIM4REC_LEARN_TRIAL_SHARE": 1}


def test_a_warm_start_is_judged_trained_on_every_row_and_served(world: World) -> None:
    status, said = world.learn("--once", **AT_ONCE)
    assert status == 0, said
    names = [words[0] for words in world.calls()]
    assert names == ["export-log", "train", "judge", "train"]
    candidate, final = world.called("train")
    (judged,) = world.called("judge")
    cut = option(candidate, "--until")
    assert parse_time(cut) == BASE_MS + 1000 * (EVENTS - (EVENTS - KNOWN) // 5 - 1)
    assert option(judged, "--since") == cut
    assert judged[1] == str(world.models / "first")
    assert option(candidate, "--from") == option(final, "--from") == judged[1]
    assert judged[2] == option(candidate, "--out") != option(final, "--out")
    assert "--until" not in final
    assert world.admin.base in world.published()
    assert world.admin.posted == [(world.admin.base, 1.0)]
    assert world.told() == [("published", "warm"), ("promoted", "warm")]
    published, promoted = world.journal()
    assert published.parent == promoted.replaced == "first"
    assert published.verdict == "better"
    assert published.events == EVENTS - KNOWN
    assert published.until == iso(BASE_MS + 1000 * (EVENTS - 1))
    assert published.seconds is not None
    assert published.seconds.keys() == {"export", "candidate", "judge", "final"}


def test_nothing_is_trained_while_nothing_is_due_or_new(world: World) -> None:
    never = dict.fromkeys(("TIM4REC_LEARN_WARM_EVERY", "TIM4REC_LEARN_SCORING_EVERY"), "0")
    assert world.learn("--once", **never)[0] == 0
    assert not (world.work / "exports").exists()
    status, said = world.learn("--once", TIM4REC_LEARN_LEAST_EVENTS=EVENTS)
    assert status == 0
    assert "too little has happened since first" in said
    assert [words[0] for words in world.calls()] == ["export-log"]
    assert world.journal() == []


def test_the_second_round_begins_where_the_first_ended(world: World) -> None:
    assert world.learn("--once", **AT_ONCE)[0] == 0
    first = world.admin.base
    # Its step is not due again, and what comes next sees no new events.
    assert world.learn("--once", **AT_ONCE)[0] == 0
    assert len(world.calls()) == 4
    status, said = world.learn("--once", **AT_ONCE, TIM4REC_LEARN_WARM_EVERY="0.001s")
    assert status == 0
    assert f"too little has happened since {first}" in said
    export, again = world.called("export-log")
    assert "--since" not in export
    assert option(again, "--since") == export[1]


@pytest.mark.parametrize(
    ("verdict", "served"),
    [("not worse", True), ("worse", False), ("below counting", False), ("undecided", False)],
)
def test_the_judges_verdict_decides(world: World, verdict: str, served: bool) -> None:
    assert world.learn("--once", **AT_ONCE, PLAYED_VERDICT=verdict)[0] == 0
    assert (world.admin.base != "first") == served
    (entry, *_) = world.journal()
    assert entry.verdict == verdict
    assert entry.what == ("published" if served else "refused")
    assert not (world.work / "round.json").exists()
    assert not (world.work / "rounds").exists()


def test_a_model_that_training_has_not_changed_is_not_published(world: World) -> None:
    for folder in (world.played / "artefacts").iterdir():
        shutil.rmtree(folder)
    shutil.copytree(world.models / "first", world.played / "artefacts" / "same")
    assert world.learn("--once")[0] == 0
    (entry,) = world.journal()
    assert (entry.what, entry.reason) == ("refused", "it is what is served already")
    assert world.published() == ["first"]


def test_a_new_scoring_is_for_everybody_at_once(world: World) -> None:
    assert world.learn("--once", TIM4REC_LEARN_WARM_EVERY="0")[0] == 0
    for words in world.called("train"):
        assert "--scoring-only" in words
        assert option(words, "--from") == str(world.models / "first")
    assert world.told() == [("published", "scoring"), ("promoted", "scoring")]


def test_training_from_nothing_goes_on_from_its_judged_candidate(world: World) -> None:
    options = {"TIM4REC_LEARN_SCRATCH_OPTIONS": "--recipe quick"} | AT_ONCE
    options |= {"TIM4REC_LEARN_ITEMS": "/items.csv"}
    assert world.learn("--once", **options, TIM4REC_LEARN_SCRATCH_EVERY="30d")[0] == 0
    candidate, final = world.called("train")
    assert "--from" not in candidate
    assert option(candidate, "--recipe") == "quick"
    assert option(candidate, "--items") == option(final, "--items") == "/items.csv"
    assert "--kinds" not in candidate
    assert option(final, "--from") == option(candidate, "--out")


def test_training_from_nothing_goes_by_the_rules_for_kinds_of_what_is_served(world: World) -> None:
    first = load_artefact(world.models / "first")
    save_artefact(
        first.folder, first.model, first.items, first.metrics, "", None, KindRules.parse("buy:step")
    )
    assert world.learn("--once", **AT_ONCE, TIM4REC_LEARN_SCRATCH_EVERY="30d")[0] == 0
    candidate, _ = world.called("train")
    assert option(candidate, "--kinds") == "buy:step,*:step"


def test_the_first_model_is_not_judged(world: World) -> None:
    shutil.rmtree(world.models / "first")
    world.admin.base = None
    assert world.learn("--once", **AT_ONCE)[0] == 0
    assert [words[0] for words in world.calls()] == ["export-log", "train"]
    assert world.told() == [("published", "scratch"), ("promoted", "scratch")]


def test_what_the_service_was_started_with_is_found_among_the_published(world: World) -> None:
    world.admin.base = None
    world.admin.started_with = world.publish("started", 98, KNOWN).edition
    assert world.learn("--once", **AT_ONCE)[0] == 0
    (judged,) = world.called("judge")
    assert judged[1] == str(world.models / "started")


def test_or_is_told(world: World, tmp_path: Path) -> None:
    world.admin.base = None
    shutil.move(world.models / "first", tmp_path / "elsewhere")
    assert world.learn("--once", "--incumbent", tmp_path / "elsewhere", **AT_ONCE)[0] == 0
    (judged,) = world.called("judge")
    assert judged[1] == str(tmp_path / "elsewhere")
    status, said = world.learn("rollback")
    assert (status, world.admin.base) == (0, None), said


# -- trials ----------------------------------------------------------------------------------------


def test_a_trial_is_watched_until_the_service_has_decided(world: World) -> None:
    process, output = world.start("--every", "1h")
    until(lambda: world.admin.trials, "nothing is on trial")
    (name,) = world.admin.trials
    assert world.admin.posted == [(name, 0.1)]
    until(lambda: "settle" in output.read_text())
    world.admin.decide(name, "promoted", "better")
    until(lambda: world.told()[-1] == ("promoted", "warm"), "not noticed")
    process.send_signal(signal.SIGTERM)
    assert process.wait(LONG_S) == 128 + signal.SIGTERM
    assert world.told() == [("published", "warm"), ("trial", "warm"), ("promoted", "warm")]
    assert world.journal()[-1].replaced == "first"


def test_run_by_cron_it_looks_at_the_trial_each_time(world: World) -> None:
    assert world.learn("--once")[0] == 0
    (name,) = world.admin.trials
    assert world.learn("--once")[0] == 0
    assert list(world.admin.trials) == [name]
    assert len(world.called("train")) == 2
    world.admin.decide(name, "taken_back", "worse")
    assert world.learn("--once")[0] == 0
    last = world.journal()[-1]
    assert (last.what, last.model, last.reason) == ("taken back", name, "taken_back: worse")
    assert not (world.work / "round.json").exists()


def test_a_trial_that_is_never_decided_is_taken_back(world: World) -> None:
    assert world.learn("--once", "--trial-timeout", "0.001s")[0] == 0
    assert world.admin.trials == {}
    assert world.admin.base == "first"
    assert world.told()[-1] == ("taken back", "warm")


@pytest.mark.parametrize("share", [0.1, 1])
def test_what_a_process_cannot_serve_is_taken_back(world: World, share: float) -> None:
    world.admin.fault = "version 2 can't be served: no memory"
    told = {"TIM4REC_LEARN_TRIAL_SHARE": share, "TIM4REC_LEARN_SETTLE_TIMEOUT": "0.5s"}
    assert world.learn("--once", **told)[0] == 0
    assert world.admin.trials == {}
    assert world.admin.base == "first"
    assert world.journal()[-1].what == "taken back"
    assert world.journal()[-1].reason == world.admin.fault


# -- going back ------------------------------------------------------------------------------------


def test_rollback_and_the_learner_leaves_it_so(world: World) -> None:
    assert world.learn("--once", **AT_ONCE)[0] == 0
    bad = world.admin.base
    status, said = world.learn("rollback")
    assert status == 0
    assert said == f"everybody has first now, and {bad} no more\n"
    assert world.admin.base == "first"
    last = world.journal()[-1]
    assert (last.what, last.model) == ("rolled back", bad)
    assert world.learn("--once", **AT_ONCE)[0] == 0  # not due again
    assert world.admin.base == "first"
    status, said = world.learn("rollback")
    assert status == 1
    assert said.startswith("error: the journal doesn't say what was served before first")
    status, said = world.learn("rollback", "--to", bad)
    assert (status, world.admin.base) == (0, bad)


def test_going_back_through_the_service_is_written_down_once(world: World) -> None:
    """As the page does it: seen when the learner looks next. Another model is no going back."""
    assert world.learn("--once", **AT_ONCE)[0] == 0
    bad = world.admin.base
    for base, told in (("another", 2), ("first", 3), ("first", 3)):
        world.admin.base = base
        if base == "another":
            shutil.copytree(world.models / "first", world.models / base)
        assert world.learn("--once", TIM4REC_LEARN_WARM_EVERY="0")[0] == 0
        assert len(world.journal()) == told
    last = world.journal()[-1]
    assert (last.what, last.model, last.reason) == ("rolled back", bad, "back to first")


def test_a_trial_that_a_person_has_ended_is_rolled_back(world: World) -> None:
    assert world.learn("--once")[0] == 0
    world.admin.trials.clear()
    assert world.learn("--once")[0] == 0
    assert world.told()[-1] == ("rolled back", "warm")


def test_what_was_rolled_back_is_not_published_again(world: World) -> None:
    for folder in sorted((world.played / "artefacts").iterdir())[1:]:
        shutil.rmtree(folder)
    again = {"TIM4REC_LEARN_WARM_EVERY": "0.001s"} | AT_ONCE
    assert world.learn("--once", **again)[0] == 0
    assert world.learn("rollback")[0] == 0
    assert world.learn("--once", **again)[0] == 0
    last = world.journal()[-1]
    assert (last.what, last.reason) == ("refused", "it was rolled back before")
    assert world.admin.base == "first"


def test_rollback_while_a_learner_watches_its_trial(world: World) -> None:
    process, _ = world.start("--every", "1h")
    until(lambda: ("trial", "warm") in world.told(), "nothing is on trial")
    (name,) = world.admin.trials
    assert world.learn("rollback") == (0, f"{name} is no longer on trial\n")
    until(lambda: not (world.work / "round.json").exists(), "the round goes on")
    process.send_signal(signal.SIGTERM)
    process.wait(LONG_S)
    assert world.admin.base == "first"
    assert world.told() == [("published", "warm"), ("trial", "warm"), ("rolled back", "warm")]


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["export-log", "train", "judge"])
def test_a_command_that_fails_is_tried_again_and_then_given_up(world: World, command: str) -> None:
    for _ in range(5):
        status, said = world.learn("--once", PLAYED_FAILS=command)
        assert status == 1
        assert f"{command}: it can't be done" in said
    whats = [entry.what for entry in world.journal()]
    assert whats == ["failed"] * 4 + ["given up"]
    assert f"{command}: it can't be done" in (world.journal()[-1].reason or "")
    assert world.learn("--once", PLAYED_FAILS=command)[0] == 0  # waits for its turn
    assert world.admin.posted == []


def test_it_goes_on_after_a_failure_where_it_was(world: World) -> None:
    assert world.learn("--once", **AT_ONCE, PLAYED_FAILS="judge")[0] == 1
    assert world.learn("--once", **AT_ONCE)[0] == 0
    assert [w[0] for w in world.calls()] == ["export-log", "train", "judge", "judge", "train"]
    assert world.told() == [("failed", None), ("published", "warm"), ("promoted", "warm")]


def test_a_service_that_is_away(world: World) -> None:
    away = {"TIM4REC_LEARN_SERVICE": "http://127.0.0.1:1"}
    status, said = world.learn("--once", **away)
    assert status == 1
    assert "http://127.0.0.1:1: " in said
    assert "Traceback" not in said
    wrong = {"TIM4REC_LEARN_ADMIN_KEY": "another"}
    status, said = world.learn("--once", **wrong)
    assert status == 1
    assert "401 no key" in said


def test_a_store_that_is_away(world: World, tmp_path: Path) -> None:
    nowhere = f"unix://{tmp_path}/nowhere"
    away = {"TIM4REC_REDIS_URL": nowhere, "TIM4REC_STORE_TIMEOUT_S": 0.2}
    status, said = world.learn("--once", **away)
    assert status == 1
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_a_journal_that_cannot_be_written(world: World) -> None:
    (world.models / "journal.jsonl").mkdir()
    status, said = world.learn("--once", **AT_ONCE)
    assert status == 1
    assert "journal.jsonl" in said
    assert "Traceback" not in said
    (world.models / "journal.jsonl").rmdir()
    assert world.learn("--once", **AT_ONCE)[0] == 0
    assert world.told()[-2:] == [("published", "warm"), ("promoted", "warm")]


@pytest.mark.parametrize("whose", ["the command's", "all"])
def test_no_room_on_the_disk(world: World, whose: str) -> None:
    """No file may grow beyond a few bytes, as where a disk is full."""
    process, output = world.start("--once", **AT_ONCE, PLAYED_SLEEPS_S=1)
    running = world.work / "running.json"
    until(lambda: running.exists() and running.read_text(), "no command runs")
    for pid in (process.pid if whose == "all" else None, json.loads(running.read_text())[0]):
        if pid is not None:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    assert process.wait(LONG_S) == 1
    if whose != "all":
        assert "export failed, tried again in 1m: export-log: " in output.read_text()
        assert world.told() == [("failed", None)]
    assert world.admin.posted == []
    status, said = world.learn("--once", **AT_ONCE)
    assert status == 0, said
    assert world.told()[-2:] == [("published", "warm"), ("promoted", "warm")]


def test_old_models_are_removed_but_none_that_may_be_needed(world: World) -> None:
    others = [f"other{n}" for n in range(3)]  # the same one again would be a going back
    for name in others:
        world.admin.base = world.publish(name, 50, KNOWN - 1).folder.name
        again = {"TIM4REC_LEARN_WARM_EVERY": "0.001s", "TIM4REC_LEARN_KEEP": 1} | AT_ONCE
        assert world.learn("--once", **again)[0] == 0
    ours = [one.model for one in world.journal() if one.what == "published"]
    assert len(set(ours)) == 3
    assert world.published() == sorted(["first", *others, str(ours[-1])])
    assert [one.model for one in world.journal() if one.what == "pruned"] == ours[:2]


# -- one at a time ---------------------------------------------------------------------------------


def test_a_second_learner_says_who_is_at_work(world: World, tmp_path: Path) -> None:
    process, _ = world.start("--every", "1h", PLAYED_SLEEPS_S=3600)
    until(lambda: (world.work / "running.json").exists(), "no command runs")
    status, said = world.learn("--once", "--work", tmp_path / "another")
    assert status == 5
    assert re.search(rf"another learner is at work: the one at \S+:{process.pid}\n", said)
    status, said = world.learn("--once")
    assert status == 5
    assert f"another learner is at work in {world.work}" in said
    process.send_signal(signal.SIGTERM)
    process.wait(LONG_S)
    assert world.learn("--once", **AT_ONCE)[0] == 0


def test_a_lost_lease_changes_nothing_any_more(
    world: World, valkey: ValkeyServer, admin: AdminServer
) -> None:
    process, output = world.start("--once", **AT_ONCE, PLAYED_SLEEPS_S=0.5)
    until(lambda: (world.work / "running.json").exists(), "no command runs")
    with valkey.client() as client:
        client.set("tim4rec:learner", "x elsewhere:7")
        assert process.wait(LONG_S) == 5
        assert client.get("tim4rec:learner") == b"x elsewhere:7"
    assert "another learner is at work: the one at elsewhere:7" in output.read_text()
    assert world.published() == ["first"]
    assert admin.posted == []


# -- status ----------------------------------------------------------------------------------------


def test_status(world: World) -> None:
    status, said = world.learn("status")
    assert status == 0
    assert "learner: none is at work\n" in said
    assert world.learn("--once")[0] == 0
    (name,) = world.admin.trials
    status, said = world.learn("status", "--json")
    found = json.loads(said[said.index("{") :])
    assert found["holder"] is None
    assert found["under_way"]["stage"] == "watch"
    assert [(one["name"], one["state"]) for one in found["models"]] == [(name, "trial")]
    status, said = world.learn("status", COLUMNS=40)
    (line,) = [line for line in said.splitlines() if line.startswith(name)]
    assert line.split()[1:5:3] == ["warm", "better"]
    assert " trial " in line
    assert "now watch" in said


def test_metrics(world: World) -> None:
    port = free_port()
    process, _ = world.start("--every", "1h", "--metrics-port", port, **AT_ONCE)
    until(lambda: ("promoted", "warm") in world.told(), "nothing is promoted")
    until(lambda: not (world.work / "round.json").exists())
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    process.send_signal(signal.SIGTERM)
    process.wait(LONG_S)
    assert 'tim4rec_learner_verdict{verdict="better"} 1.0' in lines
    assert 'tim4rec_learner_verdict{verdict="worse"} 0.0' in lines
    assert 'tim4rec_learner_difference{metric="NDCG@10"} 0.01' in lines
    assert 'tim4rec_learner_rounds_total{outcome="promoted"} 1.0' in lines
    assert f"tim4rec_learner_new_events {EVENTS - KNOWN:.1f}" in lines
    parts = [line for line in lines if line.startswith("tim4rec_learner_part_seconds{")]
    assert len(parts) == 4


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TIM4REC_LEARN_EVRY": "1h"}, "did you mean TIM4REC_LEARN_EVERY?"),
        ({"TIM4REC_LEARN_EVERY": "1y"}, "--every: '1y' is no duration: write 90s, 15m, 6h"),
        ({"TIM4REC_LEARN_MODELS": ""}, "--models is not given, nor TIM4REC_MODELS_DIR"),
    ],
)
def test_a_wrong_option_is_one_line(
    world: World, environment: dict[str, str], message: str
) -> None:
    status, said = world.learn("--once", **environment)
    assert status == 1
    assert message in said
    assert said.count("\n") == 1
