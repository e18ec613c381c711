"""What the page shows those who run the service, in a real browser before a real service."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from model.artefact import Artefact
from model.journal import FILE, Entry
from tests.ports import free_port
from tests.service.conftest import ValkeyServer
from tests.service.page import browsing
from tests.service.page.browsing import (
    DESKTOP,
    KEY,
    LOOKS,
    PHONE,
    needs_chromium,
    violations,
)  # fmt: skip
from tests.service.processes import BASE_MS, Service, history, make_artefact
from tests.waited import until

pytestmark = needs_chromium

ADMIN = "an admin key"
ITEMS = [f"i/{n}" for n in range(40)]
VIEWS = ("Health", "Learning", "Users", "Items", "Compare")
AT = "2026-01-31T12:00:00.000Z"
HOUR_MS = 3_600_000
FIGURES = {
    "verdict": "better",
    "events": 4000,
    "users": 800,
    "figures": {"incumbent": {"HR@10": 0.25}, "candidate": {"HR@10": 0.375}},
    "difference": {"HR@10": {"mean": 0.125, "low": 0.0625, "high": 0.1875}},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operators") / "models"


@pytest.fixture(scope="module")
def artefact(models: Path) -> Artefact:
    make_artefact(models / "older", ITEMS, seed=1)
    found = make_artefact(models / "newer", ITEMS)
    about = {"model": "newer", "step": "warm", "parent": "older", "until": AT, "events": 5200}
    entries = [
        Entry(AT, "published", verdict="better", figures=FIGURES, **about),  # type: ignore[arg-type]
        Entry(AT, "promoted", replaced="older", **about),  # type: ignore[arg-type]
        Entry(AT, "refused", step="scoring", parent="newer", reason="the judge: worse"),
    ]
    (models / FILE).write_bytes(b"".join(entry.line for entry in entries))
    return found


@pytest.fixture(scope="module")
def service(artefact: Artefact, models: Path, store: ValkeyServer) -> Iterator[Service]:
    running = Service(
        artefact.folder, store.folder / "output", redis_url=store.url, api_keys=KEY,
        admin_keys=ADMIN, models_dir=models, operations_port=free_port(), quality_sample=1,
        store_timeout_s=0.5, exactness_every_s=0,
    )  # fmt: skip
    try:
        running.start()
        yield running
    finally:
        running.kill()


@contextmanager
def opened(
    browser: Browser, service: Service, view: str, *, admin_key: str | None = ADMIN, **options: Any
) -> Iterator[Page]:
    """A view of the page."""
    with browsing.opened(browser, service, None, admin_key=admin_key, **options) as page:
        page.get_by_role("tab", name=view, exact=True).click()
        yield page


ON_BOTH = pytest.mark.parametrize(
    "look",
    [
        {"viewport": DESKTOP, "color_scheme": "light"},
        {"viewport": PHONE, "color_scheme": "dark", "has_touch": True},
    ],
    ids=["desktop", "phone"],
)


def interact(client: httpx.Client, user: str, number: int, apart_ms: int = 1) -> None:
    for n in range(number):
        at = BASE_MS + n * apart_ms
        body = {"user_id": user, "item_id": ITEMS[n % len(ITEMS)], "timestamp": at}
        assert client.post("/interactions", json=body).is_success


def panel(page: Page) -> Locator:
    """Of the view that is shown."""
    return page.get_by_role("tabpanel")


def said(page: Page) -> Locator:
    return panel(page).locator(".told")


@pytest.fixture(scope="module")
def traffic(client: httpx.Client) -> None:
    for n in range(30):
        interact(client, f"judged {n}", 1)
        query = {"user_id": f"judged {n}", "explain": n % 2 == 0}
        assert client.get("/recommend", params=query).is_success
        interact(client, f"judged {n}", 2)  # the second with another item: it is judged


@ON_BOTH
@pytest.mark.usefixtures("traffic")
def test_health(browser: Browser, service: Service, look: Any) -> None:
    """Every two seconds, though the metrics are on a port that the browser does not reach."""
    with opened(browser, service, "Health", **look) as page:
        checks = page.locator(".checks li")
        expect(page.locator(".verdict")).to_contain_text("The service is well.")
        for name, value in (
            ("Store", "up"),
            ("Workers", "1"),
            ("Queue", "0"),
            ("Models", "as set"),
        ):
            expect(checks.filter(has_text=name).first.locator("strong")).to_have_text(value)
        expect(panel(page).get_by_text("Too few to say")).to_be_visible()
        panel(page).get_by_label("Over").select_option("all time since the start")
        requests = page.get_by_role("region", name="Requests", exact=True)
        row = requests.get_by_role("row", name=re.compile("^GET .recommend "))
        assert int(row.get_by_role("cell").first.inner_text()) >= 30
        expect(row.get_by_role("cell").nth(4)).to_have_text(re.compile(r"[\d.]+ m?s"))
        explained = requests.get_by_role("row", name=re.compile("^Explanations of .recommend"))
        assert int(explained.get_by_role("cell").first.inner_text()) >= 15
        expect(
            page.get_by_role("img", name=re.compile(r"^Requests waiting: waiting \d"))
        ).to_be_visible()
        assert "page-data/" not in requests.inner_text()


@pytest.mark.slow
def test_health_while_the_store_is_away(
    browser: Browser, service: Service, client: httpx.Client, store: ValkeyServer
) -> None:
    with opened(browser, service, "Health") as page:
        expect(page.locator(".verdict")).to_contain_text("The service is well.")
        store.send(signal.SIGSTOP)
        try:
            expect(page.locator(".verdict")).to_contain_text("Look at: store")
            down = page.locator(".checks [data-level=wrong]")
            expect(down.locator("strong")).to_have_text("down")
        finally:
            store.send(signal.SIGCONT)
        expect(page.locator(".checks li", has_text="Store").first).to_contain_text("up")
    until(lambda: client.get("/readyz").json().get("store") is None)


def test_health_while_the_service_is_away(browser: Browser, service: Service) -> None:
    """What was read stays and says how old it is; it goes on by itself."""
    with opened(browser, service, "Health") as page:
        expect(page.locator(".verdict")).to_contain_text("The service is well.")
        page.context.set_offline(True)
        expect(said(page)).to_contain_text("The service does not answer. What is below is")
        expect(page.locator(".verdict")).to_contain_text("can't be told")
        expect(page.locator(".checks li")).not_to_have_count(0)
        page.context.set_offline(False)
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".verdict")).to_contain_text("The service is well.")
        expect(said(page)).to_be_hidden()


@ON_BOTH
def test_learning(browser: Browser, service: Service, look: Any) -> None:
    """What was trained, and a roll back that everybody has after one question."""
    admin = {"X-API-Key": ADMIN}
    assert httpx.delete(f"{service.url}/admin/model", headers=admin).is_success
    with opened(browser, service, "Learning", **look) as page:
        rounds = page.locator(".rounds > li")
        expect(rounds).to_have_count(2)
        expect(rounds.nth(0)).to_contain_text("refused")
        expect(rounds.nth(0)).to_contain_text("the judge: worse")
        newer = rounds.nth(1)
        expect(newer.locator("b")).to_have_text(["promoted", "published"])
        expect(newer).to_contain_text("5,200 new ones")
        newer.get_by_text("The judge's figures").click()
        expect(newer).to_contain_text("+0.1250 (+0.0625 to +0.1875)")
        expect(panel(page)).to_contain_text("the model the service was started with")
        panel(page).get_by_label("Model", exact=True).select_option("older")
        page.get_by_role("button", name="Give it to everybody").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Give it to everybody").click()
        page.get_by_role("dialog").get_by_role("button", name="Give it to everybody").click()
        expect(said(page)).to_contain_text("Everybody gets older")
        expect(panel(page).locator(".big")).to_have_text("older")
        newer.get_by_role("button", name="Roll back").click()
        page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
        expect(panel(page).locator(".big")).to_have_text("newer")
        assert httpx.get(f"{service.url}/admin/model", headers=admin).json()["base"]["name"] == (
            "newer"
        )


def try_older(service: Service) -> dict[str, Any]:
    """Puts a model on trial, and returns what the process then serves."""
    url, admin = f"{service.url}/admin/model", {"X-API-Key": ADMIN}
    answer = httpx.post(url, json={"model": "older", "share": 0.25}, headers=admin, timeout=60)
    assert answer.is_success, answer.text
    processes: list[dict[str, Any]] = []

    def taken_over() -> bool:
        processes[:] = httpx.get(url, headers=admin).json()["processes"]
        return processes[0]["version"] == answer.json()["version"]

    until(taken_over)
    return processes[0]


def test_a_trial(browser: Browser, service: Service) -> None:
    try_older(service)
    with opened(browser, service, "Learning") as page:
        trial = page.locator("article", has_text="On trial")
        expect(trial).to_contain_text("25 %")
        expect(trial).to_contain_text("no users observed yet")
        trial.get_by_role("button", name="End the trial").click()
        page.get_by_role("dialog").get_by_role("button", name="End the trial").click()
        expect(trial).to_be_hidden()


def test_the_admin_key_is_another(browser: Browser, service: Service) -> None:
    """It is asked for once, kept for the tab alone, and sent to nothing but what wants it."""
    with opened(browser, service, "Learning", admin_key=None) as page:
        sent: dict[str, set[str | None]] = {}
        page.on(
            "request",
            lambda request: sent.setdefault(request.headers.get("x-api-key", ""), set()).add(
                urlsplit(request.url).path
            ),
        )
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("This wants an admin key")
        page.keyboard.press("Escape")
        expect(said(page)).to_contain_text("This needs a key")
        page.get_by_role("button", name="Try again").click()
        page.get_by_label("X-API-Key").fill(ADMIN)
        dialog.get_by_role("button", name="Use it").click()
        expect(page.locator(".rounds > li")).to_have_count(2)
        page.get_by_role("tab", name="Users").click()
        page.get_by_role("button", name="Find", exact=True).click()
        expect(said(page)).to_contain_text("user")
        page.get_by_role("tab", name="Items").click()
        expect(panel(page).locator(".found li").first).to_be_visible()
        assert sent[ADMIN] <= {"/admin/model", "/admin/journal", "/users"}
        assert "/items" in sent[KEY]
        assert page.evaluate("JSON.stringify(localStorage)").count(ADMIN) == 0


@ON_BOTH
def test_a_user_is_found_taken_out_and_erased(
    browser: Browser, service: Service, client: httpx.Client, look: Any
) -> None:
    interact(client, "kept/ann", 2)
    kept = history(client, "kept/ann")
    interact(client, "found/ben.", 3, apart_ms=5 * HOUR_MS)
    with opened(browser, service, "Users", **look) as page:
        panel(page).get_by_label("User id").fill("found/")
        page.get_by_role("button", name="Find", exact=True).click()
        expect(panel(page).locator(".found .title")).to_have_text(["found/ben."])
        panel(page).locator(".found .open-one").click()
        person = page.get_by_role("region", name="User", exact=True)
        expect(person.locator(".timeline .title")).to_have_count(3)
        expect(person.locator(".gap")).to_have_text(["5 hours without any"] * 2)
        about = client.get("/users/found%2Fben%2E").json()
        expect(person).to_contain_text(f"{about['state_bytes'] / 1000:.1f} kB in memory")
        with page.expect_download() as download:
            person.get_by_role("button", name="Export as JSON").click()
        exported = json.loads(Path(download.value.path()).read_text("utf-8"))
        assert exported == {"user_id": "found/ben.", "events": history(client, "found/ben.")}
        person.get_by_role("button", name="Erase").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        assert len(history(client, "found/ben.")) == 3
        person.get_by_role("button", name="Erase").click()
        page.get_by_role("dialog").get_by_role("button", name="Erase").click()
        expect(said(page)).to_have_text("found/ben. is erased.")
        expect(person).to_be_hidden()
        assert history(client, "found/ben.") == []
        assert history(client, "kept/ann") == kept
        panel(page).get_by_label("User id").fill("nobody")
        page.get_by_role("button", name="Find", exact=True).click()
        expect(said(page)).to_have_text("No id begins with nobody.")
        page.get_by_role("button", name="Open").click()
        expect(said(page)).to_contain_text("nothing is known of 'nobody'")


@pytest.mark.slow
def test_what_could_not_be_read_is_not_said_to_be_empty(
    browser: Browser, service: Service, client: httpx.Client, store: ValkeyServer
) -> None:
    interact(client, "away", 1)
    with opened(browser, service, "Users") as page:
        panel(page).get_by_label("User id").fill("away")
        store.send(signal.SIGSTOP)
        try:
            page.get_by_role("button", name="Find", exact=True).click()
            expect(said(page)).to_contain_text("can't answer just now")
            assert "No id begins" not in page.locator("main").inner_text()
        finally:
            store.send(signal.SIGCONT)
        expect(panel(page).locator(".found .title")).to_have_text(["away"])
    until(lambda: client.get("/readyz").json().get("store") is None)


@ON_BOTH
def test_an_item_is_edited_hidden_and_as_before(
    browser: Browser, service: Service, client: httpx.Client, look: Any
) -> None:
    item = "/items/i%2F1"
    assert client.post("/interactions", json={"user_id": "now", "item_id": "i/1"}).is_success
    until(lambda: client.get(f"/page-data{item}").json()["interactions"])
    with opened(browser, service, "Items", **look) as page:
        panel(page).get_by_label("Search").fill("Title of i/1")
        expect(panel(page).locator(".found .title").first).to_have_text("Title of i/1")
        panel(page).locator(".found .open-one").first.click()
        shown = page.get_by_role("region", name="Item", exact=True)
        expect(shown.locator("h2")).to_have_text("Title of i/1")
        expect(shown.locator("ol.found li")).to_have_count(10)
        used = client.get(f"/page-data{item}").json()
        expect(shown).to_contain_text(f"{used['interactions']:g} since")
        expect(shown).to_contain_text("not counted: the service does not explore")
        a_day = shown.get_by_role("row", name="the last day").get_by_role("cell").first
        assert float(a_day.inner_text()) == pytest.approx(used["a_day"][0], rel=0.02)
        shown.get_by_text("Edit").click()
        panel(page).get_by_label("Attributes, as JSON").fill("{price: 3}")
        page.get_by_role("button", name="Save").click()
        expect(said(page)).to_contain_text("Attributes: this is no JSON")
        panel(page).get_by_label("Title", exact=True).fill("Ɣ <b>another</b>")
        panel(page).get_by_label("Categories, with commas between").fill("New, Old")
        panel(page).get_by_label("Attributes, as JSON").fill('{"price": 3}')
        page.get_by_role("button", name="Save").click()
        expect(said(page)).to_contain_text("Saved")
        expect(shown.locator("h2")).to_have_text("Ɣ <b>another</b>")
        expect(shown.get_by_role("row", name="price")).to_contain_text("3")
        shown.get_by_role("button", name="Hide it").click()
        expect(said(page)).to_have_text("No list holds it any more.")
        found = client.get(item).json()
        assert (found["title"], found["categories"], found["attributes"], found["hidden"]) == (
            "Ɣ <b>another</b>", ["New", "Old"], {"price": 3}, True,
        )  # fmt: skip
        shown.get_by_role("button", name="Delete its record").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(shown.locator("h2")).to_have_text("Title of i/1")
        assert not client.get(item).json()["recorded"]
        shown.get_by_role("button", name="Hide it").click()
        expect(shown.get_by_role("button", name="Show it again")).to_be_visible()
        assert client.get(item).json()["title"] == "Title of i/1"
        assert client.delete(item).json()["deleted"]


@ON_BOTH
def test_two_lists_beside_each_other(
    browser: Browser, service: Service, client: httpx.Client, look: Any
) -> None:
    interact(client, "both", 8)
    with opened(browser, service, "Compare", **look) as page:
        panel(page).get_by_label("User", exact=True).fill("both")
        panel(page).get_by_label("On the right").select_option("With items taken before")
        query: dict[str, Any] = {"user_id": "both", "k": 10, "explore": False}
        left = [one["item_id"] for one in client.get("/recommend", params=query).json()["items"]]
        query["exclude_seen"] = False
        right = [one["item_id"] for one in client.get("/recommend", params=query).json()["items"]]
        both = set(left) & set(right)
        same = sum(one == other for one, other in zip(left, right, strict=True))
        expect(said(page)).to_have_text(
            f"{len(both)} of 10 items are in both lists, {same} of them in the same place."
        )
        for side, (name, own) in enumerate((("Left", left), ("Right", right))):
            other = (right, left)[side]
            marks = page.get_by_role("region", name=name, exact=True).locator(".mark")
            for place, item in enumerate(own):
                by = other.index(item) - place if item in other else None
                mark = (
                    "only here"
                    if by is None
                    else f"{'▲' if by > 0 else '▼'} {abs(by)}"
                    if by
                    else "same place"
                )
                expect(marks.nth(place)).to_contain_text(mark)
        panel(page).get_by_label("On the right").select_option("As it is served")
        expect(said(page)).to_have_text("Both lists are the same.")


@ON_BOTH
def test_two_models_beside_each_other(
    browser: Browser, service: Service, client: httpx.Client, look: Any
) -> None:
    """Each answers for a user who has the other one."""
    interact(client, "one of both", 3)
    served = try_older(service)
    editions = [served["base"]["edition"], served["trials"][0]["edition"]]
    with opened(browser, service, "Compare", **look) as page:
        panel(page).get_by_label("User", exact=True).fill("one of both")
        page.get_by_role("button", name="Other models").click()
        expect(said(page)).to_have_text("Choose a model on the left or on the right.")
        for side, name, edition in zip(
            ("left", "right"), ("newer", "older"), editions, strict=True
        ):
            chosen = panel(page).get_by_label(f"On the {side}")
            chosen.select_option(f"By {name}, {edition}")
            beside = page.get_by_role("region", name=side.title(), exact=True)
            expect(beside).to_contain_text(f"by model {edition}")
            asked = {"user_id": "one of both", "edition": edition, "explore": False}
            answer = httpx.post(
                f"{service.url}/admin/recommend", json=asked, headers={"X-API-Key": ADMIN}
            )
            titles = [one.get("title") or one["item_id"] for one in answer.json()["items"]]
            expect(beside.locator(".title")).to_have_text(titles)
    httpx.delete(
        f"{service.url}/admin/model/trials/older", headers={"X-API-Key": ADMIN}
    ).raise_for_status()


@pytest.mark.slow
@pytest.mark.parametrize(("viewport", "scheme"), LOOKS)
def test_for_everybody_on_every_screen(
    browser: Browser, service: Service, client: httpx.Client, viewport: Any, scheme: Any
) -> None:
    """axe has nothing to say of any view, none is wider than the screen, and no row of cards ends
    in a hole."""
    interact(client, "seen", 3, apart_ms=2 * HOUR_MS)
    options = {"color_scheme": scheme, "reduced_motion": "reduce", "bypass_csp": True}
    with opened(browser, service, "Health", viewport=viewport, **options) as page:
        faults = []
        for view in VIEWS:
            page.get_by_role("tab", name=view, exact=True).click()
            own = panel(page)
            ready = {
                "Health": own.get_by_role("img").first,
                "Learning": own.locator(".rounds > li").first,
                "Users": own.get_by_role("button", name="Find"),
                "Items": own.locator(".found .open-one").first,
                "Compare": own.locator(".mark").first,
            }[view]
            expect(ready).to_be_visible()
            if view == "Users":
                panel(page).get_by_label("User id").fill("seen")
                page.get_by_role("button", name="Open").click()
                expect(own.locator(".gap").first).to_be_visible()
            if view == "Items":
                own.locator(".found .open-one").first.click()
                own.get_by_text("Edit").click()
            faults += [f"{view}: {fault}" for fault in violations(page)]
            assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"], view
            if view == "Health":
                assert page.evaluate(HOLES) == 0
        assert faults == [], "\n".join(faults)


HOLES = """() => {
    const list = document.querySelector(".checks");
    const right = list.getBoundingClientRect().right;
    const ends = new Map();
    for (const one of list.children) {
        const box = one.getBoundingClientRect();
        ends.set(box.top, Math.max(ends.get(box.top) ?? 0, box.right));
    }
    return [...ends.values()].filter((end) => Math.abs(end - right) > 1).length;
}"""
