"""All records of a store as a Parquet data set, and the same again from what has changed.

The users are divided into shards by their hash; each shard becomes one part, read and written by
itself, so that memory holds a few of them. A mark of each user's record is kept beside the rows:
the next export asks each record for what comes after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import polars as pl

from service.bulk.export_folder import MARKS, ExportError, ExportFolder, Layout, Part, newest_ms
from service.store.errors import RecordDamaged, raised
from service.store.event_columns import TIME, event_columns
from service.store.event_log import EventLog, LogReply, LogRequest, StoredEvents
from service.store.events import ORIGIN, Mark
from service.store.shards import ALL, Shard, user_hash

USERS = 256
"""Users in one exchange."""
AT_ONCE = 2
"""Shards under way: while one is written, the next is on the wire."""
ROWS_A_PART = 500_000
"""About so many, and at most twice as many on average."""
SAMPLE = 1000
"""Users whose number of events says how many parts there are to be."""
ROWS = {
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": TIME,
    "given_ms": pl.Int64,
    "kind": pl.String,
    "weight": pl.Float64,
    "event_id": pl.String,
    "version": pl.Int64,
}


@dataclass(frozen=True)
class ExportResult:
    """`parts`: those of the job, done before or now. `read`: events that it read from the store.
    `complete`: whether all parts are there, those of other jobs too."""

    layout: Layout
    parts: list[Part]
    read: int
    complete: bool

    @property
    def users(self) -> int:
        return sum(part.users for part in self.parts)

    @property
    def events(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def newest_ms(self) -> int | None:
        return newest_ms(self.parts)

    @property
    def damaged(self) -> list[str]:
        return [user for part in self.parts for user in part.damaged]


class _Reading:
    """One user's events, on their way from the store.

    Attributes:
        after: the export before has those up to this mark.
        reached: the newest read.
        values: the events after `after`, as they are stored, from the version `first` on.
        oldest: the version of the oldest that is kept.
    """

    def __init__(self, user_id: str, after: Mark) -> None:
        self.user_id, self.oldest = user_id, 1
        self._begin(after)

    def _begin(self, after: Mark) -> None:
        self.after = self.reached = after
        self.first, self.values = after.version + 1, list[bytes]()

    def take(self, found: StoredEvents) -> None:
        """Adds a page; begins anew where what was read is no longer a part of the history."""
        if not found.known_is_current_history:
            self._begin(ORIGIN)
            return
        if found.values:
            if not self.values:
                self.first = found.first
            self.values += found.values
            last = found.first + len(found.values) - 1
            self.reached = Mark(last, found.values[-1][:8])
        self.oldest = found.oldest

    @property
    def mark(self) -> tuple[str, int, bytes, int]:
        """A row of MARKS."""
        return self.user_id, *self.reached, self.oldest


class Exporter:
    """Reads a log into a folder.

    Args:
        shard: the job's part of the parts.
        since: a complete export; what has not changed since comes from there.
    """

    def __init__(
        self,
        log: EventLog,
        folder: ExportFolder,
        *,
        shard: Shard = ALL,
        since: ExportFolder | None = None,
    ) -> None:
        if since is not None and since.path.resolve() == folder.path.resolve():
            raise ExportError(f"{folder.path}: can't go on from itself; give another folder")
        self.log, self.folder, self.shard, self.since = log, folder, shard, since
        self._events_read = 0

    async def begin(self) -> int:
        """Agrees with other jobs on what is exported, and lists the users of this one's parts that
        are not done: how many these are.

        Raises:
            ExportError: the folder is of another export, or has other files in it.
            StoreError: the store gave up.
        """
        (reply,) = await self.log.exchange([LogRequest("clock", page=1)])
        began_ms = raised(reply).now_ms
        begun, users = await asyncio.to_thread(self.folder.begun), None
        if begun is None:
            users = await self._listed()
            shards = await self._shards(users)
            layout = Layout(self.log.keys.namespace, began_ms, shards, self._since_name)
            begun = await asyncio.to_thread(self.folder.begin, layout)
        self.layout = begun
        self._require_the_same()
        todo = [index for index in self._mine if self.folder.part(index) is None]
        if todo and users is None:
            users = await self._listed()
        self._users = _divided(users, begun.shards, todo) if users is not None else {}
        return sum(map(len, self._users.values()))

    async def run(self, progress: Callable[[int], None]) -> ExportResult:
        """Writes the parts that `begin` found not done; `progress` is told of users.

        Raises:
            StoreError: the store gave up; the parts that are written stay.
        """
        waiting = iter(self._users)

        async def lane() -> None:
            for index in waiting:
                await self._export(index, progress)

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(AT_ONCE):
                    tasks.create_task(lane())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        parts = [self.folder.part(index) for index in self._mine]
        complete = await asyncio.to_thread(self.folder.finish, self.layout)
        done = [part for part in parts if part is not None]
        return ExportResult(self.layout, done, self._events_read, complete)

    @property
    def _since_name(self) -> str | None:
        return None if self.since is None else str(self.since.path.resolve())

    def _require_the_same(self) -> None:
        for name, given in (("namespace", self.log.keys.namespace), ("since", self._since_name)):
            there = getattr(self.layout, name)
            if there != given:
                raise ExportError(
                    f"{self.folder.path}: was begun with {name} {there!r}, not {given!r}; give the "
                    "same, or another folder"
                )

    @property
    def _mine(self) -> range:
        """This job's parts."""
        return range(self.shard.index, self.layout.shards, self.shard.count)

    async def _listed(self) -> pl.DataFrame:
        """The users with a record: user_id, hash."""
        schema = {"user_id": pl.String, "hash": pl.UInt64}
        frames = [pl.DataFrame(schema=schema)]
        async for page in self.log.users():
            frames.append(pl.DataFrame([page, list(map(user_hash, page))], schema=schema))
        return pl.concat(frames).unique()

    async def _shards(self, users: pl.DataFrame) -> int:
        """A power of two, so that a part of fewer shards holds whole ones of more."""
        sample = users["user_id"].sample(min(SAMPLE, len(users)), seed=0).to_list()
        replies = await self.log.exchange([LogRequest(user, page=1) for user in sample])
        sound: list[LogReply] = [raised(r) for r in replies if not isinstance(r, RecordDamaged)]
        lengths = [reply.newest.version - reply.oldest + 1 for reply in sound]
        rows = len(users) * sum(lengths) / max(1, len(lengths))
        least = 1 if self.since is None else self.since.complete.layout.shards
        while least * ROWS_A_PART < rows:
            least *= 2
        return least

    async def _export(self, index: int, progress: Callable[[int], None]) -> None:
        marks = await asyncio.to_thread(self._marks, index)
        known = dict.fromkeys(self._users[index].to_list(), ORIGIN)
        known |= {user: Mark(version, uid) for user, version, uid, _ in marks.iter_rows()}
        users, readings, damaged = list(known), list[_Reading](), list[str]()
        for start in range(0, len(users), USERS):
            group = [_Reading(user, known[user]) for user in users[start : start + USERS]]
            readings += await self._read(group, damaged)
            progress(len(group))
        read = await asyncio.to_thread(self._write, index, marks, readings, damaged)
        self._events_read += read

    def _marks(self, index: int) -> pl.DataFrame:
        """What the export before has of a shard's users."""
        if self.since is None:
            return pl.DataFrame(schema=MARKS)
        before = self.since.complete.layout.shards
        marks = self.since.marks(index % before)
        if before == self.layout.shards:
            return marks
        own = [user_hash(user) % self.layout.shards == index for user in marks["user_id"]]
        return marks.filter(pl.Series(own, dtype=pl.Boolean))

    async def _read(self, group: list[_Reading], damaged: list[str]) -> list[_Reading]:
        """Those of a group that have a record, with all their events."""
        done = list[_Reading]()
        while group:
            replies = await self.log.stored({one.user_id: one.reached for one in group})
            going = list[_Reading]()
            for one, reply in zip(group, replies, strict=True):
                if isinstance(reply, RecordDamaged):
                    damaged.append(one.user_id)
                    continue
                found: StoredEvents = raised(reply)
                if found.newest == ORIGIN:  # there is no record, or no longer
                    continue
                one.take(found)
                finished = found.known_is_current_history and found.complete
                (done if finished else going).append(one)
            group = going
        return done

    def _write(
        self, index: int, before: pl.DataFrame, readings: list[_Reading], damaged: list[str]
    ) -> int:
        """Writes a part; how many of its events were read."""
        new, readings = _rows(readings, damaged)
        marks = pl.DataFrame([one.mark for one in readings], schema=MARKS, orient="row")
        marks = marks.sort("user_id")
        if self.since is None:
            self.folder.write(index, new.sort("user_id", "version"), marks, damaged)
            return len(new)
        shards = self.since.complete.layout.shards
        if shards == self.layout.shards and marks.equals(before):
            self.folder.copy(index, self.since, damaged)
            return 0
        kept = pl.DataFrame(
            [(one.user_id, one.oldest) for one in readings if one.after != ORIGIN],
            schema={"user_id": pl.String, "oldest": pl.Int64},
            orient="row",
        )
        old = self.since.rows(index % shards).join(kept, on="user_id")
        old = old.filter(pl.col("version") >= pl.col("oldest")).select(new.columns)
        rows = pl.concat([old, new]).sort("user_id", "version")
        self.folder.write(index, rows, marks, damaged)
        return len(new)


