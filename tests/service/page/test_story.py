"""The page's story in a real browser: people of the store, cards that move, and what breaks."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from model.artefact import Artefact, save_artefact
from model.items import Items
from tests.service.conftest import ValkeyServer
from tests.service.page.browsing import (
    KEY,
    LOOKS,
    PHONE,
    has_stored,
    listed,
    needs_chromium,
    opened,
    unfold,
    violations,
)
from tests.service.processes import BASE_MS, ROOT, Service, history, make_artefact
from tests.waited import until

pytestmark = needs_chromium

LONG = "Unbreakable" * 20
TITLES = [f"Thing {n}" for n in range(57)] + [LONG, "كتاب الطبخ", "Kännchen grün"]
ITEMS = [f"i{n}" for n in range(len(TITLES))]
KINDS_OF_THINGS = ["Shoes", "Books", "Garden"]
PEOPLE = {f"p{n}": [f"i{n + 3 * step}" for step in range(6)] for n in range(3)}
"""And what they took: each of one category only."""
PICTURE = "/page/icon.svg"


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    made = make_artefact(tmp_path_factory.mktemp("story") / "model", ITEMS)
    categories = [[KINDS_OF_THINGS[n % 3]] for n in range(len(ITEMS))]
    items = Items(ITEMS, made.items.popularity, TITLES, categories)
    save_artefact(made.folder, made.model, items, {}, "a test")
    return made


@pytest.fixture(scope="module")
def service(artefact: Artefact, store: ValkeyServer) -> Iterator[Service]:
    running = Service(
        artefact.folder, store.folder / "output", redis_url=store.url, api_keys=KEY,
        store_timeout_s=0.5, exactness_every_s=0, namespace="story",
    )  # fmt: skip
    try:
        running.start()
        with running.client(headers={"X-API-Key": KEY}) as client:
            fill(client)
        yield running
    finally:
        running.kill()


def fill(client: httpx.Client) -> None:
    records = [
        {"item_id": item, "attributes": {"price": n + 0.5, "colour": ["red", "blue"][n % 2],
                                         "ean": 4_000_000_000 + n, "image": PICTURE}}
        for n, item in enumerate(ITEMS)
    ]  # fmt: skip
    client.post("/items/batch", json={"items": records}).raise_for_status()
    events = [
        {"user_id": user, "item_id": item, "timestamp": BASE_MS + 1000 * n, "kind": "view"}
        for user, items in PEOPLE.items()
        for n, item in enumerate(items)
    ]
    client.post("/interactions/batch", json={"interactions": events}).raise_for_status()


def taken_by(page: Page) -> str:
    """The user that the page has made, as its address says."""
    return str(page.evaluate("new URLSearchParams(location.hash.slice(1)).get('user')"))


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_a_person_is_looked_at_and_gone_on_from(
    browser: Browser, service: Service, client: httpx.Client, size: Any, scheme: Any
) -> None:
    """One tap and their list is there; nothing of theirs changes; taking something makes somebody
    new with a copy. axe has nothing to say of any of it, and nothing is wider than the window."""
    before = {user: history(client, user) for user in PEOPLE}
    options = {"viewport": size, "color_scheme": scheme, "bypass_csp": True}
    options["reduced_motion"] = "reduce"  # what is half seen has half the contrast
    with opened(browser, service, None, **options) as page:
        expect(page.locator("#said")).to_have_text("Take something you like")
        people = page.locator(".person")
        expect(people).to_have_text(
            [re.compile("Likes (Shoes|Books|Garden)6 interactions")] * 3
            + [re.compile("Be somebody new")]
        )
        popular = listed(page)
        faults = violations(page)
        person = people.first
        likes = person.locator(".title").inner_text().removeprefix("Likes ")
        person.click()
        expect(page.locator("#said")).to_have_text(re.compile(r"^\d+ of 10 changed in [\d.]+ ms$"))
        expect(page.locator("#about")).to_contain_text("nothing is stored")
        assert listed(page) != popular
        assert person.get_attribute("aria-pressed") == "true"
        (user,) = [u for u in PEOPLE if KINDS_OF_THINGS[int(u[1:])] == likes]
        has_stored(page, 6)
        why = page.locator("#list .why")
        expect(why.first).to_contain_text(re.compile("Because they took|No single"))
        events = [
            {"item_id": event["item_id"], "timestamp": event["timestamp"], "kind": "view"}
            for event in before[user]
        ]
        answer = client.post("/recommend/session", json={"events": events}).json()
        assert listed(page) == [item["title"] for item in answer["items"]]
        faults += violations(page)
        assert {user: history(client, user) for user in PEOPLE} == before
        item = page.locator("#list .pick").nth(2)
        title = item.locator(".title").inner_text()
        item.click()
        has_stored(page, 7)
        expect(page.locator("#about")).to_contain_text(f"after you took {title} as somebody new")
        expect(page.locator("#list .why").first).to_contain_text(re.compile("Because|No single"))
        faults += violations(page)
        own = history(client, taken_by(page))
        assert [e["item_id"] for e in own] == [*PEOPLE[user], ITEMS[TITLES.index(title)]]
        assert [e["timestamp"] for e in own[:-1]] == [e["timestamp"] for e in before[user]]
        assert {user: history(client, user) for user in PEOPLE} == before
        assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
        list_top = page.locator("#list").bounding_box()
        picker_top = page.locator("#picker-list").bounding_box()
        assert list_top is not None
        assert picker_top is not None
        if size == PHONE:
            assert list_top["y"] < picker_top["y"]
        assert faults == [], "\n".join(faults)


def test_cards_go_where_they_belong(browser: Browser, service: Service) -> None:
    """By transforms, and not where the system asks for less motion."""
    moving = """document.getAnimations().map((one) => one.effect.getKeyframes()[0].transform)
                .filter((transform) => transform !== undefined)"""
    for motion, moves in (("no-preference", True), ("reduce", False)):
        with opened(browser, service, None, reduced_motion=motion) as page:
            page.evaluate(
                f"""window.moved = [];
                new MutationObserver(() => window.moved.push(...{moving}))
                    .observe(document.getElementById("said"), {{ childList: true }})"""
            )
            page.locator(".person").first.click()
            expect(page.locator("#said")).to_contain_text("changed")
            assert bool(page.evaluate("window.moved")) is moves


def test_what_a_card_shows(browser: Browser, service: Service) -> None:
    """The picture, two facts, a price first, and no number that says nothing."""
    with opened(browser, service, None) as page:
        first = page.locator("#list .row").first
        expect(first.locator(".facts-of")).to_have_text(re.compile(r"^price [\d.]+colour \w+$"))
        image = first.locator(".art img")
        assert image.evaluate("(node) => node.complete && node.naturalWidth > 0")


def test_an_address_that_is_no_picture(browser: Browser, service: Service) -> None:
    """Only pictures of the service's own and by HTTPS are asked for."""
    with opened(browser, service, None) as page:
        shown = page.evaluate(
            """async () => {
                const { Items } = await import("/page/items.js");
                const items = new Items(null);
                const images = ["https://shop.test/a.png", "/a.png", "http://shop.test/a.png",
                                "//shop.test/a.png", "javascript:alert(1)", "data:image/png,x", 7];
                items.learn(images.map((image, n) => ({ item_id: n, attributes: { image } })));
                return images.filter((_, n) => items.image(n));
            }"""
        )
        assert shown == ["https://shop.test/a.png", "/a.png"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_can_be_read(browser: Browser, service: Service, scheme: Any) -> None:
    """AA at any hue: the contrast of a category's letter on its colour."""
    with opened(browser, service, None, color_scheme=scheme) as page:
        ratios = page.evaluate(
            """() => {
                const canvas = document.createElement("canvas");
                const pen = canvas.getContext("2d", { willReadFrequently: true });
                const linear = (one) =>
                    one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
                const light = (colour) => {
                    pen.fillStyle = colour;
                    pen.fillRect(0, 0, 1, 1);
                    const [red, green, blue] = pen.getImageData(0, 0, 1, 1).data;
                    return 0.2126 * linear(red / 255) + 0.7152 * linear(green / 255)
                        + 0.0722 * linear(blue / 255);
                };
                const art = document.createElement("span");
                art.className = "art";
                document.querySelector("#view-try").append(art);
                const found = [];
                for (const deep of ["", " deep"]) for (let hue = 0; hue < 360; hue += 5) {
                    art.className = `art coloured${deep}`;
                    art.style.setProperty("--hue", hue);
                    const style = getComputedStyle(art);
                    const [one, other] = [light(style.color), light(style.backgroundColor)];
                    found.push((Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05));
                }
                return found;
            }"""
        )
        assert len(ratios) == 144
        assert min(ratios) >= 4.5


@pytest.mark.parametrize("size", [LOOKS[0][0], PHONE])
def test_asked_differently(
    browser: Browser, service: Service, client: httpx.Client, size: Any
) -> None:
    """Filters with counts, diversity, promotions, what was seen: the list is the service's answer,
    and the request that is shown to copy gives it, too."""
    with opened(browser, service, "p1", viewport=size) as page:
        expect(page.locator("#options fieldset")).to_have_count(0)
        unfold(page, "Ask differently")
        category = page.get_by_role("group", name="Category")
        expect(category.locator("label").first).to_contain_text("20")
        category.get_by_label("Books").check()
        page.get_by_role("group", name="colour").get_by_label("red").check()
        page.get_by_role("group", name="price").get_by_label("to").fill("40")
        # The list gets shorter, and what is below it moves up.
        expect(page.locator("#options-count")).to_have_text("2 choices")
        expect(page.locator("#about")).to_contain_text("are left by these filters")
        page.get_by_label("Leave out what was taken before").uncheck()
        page.get_by_role("slider", name="Diversity").fill("0.3")
        expect(page.locator("#options-count")).to_have_text("4 choices")
        query: dict[str, Any] = {
            "user_id": "p1", "k": 10, "category": "Books", "exclude_seen": False,
            "filter": 'colour in ("red") and price <= 40', "diversity": 0.3, "explore": False,
        }  # fmt: skip
        titles = [i["title"] for i in client.get("/recommend", params=query).json()["items"]]
        assert 0 < len(titles) < 10
        expect(page.locator("#list .title")).to_have_text(titles)
        expect(page.locator("#about")).to_contain_text("are left by these filters")
        unfold(page, "The request")
        curl = page.locator("#request pre").first.inner_text()
        answer = ran(
            f"KEY={shlex.quote(KEY)}; " + curl.replace("http://page.test", "http://127.0.0.1")
        )
        assert [item["title"] for item in json.loads(answer)["items"]] == titles
        code = page.locator("#request pre").nth(1).inner_text()
        printed = ran_python(code.replace("http://page.test", "http://127.0.0.1"))
        assert all(repr(title) in printed for title in titles)
        page.get_by_role("button", name="Reset").click()
        expect(page.locator("#list li")).to_have_count(10)
        page.get_by_label("Promote items of").select_option("Garden")
        promoted = {"user_id": "p1", "promote": 'category = "Garden"', "promote_share": 0.2}
        answer = client.get("/recommend", params=promoted | {"explore": False}).json()
        expect(page.locator("#list .title")).to_have_text([i["title"] for i in answer["items"]])


def ran(command: str) -> str:
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True
    ).stdout


