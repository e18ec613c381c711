"""kill -9 of the learner at any moment: each round is published once and set once, and ends."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import get_args

import pytest

from learning.round import RoundFile, Stage
from model.journal import FILE
from tests.depth import examples
from tests.learning.conftest import World
from tests.waited import LONG_S, until

KILLS = examples(3)


@pytest.mark.slow
@pytest.mark.parametrize("share", [1, 0.1])
@pytest.mark.parametrize("stage", get_args(Stage))
def test_killed_at_any_moment_it_goes_on(world: World, stage: Stage, share: float) -> None:
    rng = random.Random(f"{stage} {share}")
    told = {"TIM4REC_LEARN_TRIAL_SHARE": share, "TIM4REC_LEARN_WARM_STATES": "true"}
    for _ in range(KILLS):
        process, _ = world.start("--once", **told)
        while process.poll() is None and under_way(world) != stage:
            time.sleep(0.001)
        time.sleep(rng.choice([0, 0.01, 0.1, 0.3]) * rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait(LONG_S)
        if (journal := world.models / FILE).exists():
            with journal.open("ab") as file:
                file.write(b'{"at": "2026-')  # as a disk that was full leaves it
        world.journal()
    status, said = world.learn("--once", **told)
    assert status == 0, said
    if share < 1:
        (name,) = world.admin.trials
        world.admin.decide(name, "promoted", "better")
        assert world.learn("--once", **told)[0] == 0
    assert not (world.work / "round.json").exists()
    assert not (world.work / "rounds").exists()
    # What began after the round had ended found nothing new.
    said_of = [(entry.what, entry.round) for entry in world.journal()]
    assert [what for what, _ in said_of] == (
        ["published", "promoted"] if share == 1 else ["published", "trial", "promoted"]
    )
    assert len({one for _, one in said_of}) == 1
    assert len(world.published()) == 2
    assert len(world.admin.posted) == 1


def under_way(world: World) -> str | None:
    found = RoundFile(world.work / "round.json").read()
    return found and found.stage


def test_the_command_of_a_killed_learner_is_ended(world: World) -> None:
    process, _ = world.start("--once", PLAYED_SLEEPS_S=3600)
    running = world.work / "running.json"
    until(lambda: running.exists() and running.read_text(), "no command runs")
    left = int(running.read_text()[1:].split(",")[0])
    assert os.getpriority(os.PRIO_PROCESS, left) == 10
    process.send_signal(signal.SIGKILL)
    process.wait(LONG_S)
    os.kill(left, 0)  # it lives
    assert world.learn("--once", TIM4REC_LEARN_TRIAL_SHARE=1)[0] == 0

    def ended() -> bool:
        try:
            with open(f"/proc/{left}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    until(ended, "it still runs")
