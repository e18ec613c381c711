"""`Client` and `AsyncClient`: the same requests, sent by one or the other half of httpx."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from . import plans
from .attempts import Patience, Pause, Plan, Reply, Request

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])


def _waiting(plan: Callable[P, Plan[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._carried_out(plan(*args, **kwargs))

    return _named_as(plan, method)


def _awaited(
    plan: Callable[P, Plan[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._carried_out(plan(*args, **kwargs))

    return _named_as(plan, method)


def _named_as(plan: Callable[..., Any], method: C) -> C:
    method.__name__, method.__doc__ = plan.__name__, plan.__doc__
    signature = inspect.signature(plan)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[itself, *signature.parameters.values()]
    )
    return method


class _Options:
    """How both clients are made.

    Args:
        url: of the service.
        api_key: sent as X-API-Key.
        retry_for_s: how long a request is tried again that got no answer, or one that says so;
            0: not at all.
        timeout_s: of one attempt.
        transport: in place of the network, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        retry_for_s: float = 30.0,
        timeout_s: float = 10.0,
        transport: Any = None,
    ) -> None:
        self.retry_for_s = retry_for_s
        options: dict[str, Any] = {
            "base_url": _readable(url),
            "headers": {} if api_key is None else {"X-API-Key": _sendable(api_key)},
            "timeout": timeout_s,
            "transport": transport,
        }
        self._open(options)

    def _open(self, options: Mapping[str, Any]) -> None:
        raise NotImplementedError


def _readable(url: str) -> httpx.URL:
    try:
        read = httpx.URL(url)
        sound = b"@" not in read.raw_path and not read.fragment
    except httpx.InvalidURL:  # it says parts of a password that is not encoded
        sound = False
    if not sound:
        raise ValueError(
            "url can't be read: give http://HOST:PORT, with special characters of a user and a "
            "password percent-encoded"
        )
    return read


def _sendable(api_key: str) -> bytes:
    key = api_key.strip()
    if any(character < " " or character == "\x7f" for character in key):
        raise ValueError("api_key has a control character in it: take it out")
    return key.encode()


class Client(_Options):
    """A client of the service whose methods wait. Threads may share it."""

    def _open(self, options: Mapping[str, Any]) -> None:
        self._http = httpx.Client(**options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _carried_out(self, plan: Plan[T]) -> T:
        dialogue = plan(Patience(self.retry_for_s))
        reply: Reply = None
        while True:
            try:
                step = dialogue.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                reply = None
            else:
                reply = self._sent(step)

    def _sent(self, request: Request) -> Reply:
        try:
            return self._http.request(**request.sent())
        except httpx.UnsupportedProtocol:
            raise
        except httpx.TransportError as error:
            return error

    post = _waiting(plans.post)
    post_all = _waiting(plans.post_all)
    recommend = _waiting(plans.recommend)
    recommend_session = _waiting(plans.recommend_session)
    rank = _waiting(plans.rank)
    popular = _waiting(plans.popular)
    similar = _waiting(plans.similar)
    user = _waiting(plans.user)
    history = _waiting(plans.history)
    erase = _waiting(plans.erase)
    item = _waiting(plans.item)
    items = _waiting(plans.items)
    put_item = _waiting(plans.put_item)
    put_items = _waiting(plans.put_items)
    delete_item = _waiting(plans.delete_item)
    ready = _waiting(plans.ready)


class AsyncClient(_Options):
    """A client of the service whose methods are to be awaited, in one event loop."""

    def _open(self, options: Mapping[str, Any]) -> None:
        self._http = httpx.AsyncClient(**options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *fault: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def _carried_out(self, plan: Plan[T]) -> T:
        dialogue = plan(Patience(self.retry_for_s))
        reply: Reply = None
        while True:
            try:
                step = dialogue.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                reply = None
            else:
                reply = await self._sent(step)

    async def _sent(self, request: Request) -> Reply:
        try:
            return await self._http.request(**request.sent())
        except httpx.UnsupportedProtocol:
            raise
        except httpx.TransportError as error:
            return error

    post = _awaited(plans.post)
    post_all = _awaited(plans.post_all)
    recommend = _awaited(plans.recommend)
    recommend_session = _awaited(plans.recommend_session)
    rank = _awaited(plans.rank)
    popular = _awaited(plans.popular)
    similar = _awaited(plans.similar)
    user = _awaited(plans.user)
    history = _awaited(plans.history)
    erase = _awaited(plans.erase)
    item = _awaited(plans.item)
    items = _awaited(plans.items)
    put_item = _awaited(plans.put_item)
    put_items = _awaited(plans.put_items)
    delete_item = _awaited(plans.delete_item)
    ready = _awaited(plans.ready)
