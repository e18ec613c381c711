"""Well-formed requests answered without the framework's general way, which costs more than they do.

A route whose arguments are query parameters, one JSON body and the services is called from here:
the same function, the same validation, the same answer. What is not well-formed, or not of such a
route, goes on to the application, so that there is one place that says what is wrong with it; but
not what has more faults than an answer names.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

from fastapi import APIRouter, FastAPI, params
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http import faults, problems
from service.http.dependencies import Services, services_of

_CONTENT_TYPE = b"content-type"
_JSON = b"application/json"
_ANY_JSON = re.compile(rb"application/([a-z0-9!#$&^_.+-]+\+)?json")


class AnswerDirectly:
    """The routes of `routers` that can be called directly are; `owner` has their services and the
    handlers of their errors."""

    def __init__(self, app: ASGIApp, *, owner: FastAPI, routers: Sequence[APIRouter]) -> None:
        self.app, self.owner = app, owner
        self._calls = {
            (method, call.route.path): call for router in routers for method, call in _calls(router)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = None
        if scope["type"] == "http":
            call = self._calls.get((scope["method"], scope["path"]))
        services = services_of(scope, self.owner)
        if call is None or services is None:
            await self.app(scope, receive, send)
            return
        values = call.query(scope["query_string"])
        if values is not None and call.body is not None:
            given = (value for name, value in scope["headers"] if name == _CONTENT_TYPE)
            received = await _received(receive)
            receive = _again(received, receive)
            try:
                if not call.read(values, next(given, None), received):
                    values = None
            except ValidationError as error:
                if error.error_count() > faults.MOST_NAMED:
                    scope["route"] = call.route
                    await problems.invalid(_of_body(error))(scope, receive, send)
                    return
                values = None
        if values is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = call.route
        values[call.services] = services
        try:
            content = call.written(await call.endpoint(**values))
        except Exception as error:
            foreseen, handler = self._handler(error)
            await (await handler(Request(scope, receive), error))(scope, receive, send)
            if not foreseen:
                raise
            return
        length = (b"content-length", str(len(content)).encode())
        headers = [length, (_CONTENT_TYPE, _JSON)]
        await send({"type": "http.response.start", "status": call.status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _handler(self, error: Exception) -> tuple[bool, Callable[..., Awaitable[ASGIApp]]]:
        """Whether there is one for such errors, and the one to call."""
        handlers: dict[Any, Any] = self.owner.exception_handlers
        kind = next(kind for kind in type(error).__mro__ if kind in handlers)
        return kind is not Exception, handlers[kind]


class _Call:
    """A route's function, and how its arguments are made of a request.

    Raises:
        TypeError: it takes something else than query parameters, one body and the services.
    """

    def __init__(self, route: APIRoute) -> None:
        self.route, self.endpoint = route, route.endpoint
        self.status = route.status_code or 200
        self.services, self.body = "", None
        self._query: dict[str, tuple[TypeAdapter[Any], bool]] = {}
        self._defaults: dict[str, Any] = {}
        self._body: TypeAdapter[BaseModel] | None = None
        hints = get_type_hints(route.endpoint, include_extras=True)
        for name, parameter in inspect.signature(route.endpoint).parameters.items():
            kind, about = _unpacked(hints[name])
            if kind is Services:
                self.services = name
            elif any(type(one) is params.Query and not one.alias for one in about):
                self._query[name] = TypeAdapter(hints[name]), _is_list(kind)
                if parameter.default is not parameter.empty:
                    self._defaults[name] = parameter.default
            elif isinstance(kind, type) and issubclass(kind, BaseModel) and self.body is None:
                self.body, self._body = name, TypeAdapter(hints[name])
            else:
                raise TypeError(name)
        answer = hints.get("return")
        if not (isinstance(answer, type) and issubclass(answer, BaseModel) and self.services):
            raise TypeError("its answer")
        serializer, exclude_none = TypeAdapter(answer).serializer, route.response_model_exclude_none
        self.written: Callable[[BaseModel], bytes] = lambda answer: serializer.to_json(
            answer, exclude_none=exclude_none
        )

    def query(self, text: bytes) -> dict[str, Any] | None:
        """The arguments that come from the query; None: they can't be made of it."""
        values = dict(self._defaults)
        lists: dict[str, list[str]] = {}
        try:
            pairs = _pairs(text)
        except ValueError:  # no UTF-8, or more pairs than are looked at
            return None
        for name, value in pairs:
            known = self._query.get(name)
            if known is None:
                return None
            adapter, is_list = known
            if is_list:
                lists.setdefault(name, []).append(value)
                continue
            try:
                values[name] = adapter.validator.validate_python(value)
            except ValidationError:
                return None
        for name, several in lists.items():
            try:
                values[name] = self._query[name][0].validator.validate_python(several)
            except ValidationError:
                return None
        return values if len(values) == len(self._query) else None

    def read(
        self, values: dict[str, Any], content_type: bytes | None, messages: list[Message]
    ) -> bool:
        """Adds the body to the arguments; False: it is none of JSON, or not whole.

        Raises:
            ValidationError
        """
        assert self.body is not None
        assert self._body is not None
        if content_type is None:
            return False
        media_type = content_type.partition(b";")[0].strip().lower()
        if media_type != _JSON and not _ANY_JSON.fullmatch(media_type):
            return False
        if messages[-1]["type"] != "http.request":
            return False
        content = b"".join(message.get("body", b"") for message in messages)
        values[self.body] = self._body.validator.validate_json(content)
        return True


def _of_body(error: ValidationError) -> list[dict[str, Any]]:
    """The errors as the framework has them."""
    found = error.errors(include_url=False, include_input=False)
    return [{**one, "loc": ("body", *one["loc"])} for one in found]


def _calls(router: APIRouter) -> Iterator[tuple[str, _Call]]:
    for route in router.routes:
        if not isinstance(route, APIRoute) or route.dependencies or "{" in route.path:
            continue
        try:
            call = _Call(route)
        except TypeError:
            continue
        for method in route.methods or ():
            yield method, call


def _unpacked(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type, and what is said about it by Annotated."""
    if get_origin(hint) is Annotated:
        kind, *about = get_args(hint)
        return kind, tuple(about)
    return hint, ()


def _is_list(kind: Any) -> bool:
    return list in (get_origin(kind), *(get_origin(one) for one in get_args(kind)))


def _pairs(query: bytes) -> list[tuple[str, str]]:
    text = query.decode("ascii")
    if "%" in text or "+" in text:
        return parse_qsl(text, keep_blank_values=True, errors="strict")
    return [(name, value) for name, _, value in (p.partition("=") for p in text.split("&") if p)]


async def _received(receive: Receive) -> list[Message]:
    """The messages of a body, the last of which may tell that the caller has gone."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    return messages


def _again(messages: list[Message], receive: Receive) -> Receive:
    """Receives what was received already, then what comes."""
    left = iter(messages)

    async def received() -> Message:
        message = next(left, None)
        return await receive() if message is None else message

    return received
