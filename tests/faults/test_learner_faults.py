"""A learner at full speed beside a service at half of its capacity, while learner, worker and
store are killed, and while some of what it trains is bad."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.http_load import closed_loop, mixed
from learning.journal import FolderJournal
from learning.round import RoundFile
from model.artefact import Artefact
from model.journal import Entry
from tests.faults.fleet import Fleet
from tests.faults.load import Answer, Load
from tests.faults.report import Report
from tests.forked import Forked
from tests.reaper import reap
from tests.service.processes import make_artefact
from tests.waited import LONG_S, until

LEARNER_S = float(os.environ.get("LEARNER_S", "120"))
"""At least so long, and until all has happened."""
PART_WITHIN_S = 400
"""On a busy machine; a part that failed for want of its store is tried again after a minute."""
BEFORE_S = 15
KEY = "of the admin"
ITEMS = [f"i{n}" for n in range(300)]
USERS = 1000
BAD, WORSE = ("worse", "below counting"), "taken_back: worse"
AFTER_S = 5
"""What a killed process was asked is asked again by then."""


class Walk(Load):
    """Users who mostly go from an item to the next: what a model can learn."""

    def _item(self, user: str, number: int) -> str:
        place = (
            int(user.split()[1]) + number + (self._draw.randrange(300) if number % 10 == 9 else 0)
        )
        return self.items[place % len(self.items)]


class Learner:
    """`tim4rec learn` for ever, with steps that are always due."""

    def __init__(self, folder: Path, fleet: Fleet, models: Path) -> None:
        self.work, self.spoiling, self._output = folder / "work", folder / "spoil", folder / "said"
        self.spoiling.mkdir()
        self._journal = FolderJournal(models)
        options = {
            "models": models, "work": self.work, "service": fleet.service.url, "admin_key": KEY,
            "every": "1s", "look": "1s", "warm_every": "1s", "scoring_every": "0",
            "scratch_every": "0", "least_events": 1000, "least_judged": 1000, "judged_share": 0.1,
            "margin": 0.1, "trial_share": 0.5,
            "command": shlex.join([sys.executable, "-m", "tests.faults.spoiling"]),
        }  # fmt: skip
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("TIM4REC_")}
        self._environment |= {f"TIM4REC_LEARN_{k.upper()}": str(v) for k, v in options.items()}
        self._environment |= {
            "TIM4REC_REDIS_URL": fleet.store.url, "TIM4REC_LOG_FORMAT": "text",
            "SPOILING": str(self.spoiling), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self._process: Forked | None = None

    def start(self) -> None:
        self._process = Forked(["learn"], self._environment, self._output)
        reap(self._process.pid)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(LONG_S)

    def stop(self) -> None:
        """Its command ends with it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(LONG_S)

    def journal(self, what: str) -> list[Entry]:
        return [one for one in self._journal.entries() if one.what == what]

    def stage(self) -> str | None:
        going = RoundFile(self.work / "round.json").read()
        return going and going.stage

    def spoil(self, what: str) -> None:
        """The next model that is trained as this is bad."""
        (self.spoiling / what).touch()

    def until(self, holds: Callable[[], object]) -> None:
        until(lambda: self._lives() and holds(), self.said(), PART_WITHIN_S)

    def one_more(self, what: str) -> Entry:
        before = len(self.journal(what))
        self.until(lambda: len(self.journal(what)) > before)
        return self.journal(what)[-1]

    def said(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    def _lives(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.said()
        return True


@pytest.fixture
def first(tmp_path: Path) -> Artefact:
    """In the folder of models; it has learned nothing."""
    return make_artefact(tmp_path / "models" / "first", ITEMS)


@pytest.fixture
def fleet(first: Artefact) -> Iterator[Fleet]:
    folder = Path(tempfile.mkdtemp(prefix="tim4rec-"))
    with Fleet(
        first, folder, models_dir=first.folder.parent, admin_keys=KEY, model_poll_s=0.5,
        store_timeout_s=10, outcome_window_s=5, trial_observed_s=5,
        trial_least_users=100, trial_longest_s=25, trial_margin=0.3,
    ) as fleet:  # fmt: skip
        yield fleet
    shutil.rmtree(folder)


@pytest.fixture
def learner(tmp_path: Path, first: Artefact, fleet: Fleet) -> Iterator[Learner]:
    found = Learner(tmp_path, fleet, first.folder.parent)
    yield found
    found.kill()


def p99_ms(answers: list[Answer]) -> float:
    return 1000 * float(np.percentile([answer.took for answer in answers], 99))


@pytest.mark.timeout(LEARNER_S + 8 * PART_WITHIN_S)
def test_models_come_and_go_and_no_caller_notices(
    fleet: Fleet, learner: Learner, report: Report
) -> None:
    capacity = closed_loop(fleet.service.port, mixed(USERS, ITEMS, 0), 64, 6).rate
    faults: list[tuple[float, float]] = []

    def fault(cause: Callable[[], None]) -> None:
        began = time.monotonic()
        cause()
        faults.append((began, time.monotonic() + AFTER_S))

    def kill_worker() -> None:
        before = fleet.workers
        fleet.kill_worker()
        until(
            lambda: len(fleet.workers) == fleet.n_workers and fleet.workers != before,
            "the worker is not back",
            PART_WITHIN_S,
        )

    def restart_store() -> None:
        fleet.store.kill()
        fleet.store.start()

    load = Walk(fleet.service.port, ITEMS, users=USERS, rate=capacity / 2, reads=0.6)
    with load:
        began = time.monotonic()
        time.sleep(BEFORE_S)
        learning = time.monotonic()
        learner.start()
        learner.one_more("promoted")  # of the first, which has learned something
        learner.until(lambda: learner.stage() == "candidate")
        learner.kill()
        learner.start()
        fault(kill_worker)
        learner.one_more("promoted")
        learner.spoil("candidate")
        learner.until(lambda: any(one.verdict in BAD for one in learner.journal("refused")))
        learner.spoil("final")
        learner.until(
            lambda: any(WORSE in str(one.reason) for one in learner.journal("taken back"))
        )
        learner.until(lambda: learner.stage() == "candidate")
        fault(restart_store)
        learner.one_more("promoted")
        learner.until(lambda: time.monotonic() - learning > LEARNER_S)
        learner.stop()
        over = time.monotonic()
    answers = load.between(began, over)
    failed = [
        answer
        for answer in answers
        if answer.status != 200 and not any(a <= answer.ended <= b for a, b in faults)
    ]
    published = learner.journal("published")
    report(
        load_average=os.getloadavg()[0],
        seconds=over - learning,
        capacity_per_s=capacity,
        rate_per_s=len(answers) / (over - began),
        requests=len(answers),
        refused_requests=sum(answer.status == 503 for answer in failed),
        during_faults=sum(answer.status != 200 for answer in answers),
        acknowledged=load.n_acknowledged,
        published=len(published),
        promoted=len(learner.journal("promoted")),
        refused=[one.verdict for one in learner.journal("refused")],
        taken_back=[one.reason for one in learner.journal("taken back")],
        round_seconds=sum((published[-1].seconds or {}).values()),
        p99_ms_before=p99_ms(load.between(began, learning)),
        p99_ms_meanwhile=p99_ms(load.between(learning, over)),
        load_late_s=load.lag_s,
    )
    assert load.wrong == []
    # On a machine that other work slows down meanwhile, half may become more than it can do.
    assert [answer for answer in failed if answer.status != 503] == []
    assert len(published) >= 3
    with fleet.service.client() as client:
        assert load.lost(client) == 0
    assert p99_ms(load.between(learning, over)) < 10_000
