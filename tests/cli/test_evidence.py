"""`tim4rec live rebuild`, and what `import-log` does of it, on a real store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from model.live.evidence import Evidence, EvidenceRules, Observed, user_key
from service.live.checkpoint import Checkpoints
from service.live.feed import Feed
from service.live.live_evidence import LiveEvidence
from service.store.client import Store
from tests.cli.conftest import BASE_MS, Write, tim4rec

if TYPE_CHECKING:
    from tests.service.conftest import ValkeyServer

ROWS: list[tuple[str, str, object]] = [
    ("ann", "a", BASE_MS),
    ("ann", "b", BASE_MS + 60_000),
    ("bob", "a", BASE_MS + 30_000),
]


def evidence(url: str, rules: EvidenceRules) -> Evidence:
    """What a service would start with."""

    async def start() -> Evidence:
        async with Store(url) as store:
            live = LiveEvidence(Feed(store), Checkpoints(store), rules)
            await live.start()
            return live.evidence

    return asyncio.run(start())


def expected(rules: EvidenceRules, *rows: tuple[str, str, int]) -> bytes:
    made = Evidence(rules)
    made.observe([Observed(user_key(user), item, at) for user, item, at in rows])
    return made.to_bytes()


IN_ORDER = [("ann", "a", BASE_MS), ("bob", "a", BASE_MS + 30_000), ("ann", "b", BASE_MS + 60_000)]


def test_an_import_ends_with_it(valkey: ValkeyServer, write: Write) -> None:
    rules = EvidenceRules()
    result = tim4rec("import-log", write(ROWS), "--redis", valkey.url)
    assert result.exit_code == 0, result.output
    assert "live evidence made of 3 events with 2 items" in result.output
    assert evidence(valkey.url, rules).to_bytes() == expected(rules, *IN_ORDER)
    again = tim4rec("import-log", write(ROWS), "--redis", valkey.url)
    assert "live evidence" not in again.output  # nothing was written


@pytest.mark.parametrize("how", ["--no-live", "off", "a shard"])
def test_an_import_may_leave_it(valkey: ValkeyServer, write: Write, how: str) -> None:
    more = {"--no-live": ["--no-live"], "off": [], "a shard": ["--shard", "0/1"]}[how]
    environment = {"TIM4REC_LIVE": "false"} if how == "off" else {}
    result = tim4rec("import-log", write(ROWS), "--redis", valkey.url, *more, **environment)
    assert result.exit_code == 0, result.output
    with valkey.client() as client:
        assert client.keys("*:live*") == []
    rules = EvidenceRules(8, 100)
    result = tim4rec(
        "live", "rebuild", "--redis", valkey.url, "--newest", "2",
        TIM4REC_LIVE_NEIGHBOURS="8", TIM4REC_LIVE_USERS="100", TIM4REC_CHANGE_SHARED_SETTINGS="1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "made of 2 events with 2 items; 1 older ones are left out" in result.output
    assert evidence(valkey.url, rules).to_bytes() == expected(rules, *IN_ORDER[1:])


def test_its_rules_are_those_of_the_services(valkey: ValkeyServer, write: Write) -> None:
    tim4rec("import-log", write(ROWS), "--redis", valkey.url)
    result = tim4rec("live", "rebuild", "--redis", valkey.url, TIM4REC_LIVE_NEIGHBOURS="8")
    assert result.exit_code == 3, result.output
    assert "live_neighbours" in result.output


def test_a_store_that_is_away_is_one_line(tmp_path: object) -> None:
    result = tim4rec("live", "rebuild", "--redis", f"unix://{tmp_path}/none")
    assert result.exit_code == 1
    assert len(result.output.splitlines()) <= 2
    assert "Traceback" not in result.output


def test_the_group_says_what_it_has() -> None:
    assert "rebuild" in tim4rec("live", "--help").output
    assert "Make the live evidence anew" in tim4rec("--help").output
