"""`Client` and `AsyncClient`: the same requests, sent by one or the other half of httpx."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from . import calls
from .retries import Backoff, Call, Reply, Request, Sleep

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])


def _method(call: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(call(*args, **kwargs))

    return _named(call, method)


def _async_method(
    call: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(call(*args, **kwargs))

    return _named(call, method)


def _named(call: Callable[..., Any], method: C) -> C:
    method.__name__, method.__doc__ = call.__name__, call.__doc__
    signature = inspect.signature(call)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[itself, *signature.parameters.values()]
    )
    return method


class _BaseClient:
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
            "base_url": _checked_url(url),
            "headers": {} if api_key is None else {"X-API-Key": _checked_key(api_key)},
            "timeout": timeout_s,
            "transport": transport,
        }
        self._open(options)

    def _open(self, options: Mapping[str, Any]) -> None:
        raise NotImplementedError


def _checked_url(url: str) -> httpx.URL:
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


def _checked_key(api_key: str) -> bytes:
    key = api_key.strip()
    if any(character < " " or character == "\x7f" for character in key):
        raise ValueError("api_key has a control character in it: take it out")
    return key.encode()


class Client(_BaseClient):
    """A client of the service whose methods wait. Threads may share it."""

    def _open(self, options: Mapping[str, Any]) -> None:
        self._http = httpx.Client(**options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _run(self, call: Call[T]) -> T:
        steps = call(Backoff(self.retry_for_s))
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, Sleep):
                time.sleep(step.seconds)
                reply = None
            else:
                reply = self._send(step)

    def _send(self, request: Request) -> Reply:
        try:
            return self._http.request(**request.arguments())
        except httpx.TransportError as error:
            return error

    post = _method(calls.post)
    post_all = _method(calls.post_all)
    recommend = _method(calls.recommend)
    recommend_session = _method(calls.recommend_session)
    rank = _method(calls.rank)
    popular = _method(calls.popular)
    similar = _method(calls.similar)
    user = _method(calls.user)
    users = _method(calls.users)
    history = _method(calls.history)
    erase = _method(calls.erase)
    item = _method(calls.item)
    items = _method(calls.items)
    put_item = _method(calls.put_item)
    put_items = _method(calls.put_items)
    delete_item = _method(calls.delete_item)
    ready = _method(calls.ready)


class AsyncClient(_BaseClient):
    """A client of the service whose methods are to be awaited, in one event loop."""

    def _open(self, options: Mapping[str, Any]) -> None:
        self._http = httpx.AsyncClient(**options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *fault: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def _run(self, call: Call[T]) -> T:
        steps = call(Backoff(self.retry_for_s))
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, Sleep):
                await asyncio.sleep(step.seconds)
                reply = None
            else:
                reply = await self._send(step)

    async def _send(self, request: Request) -> Reply:
        try:
            return await self._http.request(**request.arguments())
        except httpx.TransportError as error:
            return error

    post = _async_method(calls.post)
    post_all = _async_method(calls.post_all)
    recommend = _async_method(calls.recommend)
    recommend_session = _async_method(calls.recommend_session)
    rank = _async_method(calls.rank)
    popular = _async_method(calls.popular)
    similar = _async_method(calls.similar)
    user = _async_method(calls.user)
    users = _async_method(calls.users)
    history = _async_method(calls.history)
    erase = _async_method(calls.erase)
    item = _async_method(calls.item)
    items = _async_method(calls.items)
    put_item = _async_method(calls.put_item)
    put_items = _async_method(calls.put_items)
    delete_item = _async_method(calls.delete_item)
    ready = _async_method(calls.ready)
