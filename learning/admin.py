"""What the learner asks of the service: `/admin/model`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

TIMEOUT_S = 60.0
"""Of an answer: a model is loaded before it is set."""


class AdminError(Exception):
    """The service does not do what it was asked. One line."""


@dataclass(frozen=True)
class Served:
    """What is set, and what the processes say of themselves.

    Attributes:
        version: number of the last change.
        base: name of the model for everybody; None: what each process was started with.
        started_with: editions of these.
        trials: names of the models on trial.
        behind: processes that have not yet taken over what is set.
        faults: why they can't.
        decisions: what was decided of trials, as the service says it, by name.
    """

    version: int
    base: str | None
    started_with: frozenset[str]
    trials: frozenset[str]
    behind: int
    faults: tuple[str, ...]
    decisions: Mapping[str, str]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Served:
        version, base = answer["version"], answer["base"]
        processes = answer["processes"]
        started_with = {one["base"]["identity"] for one in processes} if base is None else set()
        return cls(
            version,
            None if base is None else base["name"],
            frozenset(started_with),
            frozenset(one["name"] for one in answer["trials"]),
            sum(one["version"] < version for one in processes) if processes else 1,
            tuple(one["fault"] for one in processes if one["fault"]),
            {one["trial"]: f"{one['decision']}: {one['reason']}" for one in answer["decisions"]},
        )


class Admin:
    """A client of one service. Methods raise AdminError."""

    def __init__(self, url: str, key: str | None) -> None:
        headers = {"X-API-Key": key} if key else {}
        self._shown = str(httpx.URL(url).copy_with(userinfo=b""))
        self._client = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        await self._client.aclose()

    async def served(self) -> Served:
        answer = await self._ask("GET", "")
        try:
            return Served.of(answer)
        except (KeyError, TypeError) as error:
            raise AdminError(
                f"{self._shown}: GET /admin/model says nothing of {error}: is the service of this "
                "version?"
            ) from None

    async def set(self, model: str, share: float) -> None:
        """A model for everybody (share 1), or on trial; the service decides the trial."""
        await self._ask("POST", "", {"model": model, "share": share, "decide": share < 1})

    async def clear(self) -> None:
        """What each process was started with for everybody."""
        await self._ask("DELETE", "")

    async def end_trial(self, model: str) -> None:
        await self._ask("DELETE", f"/trials/{quote(model, safe='')}")

    async def _ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None
    ) -> Mapping[str, Any]:
        try:
            answer = await self._client.request(method, f"/admin/model{path}", json=body)
            said = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise AdminError(f"{self._shown}: {why}") from None
        except ValueError:
            raise AdminError(f"{self._shown}: {answer.status_code}, and no JSON") from None
        if answer.is_success and isinstance(said, dict):
            return said
        detail = said.get("detail") if isinstance(said, dict) else None
        raise AdminError(
            f"{self._shown}: {method} /admin/model{path}: {answer.status_code} {detail}"
        )
