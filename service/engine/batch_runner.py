"""The arithmetic of a wave: rows caught up with the log, then the recommendations.

A state is a pure function of (model, events 1..version). Never do two threads run this at once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.artefact import Artefact
from model.device_stepper import DeviceStepper
from model.gaps import UNKNOWN_TIME
from model.kinds import KindRules
from model.state import Precision, State
from model.stepper import Stepper
from service.catalogue.choice import Choice
from service.catalogue.retrieval import NO_ITEMS, ExactRetrieval, Ranking, places
from service.catalogue.view import Selection
from service.engine import snapshots
from service.engine.pool import Row, Seen, StatePool
from service.engine.snapshots import Snapshot
from service.engine.wave import Entry, History, Read, Recommendation
from service.observe import stages
from service.observe.stages import Span
from service.store.event_log import ORIGIN, Event, LogReply, Mark, Verdict

STEPS = 8
"""Without a CPU's stepper, a row that lacks more events than this has them in one pass."""

SMALL_EVENTS = 32
SMALL_SCORES = 2**18
"""Waves up to this are computed between two turns of the event loop."""

PREFILL_EVENTS = 512
PREFILL_CELLS = 32_768
DEVICE_PREFILL_CELLS = 2**18
"""One prefill call takes at most so many events of a row, and so many cells of the batch."""
ENOUGH_CELLS = 2048
FULL = 0.8
"""A call of that many cells gains nothing by more rows if they fill less of it than this share."""


@dataclass
class Work:
    """What one pass did: answers, snapshots to write, entries that need their history.

    `spans` follow each other without a gap from `started` on.
    """

    answers: list[tuple[Read, Recommendation]] = field(default_factory=list)
    snapshots: list[tuple[str, bytes]] = field(default_factory=list)
    unresolved: list[Entry] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    spans: list[Span] = field(default_factory=list)
    from_snapshot: int = 0
    from_log: int = 0
    stepped: int = 0
    prefilled: int = 0
    unfit: int = 0
    unsound: int = 0

    def end(self, stage: str) -> None:
        """What was done since the last span was `stage`."""
        start = self.spans[-1][2] if self.spans else self.started
        self.spans.append((stage, start, time.perf_counter()))


def missing(mark: Mark, known: Mark | None, reply: LogReply) -> list[Event] | None:
    """The events a state at `mark` lacks; None when the reply does not show that the state
    belongs to this history, or not all that it lacks.

    Args:
        known: the mark that was sent with the request, if one was.
    """
    if not reply.complete:
        return None
    if mark == reply.newest:
        return []
    if reply.known_is_current_history and mark == known:
        return reply.events
    if not reply.events:
        return None
    if mark == ORIGIN:
        return reply.events if reply.events[0].version <= reply.oldest else None
    place = mark.version - reply.events[0].version
    if 0 <= place < len(reply.events) and reply.events[place].uid == mark.uid:
        return reply.events[place + 1 :]
    return None


