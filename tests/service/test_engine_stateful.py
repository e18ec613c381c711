"""Several workers on one real server, their phases interleaved at will.

Each worker is a real engine whose loops do not run: the test itself moves its batches from the
queue over the exchange to the arithmetic, in any order, and loses replies, snapshots and whole
workers in between. What must hold throughout:

- the log is exactly what was accepted, in the order it was accepted or, with the policy replay,
  in that of its times, each event once;
- every state in a pool or in a snapshot is the pure function of the events up to its mark;
- an answer is computed from exactly the log that its exchange saw;
- an event is judged by the state of exactly the events before it, once or never.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor

from model import UNKNOWN_TIME, ModelConfig, TiM4Rec
from model.artefact import Artefact
from model.items import Items
from model.kinds import Effect, KindRules
from model.scoring import Scoring
from model.state import Precision, State
from service.catalogue.ask import Ask
from service.catalogue.ranking import Ranking
from service.catalogue.retrieval import Retrieval
from service.engine.engine import Engine
from service.engine.history import Fetched
from service.engine.pool import Row, StatePool
from service.engine.quality import Judged, QualitySampler
from service.engine.request_queue import Asked
from service.engine.requests import Read, Recommendation
from service.engine.snapshots import Snapshot
from service.store.client import Store
from service.store.erasures import Erasures
from service.store.event_log import EventLog, LatePolicy, LogRequest
from service.store.events import ORIGIN, Event, Mark, NewEvent, Outcome, Verdict, new_uid
from tests.depth import examples
from tests.service.lossy_store import LossyStore
from tests.service.record import read_snapshots
from tests.service.test_pool import evict

torch.set_num_threads(1)

USERS = ["ann", "b{o}b:/%"]
ITEMS = [*(f"i{n}" for n in range(6)), 'a "b",\\ [c]\n', "é€😀" * 28]
EVERY = 4
RECENT = 7  # fewer than a user often has
UNKNOWN = 1
REPLAY_LIMIT = 9
PAGE = 3  # smaller than what is missing after a crash: histories come in several pages
BASE_MS = 1_700_000_000_000
TOLERANCE = {"float32": 2e-4, "float16": 2e-3}
"""A value on the edge between two float16 may be rounded either way: a unit is 1e-3 of it."""


def artefact(seed: int, known: Sequence[str]) -> Artefact:
    torch.manual_seed(seed)
    config = ModelConfig(n_items=len(known), d_model=8, head_dim=4, d_state=3, dropout=0.0)
    model = TiM4Rec(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    items = Items(list(known), np.arange(len(known), 0, -1))
    if seed:  # this one scores the others too
        ids = [*known, *(item for item in ITEMS if item not in known)]
        scored = Items(ids, np.arange(len(ids), 0, -1))
        model.scoring = Scoring(scored, torch.randn(len(ids) + 1, 8), torch.randn(len(ids) + 1))
    return Artefact(model, items, {}, f"model{seed}", Path())


ARTEFACTS = [artefact(0, ITEMS[:6]), artefact(1, ITEMS[2:])]
ARTEFACTS.append(ARTEFACTS[0])
RULES = [KindRules.parse(text) for text in (
    "skip:hide,buy:step+hide,ping:count", "view:log", "view:step,ping:log,*:hide"
)]  # fmt: skip
"""What is served: two models, and the first of them with other rules."""
KINDS = [None, None, "view", "skip", "buy", "ping"]


def as_sent(event: Event) -> tuple[object, ...]:
    return (
        event.sent_uid, event.item_id, event.given_ms, event.event_id, event.kind, event.weight
    )  # fmt: skip


def as_given(event: NewEvent) -> tuple[object, ...]:
    return event.item_id, event.time_ms, event.event_id, event.kind, event.weight


def of_step(which: int, event: Event) -> bool:
    return event.kind is None or Effect.STEP in RULES[which].of(event.kind)


def stepping(which: int, event: Event) -> bool:
    return event.item_id in ARTEFACTS[which].items.ids and of_step(which, event)


def recent(which: int, events: Sequence[Event]) -> tuple[str, ...]:
    """The last items, newest first, known to the model or not."""
    return tuple([event.item_id for event in events if of_step(which, event)][::-1][:RECENT])


def unknown(which: int, events: Sequence[Event]) -> tuple[str, ...]:
    """The items that the model does not know, newest first."""
    items = [e.item_id for e in events if of_step(which, e) and not stepping(which, e)]
    return tuple(dict.fromkeys(items[::-1]))[:UNKNOWN]


@dataclass
class Exchanged:
    """A batch after its exchange, with the log that the exchange saw for each user."""

    fetched: list[Fetched]
    saw: dict[str, list[Event]]


class RecordedRetrieval(Retrieval):
    """With what it was asked, for states and without."""

    def __init__(self, artefact: Artefact) -> None:
        model = artefact.model
        items, bias = artefact.scored_items, model.item_bias
        super().__init__(model.scoring_vectors, items, model.repeat_bias, item_bias=bias)
        self.row_of = {item: row for row, item in enumerate(items.ids, 1)}.get
        self.of_states: list[Ask] = []
        self.of_none: list[Ask] = []

    def answer(
        self, query_BD: Tensor | None, asks: Sequence[Ask], there: Sequence[Tensor] | None = None
    ) -> list[Ranking]:
        (self.of_none if query_BD is None else self.of_states).extend(asks)
        return super().answer(query_BD, asks, there)

    def asked(self) -> list[Ask]:
        """What it was asked since the last time, for states and then without."""
        found = [*self.of_states, *self.of_none]
        self.of_states.clear()
        self.of_none.clear()
        return found


@dataclass
class Chosen:
    """An event that was judged, and its user's row just then."""

    event: Event
    mark: Mark
    state: State
    seen: set[int]
    hidden: set[int]