def ran_python(code: str) -> str:
    environment = {"PYTHONPATH": str(ROOT / "client"), "KEY": KEY, "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout


def test_the_kind_of_what_is_taken(
    browser: Browser, service: Service, client: httpx.Client
) -> None:
    with opened(browser, service, "kinds of things") as page:
        unfold(page, "Ask differently")
        page.get_by_label("Kind of what you take").fill("purchase")
        page.locator("#list .pick").first.click()
        has_stored(page, 1)
        (event,) = history(client, "kinds of things")
        assert event["kind"] == "purchase"
        expect(page.locator("#history .kind")).to_have_text("purchase")


@pytest.mark.parametrize("size", [LOOKS[0][0], PHONE])
def test_any_text_fits(browser: Browser, service: Service, size: Any) -> None:
    """A title without a break, one from right to left: cut with the whole of it in a tooltip."""
    with opened(browser, service, "fits", viewport=size) as page:
        for text, title in (("unbreak", LONG), ("كتاب", TITLES[58]), ("grun kannchen", TITLES[59])):
            page.get_by_label("Search items by title or id").fill(text)
            found = page.locator("#picker-list .title")
            expect(found).to_have_text([title])
            assert found.get_attribute("title") == title
            assert found.get_attribute("dir") == "auto"
            page.locator("#picker-list .pick").click()
            expect(page.locator("#about")).to_contain_text(title)
            assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
        page.get_by_label("Search items by title or id").fill("i7")
        expect(page.locator("#picker-list .title").first).to_have_text("Thing 7")


def test_nothing_jumps(browser: Browser, service: Service) -> None:
    """No layout shift while the page comes, nor when the reasons do."""
    with opened(browser, service, "p0") as page:
        expect(page.locator("#list .why").first).to_contain_text(re.compile("Because|No single"))
        shift = page.evaluate(
            """new Promise((done) => {
                let all = 0;
                new PerformanceObserver((list) => {
                    for (const one of list.getEntries()) if (!one.hadRecentInput) all += one.value;
                }).observe({ type: "layout-shift", buffered: true });
                setTimeout(() => done(all), 300);
            })"""
        )
        assert shift < 0.1


def plain(page: Page) -> None:
    """What is said is a person's: no path, no address, no code of ours."""
    for place in ("#said", "#about", "#people"):
        assert not re.search(
            r"/\w|https?:|\b[45]\d\d\b|undefined|null", page.locator(place).inner_text()
        )


@pytest.mark.slow
def test_a_store_that_is_frozen(
    browser: Browser, service: Service, client: httpx.Client, store: ValkeyServer
) -> None:
    """The click is kept and sent again; the list says that it is an old one."""
    with opened(browser, service, "frozen") as page:
        before = listed(page)
        store.send(signal.SIGSTOP)
        try:
            page.locator("#list .pick").nth(1).click()
            expect(page.locator("#about")).to_contain_text("Your click is kept")
            plain(page)
            expect(page.locator("#again")).to_be_visible(timeout=60_000)
            expect(page.locator("#stale")).to_have_text("from before")
            plain(page)
            assert listed(page) == before
            page.reload()
            expect(page.locator("#again")).to_be_visible(timeout=60_000)
            expect(page.locator("#list li")).to_have_count(10)
            expect(page.locator("#stale")).to_have_text("may lack the newest")
            expect(page.locator("#picker-empty")).to_be_hidden()
            expect(page.locator("#history-empty")).to_have_text("It can't be read just now.")
            expect(page.locator("#about")).not_to_contain_text("Nothing is known")
            plain(page)
        finally:
            store.send(signal.SIGCONT)
        until(lambda: client.get("/users/frozen/history").is_success)  # connections come back
        page.locator("#again").click()
        expect(page.locator("#stale")).to_be_hidden()
        expect(page.locator("#list li")).to_have_count(10)
        page.locator("#list .pick").nth(1).click()
        has_stored(page, len(history(client, "frozen")))


@pytest.mark.slow
def test_what_is_killed_outright_and_comes_back(
    browser: Browser, artefact: Artefact, durable_valkey: ValkeyServer
) -> None:
    """The service, and then the store: the click is kept and counts once, and nothing is said to be
    empty."""
    service = Service(
        artefact.folder, durable_valkey.folder / "output", redis_url=durable_valkey.url,
        api_keys=KEY, store_timeout_s=0.5, exactness_every_s=0,
    )  # fmt: skip
    try:
        service.start()
        with (
            service.client(headers={"X-API-Key": KEY}) as client,
            opened(browser, service, "killed", viewport=PHONE, color_scheme="dark") as page,
        ):
            page.locator("#list .pick").first.click()
            has_stored(page, 1)
            for number, (kill, start, what) in enumerate(
                (
                    (service.kill, service.start, "The service does not answer"),
                    (durable_valkey.kill, durable_valkey.start, "The service can't answer"),
                ),
                start=2,
            ):
                kill()
                page.locator("#list .pick").nth(1).click()
                expect(page.locator("#said")).to_contain_text(what)
                expect(page.locator("#again")).to_be_visible(timeout=60_000)
                expect(page.locator("#about")).to_contain_text("Your click is kept")
                expect(page.locator("#stale")).to_have_text("from before")
                expect(page.locator("#list li")).to_have_count(10)
                plain(page)
                if kill == durable_valkey.kill:
                    page.get_by_label("Search items by title or id").fill("Thing 2")
                    expect(page.locator("#picker-list .title").first).to_have_text("Thing 2")
                    expect(page.locator("#again")).to_be_visible()
                for empty in ("#history-empty", "#picker-empty"):
                    expect(page.locator(empty)).to_be_hidden()
                start()
                until(lambda: client.get("/users/killed/history").status_code in (200, 404))
                page.locator("#again").click()
                has_stored(page, number)
                assert len(history(client, "killed")) == number
                expect(page.locator("#stale")).to_be_hidden()
                expect(page.locator("#again")).to_be_hidden()
    finally:
        service.kill()


def test_people_that_can_not_be_read(browser: Browser, service: Service) -> None:
    """Nobody is said to be there, nor not to be; looking again finds them."""
    with opened(browser, service, None) as page:
        path = "**/page-data/people"
        page.route(path, lambda route: route.fulfill(status=500, json={"detail": "no"}))
        page.reload()
        expect(page.locator("#people")).to_contain_text("People of the store could not be read.")
        expect(page.locator("#list li")).to_have_count(10)
        plain(page)
        page.unroute(path)
        page.get_by_role("button", name="Look again").click()
        expect(page.locator(".person")).to_have_count(4)


def test_a_slow_network(browser: Browser, service: Service) -> None:
    """It says that it still waits, and then what came."""
    with opened(browser, service, "slow") as page:
        held: list[Route] = []
        page.route("**/interactions", lambda route: held.append(route))
        page.locator("#list .pick").first.click(no_wait_after=True)
        expect(page.locator("#said")).to_have_text("Still waiting for an answer…")
        held.pop().continue_()
        expect(page.locator("#said")).to_have_text(re.compile("of 10|The same"))
        has_stored(page, 1)


def test_what_is_refused_is_no_fault_of_the_list(browser: Browser, service: Service) -> None:
    with opened(browser, service, "refused") as page:
        unfold(page, "Ask differently")
        page.get_by_label("Kind of what you take").fill("no kind at all!")
        page.locator("#list .pick").first.click()
        expect(page.locator("#said")).to_contain_text("That was refused: ")
        expect(page.locator("#said")).to_contain_text("kind")
        expect(page.locator("#about")).to_have_text("Nothing was stored.")
        expect(page.locator("#again")).to_be_hidden()
        expect(page.locator("#stale")).to_be_hidden()
        page.get_by_label("Kind of what you take").fill("")
        page.locator("#list .pick").nth(1).click()
        has_stored(page, 1)


def test_it_is_there_at_once(browser: Browser, service: Service) -> None:
    """The first paint and the list, from this machine; the best of a few, for it may be busy."""
    paints, lists = [], []
    for _ in range(5):
        with opened(browser, service, None) as page:
            paints.append(
                page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
            )
            lists.append(page.evaluate("performance.getEntriesByName('list')[0].startTime"))
    assert min(paints) < 300
    assert min(lists) < 500
