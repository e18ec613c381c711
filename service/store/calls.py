"""Calls of the store that are repeated until a deadline, counted and timed.

A command without a reply is sent again as it is, so it must be one that may be carried out twice.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from redis.exceptions import (
    ClusterDownError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from service.observe import metrics, stages
from service.store.store import (
    AcksMissed,
    Command,
    Durable,
    Node,
    NodeDown,
    RecordDamaged,
    Store,
    StoreError,
    StoreUnavailable,
    one_line,
)

Operation = Literal["exchange", "snapshot", "erasures", "catalogue", "popularity", "ping", "other"]
"""What a round trip to the store is for."""

_PASSING = (ReadOnlyError, TryAgainError, ClusterDownError)  # over once a failover is
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.2


class Calls:
    """Sends pipelines to a store, each with one deadline.

    Args:
        timeout_s: deadline of a call, its retries included.
        scripts: the sources of the scripts that are called, by their SHA-1.
    """

    def __init__(
        self, store: Store, timeout_s: float, scripts: Mapping[str, str] | None = None
    ) -> None:
        self.store, self.timeout_s = store, timeout_s
        self._scripts = scripts or {}

    async def __call__(
        self,
        commands: Sequence[Command],
        operation: Operation = "other",
        at: Node | None = None,
    ) -> list[Any]:
        """Each command's reply, or a StoreError in its place."""
        started = time.perf_counter()
        try:
            return await self._answers(commands, operation, at)
        finally:
            timeline = stages.current.get()  # of a request that asks the log by itself
            if timeline is not None:
                timeline.add(stages.LOG, started, time.perf_counter())

    async def once(self, commands: Sequence[Command], operation: Operation) -> list[Any]:
        """One attempt, for commands that must not be carried out twice. Each one's reply, or a
        StoreError in its place.

        Raises:
            StoreError: whether any was carried out is unknown.
        """
        replies = await self._round_trip(commands, self.timeout_s, operation, None)
        return [_refusal(r) if isinstance(r, ResponseError) else r for r in replies]

    async def _round_trip(
        self,
        commands: Sequence[Command],
        timeout_s: float,
        operation: Operation,
        at: Node | None,
    ) -> list[Any]:
        """`Store.execute`, counted and timed."""
        started = time.perf_counter()
        try:
            replies = await self.store.execute(commands, timeout_s, at)
        except StoreError:
            metrics.STORE_UP.set(0)
            metrics.STORE_ERRORS[operation].inc()
            raise
        finally:
            metrics.STORE_DURATION[operation].observe(time.perf_counter() - started)
        metrics.STORE_UP.set(0 if self.store.failing else 1)
        metrics.count((metrics.ACKS_MISSED, sum(isinstance(r, AcksMissed) for r in replies)))
        refused = [r for r in replies if isinstance(r, ResponseError | StoreError)]
        if any(not isinstance(reply, NoScriptError) for reply in refused):
            metrics.STORE_ERRORS[operation].inc()
        return replies

    async def _answers(
        self, commands: Sequence[Command], operation: Operation, at: Node | None
    ) -> list[Any]:
        answers: list[Any] = [None] * len(commands)
        sending = dict(enumerate(commands))
        deadline = time.monotonic() + self.timeout_s
        pause = _FIRST_PAUSE_S
        unsure: set[int] = set()  # sent once without an answer, so perhaps carried out
        causes: dict[int, str] = {}  # the first says most: the last attempt has little time left
        while sending:
            left = deadline - time.monotonic()
            if left <= 0:
                for i in sending:
                    answers[i] = StoreUnavailable(f"{causes[i]} ({self.timeout_s:g} s in all)")
                break
            again: dict[int, Command] = {}
            at_once = True
            try:
                # Half the time for one attempt: a dead connection leaves time for another.
                replies = await self._round_trip(
                    list(sending.values()), min(left, self.timeout_s / 2), operation, at
                )
            except NodeDown as error:
                if not causes:  # nobody waits for it; who already does goes on
                    return [error] * len(commands)
                again, at_once = sending, False
            except StoreUnavailable as error:
                unsure.update(sending)
                causes, again, at_once = dict.fromkeys(sending, str(error)) | causes, sending, False
            except StoreError as error:
                answers = [error if i in sending else a for i, a in enumerate(answers)]
            else:
                for (i, command), reply in zip(sending.items(), replies, strict=True):
                    if not isinstance(reply, Exception):
                        answers[i] = reply
                    elif isinstance(reply, NoScriptError):
                        # EVAL loads the script on the very node that lacks it.
                        whole = ("EVAL", self._scripts[str(command[1])], *command[2:])
                        again[i] = Durable(whole) if isinstance(command, Durable) else whole
                        causes.setdefault(i, one_line(reply))
                    elif command[0] == "GET" and isinstance(reply, StoreError):
                        answers[i] = reply  # nobody waits for the node of a snapshot
                    elif _passing(reply):
                        if isinstance(reply, StoreUnavailable):
                            unsure.add(i)
                        again[i], at_once = command, False
                        causes.setdefault(i, one_line(reply))
                    elif isinstance(reply, StoreError):
                        answers[i] = reply
                    elif isinstance(reply, ResponseError):
                        refusal = _refusal(reply)
                        if i in unsure and not isinstance(refusal, RecordDamaged):
                            refusal = StoreUnavailable(f"{causes[i]}; then {refusal}")
                        answers[i] = refusal
                    else:
                        answers[i] = reply
            sending = again
            if sending and not at_once:
                left = max(0.0, deadline - time.monotonic())
                await asyncio.sleep(min(left, pause * random.uniform(0.5, 1.0)))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        return answers


def raised(*answers: Any) -> Any:
    """The first answer, once none is an error."""
    for answer in answers:
        if isinstance(answer, StoreError):
            raise answer
    return answers[0] if answers else None


def _passing(reply: Any) -> bool:
    if isinstance(reply, ResponseError):
        return isinstance(reply, _PASSING) or str(reply).startswith(("BUSY ", "NOREPLICAS"))
    # Its own part of a Cluster; one that has failed for a while holds nobody up any more, and
    # replicas that are slow are not quicker when asked again.
    return isinstance(reply, StoreUnavailable) and not isinstance(reply, NodeDown | AcksMissed)


def _refusal(error: ResponseError) -> StoreError:
    text = one_line(error)
    if text.startswith("DAMAGED"):
        return RecordDamaged(text.removeprefix("DAMAGED").split(" script:")[0].strip())
    return StoreError(f"the store refused: {text}")