class BatchRunner:
    """Applies events to the rows of a pool and reads recommendations out of them."""

    def __init__(
        self,
        artefact: Artefact,
        pool: StatePool,
        *,
        snapshot_every: int = 64,
        snapshot_precision: Precision = "float32",
        retrieval: ExactRetrieval | None = None,
        kinds: KindRules | None = None,
    ) -> None:
        self.model = artefact.model
        self.kinds = kinds or KindRules()
        self.stepper: Stepper | DeviceStepper | None = None
        if (kernels := self.model.kernels) is not None:
            on_gpu = pool.device.type == "cuda"
            self.stepper = DeviceStepper(self.model, pool.states, kernels, graphs=on_gpu)
        elif self.model.steppable and pool.device.type == "cpu":
            self.stepper = Stepper(self.model, pool.states)
        self.pool = pool
        self.vocabulary = {item: i + 1 for i, item in enumerate(artefact.items.ids)}
        self.retrieval = retrieval or ExactRetrieval(
            self.model.item_embedding.weight, artefact.items, self.model.repeat_bias
        )
        self.prefill_cells = PREFILL_CELLS
        if pool.device.type == "cuda":
            self.prefill_cells = DEVICE_PREFILL_CELLS
        self.snapshot_every = snapshot_every
        self.precision = snapshot_precision
        self.stamp = snapshots.stamp("")  # of the engine's identity, once it has one

    @property
    def rounds_states(self) -> bool:
        """With reduced snapshots, every worker rounds a state at every snapshot's version."""
        return self.precision != "float32"

    def moves(self, event: Event) -> bool:
        """Whether the event moves the state."""
        steps = event.kind is None or self.kinds.steps(event.kind)
        return steps and event.item_id in self.vocabulary

    def known(self, events: Sequence[Event]) -> list[tuple[int, int]]:
        """Item and time, ms, of the events that move the state."""
        return [(self.vocabulary[e.item_id], e.time_ms) for e in events if self.moves(e)]

    def hidden(self, events: Sequence[Event]) -> list[int]:
        """The items that these events hide."""
        return [
            self.vocabulary[event.item_id]
            for event in events
            if event.kind is not None
            and self.kinds.hides(event.kind)
            and event.item_id in self.vocabulary
        ]

    def is_small(self, entries: Sequence[Entry]) -> bool:
        """Whether this takes a millisecond at most: users at hand, few events and few scores."""
        if not isinstance(self.stepper, Stepper):
            return False
        reads = [read for entry in entries for read in entry.reads]
        return (
            len(reads) * self.retrieval.shelf.size <= SMALL_SCORES
            and all(read.candidates is None and read.choice is None for read in reads)
            and all(_is_at_hand(entry) for entry in entries)
            and sum(len(e.reply.events) for e in entries if e.reply is not None) <= SMALL_EVENTS
        )

    @torch.inference_mode()
    def run(self, entries: Sequence[Entry]) -> Work:
        """Catches up, packs due snapshots and answers reads. On an error every row concerned is
        dropped: the log still has the events."""
        work = Work()
        try:
            self._run(entries, work)
            if isinstance(self.stepper, DeviceStepper):
                self.stepper.settle()  # what fails on the device must fail this wave
        except BaseException:
            for entry in entries:
                self.pool.drop(entry.user_id)
            if isinstance(self.stepper, DeviceStepper):
                self.stepper.forget()
            raise
        finally:
            for entry in entries:
                self.pool.unpin(entry.row)
                entry.row = None
        return work

    def _run(self, entries: Sequence[Entry], work: Work) -> None:
        ready: list[tuple[Entry, Row]] = []
        lacking: list[tuple[Row, list[Event]]] = []
        due: list[Row] = []
        for entry in entries:
            found = self._place(entry, work)
            if found is None:
                work.unresolved.append(entry)
                continue
            row, events = found
            ready.append((entry, row))
            if events:
                lacking.append((row, events))
            if self.snapshot_due(entry):
                due.append(row)
        try:
            self._catch_up(lacking, due, work)
            if not self.rounds_states:
                # A record erased since its append leaves nothing to keep.
                self._pack([row for row in due if row.mark != ORIGIN], work)
                if due:
                    work.end(stages.SNAPSHOT)
            self._answer(ready, work)
        finally:
            for entry, row in ready:
                self.pool.unpin(row)
                if entry.session is not None:
                    self.pool.drop(entry.user_id)

    @torch.inference_mode()
    def copy(self, user_id: str) -> Snapshot | None:
        """What the pool holds of a user; to be called in the thread of `run`."""
        row = self.pool.pin(user_id)
        if row is None:
            return None
        try:
            state = self._states().rows(self.pool.index([row]))
            return Snapshot(row.mark, row.count, row.seen.unique(), row.hidden.unique(), state)
        finally:
            self.pool.unpin(row)

    @torch.inference_mode()
    def similar(
        self, row: int, k: int, masked: NDArray[np.int32], selection: Selection | None
    ) -> Ranking:
        """`ExactRetrieval.similar`; to be called in the thread of `run`."""
        return self.retrieval.similar(row, k, masked, selection)

    # -- catching up ---------------------------------------------------------------------

    def _place(self, entry: Entry, work: Work) -> tuple[Row, list[Event]] | None:
        """A pinned row for the entry and the events it lacks, or None: its history is needed."""
        if entry.session is not None:
            fresh = self.pool.create(entry.user_id)
            self.pool.reset([fresh])
            return fresh, list(entry.session)
        row = self.pool.pin(entry.user_id)
        if entry.reply is None:
            if row is None and entry.away:
                return Row(entry.user_id, -1, pins=1), []  # of nothing, and not in the pool
            return None if row is None else (row, [])
        if row is not None:
            events = missing(row.mark, entry.known, entry.reply)
            if events is not None:
                return row, events
            self.pool.unpin(row)
        history = entry.history
        if history is None:
            history = self._history(entry.reply, work)
            if history is None:
                return None
        row = self.pool.create(entry.user_id)
        if history.base is None:
            self.pool.reset([row])
        else:
            base = history.base
            self.pool.states.write(self.pool.index([row]), base.state)
            row.mark, row.count = base.mark, base.count
            row.seen, row.hidden = Seen(base.seen), Seen(base.hidden)
            work.from_snapshot += 1
        # More than what the user has just begun with.
        if history.base is None and len(history.events) > len(_own_versions(entry.reply)):
            work.from_log += 1
        return row, history.events

    def _history(self, reply: LogReply, work: Work) -> History | None:
        """What the reply alone says of a user without a row: its snapshot and the newest page."""
        base = snapshots.read(self.pool.layout, self.stamp, reply.snapshot)
        if base is not None:
            events = missing(base.mark, None, reply)
            if events is not None:
                return History(base, events)
        elif reply.snapshot is not None:
            work.unsound += 1
        events = missing(ORIGIN, None, reply)
        return None if events is None else History(None, events)

    def snapshot_due(self, entry: Entry) -> bool:
        """Whether this wave's own append crossed a multiple of `snapshot_every`, or rebuilding
        the state took as many events as a snapshot would have saved."""
        if entry.reply is None:
            return False
        own = _own_versions(entry.reply)
        every = self.snapshot_every
        if own and (min(own) - 1) // every < max(own) // every:
            return True
        return entry.history is not None and len(entry.history.events) >= every

    def _catch_up(self, lacking: list[tuple[Row, list[Event]]], due: list[Row], work: Work) -> None:
        places = [0] * len(lacking)
        while True:
            part: list[tuple[Row, list[Event]]] = []
            for i, (row, events) in enumerate(lacking):
                if places[i] == len(events):
                    continue
                end = len(events)
                if self.rounds_states:  # up to the next version at which every worker rounds
                    border = (row.mark.version // self.snapshot_every + 1) * self.snapshot_every
                    end = min(end, places[i] + border - row.mark.version)
                part.append((row, events[places[i] : end]))
                places[i] = end
            if not part:
                return
            self._apply(part, work)
            if self.rounds_states:
                at_border = [r for r, _ in part if r.mark.version % self.snapshot_every == 0]
                self._round(at_border)
                self._pack([row for row in at_border if row in due], work)
                if at_border:
                    work.end(stages.SNAPSHOT)

    def _apply(self, part: list[tuple[Row, list[Event]]], work: Work) -> None:
        """Moves rows on by their events; a row's mark moves only when its state has."""
        known = []
        for row, events in part:
            known.append((row, self.known(events)))
        most = max(len(e) for _, e in known) if isinstance(self.stepper, Stepper) else STEPS
        stepped = [(r, e) for r, e in known if 0 < len(e) <= most]
        if stepped:
            self._step(stepped)
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
            row.hidden.add(self.hidden(events))
            row.count += len(indexed)
            row.mark = events[-1].mark

    def _step(self, rows: list[tuple[Row, list[tuple[int, int]]]]) -> None:
        if isinstance(self.stepper, Stepper):
            slots = np.array([row.slot for row, own in rows for _ in own])
            events = np.array([event for _, own in rows for event in own], np.int64)
            self.stepper.step(slots, events[:, 0], events[:, 1])
            return
        rows = sorted(rows, key=lambda pair: -len(pair[1]))
        slots = np.array([row.slot for row, _ in rows])
        for i in range(len(rows[0][1])):
            going = sum(len(events) > i for _, events in rows)
            batch = np.array([events[i] for _, events in rows[:going]], np.int64)
            self._move(slots[:going], batch[:, 0], batch[:, 1])

    def _states(self) -> State:
        """The pool's states, every step taken."""
        if isinstance(self.stepper, DeviceStepper):
            self.stepper.send()
        return self.pool.states

    def _move(
        self, slots: NDArray[np.int64], items: NDArray[np.int64], times: NDArray[np.int64]
    ) -> None:
        """One more interaction for each of these rows."""
        states = self.pool.states
        if isinstance(self.stepper, DeviceStepper):
            self.stepper.step(slots, items, times)
            return
        index, item, at = (torch.from_numpy(a).to(self.pool.device) for a in (slots, items, times))
        states.write(index, self.model.step(item, at, states.rows(index)))

    def _query(self, slots: NDArray[np.int64], times: NDArray[np.int64]) -> Tensor:
        """(B, D) what these rows recommend, asked for at those times."""
        states = self.pool.states
        if isinstance(self.stepper, Stepper):
            return self.stepper.query(slots, times)
        index, at = (torch.from_numpy(a).to(self.pool.device) for a in (slots, times))
        return self.model.query(states.rows(index), at)

    def _prefill(self, rows: list[tuple[Row, list[tuple[int, int]]]]) -> None:
        rows = sorted(rows, key=lambda pair: len(pair[1]))
        while rows:
            group = [rows.pop()]
            longest = len(group[0][1])
            width = min(longest, PREFILL_EVENTS)
            while rows and width * (len(group) + 1) <= self.prefill_cells:
                enough = width * len(group) >= ENOUGH_CELLS
                if enough and len(rows[-1][1]) < FULL * longest:
                    break
                group.append(rows.pop())
            index = self.pool.index([row for row, _ in group])
            state = self._states().rows(index)
            for start in range(0, longest, PREFILL_EVENTS):
                pieces = [events[start : start + PREFILL_EVENTS] for _, events in group]
                state = self.model.prefill(*_padded(pieces, index.device), state)
            self.pool.states.write(index, state)

    # -- snapshots -----------------------------------------------------------------------

    def _round(self, rows: list[Row]) -> None:
        if not rows:
            return
        index = self.pool.index(rows)
        state = self._states().rows(index)
        fits = self.pool.layout.fits(state, self.precision)
        kept = index[fits]
        self.pool.states.write(
            kept, self.pool.layout.rounded(self.pool.states.rows(kept), self.precision)
        )

    def _pack(self, rows: list[Row], work: Work) -> None:
        rows = [row for row in rows if not row.truncated]  # a snapshot is of the whole history
        if not rows:
            return
        state = self._states().rows(self.pool.index(rows))
        fits = self.pool.layout.fits(state, self.precision)
        work.unfit += int((~fits).sum())
        chosen = [row for row, fit in zip(rows, fits.tolist(), strict=True) if fit]
        extras = [snapshots.describe(self.stamp, r.mark, r.count, r.seen, r.hidden) for r in chosen]
        packed = self.pool.layout.pack(state.rows(fits.nonzero()[:, 0]), extras, self.precision)
        work.snapshots += zip((row.user_id for row in chosen), packed, strict=True)

    # -- recommendations -----------------------------------------------------------------

    def _answer(self, ready: list[tuple[Entry, Row]], work: Work) -> None:
        asked = [(entry, row, read) for entry, row in ready for read in entry.reads]
        informed = [(entry, row, read) for entry, row, read in asked if row.count]
        if informed:
            slots = np.array([row.slot for _, row, _ in informed])
            times = np.array([_request_time(entry, read) for entry, _, read in informed])
            pairs = [(row, read) for _, row, read in informed]
            if isinstance(self.stepper, DeviceStepper):
                rankings = self._sent_at_once(self.stepper, slots, times, pairs)
            else:
                rankings = self._rankings(self._query(slots, times), pairs)
            for (entry, row, read), ranking in zip(informed, rankings, strict=True):
                work.answers.append((read, _recommendation(entry, row, ranking, "model")))
        for entry, row, read in asked:
            if not row.count:
                if read.choice is not None:
                    ranking = self._chosen_popular(row, read, read.choice)
                elif read.candidates is None:
                    ranking = self.retrieval.popular(_mask(row, read), read.k)
                else:
                    ranking = self.retrieval.rank(None, _candidates(row, read))
                source: Literal["popular", "recent"] = "recent" if ranking.recent else "popular"
                work.answers.append((read, _recommendation(entry, row, ranking, source)))
        if asked:
            work.end(stages.RETRIEVE)

    def _sent_at_once(
        self,
        stepper: DeviceStepper,
        slots: NDArray[np.int64],
        times: NDArray[np.int64],
        asked: list[tuple[Row, Read]],
    ) -> list[Ranking]:
        """The rankings; steps that wait, queries and what is masked are one transfer."""
        free = _free(asked)
        masked = places([_mask(*asked[i]) for i in free])
        had = places([_weighed(*asked[i]) for i in free] if self.retrieval.repeat_bias else [])
        index, at, masked_there, had_there = stepper.send(slots, times, masked, had)
        query = stepper.query(index, at)
        return self._rankings(query, asked, (masked_there, had_there))

    def _rankings(
        self,
        query_BD: Tensor,
        asked: list[tuple[Row, Read]],
        there: tuple[Tensor, Tensor] | None = None,
    ) -> list[Ranking]:
        """`there`: what the free ones must not be given, and have had, on the device already."""
        free = _free(asked)
        found: dict[int, Ranking] = {}
        if free:
            tops = self.retrieval.top(
                query_BD if len(free) == len(asked) else query_BD[free],
                [_mask(*asked[i]) for i in free],
                [asked[i][1].k for i in free],
                had=[_weighed(*asked[i]) for i in free],
                there=there,
            )
            if len(free) == len(asked):
                return tops
            found = dict(zip(free, tops, strict=True))
        found |= self._chosen(query_BD, asked)
        return [
            found[i]
            if i in found
            else self.retrieval.rank(query_BD[i], _candidates(row, read), _weighed(row, read))
            for i, (row, read) in enumerate(asked)
        ]

    def _chosen(self, query_BD: Tensor, asked: list[tuple[Row, Read]]) -> dict[int, Ranking]:
        """The lists of the reads with a choice, by their places."""
        choices = {i: read.choice for i, (_, read) in enumerate(asked) if read.choice is not None}
        lists: list[tuple[int, int, Selection | None]] = []
        for i, choice in choices.items():
            k = asked[i][1].k
            lists.append((i, choice.depth(k), choice.selection))
            if choice.promoted is not None:
                lists.append((i, k, choice.promoted))
        if not lists:
            return {}
        rows = [i for i, _, _ in lists]
        tops = iter(
            self.retrieval.top(
                query_BD[rows],
                [_mask(*asked[i]) for i in rows],
                [k for _, k, _ in lists],
                [selection for _, _, selection in lists],
                had=[_weighed(*asked[i]) for i in rows],
            )
        )
        found = {}
        for i, choice in choices.items():
            best = next(tops)
            promoted = None if choice.promoted is None else next(tops)
            found[i] = choice.arrange(best, promoted, asked[i][1].k, self.retrieval)
        return found

    def _chosen_popular(self, row: Row, read: Read, choice: Choice) -> Ranking:
        mask, promoted = _mask(row, read), None
        best = self.retrieval.popular(mask, choice.depth(read.k), choice.selection)
        if choice.promoted is not None:
            promoted = self.retrieval.popular(mask, read.k, choice.promoted)
        return choice.arrange(best, promoted, read.k, self.retrieval)


def _free(asked: list[tuple[Row, Read]]) -> list[int]:
    """Those to whom anything may be given."""
    return [
        i for i, (_, read) in enumerate(asked) if read.candidates is None and read.choice is None
    ]


def _is_at_hand(entry: Entry) -> bool:
    if entry.row is None or entry.history is not None:
        return False
    return entry.reply is None or entry.reply.known_is_current_history


def _own_versions(reply: LogReply) -> list[int]:
    """The versions that the request's own events have become."""
    return [
        outcome.version
        for outcome in reply.outcomes
        if outcome.verdict in (Verdict.APPLIED, Verdict.LATE) and outcome.version
    ]


def _padded(
    pieces: list[list[tuple[int, int]]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    lengths = [len(piece) for piece in pieces]
    items = np.zeros((len(pieces), max(lengths)), np.int64)
    times = np.full((len(pieces), max(lengths)), UNKNOWN_TIME, np.int64)
    for i, piece in enumerate(pieces):
        if piece:
            items[i, : len(piece)], times[i, : len(piece)] = np.array(piece, np.int64).T
    return (
        torch.from_numpy(items).to(device),
        torch.from_numpy(times).to(device),
        torch.tensor(lengths, device=device),
    )


def _request_time(entry: Entry, read: Read) -> int:
    if read.at_ms is not None:
        return read.at_ms
    return entry.reply.now_ms if entry.reply is not None else int(time.time() * 1000)


def _mask(row: Row, read: Read) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    seen = row.seen.array() if read.exclude_seen else None
    parts = [p for p in (seen, row.hidden.array(), read.masked) if p is not None and len(p)]
    return np.concatenate(parts) if len(parts) > 1 else parts[0] if parts else read.masked


def _weighed(row: Row, read: Read) -> NDArray[np.int32]:
    """What the user has had and may be returned."""
    return NO_ITEMS if read.exclude_seen else row.seen.array()


def _candidates(row: Row, read: Read) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    assert read.candidates is not None
    return np.setdiff1d(read.candidates, _mask(row, read))


def _recommendation(
    entry: Entry, row: Row, ranking: Ranking, source: Literal["model", "popular", "recent"]
) -> Recommendation:
    stale = entry.reply is None
    mark = row.mark
    return Recommendation(ranking, mark.version, source, stale, row.truncated, mark.uid, entry.away)
