"""What settings may be, and how their texts are read. A ValueError is one line with the fix."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

from model.artefact_store import is_url, open_artefact_store
from model.kinds import KindRules
from service import addresses, keys
from service.observe import otlp
from service.store.url import StoreUrl


def _split(given: object) -> object:
    if not isinstance(given, str):
        return given
    return tuple(one.strip() for one in given.split(",") if one.strip())


def _without_brackets(host: str) -> str:
    return host.strip().removeprefix("[").removesuffix("]")


def _names(hosts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(addresses.host_name, hosts))


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and not addresses.is_origin(origin):
            raise ValueError(
                f"{origin} is no origin: give https://HOST or https://HOST:PORT, in lower case, "
                "without a path and without the usual port"
            )
    return origins


def _networks(proxies: tuple[str, ...]) -> tuple[str, ...]:
    addresses.networks(proxies)
    return proxies


def _readable(url: SecretStr | None) -> SecretStr | None:
    if url is not None:
        StoreUrl(url.get_secret_value())
    return url


def _with_keys(file: Path | None) -> Path | None:
    if file is not None:
        keys.check(file)
    return file


def _text(given: object) -> object:
    return str(given) if isinstance(given, Path) else given


def _artefact(place: str) -> str:
    if is_url(place):
        open_artefact_store(place)  # it could be one, and names no password
    return place


def _models(place: str | None) -> str | None:
    if place is not None and not is_url(place) and not Path(place).is_dir():
        raise ValueError(f"{place} is no folder: make it, or leave this setting out")
    return None if place is None else _artefact(place)


def _rules(kinds: str) -> str:
    KindRules.parse(kinds)
    return kinds


def _can_index(retrieval: str) -> str:
    if retrieval == "index" and not _installed("faiss"):
        raise ValueError("index needs the extra `index`: pip install 'tim4rec[index]'")
    return retrieval


def _can_trace(tracing: bool) -> bool:
    if tracing:
        if not all(
            map(_installed, ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"))
        ):
            raise ValueError("needs the extra `otel`: pip install 'tim4rec[otel]'")
        otlp.check(os.environ)
    return tracing


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it is a part of
        return False


Hosts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_names)]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_origins)]
Proxies = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_networks)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]
Host = Annotated[str, AfterValidator(_without_brackets)]
RedisUrl = Annotated[SecretStr | None, AfterValidator(_readable)]
KeysFile = Annotated[Path | None, AfterValidator(_with_keys)]
Artefact = Annotated[str, BeforeValidator(_text), AfterValidator(_artefact)]
Models = Annotated[str | None, BeforeValidator(_text), AfterValidator(_models)]
Kinds = Annotated[str, AfterValidator(_rules)]
Retrieval = Annotated[Literal["auto", "exact", "index"], AfterValidator(_can_index)]
Tracing = Annotated[bool, AfterValidator(_can_trace)]
