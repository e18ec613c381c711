"""A service that learns beside a frozen one: the same log goes through both in the order of time,
and at the end of a day one of them gets what `tim4rec learn` has made of its log."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import polars as pl
import pytest

from learning.journal import FolderJournal
from model.artefact import Artefact, load_artefact
from tests.forked import Forked
from tests.service.conftest import ValkeyServer, _shared_valkey, folder, patience, valkey
from tests.service.processes import Service
from tests.service.test_metrics import samples
from tests.training.logs import DAY_MS, START_MS, drifting_log
from tests.waited import until

__all__ = ["_shared_valkey", "folder", "patience", "valkey"]

KEY = "of the admin"
KNOWN, DAYS = 2, 5
"""Days that the first model is trained on, and all."""
NOW, NEVER = "0.001s", "0"
LEARNED = {
    3: ("warm", ["--warm-every", NOW]),
    4: ("scoring", ["--warm-every", NEVER, "--scoring-every", NOW]),
}
"""What is made before a day begins, by which schedule."""
MODEL = ["--recipe", "quick", "--epochs", 15, "--d-model", 32, "--layers", 1, "--dropout", 0.1]
ENDS_WITHIN_S = 300


@dataclass(frozen=True)
class Hits:
    """What a service has counted: events, and those of them whose item was among the ten best, by
    the model's edition."""

    events: Counter[str]
    hits: Counter[str]

    @classmethod
    def of(cls, service: Service) -> Hits:
        events, hits = Counter[str](), Counter[str]()
        for (name, labels), number in samples(httpx.get(f"{service.url}/metrics").text).items():
            found = dict(labels)
            if name == "tim4rec_quality_events_total":
                events[found["model"]] += int(number)
            elif name == "tim4rec_quality_hits_total" and found["by"] == "served":
                hits[found["model"]] += int(number)
        return cls(events, hits)

    def __sub__(self, other: Hits) -> Hits:
        return Hits(self.events - other.events, self.hits - other.hits)

    @property
    def rate(self) -> float:
        return self.hits.total() / self.events.total()


@pytest.fixture(scope="module")
def days() -> list[pl.DataFrame]:
    """user_id, item_id and timestamp of each day."""
    frame = drifting_log(days=DAYS).frame.rename({"time_ms": "timestamp"}).sort("timestamp")
    begins = [START_MS + day * DAY_MS for day in range(DAYS)]
    return [frame.filter(pl.col("timestamp").is_between(at, at + DAY_MS - 1)) for at in begins]


@pytest.fixture
def first(tmp_path: Path, days: list[pl.DataFrame]) -> Artefact:
    """A model of the first days, in the folder of models."""
    log, model = tmp_path / "log.parquet", tmp_path / "models" / "first"
    pl.concat(days[:KNOWN]).write_parquet(log)
    tim4rec(tmp_path / "trained", "train", log, *MODEL, "--out", model)
    return load_artefact(model)


@pytest.fixture
def services(tmp_path: Path, first: Artefact, valkey: ValkeyServer) -> Iterator[list[Service]]:
    """The one that learns, and the frozen one."""
    found = [
        Service(
            first.folder, tmp_path / name, "--redis", valkey.url, namespace=name, quality_sample=1,
            models_dir=first.folder.parent, admin_keys=KEY, model_poll_s=0.1,
        )
        for name in ("learning", "frozen")
    ]  # fmt: skip
    try:
        for service in found:
            service.start()
        yield found
    finally:
        for service in found:
            service.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_service_that_learns_gets_ahead(
    tmp_path: Path, days: list[pl.DataFrame], first: Artefact, services: list[Service],
    valkey: ValkeyServer,
) -> None:  # fmt: skip
    learning, frozen = services
    models = first.folder.parent
    for service in services:
        write(service, pl.concat(days[:KNOWN]))
    found: dict[int, tuple[Hits, Hits]] = {}
    for day in range(KNOWN, DAYS):
        if day in LEARNED:
            said = tim4rec(
                tmp_path / f"learned {day}", "learn", "--once", *LEARNED[day][1],
                "--scratch-every", NEVER, "--trial-share", 1, "--least-judged", 600,
                "--models", models, "--work", tmp_path / "work", "--service", learning.url,
                "--redis", valkey.url, "--namespace", "learning", "--admin-key", KEY,
            )  # fmt: skip
            assert "failed" not in said, said
        found[day] = replay(learning, days[day]), replay(frozen, days[day])
    rates = {day: (one.rate, other.rate) for day, (one, other) in found.items()}
    own, other = rates.pop(KNOWN)
    assert own == pytest.approx(other, abs=0.1)  # of the same model; when evidence comes differs
    assert all(own > other + 0.1 for own, other in rates.values()), rates
    entries = FolderJournal(models).entries()
    assert [(one.what, one.step) for one in entries] == [
        (what, step) for step, _ in LEARNED.values() for what in ("published", "promoted")
    ]
    published = [one for one in entries if one.what == "published"]
    assert [one.parent for one in published] == ["first", published[0].model]
    warm, scoring = (one.edition for one in published)
    assert warm is not None
    assert [set(one.events) for one, _ in found.values()] == [{first.edition}, {warm}, {scoring}]
    assert all(set(one.events) == {first.edition} for _, one in found.values())
    with learning.client() as client:
        answer = client.get("/recommend", params={"user_id": "u1"}).json()
    # The last step has left all states as they were.
    assert (answer["edition"], answer["model"]) == (scoring, warm.split("+")[0])


def write(service: Service, events: pl.DataFrame) -> None:
    rows = events.to_dicts()
    with service.client() as client:
        for begin in range(0, len(rows), 1000):
            post(client, rows[begin : begin + 1000])


def replay(service: Service, events: pl.DataFrame) -> Hits:
    """Each user is given a list first; then what the users do, as it comes."""
    before = Hits.of(service)
    with service.client() as client:
        for user in events["user_id"].unique():
            client.get("/recommend", params={"user_id": user}).raise_for_status()
        for part in one_event_a_user(events):
            post(client, part)
    until(lambda: (Hits.of(service) - before).events.total() == len(events), "not all are judged")
    return Hits.of(service) - before


def one_event_a_user(events: pl.DataFrame) -> Iterator[list[dict[str, object]]]:
    """In parts: of a user's events that come together only the first is judged."""
    part: dict[str, dict[str, object]] = {}
    for event in events.iter_rows(named=True):
        if event["user_id"] in part:
            yield list(part.values())
            part = {}
        part[event["user_id"]] = event
    yield list(part.values())


def post(client: httpx.Client, events: list[dict[str, object]]) -> None:
    answer = client.post("/interactions/batch", json={"interactions": events})
    assert answer.status_code == 200, answer.text


def tim4rec(output: Path, *words: object) -> str:
    """Runs a command to its end; what it said."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TIM4REC_")}
    process = Forked([str(word) for word in words], clean | {"OMP_NUM_THREADS": "1"}, output)
    assert process.wait(ENDS_WITHIN_S) == 0, output.read_text()
    return output.read_text()