class RecordedSampler(QualitySampler):
    """Of every event, with what was to be judged."""

    def __init__(self, artefact: Artefact, retrieval: RecordedRetrieval) -> None:
        super().__init__(1.0, {item: n for n, item in enumerate(artefact.items.ids, 1)}.get)
        self.pool: StatePool
        self.chosen: list[Chosen] = []
        self._recorded = retrieval

    def judged(self, chosen: Sequence[tuple[Row, Event]], *others: Any) -> list[Judged]:
        for row, event in chosen:
            state = self.pool.states.rows(torch.tensor([row.slot]))
            seen, hidden = (set(of.array().tolist()) for of in (row.seen, row.hidden))
            self.chosen.append(Chosen(event, row.mark, state, seen, hidden))
        found = super().judged(chosen, *others)
        self._recorded.asked()
        return found


class Worker:
    def __init__(self, url: str, which: int, precision: Precision, policy: LatePolicy) -> None:
        self.which, self.precision = which, precision
        self.store = LossyStore(url, timeout_s=0.3)
        self.log = EventLog(
            self.store,
            page=PAGE,
            dedup_window=1000,
            late_policy=policy,
            replay_limit=REPLAY_LIMIT,
        )
        self.retrieval = RecordedRetrieval(ARTEFACTS[which])
        self.quality = RecordedSampler(ARTEFACTS[which], self.retrieval)
        self.engine = Engine(
            ARTEFACTS[which],
            self.log,
            pool_capacity=16,
            max_batch=4,
            snapshot_every=EVERY,
            snapshot_precision=precision,
            kinds=RULES[which],
            retrieval=self.retrieval,
            quality=self.quality,
        )
        self.quality.pool = self.engine.pool
        self.exchanged: list[Exchanged] = []
        self.unresolved: list[Fetched] = []
        self.packed: list[tuple[str, bytes]] = []


