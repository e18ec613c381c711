"""How often items of which little is known were shown and taken, of all processes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from uuid import uuid4

import pytest

from service.catalogue.exploration import Exploration
from service.feedback import item_counts
from service.feedback.item_counts import PERIOD_MS, ItemCounts
from service.feedback.outcomes import Outcomes
from service.feedback.trial_counts import Arm, TrialCounts
from service.observe import metrics
from service.store.client import Store
from service.store.events import NewEvent, new_uid
from tests.service.conftest import ValkeyServer
from tests.service.processes import BASE_MS

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Clock:
    ms = 4000 * PERIOD_MS + 5  # by the store's clock nothing has expired

    def __call__(self) -> int:
        return self.ms


class Heard(Exploration):
    """Keeps what it was told."""

    def know(self, numbers: Any) -> None:
        self.numbers = {row: (shown, taken) for row, shown, taken in numbers}


def test_processes_count_together_and_forget(valkey: ValkeyServer, run: Run) -> None:
    async def go() -> None:
        clock, space = Clock(), uuid4().hex
        rows = {"a": 1, "b": 2}
        async with Store(valkey.url) as store:
            one, other = (ItemCounts(store, namespace=space, clock_ms=clock) for _ in range(2))
            heard = Heard(0.1, [])
            other.show(heard, rows.get)
            one.taken("a")  # not shown
            one.shown(["a", "b", "gone"])
            one.taken("a")
            other.shown(["a"])
            for counts in (one, other):
                await counts.flush()
                await counts.flush()  # nothing twice
            await other.refresh()
            assert heard.numbers == {1: (2, 1), 2: (1, 0)}
            other.taken("b")  # another process has shown it
            await other.flush()
            with valkey.client() as client:
                keys = client.keys(f"{space}:*")
                assert len(keys) == 2
                assert all(client.pexpiretime(key) == 4002 * PERIOD_MS for key in keys)
            clock.ms += PERIOD_MS
            other.shown(["a"])
            await other.flush()
            await other.refresh()
            assert heard.numbers == {1: (3, 1), 2: (1, 1)}
            clock.ms += PERIOD_MS
            await other.refresh()
            assert heard.numbers == {1: (1, 0)}
            other.forget(heard)
            clock.ms += PERIOD_MS
            await other.refresh()
            assert heard.numbers == {1: (1, 0)}

    run(go())


def test_what_is_kept_is_bounded(
    valkey: ValkeyServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_counts, "MOST_ITEMS", 1200)
    monkeypatch.setattr(item_counts, "_PAGE", 100)

    async def go() -> None:
        space, many = uuid4().hex, [f"i{n}" for n in range(1500)]
        async with Store(valkey.url) as store:
            counts, heard = ItemCounts(store, namespace=space), Heard(0.1, [])
            counts.show(heard, lambda item: int(item[1:]) + 1)
            counts.shown(many[:1200])
            await counts.flush()
            await counts.refresh()
            counts.shown(many)
            await counts.flush()
            await counts.refresh()
            assert heard.numbers == {row: (2, 0) for row in range(1, 1201)}

    run(go())


def test_what_is_explored_counts_for_no_model(valkey: ValkeyServer, run: Run) -> None:
    async def go() -> None:
        model, space = uuid4().hex, uuid4().hex
        before = metrics.EXPLORED_OUTCOMES._value.get()
        shown_before = metrics.EXPLORED_ITEMS._value.get()
        async with Store(valkey.url) as store:
            counts, heard = ItemCounts(store, namespace=space), Heard(0.1, [])
            counts.show(heard, {"own": 1, "new": 2}.get)
            trials = TrialCounts(store, namespace=space, observed_s=60, longest_s=60)
            tried = Outcomes(store, namespace=space, item_counts=counts, trials=trials)
            arms = (Arm("a trial", "trial"),)
            tried.shown("ann", model, ["known", "own"], arms)
            tried.shown("cyd", "", ["known"], arms)
            tried.explored("cyd", ["new"], ["new"])
            await tried.flush()
            tried.logged("cyd", NewEvent(new_uid(), "new"), BASE_MS)
            tried.explored("ann", ["new"], ["own", "new"])
            for item in ("own", "new", "new", "known", "other"):
                tried.logged("ann", NewEvent(new_uid(), item), BASE_MS)
            await tried.flush()
            await counts.refresh()
            assert heard.numbers == {1: (1, 1), 2: (2, 2)}
            with valkey.client() as client:
                of_trial = client.hgetall(f"{space}:trial:a trial")
            sums = {field.decode().partition(":")[2]: number for field, number in of_trial.items()}
            assert sums == {"trial:shown": b"2", "trial:taken": b"1"}
            assert metrics.outcomes(model, "none")._value.get() == 2
            assert metrics.of_model(model).shown._value.get() == 2
            assert metrics.EXPLORED_OUTCOMES._value.get() == before + 2
            assert metrics.EXPLORED_ITEMS._value.get() == shown_before + 2
            tried.explored("ben", ["new"], ["new"])
            tried.erased("ben")
            tried.explored("ben", ["new"], ["new"])  # of a request that had begun before
            await tried.flush()
            with valkey.client() as client:
                assert not client.exists(f"{space}:shown:ben")

    run(go())
