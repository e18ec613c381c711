"""kill -9 of the learner at any moment: each round is published once and set once, and ends."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter

import pytest

from learning.journal import FILE
from tests.depth import examples
from tests.learning.conftest import World
from tests.waited import LONG_S, until

KILLS = examples(8)


@pytest.mark.slow
@pytest.mark.parametrize("share", [1, 0.1])
def test_killed_at_any_moment_it_goes_on(world: World, share: float) -> None:
    rng = random.Random(share)
    told = {"TIM4REC_LEARN_TRIAL_SHARE": share, "PLAYED_SLEEPS_S": 0.1}
    for _ in range(KILLS):
        process, _ = world.start("--once", **told)
        # From the moment that it works: what comes before is of no interest here.
        until(lambda p=process: (world.work / "running.json").exists() or p.poll() is not None)
        time.sleep(rng.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait(LONG_S)
        journal = world.models / FILE
        if journal.exists() and rng.random() < 0.5:
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
    # A round that had ended by then may have been followed by no other: nothing is new.
    whats = Counter((entry.what, entry.round) for entry in world.journal())
    assert {what for what, _ in whats} == {"published", "promoted"} | (
        {"trial"} if share < 1 else set()
    )
    assert set(whats.values()) == {1}
    assert len({one for _, one in whats}) == 1
    assert len(world.published()) == 2
    assert len(world.admin.posted) == 1


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