class Workers(RuleBasedStateMachine):
    url: str
    precision: Precision = "float32"
    late_policy: LatePolicy = "clamp"
    faults = True

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.own = Store(self.url)
        self.truth = EventLog(self.own, page=1000)
        self.run(self.own.execute([("FLUSHALL",)], 5))
        # The server knows the scripts from here on: a lost reply is then that of an append.
        for events in ([NewEvent(new_uid(), "any")], []):
            self.run(self.truth.exchange([LogRequest("nobody", events=events)]))
        self.logs: dict[str, list[Event]] = {user: [] for user in USERS}
        self.prefix: dict[bytes, list[Event]] = {b"": []}
        self.workers: list[Worker] = []
        self.sent: list[NewEvent] = []
        self.backups: dict[str, tuple[bytes, list[Event]]] = {}
        self.erased: set[bytes] = set()  # uids of histories that nothing may be kept of
        self.barred: set[str] = set()  # users of whom a snapshot may be refused for a while
        self.calls: list[asyncio.Task[Any]] = []
        self.folded: dict[tuple[int, bytes], tuple[State, set[int]]] = {}
        self.judged: set[bytes] = set()

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @initialize(models=st.lists(st.sampled_from([0, 1, 2]), min_size=2, max_size=3))
    def start(self, models: list[int]) -> None:
        self.workers = [
            Worker(self.url, which, self.precision, self.late_policy) for which in models
        ]
        for worker in self.workers:
            self.run(worker.engine.erasures.hear())

    def worker(self, index: int) -> Worker:
        return self.workers[index % len(self.workers)]

    # -- what callers do -----------------------------------------------------------------

    @rule(
        index=st.integers(0, 2),
        user=st.sampled_from(USERS),
        items=st.lists(st.sampled_from(ITEMS), min_size=1, max_size=6),
        offset=st.none() | st.integers(0, 100),
        named=st.booleans(),
        kind=st.integers(0, len(KINDS) - 1),
    )
    def post(
        self, index: int, user: str, items: list[str], offset: int | None, named: bool, kind: int
    ) -> None:
        events = [
            NewEvent(
                new_uid(),
                item,
                None if offset is None else BASE_MS + offset * 3_600_000 - place * 500_000,
                f"e{len(self.sent) + place}" if named else None,
                KINDS[(kind + place) % len(KINDS)],
                0.5 * place if kind else None,
            )
            for place, item in enumerate(items)
        ]
        self.sent += events
        self.enqueue(self.worker(index).engine.append(user, events))

    @precondition(lambda self: any(e.event_id for e in self.sent))
    @rule(
        index=st.integers(0, 2),
        user=st.sampled_from(USERS),
        which=st.integers(0, 10**6),
        altered=st.booleans(),
    )
    def post_again(self, index: int, user: str, which: int, altered: bool) -> None:
        named = [event for event in self.sent if event.event_id]
        old = named[which % len(named)]
        item = ITEMS[(ITEMS.index(old.item_id) + 1) % len(ITEMS)] if altered else old.item_id
        again = old._replace(uid=new_uid(), item_id=item)
        if altered and which % 2:
            again = old._replace(uid=new_uid(), kind="other")
        self.enqueue(self.worker(index).engine.append(user, [again]))

    @rule(
        index=st.integers(0, 2),
        user=st.sampled_from(USERS),
        at_ms=st.sampled_from([BASE_MS + 10**9, UNKNOWN_TIME]),
        stale=st.booleans(),
    )
    def read(self, index: int, user: str, at_ms: int, stale: bool) -> None:
        self.enqueue(self.worker(index).engine.recommend(user, 3, at_ms=at_ms, allow_stale=stale))

    @rule(index=st.integers(0, 2), user=st.sampled_from(USERS), first=st.integers(1, 5))
    def rank(self, index: int, user: str, first: int) -> None:
        candidates = np.array([first, 6, 2 if first > 2 else 4], np.int32)
        call = self.worker(index).engine.rank(user, candidates, at_ms=BASE_MS + 10**9)
        self.enqueue(call)

    @rule(
        index=st.integers(0, 2),
        items=st.lists(st.sampled_from(ITEMS), max_size=11),
        kind=st.integers(0, len(KINDS) - 1),
    )
    def session(self, index: int, items: list[str], kind: int) -> None:
        """A history of nobody's, among those of users."""
        events = [
            Event(
                place + 1, new_uid(), item, None, BASE_MS + place * 500_000, None,
                KINDS[(kind + place) % len(KINDS)],
            )
            for place, item in enumerate(items)
        ]  # fmt: skip
        engine = self.worker(index).engine
        self.enqueue(engine.recommend_session(events, 3, at_ms=BASE_MS + 10**9))

    @rule(index=st.integers(0, 2), user=st.sampled_from(USERS))
    def erase(self, index: int, user: str) -> None:
        existed = self.run(self.worker(index).engine.erase(user))
        assert existed == bool(self.logs[user])
        self.forget(user)

    def forget(self, user: str) -> None:
        self.barred.add(user)
        self.erased |= {event.uid for event in self.logs[user]}
        self.logs[user] = []

    def enqueue(self, call: Any) -> None:
        self.calls.append(self.loop.create_task(call))
        self.run(asyncio.sleep(0))

    # -- what a worker does --------------------------------------------------------------

    @rule(
        index=st.integers(0, 2),
        fates=st.sampled_from(
            [[], [], [], ["unsent"], ["sent"], ["sent", "unsent"], ["sent"] * 99, ["unsent"] * 99]
        ),
    )
    def exchange(self, index: int, fates: list[str]) -> None:
        worker = self.worker(index)
        batch = worker.engine.queue.take()
        if not batch:
            return
        worker.store.plan = list(fates) if self.faults else []
        before = worker.store.carried_out
        fetched = self.run(worker.engine.exchange.run(batch))
        worker.store.plan = []
        reached = worker.store.carried_out > before
        found, saw = {one.user_id: one for one in fetched}, {}
        for asked in batch:
            one = found.get(asked.user_id)
            if one is not None and one.reply is None:
                continue  # stale reads only: the log was not asked
            new = [event for append in asked.appends for event in append.events]
            self.check_log(asked.user_id, new if reached else [], self.told(asked))
            saw[asked.user_id] = list(self.logs[asked.user_id])
            if one is not None:  # the others' states are not needed
                assert asked.reads or one.row is not None or asked.n_events >= EVERY
        if fetched:
            worker.exchanged.append(Exchanged(fetched, saw))

    def told(self, asked: Asked) -> list[Outcome] | None:
        """What the callers have heard of their events; None: an error."""
        if any(append.done.exception() for append in asked.appends):
            return None
        return [outcome for append in asked.appends for outcome in append.done.result()]

    @precondition(lambda self: any(w.engine.writer.n_due for w in self.workers))
    @rule(which=st.integers(0, 10**6), lost=st.booleans())
    def look_up_due(self, which: int, lost: bool) -> None:
        """Snapshots that appends of users without a row made due; or the log does not answer."""
        due = [w for w in self.workers if w.engine.writer.n_due]
        worker = due[which % len(due)]
        worker.store.plan = ["unsent"] * 99 if lost and self.faults else []
        self.exchange_due(worker)
        worker.store.plan = []

    def exchange_due(self, worker: Worker) -> None:
        fetched = self.run(worker.engine.writer.look_up())
        saw = {one.user_id: list(self.logs[one.user_id]) for one in fetched}
        if fetched:
            worker.exchanged.append(Exchanged(fetched, saw))

    def check_log(self, user: str, new: list[NewEvent], outcomes: list[Outcome] | None) -> None:
        """The record is what it was, and of the new events exactly those to be accepted, each in
        its place."""
        found = self.whole_log(user)
        there = {event.sent_uid: event for event in found}
        expected = list(self.logs[user])
        for place, event in enumerate(new):
            verdict = outcomes[place].verdict if outcomes else None
            twin = next((e for e in expected if e.event_id and e.event_id == event.event_id), None)
            if twin is not None:
                same = as_sent(twin)[1:] == as_given(event)
                assert verdict in (None, Verdict.DUPLICATE if same else Verdict.CONFLICT)
                continue
            last_ms = expected[-1].time_ms if expected else 0
            at, in_effect = len(expected), event.time_ms
            late = in_effect is not None and in_effect < last_ms
            if late and self.late_policy == "replay":
                at = sum(e.time_ms <= in_effect for e in expected)
                if len(expected) - at > REPLAY_LIMIT:
                    assert verdict in (None, Verdict.REJECTED)
                    assert event.uid not in there
                    continue
            elif in_effect is not None:
                in_effect = max(in_effect, last_ms)
            assert event.uid in there, "an accepted event is not in the log"
            logged = there[event.uid]
            assert as_sent(logged)[1:] == as_given(event)
            assert in_effect in (None, logged.time_ms)
            assert verdict in (None, Verdict.LATE if late else Verdict.APPLIED)
            assert not outcomes or outcomes[place].version == logged.version
            expected.insert(at, logged)
        assert [(e.time_ms, as_sent(e)) for e in found] == [
            (e.time_ms, as_sent(e)) for e in expected
        ]
        assert found == sorted(found, key=lambda event: event.time_ms)
        for event in found:  # a uid never names two histories
            whole = found[: event.version]
            assert self.prefix.setdefault(event.uid, whole) == whole
        self.logs[user] = found

    def whole_log(self, user: str) -> list[Event]:
        async def read() -> list[Event]:
            return [event async for page in self.truth.events(user) for event in page]

        events: list[Event] = self.run(read())
        assert [event.version for event in events] == list(range(1, len(events) + 1))
        return events

    @rule(
        index=st.integers(0, 2),
        user=st.sampled_from(USERS),
        items=st.lists(st.sampled_from(ITEMS), min_size=1, max_size=6),
        reads=st.booleans(),
        forgets=st.sampled_from(["", "", "row", "worker"]),
    )
    def whole_turn(
        self, index: int, user: str, items: list[str], reads: bool, forgets: str
    ) -> None:
        """The common course of things, so that long chains of events are reached at all."""
        if forgets == "worker":
            self.crash(index, False)
        elif forgets:
            self.evict(index, user)
        if reads:
            self.read(index, user, BASE_MS + 10**9, False)
        else:
            self.post(index, user, items, None, False, len(items))
        worker, length = self.worker(index), len(self.logs[user])
        self.exchange(index, [])
        while worker.exchanged or worker.unresolved or worker.engine.writer.n_due:
            self.exchange_due(worker)
            for batch in worker.exchanged[:]:
                worker.exchanged.remove(batch)
                self.compute_batch(worker, batch)
            for fetched in worker.unresolved[:]:
                worker.unresolved.remove(fetched)
                self.compute_batch(worker, self.resolved(worker, fetched))
        self.write(worker, worker.packed)
        worker.packed = []
        grown = len(self.logs[user])
        crossed = length // EVERY < grown // EVERY
        if crossed and self.late_policy == "clamp" and user not in self.barred:
            snapshot = self.check_snapshot(worker, user)
            assert snapshot is not None, "nothing bounds what a read would have to replay"
            assert grown - snapshot.mark.version < EVERY

    @rule(
        index=st.integers(0, 2),
        user=st.sampled_from(USERS),
        items=st.lists(st.sampled_from(ITEMS), min_size=EVERY, max_size=6),
    )
    def come_back(self, index: int, user: str, items: list[str]) -> None:
        """After a snapshot, a later event and an eviction."""
        self.whole_turn(index, user, items, False, "")
        self.whole_turn(index, user, items[:1], False, "")
        self.whole_turn(index, user, [], True, "row")

    @rule(index=st.integers(0, 2), user=st.sampled_from(USERS))
    def replace_history(self, index: int, user: str) -> None:
        """Another worker makes the record anew, to about the same length."""
        length = len(self.logs[user])
        self.erase(index, user)
        while len(self.logs[user]) < length:
            self.whole_turn(index, user, ITEMS[: min(6, length)], False, "")

    @precondition(lambda self: any(w.exchanged for w in self.workers))
    @rule(which=st.integers(0, 10**6))
    def compute(self, which: int) -> None:
        """Any exchanged batch of any worker, also one out of turn."""
        pairs = [(w, batch) for w in self.workers for batch in w.exchanged]
        worker, batch = pairs[which % len(pairs)]
        worker.exchanged.remove(batch)
        self.compute_batch(worker, batch)

    @precondition(lambda self: any(w.unresolved for w in self.workers))
    @rule(which=st.integers(0, 10**6), interrupted=st.booleans())
    def resolve(self, which: int, interrupted: bool) -> None:
        pairs = [(w, fetched) for w in self.workers for fetched in w.unresolved]
        worker, fetched = pairs[which % len(pairs)]
        worker.unresolved.remove(fetched)
        resolved = self.resolved(worker, fetched)
        if interrupted:  # other things happen before its arithmetic
            worker.exchanged.append(resolved)
        else:
            self.compute_batch(worker, resolved)

    def resolved(self, worker: Worker, fetched: Fetched) -> Exchanged:
        found = self.run(worker.engine.history.resolve(fetched))
        return Exchanged([found], {found.user_id: list(self.logs[found.user_id])})

    def compute_batch(self, worker: Worker, batch: Exchanged) -> None:
        saw = batch.saw
        work = worker.engine.runner.run(batch.fetched)
        worker.engine.scheduler.conclude(work)
        worker.unresolved += work.unresolved
        worker.packed += work.snapshots
        self.run(asyncio.sleep(0))
        for fetched in batch.fetched:
            if fetched in work.unresolved or fetched.user_id not in saw:
                continue
            row = worker.engine.pool.get(fetched.user_id)
            assert row is not None
            log = saw[fetched.user_id]
            assert row.mark.version == len(log)
            assert row.mark.uid == (log[-1].uid if log else b"")
        self.check_judged(worker)
        asked = worker.retrieval.asked()
        by_source = sorted(work.answers, key=lambda one: one[1].source != "model")
        for (read, answer), ask in zip(by_source, asked, strict=True):
            if read.session is not None:
                assert answer.version == len(read.session)
                self.check_answer(worker, list(read.session), read, ask, answer)
            elif read.user_id in saw:
                assert not answer.stale
                assert answer.version == len(saw[read.user_id])
                self.check_answer(worker, saw[read.user_id], read, ask, answer)

    def check_judged(self, worker: Worker) -> None:
        for one in worker.quality.chosen:
            *before, event = self.prefix[one.event.uid]
            assert event == one.event
            assert of_step(worker.which, event)
            assert one.mark == (before[-1].mark if before else ORIGIN)
            self.check_state(worker.which, before, one.state, one.seen, one.hidden)
            assert event.sent_uid not in self.judged
            self.judged.add(event.sent_uid)
        worker.quality.chosen.clear()

    def check_answer(
        self, worker: Worker, log: list[Event], read: Read, ask: Ask, answer: Recommendation
    ) -> None:
        assert ask.recent == recent(worker.which, log)
        assert ask.at_ms == read.at_ms
        state, seen, hidden = self.fold(worker.which, log)
        rows = map(worker.retrieval.row_of, unknown(worker.which, log))
        had = seen | {row for row in rows if row is not None}
        masked, found = hidden | (had if read.exclude_seen else set()), answer.ranking.items
        assert not masked & set(found.tolist())
        candidates = None if read.ask.candidates is None else set(read.ask.candidates.tolist())
        if candidates is not None:
            assert sorted(found.tolist()) == sorted(candidates - masked)
        if not seen:
            assert answer.source == "popular"
            return
        assert answer.source == "model"
        model = ARTEFACTS[worker.which].model
        with torch.no_grad():
            scores = model.scores(model.query(state, torch.tensor([ask.at_ms])))[0]
        left = (candidates or set(range(1, len(scores)))) - masked
        best = scores[sorted(left)].sort(descending=True).values[: len(left) if candidates else 3]
        np.testing.assert_allclose(
            answer.ranking.scores, best.numpy(), rtol=self.tolerance, atol=10 * self.tolerance
        )

    @precondition(lambda self: any(w.packed for w in self.workers))
    @rule(which=st.integers(0, 10**6), fate=st.sampled_from(["lost", "", "", "sent", 0, 1, 2]))
    def write_snapshot(self, which: int, fate: str | int) -> None:
        """One of those that are due: lost, written, its reply lost, or its user erased before one
        of the three round trips that it takes."""
        pairs = [(w, one) for w in self.workers for one in w.packed]
        worker, one = pairs[which % len(pairs)]
        worker.packed.remove(one)
        if fate == "lost":
            return
        if isinstance(fate, int):

            async def erase() -> None:
                await Erasures(self.truth).erase(one[0])
                self.forget(one[0])

            worker.store.plan = [*["answered"] * fate, erase]
        elif fate:
            worker.store.plan = ["answered", "answered", "sent"]
        self.write(worker, [one])
        worker.store.plan = []
        self.check_snapshot(worker, one[0])

    def write(self, worker: Worker, packed: list[tuple[str, bytes]]) -> None:
        self.run(worker.engine.writer.write(packed))

    @rule(index=st.integers(0, 2))
    def poll_erasures(self, index: int) -> None:
        """What is still under way of an erased user may be computed in between, however late."""
        engine = self.worker(index).engine
        self.run(engine.erasures.hear())
        assert not [
            user
            for user in engine.pool.users()
            if (row := engine.pool.get(user)) is not None and row.mark.uid in self.erased
        ]

    # -- what befalls them ---------------------------------------------------------------

    @rule(index=st.integers(0, 2), user=st.sampled_from(USERS))
    def evict(self, index: int, user: str) -> None:
        evict(self.worker(index).engine.pool, user)

    @rule(index=st.integers(0, 2), other_model=st.booleans())
    def crash(self, index: int, other_model: bool) -> None:
        index %= len(self.workers)
        old = self.workers[index]
        which = (old.which + 1) % len(ARTEFACTS) if other_model else old.which
        self.run(old.store.close())
        self.workers[index] = Worker(self.url, which, self.precision, self.late_policy)
        self.run(self.workers[index].engine.erasures.hear())

    @rule(user=st.sampled_from(USERS))
    def back_up(self, user: str) -> None:
        (dump,) = self.run(self.own.execute([("DUMP", self.truth.keys.record(user))], 5))
        if dump is not None:
            self.backups[user] = (dump, list(self.logs[user]))

    @precondition(lambda self: self.backups)
    @rule(which=st.integers(0, 10**6))
    def restore(self, which: int) -> None:
        user = sorted(self.backups)[which % len(self.backups)]
        dump, log = self.backups[user]
        key = self.truth.keys.record(user)
        self.run(self.own.execute([("RESTORE", key, 0, dump, "REPLACE")], 5))
        self.logs[user] = list(log)
        self.erased -= {event.uid for event in log}

    @rule(
        user=st.sampled_from(USERS), damage=st.sampled_from(["lost", "flipped", "cut", "another's"])
    )
    def damage_snapshot(self, user: str, damage: str) -> None:
        for worker in self.workers:
            key = self.truth.keys.snapshot(worker.engine.identity, user)
            (data,) = self.run(self.own.execute([("GET", key)], 5))
            if not data:
                continue
            if damage == "lost":
                self.run(self.own.execute([("DEL", key)], 5))
                continue
            if damage == "another's":  # sound, of this user, but of another model
                for other in self.workers:
                    if other.engine.identity != worker.engine.identity:
                        at = self.truth.keys.snapshot(other.engine.identity, user)
                        self.run(self.own.execute([("SET", at, data)], 5))
                continue
            place = random.Random(len(data) + len(self.sent)).randrange(len(data))
            flipped = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
            bad = flipped if damage == "flipped" else data[:place]
            self.run(self.own.execute([("SET", key, bad)], 5))

    # -- what must hold ------------------------------------------------------------------

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.precision]

    @invariant()
    def states_are_functions_of_the_log(self) -> None:
        for worker in self.workers:
            pool = worker.engine.pool
            for user in pool.users():
                row = pool.get(user)
                assert row is not None
                events = self.prefix[row.mark.uid]
                assert row.mark.version == len(events)
                held = pool.states.rows(torch.tensor([row.slot]))
                seen, hidden = (set(of.array().tolist()) for of in (row.seen, row.hidden))
                self.check_state(worker.which, events, held, seen, hidden)
                assert row.recent == recent(worker.which, events)
                assert row.unknown == unknown(worker.which, events)

    def check_state(
        self, which: int, events: list[Event], held: State, seen: set[int], hidden: set[int]
    ) -> None:
        expected, *known = self.fold(which, events)
        assert [seen, hidden] == known
        for name, part in expected.parts.items():
            if part.is_floating_point():
                rtol = atol = self.tolerance
                torch.testing.assert_close(held[name], part, rtol=rtol, atol=atol)
            else:
                assert torch.equal(held[name], part), name
            if self.precision != "float32" and events and len(events) % EVERY == 0:
                layout = ARTEFACTS[which].model.state_layout
                assert torch.equal(held[name], layout.rounded(held, self.precision)[name]), name

    def fold(self, which: int, events: list[Event]) -> tuple[State, set[int], set[int]]:
        """The state of a whole history, computed in one go (with the rounding's borders)."""
        key = (which, events[-1].uid if events else b"")
        if key not in self.folded:
            artefact = ARTEFACTS[which]
            model = artefact.model
            index = {item: i + 1 for i, item in enumerate(artefact.items.ids)}
            state = model.new_state(1)
            width = EVERY if self.precision != "float32" else max(len(events), 1)
            with torch.no_grad():
                for start in range(0, len(events), width):
                    part = events[start : start + width]
                    known = [(index[e.item_id], e.time_ms) for e in part if stepping(which, e)]
                    if known:
                        items, times = torch.tensor(known).T[:, None]
                        state = model.prefill(items, times, torch.tensor([len(known)]), state)
                    if len(part) == EVERY and self.precision != "float32":
                        state = model.state_layout.rounded(state, self.precision)
            seen = {index[e.item_id] for e in events if stepping(which, e)}
            hidden = {
                index[e.item_id]
                for e in events
                if e.item_id in index and e.kind and Effect.HIDE in RULES[which].of(e.kind)
            }
            self.folded[key] = state, seen, hidden
        return self.folded[key]

    def teardown(self) -> None:
        try:
            for _ in range(50):  # everything under way comes to its end, without faults
                self.faults = False
                for index, worker in enumerate(self.workers):
                    while worker.engine.queue:
                        self.exchange(index, [])
                for worker in self.workers:
                    while worker.engine.writer.n_due:
                        self.exchange_due(worker)
                if not any(w.exchanged or w.unresolved for w in self.workers):
                    break
                while any(w.exchanged for w in self.workers):
                    self.compute(0)
                while any(w.unresolved for w in self.workers):
                    self.resolve(0, False)
            assert not any(w.exchanged or w.unresolved for w in self.workers)
            for worker in self.workers:
                if worker.packed:
                    self.write(worker, worker.packed)
            self.states_are_functions_of_the_log()
            for user in USERS:
                assert self.whole_log(user) == self.logs[user]
                for worker in self.workers:
                    self.check_snapshot(worker, user)
        finally:
            for call in self.calls:
                call.cancel()
            if self.calls:
                self.run(asyncio.wait(self.calls))
            for worker in self.workers:
                self.run(worker.store.close())
            self.run(self.own.close())
            self.run(asyncio.sleep(0))  # transports close in a callback
            self.loop.close()

    def check_snapshot(self, worker: Worker, user: str) -> Snapshot | None:
        (data,) = self.run(read_snapshots(worker.log, worker.engine.identity, [user]))
        snapshot = worker.engine.snapshots.read(data)
        if snapshot is not None:
            assert snapshot.mark.uid not in self.erased, "it outlived its user"
            events = self.prefix[snapshot.mark.uid]
            seen, hidden = set(snapshot.seen.tolist()), set(snapshot.hidden.tolist())
            self.check_state(worker.which, events, snapshot.state, seen, hidden)
            assert snapshot.recent == recent(worker.which, events)
            assert snapshot.unknown == unknown(worker.which, events)
        return snapshot


@pytest.fixture
def machine(valkey: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Workers]]:
    Workers.url = valkey.url
    # Batches are computed at any time.
    monkeypatch.setattr("service.engine.erasure.DROP_AGAIN_S", 1e9)
    monkeypatch.setattr("service.engine.effects.RECENT", RECENT)
    monkeypatch.setattr("service.engine.effects.UNKNOWN", UNKNOWN)
    yield Workers
    Workers.precision, Workers.late_policy = "float32", "clamp"


@pytest.mark.parametrize(
    ("precision", "policy"),
    [("float32", "clamp"), ("float16", "clamp"), ("float32", "replay"), ("float16", "replay")],
)
def test_workers(machine: type[Workers], precision: Precision, policy: LatePolicy) -> None:
    machine.precision, machine.late_policy = precision, policy
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(15),
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
        ),
    )