def _divided(users: pl.DataFrame, shards: int, todo: Sequence[int]) -> dict[int, pl.Series]:
    """The users of each of these shards."""
    placed = users.with_columns(shard=(pl.col("hash") % shards).cast(pl.Int64))
    placed = placed.filter(pl.col("shard").is_in(todo)).sort("shard", "user_id")
    parts = placed.partition_by("shard", as_dict=True)
    return {index: parts.get((index,), placed.clear())["user_id"] for index in todo}


def _rows(readings: list[_Reading], damaged: list[str]) -> tuple[pl.DataFrame, list[_Reading]]:
    """The events that were read, with the columns ROWS, and the readings that can be decoded;
    users whose can't join the damaged ones."""
    try:
        columns = event_columns(list(chain.from_iterable(one.values for one in readings)))
    except RecordDamaged:
        sound = []
        for one in readings:
            try:
                event_columns(one.values)
                sound.append(one)
            except RecordDamaged:
                damaged.append(one.user_id)
        readings = sound
        columns = event_columns(list(chain.from_iterable(one.values for one in readings)))
    spans = [(one.user_id, one.first, len(one.values), one.oldest) for one in readings]
    names = ["user_id", "first", "count", "oldest"]
    begin, end = pl.col("first"), pl.col("first") + pl.col("count")
    users = (
        pl.DataFrame(spans, dict.fromkeys(names, pl.Int64) | {"user_id": pl.String}, orient="row")
        .filter(pl.col("count") > 0)
        .select("user_id", "oldest", version=pl.int_ranges(begin, end))
        .explode("version")
    )
    rows = pl.concat([users, columns], how="horizontal")
    return rows.filter(pl.col("version") >= pl.col("oldest")).select(list(ROWS)), readings
