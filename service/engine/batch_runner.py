"""The arithmetic of a batch: rows caught up with the log, then the recommendations.

A state is a pure function of (model, events 1..version). Never do two threads run this at once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from model.artefact import Artefact
from model.kinds import KindRules
from model.recommender import PREFILL_CHUNK
from model.state import State
from model.steppers import open_stepper
from service.catalogue.ask import Ask
from service.catalogue.ranking import Ranking
from service.catalogue.retrieval import Retrieval
from service.engine import snapshots
from service.engine.effects import EventEffects
from service.engine.history import Fetched, lacking, whole
from service.engine.pool import Row, Seen, StatePool
from service.engine.quality import QualitySampler
from service.engine.requests import Read, Recommendation, Source
from service.engine.snapshots import Snapshot, SnapshotFormat, own_versions
from service.engine.work import Work
from service.observe import stages
from service.store.events import ORIGIN, Event

SMALL_EVENTS = 32
SMALL_SCORES = 2**18
"""Batches up to this are computed between two turns of the event loop."""

PREFILL_CELLS = 32_768
DEVICE_PREFILL_CELLS = 2**18
"""One prefill call takes at most so many cells, a row's chunk each."""
ENOUGH_CELLS = 2048
FULL = 0.8
"""A call of that many cells gains nothing by more rows if they fill less of it than this share."""


@dataclass(frozen=True, eq=False)
class Ready:
    """A pinned row, the events it lacks, and who waits for it. `due`: for a snapshot."""

    fetched: Fetched
    row: Row
    events: Sequence[Event] = ()
    due: bool = False


