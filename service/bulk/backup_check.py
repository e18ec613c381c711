"""A backup checked: its files, and a sample of its records against the store's and a model's
states."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.bulk.backup_folder import BackupError, BackupFolder
from service.bulk.stored_keys import StoredKey, words
from service.engine.engine import Engine
from service.engine.exactness import difference
from service.store.errors import RecordDamaged, StoreError
from service.store.event_log import EventLog, LogRequest
from service.store.events import Event, unpacked

SAMPLE = 100
"""Users whose record is compared with the store's."""


@dataclass(frozen=True)
class RecordCopy:
    """A user's events in a backup, oldest first: at least one."""

    user_id: str
    events: list[Event]


@dataclass(frozen=True)
class Contents:
    """`damaged`: users whose record can't be read, here as in the store."""

    sample: list[RecordCopy]
    damaged: list[str]


@dataclass
class Compared:
    """Users of the sample by what became of them.

    Attributes:
        same: what the backup has of them is a part of their record.
        others: they were erased since, or late events were put into their record.
        states: states in the store that were computed again from the backup.
        largest: the largest difference of a score between these two.
    """

    same: int = 0
    others: int = 0
    states: int = 0
    largest: float = 0.0


def contents(
    log: EventLog, folder: BackupFolder, progress: Callable[[int], None], seed: int = 0
) -> Contents:
    """Reads all of a backup.

    Raises:
        BackupError: a file is not what was written, or the manifest says something else.
    """
    draw, seen = random.Random(seed), 0
    keys, events = Counter[str](), 0
    sample, damaged = list[StoredKey](), list[str]()
    for part in folder.parts():
        keys.update(words(part))
        for one in part:
            events += len(one.events)
            if not one.is_record:
                continue
            if not _is_sound(one):
                damaged.append(_user(log, one))
                continue
            seen += 1
            if len(sample) < SAMPLE:
                sample.append(one)
            elif (place := draw.randrange(seen)) < SAMPLE:
                sample[place] = one
        progress(len(part))
    manifest = folder.manifest
    if (dict(keys), events) != (manifest.keys, manifest.events):
        raise BackupError(f"{folder.path}: its parts do not hold what its manifest says")
    return Contents([RecordCopy(_user(log, one), _events(one)) for one in sample], damaged)


async def compared(
    log: EventLog, sample: Sequence[RecordCopy], engine: Engine | None = None
) -> Compared:
    """Compares records with the store's, and the states of an engine's model that are there with
    those that follow from the backup.

    Raises:
        StoreError: the store gave up.
    """
    result = Compared()
    identity = None if engine is None else engine.identity
    for copy in sample:
        asked = LogRequest(copy.user_id, copy.events[-1].mark, (), identity, page=1)
        (reply,) = await log.exchange([asked])
        if isinstance(reply, RecordDamaged):
            result.others += 1
            continue
        if isinstance(reply, StoreError):
            raise reply
        if not reply.known_is_current_history:
            result.others += 1
            continue
        result.same += 1
        if engine is None:
            continue
        held = engine.snapshots.read(reply.snapshot)
        if held is None or not held.count or copy.events[0].version != 1:
            continue
        before = copy.events[: held.mark.version]
        if before[-1].mark == held.mark:
            result.states += 1
            result.largest = max(result.largest, difference(engine, held, before))
    return result


def _user(log: EventLog, record: StoredKey) -> str:
    return log.keys.user_of(log.keys.records.encode() + record.name.removeprefix(b"u:"))


def _events(record: StoredKey) -> list[Event]:
    return [unpacked(version, value) for version, value in record.events.items()]


def _is_sound(record: StoredKey) -> bool:
    fields = dict(record.pairs)
    try:
        versions = [event.version for event in _events(record)]
        newest, oldest = int(fields[b"n"]), int(fields.get(b"o", b"1"))
    except (RecordDamaged, KeyError, ValueError):
        return False
    return bool(versions) and versions == list(range(oldest, newest + 1))
