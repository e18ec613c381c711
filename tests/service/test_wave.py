"""Which requests share a wave, checked against the rules one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from service.catalogue.ask import Ask
from service.engine.request_queue import RequestQueue
from service.engine.requests import Append, Read
from service.store.events import NewEvent

MAX_EVENTS = 6


@dataclass
class Kind:
    """A request to come: of which user, how many events (0: a read), whether its caller left."""

    user: str
    events: int
    gone: bool


KINDS = st.lists(
    st.builds(
        Kind,
        st.sampled_from("abc"),
        st.integers(0, MAX_EVENTS),
        st.sampled_from([False] * 4 + [True]),
    ),
    max_size=40,
)


def request(kind: Kind, loop: asyncio.AbstractEventLoop) -> Append | Read:
    done = loop.create_future()
    if kind.gone:
        done.cancel()
    if kind.events:
        events = [NewEvent(bytes(8), "item") for _ in range(kind.events)]
        return Append(kind.user, events, done)
    return Read(kind.user, Ask(1), done=done)


def queued(requests: Sequence[Append | Read], max_batch: int) -> RequestQueue:
    queue = RequestQueue(
        max_batch=max_batch, max_events=MAX_EVENTS, max_queue=100, max_wait_s=float("inf")
    )
    for one in requests:
        queue.put(one)
    return queue


@given(KINDS, st.integers(1, 12))
def test_waves_keep_the_order_of_each_user(kinds: list[Kind], max_batch: int) -> None:
    loop = asyncio.new_event_loop()
    try:
        requests = [request(kind, loop) for kind in kinds]
        alive = [r for r, kind in zip(requests, kinds, strict=True) if not kind.gone]
        queue = queued(requests, max_batch)
        answered: list[Append | Read] = []
        logged: dict[str, list[Append]] = {}
        while queue:
            before = [r for r in queue.waiting if not r.done.done()]
            batch = {asked.user_id: asked for asked in queue.take()}
            taken = [r for asked in batch.values() for r in asked.requests]
            assert len(taken) <= max_batch
            assert taken or not before, "a batch of nothing while somebody waits"
            for user, asked in batch.items():
                assert all(r.user_id == user for r in asked.requests)
                assert asked.n_events <= MAX_EVENTS
                logged.setdefault(user, []).extend(asked.appends)
            # What is left is what was there, in its order; nothing of a user overtakes.
            left = [r for r in queue.waiting if not r.done.done()]
            assert left == [r for r in before if r not in taken]
            for user in batch:
                own = [r for r in before if r.user_id == user]
                assert set(own[: sum(r.user_id == user for r in taken)]) <= set(taken)
            # Nobody waits without a reason: the wave is full or its user's events are.
            if len(taken) < max_batch and len(queue) < max_batch:
                for user in {r.user_id for r in queue.waiting}:
                    first = next(r for r in queue.waiting if r.user_id == user)
                    assert isinstance(first, Append)
                    full = batch[user].n_events + len(first.events)
                    assert full > MAX_EVENTS
            answered += taken
        assert set(answered) == set(alive)
        assert len(answered) == len(alive)
        for user, appends in logged.items():
            assert appends == [r for r in alive if r.user_id == user and isinstance(r, Append)]
    finally:
        loop.close()


def test_one_busy_user_does_not_make_others_wait() -> None:
    loop = asyncio.new_event_loop()
    try:
        busy = [request(Kind("a", MAX_EVENTS, False), loop) for _ in range(5)]
        other = request(Kind("b", 1, False), loop)
        queue = queued([*busy, other], 8)
        batch = {asked.user_id: asked for asked in queue.take()}
        assert batch["a"].appends == busy[:1]
        assert batch["b"].appends == [other]
        assert list(queue.waiting) == busy[1:]
    finally:
        loop.close()