class BatchRunner:
    """Applies events to the rows of a pool and reads recommendations out of them."""

    def __init__(
        self,
        artefact: Artefact,
        pool: StatePool,
        snapshots: SnapshotFormat,
        kinds: KindRules,
        retrieval: Retrieval | None = None,
        quality: QualitySampler | None = None,
    ) -> None:
        self.model, self.pool, self.snapshots = artefact.model, pool, snapshots
        self.quality = quality
        self.stepper = open_stepper(self.model, pool.states)
        vocabulary = {item: i + 1 for i, item in enumerate(artefact.items.ids)}
        self.effects = EventEffects(kinds, vocabulary)
        self.retrieval = retrieval or Retrieval.of(artefact)
        on_gpu = pool.device.type == "cuda"
        self.prefill_cells = DEVICE_PREFILL_CELLS if on_gpu else PREFILL_CELLS

    @torch.inference_mode()
    def warm_up(self, users: int) -> None:
        """Makes what batches of up to so many users need, so that none waits for it."""
        self.stepper.prepare(users)
        for batch in (1, users):
            items = torch.ones(batch, 2, dtype=torch.long, device=self.model.device)
            lengths = torch.full((batch,), 2, device=self.model.device)
            state = self.model.prefill(items, items * 1000, lengths, self.model.new_state(batch))
            state = self.model.step(items[:, 0], items[:, 0] * 3000, state)
            query = self.model.query(state, items[:, 0] * 4000)
            self.retrieval.answer(query, [Ask(10)] * batch)

    def is_small(self, batch: Sequence[Fetched]) -> bool:
        """Whether this takes a millisecond at most: users at hand, few events and few scores."""
        if not self.stepper.in_microseconds:
            return False
        asks = [read.ask for fetched in batch for read in fetched.reads]
        replies = [(fetched, fetched.reply) for fetched in batch if fetched.reply is not None]
        judged = sum(self._drawn(one, reply.events) is not None for one, reply in replies)
        return (
            (len(asks) + judged) * self.retrieval.view.size <= SMALL_SCORES
            and all(ask.candidates is None and ask.choice is None for ask in asks)
            and all(_is_at_hand(fetched) for fetched in batch)
            and sum(len(reply.events) for _, reply in replies) <= SMALL_EVENTS
        )

    @torch.inference_mode()
    def run(self, batch: Sequence[Fetched]) -> Work:
        """Catches up, packs due snapshots and answers reads. On an error every row concerned is
        dropped: the log still has the events."""
        work = Work()
        try:
            self._run(batch, work)
            self.stepper.settle()  # what fails on the device must fail this batch
        except BaseException:
            for fetched in batch:
                self.pool.drop(fetched.user_id)
            self.stepper.forget()
            raise
        finally:
            for fetched in batch:
                self.pool.unpin(fetched.row)
        return work

    def _run(self, batch: Sequence[Fetched], work: Work) -> None:
        ready: list[Ready] = []
        try:
            for fetched in batch:
                placed = self._place(fetched, work)
                if placed is None:
                    work.unresolved.append(fetched)
                else:
                    ready.append(placed)
            due = [one.row for one in ready if one.due]
            self._catch_up(self._judge(ready, due, work), due, work)
            if due and not self.snapshots.rounds:
                # A record erased since its append leaves nothing to keep.
                self._pack([row for row in due if row.mark != ORIGIN], work)
                work.end(stages.SNAPSHOT)
            self._answer(ready, work)
        finally:
            for one in ready:
                self.pool.unpin(one.row)
                if one.fetched.is_session:
                    self.pool.drop(one.fetched.user_id)

    @torch.inference_mode()
    def copy(self, user_id: str) -> Snapshot | None:
        """What the pool holds of a user; to be called in the thread of `run`."""
        row = self.pool.pin(user_id)
        if row is None:
            return None
        try:
            _, state = self._states([row])
            seen, hidden = row.seen.unique(), row.hidden.unique()
            return Snapshot(row.mark, row.count, seen, hidden, row.recent, row.unknown, state)
        finally:
            self.pool.unpin(row)

    # -- catching up ---------------------------------------------------------------------

    def _place(self, fetched: Fetched, work: Work) -> Ready | None:
        """A pinned row for the user and the events it lacks, or None: the history is needed."""
        reply, history = fetched.reply, fetched.history
        if reply is None:
            return self._without_reply(fetched)
        due = self.snapshots.is_due(reply.outcomes)
        if history is not None:  # it took as many events as a snapshot would have saved
            due |= len(history.events) >= self.snapshots.every
        row = self.pool.pin(fetched.user_id)
        if row is not None:
            events = lacking(row.mark, fetched.known, reply)
            if events is not None:
                return Ready(fetched, row, events, due)
            self.pool.unpin(row)
        if history is None:
            base = self.snapshots.read(reply.snapshot)
            work.unsound += base is None and reply.snapshot is not None
            history = whole(base, reply)
        if history is None:
            return None
        if history.base is not None:
            work.from_snapshot += 1
        elif len(history.events) > len(own_versions(reply.outcomes)):
            work.from_log += 1  # more than what the user has just begun with
        return Ready(fetched, self.begun(fetched.user_id, history.base), history.events, due)

    def _without_reply(self, fetched: Fetched) -> Ready | None:
        """Of a session, or of a user whose row will do as it is."""
        if fetched.history is not None:
            row = self.begun(fetched.user_id, fetched.history.base)
            return Ready(fetched, row, fetched.history.events)
        wanted = fetched.row is not None or fetched.away
        there = self.pool.pin(fetched.user_id) if wanted else None
        if there is None and fetched.away:
            there = Row(fetched.user_id, -1, pins=1)  # of nothing, and not in the pool
        return None if there is None else Ready(fetched, there)

    def begun(self, user_id: str, base: Snapshot | None) -> Row:
        """A new row, pinned, at a snapshot or at the beginning of a history."""
        row = self.pool.create(user_id)
        if base is None:
            self.pool.reset([row])
        else:
            self.pool.states.write(self.pool.index([row]), base.state)
            row.mark, row.count = base.mark, base.count
            row.recent, row.unknown = base.recent, base.unknown
            row.seen, row.hidden = Seen(base.seen), Seen(base.hidden)
        return row

    def _catch_up(self, ready: Sequence[Ready], due: Sequence[Row], work: Work) -> None:
        left = [(one.row, iter(one.events)) for one in ready if one.events]
        while True:
            part = [
                (row, list(islice(events, self.snapshots.until_rounded(row.mark.version))))
                for row, events in left
            ]
            part = [(row, events) for row, events in part if events]
            if not part:
                return
            self._apply(part, work)
            if self.snapshots.rounds:
                at_border = [r for r, _ in part if r.mark.version % self.snapshots.every == 0]
                self._round(at_border)
                self._pack([row for row in at_border if row in due], work)
                if at_border:
                    work.end(stages.SNAPSHOT)

    def _apply(self, part: list[tuple[Row, list[Event]]], work: Work) -> None:
        """Moves rows on by their events; a row's mark moves only when its state has."""
        known = [(row, self.effects.known(events)) for row, events in part]
        most = self.stepper.most_steps
        if most is None:
            most = max(len(e) for _, e in known)
        stepped = [(r, e) for r, e in known if 0 < len(e) <= most]
        if stepped:
            slots = np.array([row.slot for row, own in stepped for _ in own])
            steps = np.array([event for _, own in stepped for event in own], np.int64)
            self.stepper.step(slots, steps[:, 0], steps[:, 1])
            work.stepped += sum(len(indexed) for _, indexed in stepped)
            work.end(stages.STEP)
        prefilled = [(r, e) for r, e in known if len(e) > most]
        if prefilled:
            self._prefill(prefilled)
            work.prefilled += sum(len(indexed) for _, indexed in prefilled)
            work.end(stages.PREFILL)
        for (row, events), (_, indexed) in zip(part, known, strict=True):
            # Only a record that has lost its beginning has a gap.
            row.truncated |= events[0].version > row.mark.version + 1
            row.seen.add(item for item, _ in indexed)
            row.hidden.add(self.effects.hidden(events))
            row.recent = self.effects.recent(row.recent, events)
            row.unknown = self.effects.unknown(row.unknown, events)
            row.count += len(indexed)
            row.mark = events[-1].mark

    def _states(self, rows: list[Row]) -> tuple[Tensor, State]:
        """Places in the pool and a copy of the states there, every step taken."""
        self.stepper.send()
        index = self.pool.index(rows)
        return index, self.pool.states.rows(index)

    def _prefill(self, rows: list[tuple[Row, list[tuple[int, int]]]]) -> None:
        rows = sorted(rows, key=lambda pair: len(pair[1]))
        while rows:
            group = [rows.pop()]
            longest = len(group[0][1])
            width = min(longest, PREFILL_CHUNK)
            while rows and width * (len(group) + 1) <= self.prefill_cells:
                enough = width * len(group) >= ENOUGH_CELLS
                if enough and len(rows[-1][1]) < FULL * longest:
                    break
                group.append(rows.pop())
            index, state = self._states([row for row, _ in group])
            histories = [events for _, events in group]
            self.pool.states.write(index, self.model.chunked_prefill(histories, state))

    # -- snapshots -----------------------------------------------------------------------

    def _round(self, rows: list[Row]) -> None:
        if not rows:
            return
        layout, (index, state) = self.pool.layout, self._states(rows)
        fits = layout.fits(state, self.snapshots.precision).nonzero()[:, 0]
        self.pool.states.write(
            index[fits], layout.rounded(state.rows(fits), self.snapshots.precision)
        )

    def _pack(self, rows: list[Row], work: Work) -> None:
        rows = [row for row in rows if not row.truncated]  # a snapshot is of the whole history
        if not rows:
            return
        _, state = self._states(rows)
        fits = self.pool.layout.fits(state, self.snapshots.precision)
        work.unfit += int((~fits).sum())
        chosen = [row for row, fit in zip(rows, fits.tolist(), strict=True) if fit]
        extras = [snapshots.describe(self.snapshots.stamp, row) for row in chosen]
        packed = self.pool.layout.pack(
            state.rows(fits.nonzero()[:, 0]), extras, self.snapshots.precision
        )
        work.snapshots += zip((row.user_id for row in chosen), packed, strict=True)

    # -- recommendations -----------------------------------------------------------------

    def _judge(self, ready: Sequence[Ready], due: Sequence[Row], work: Work) -> Sequence[Ready]:
        """Catches up to just before the events of the quality sample and judges them; what is left
        to catch up with."""
        if self.quality is None:
            return ready
        places = [self._drawn(one.fetched, one.events) for one in ready]
        chosen = [(one, n) for one, n in zip(ready, places, strict=True) if n is not None]
        if not chosen:
            return ready
        self._catch_up([replace(one, events=one.events[:n]) for one, n in chosen], due, work)
        self.stepper.send()  # a failure of these steps is the batch's
        events = [(one.row, one.events[n]) for one, n in chosen]
        try:
            work.judged = self.quality.judged(events, self.effects, self.retrieval, self._rankings)
        except Exception:
            work.unjudged = len(events)
            self.quality.log_failure()
        work.end(stages.RETRIEVE)
        parts = zip(ready, places, strict=True)
        return [replace(one, events=one.events[n:]) if n else one for one, n in parts]

    def _drawn(self, fetched: Fetched, events: Sequence[Event]) -> int | None:
        """Which of the events that a row lacks is of the quality sample; None: none."""
        if self.quality is None or fetched.reply is None:
            return None
        return self.quality.place(fetched.reply, events, self.effects)

    def _answer(self, ready: Sequence[Ready], work: Work) -> None:
        asked = [(one, read, self._ask(one, read)) for one in ready for read in one.fetched.reads]
        if not asked:
            return
        rankings = self._rankings([(one.row, ask) for one, _, ask in asked])
        for (one, read, ask), ranking in zip(asked, rankings, strict=True):
            work.answers.append((read, _recommendation(one, ask, ranking)))
        work.end(stages.RETRIEVE)

    def _ask(self, ready: Ready, read: Read) -> Ask:
        row, at_ms = ready.row, _request_time(ready.fetched, read)
        had, hidden = self.retrieval.had(row.seen.array(), row.unknown), row.hidden.array()
        return read.ask.of_user(had, hidden, row.recent, at_ms, exclude_seen=read.exclude_seen)

    def _rankings(self, asked: Sequence[tuple[Row, Ask]]) -> list[Ranking]:
        """What users are given: by their states, or, where those say nothing, what is popular."""
        popular = iter(self.retrieval.answer(None, [ask for row, ask in asked if not row.count]))
        best = iter(self._by_states([(row, ask) for row, ask in asked if row.count]))
        return [next(best if row.count else popular) for row, _ in asked]

    def _by_states(self, asked: Sequence[tuple[Row, Ask]]) -> list[Ranking]:
        if not asked:
            return []
        asks = [ask for _, ask in asked]
        slots = np.array([row.slot for row, _ in asked])
        times = np.array([ask.at_ms for ask in asks])
        # For kernels, what is not to be returned goes with the steps that wait.
        beside = [] if self.model.kernels is None else self.retrieval.places(asks)
        index, at, *there = self.stepper.send(slots, times, *beside)
        return self.retrieval.answer(self.stepper.query(index, at), asks, there or None)


def _is_at_hand(fetched: Fetched) -> bool:
    if fetched.row is None or fetched.history is not None:
        return False
    return fetched.reply is None or fetched.reply.known_is_current_history


def _request_time(fetched: Fetched, read: Read) -> int:
    if read.at_ms is not None:
        return read.at_ms
    return fetched.reply.now_ms if fetched.reply is not None else int(time.time() * 1000)


def _recommendation(ready: Ready, ask: Ask, ranking: Ranking) -> Recommendation:
    row, fetched = ready.row, ready.fetched
    return Recommendation(
        ranking,
        row.mark,
        ask,
        source=_source(row, ranking),
        stale=fetched.reply is None,
        truncated=row.truncated,
        away=fetched.away,
    )


def _source(row: Row, ranking: Ranking) -> Source:
    if row.count:
        return "model"
    return "live" if ranking.live else "recent" if ranking.recent else "popular"
