"""The page in a real browser, before a real service on a real store."""

from __future__ import annotations

import itertools
import re
import signal
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, Error, Page, expect

from model.artefact import Artefact, save_artefact
from model.items import Items
from tests.service.conftest import ValkeyServer
from tests.service.page.browsing import (
    KEY,
    has_stored,
    listed,
    needs_chromium,
    opened,
    unfold,
    violations,
)
from tests.service.processes import BASE_MS, Service, history, make_artefact

pytestmark = needs_chromium

SCRIPT = "<script>window.hacked = true</script><img src=x onerror='window.hacked = true'>"
TITLES = [f"Film {n}" for n in range(30)] + [f"Star {n}" for n in range(29)] + [SCRIPT]
ITEMS = [f"i/{n}" for n in range(len(TITLES))]
CATEGORIES = [["Odd & even", "<b>Bold</b>"] if n % 2 else [] for n in range(len(TITLES))]
PHONE = {"width": 360, "height": 740}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    made = make_artefact(tmp_path_factory.mktemp("page") / "model", ITEMS)
    items = Items(ITEMS, made.items.popularity, TITLES, CATEGORIES)
    save_artefact(made.folder, made.model, items, {}, "a test")
    return made


@pytest.fixture(scope="module")
def service(artefact: Artefact, store: ValkeyServer) -> Iterator[Service]:
    running = Service(
        artefact.folder, store.folder / "output", redis_url=store.url, api_keys=KEY,
        store_timeout_s=0.5, exactness_every_s=0,
    )  # fmt: skip
    try:
        running.start()
        yield running
    finally:
        running.kill()


@pytest.fixture
def user() -> str:
    return f"user {next(_numbers)}"


def scores(page: Page) -> list[str]:
    return page.locator("#list .score").all_inner_texts()


def test_from_a_search_to_another_list(
    browser: Browser, service: Service, client: httpx.Client, user: str
) -> None:
    with opened(browser, service, user) as page:
        expect(page.locator("#about")).to_contain_text("Nothing is known")
        expect(page.locator("#source")).to_have_text(re.compile("popular"))
        page.get_by_label("Search items by title or id").fill("stAr")
        expect(page.locator("#picker-title")).to_have_text("Found for “stAr”")
        found = page.locator("#picker-list .title").all_inner_texts()
        assert found == sorted(title for title in TITLES if title.startswith("Star"))[:20]
        page.get_by_role("button", name="More").click()
        expect(page.locator("#picker-list li")).to_have_count(29)
        before = listed(page)
        with page.expect_response(re.compile("/recommend")) as got:
            page.get_by_role("button", name="Take Star 7").first.click()
        said = page.locator("#said")
        expect(said).to_have_text(re.compile(r"^\d+ of 10 changed in [\d.]+ ms$"))
        expect(page.locator("#about")).to_contain_text("after you took Star 7")
        after = listed(page)
        places = sum(one != other for one, other in zip(before, after, strict=True))
        assert places > 0
        expect(said).to_contain_text(f"{places} of 10 changed")
        answer = got.value.json()
        assert answer["version"] == 1
        assert after == [item["title"] for item in answer["items"]]
        expect(page.locator("#source")).to_have_text("by the model")
        expect(page.locator("#model")).to_have_text(answer["model"])
        has_stored(page, 1)
        # What moved, as the two lists say.
        moves = page.locator("#list .move").all_inner_texts()
        for place, (title, move) in enumerate(zip(after, moves, strict=True)):
            if title not in before:
                assert move == "new"
            elif (by := before.index(title) - place) == 0:
                assert "same place" in move
            else:
                assert f"{'up' if by > 0 else 'down'} {abs(by)} place" in move
        (event,) = history(client, user)
        assert event["event_id"]
        assert event["item_id"] == ITEMS[TITLES.index("Star 7")]
        about = client.get(f"/users/{quote(user)}").json()
        expect(page.locator("#state")).to_contain_text(f"{about['state_bytes'] / 1000:.1f} kB")
        expect(page.locator("#timing code")).to_have_text(["Taking it", "The list"])
        expect(page.locator("#timing")).to_contain_text("log")
        page.reload()
        has_stored(page, 1)
        assert page.get_by_label("User", exact=True).input_value() == user
        expect(page.locator("#source")).to_have_text("by the model")


def test_the_slider_moves_now(
    browser: Browser, service: Service, client: httpx.Client, user: str
) -> None:
    for n, item in enumerate(ITEMS[:3]):
        body = {"user_id": user, "item_id": item, "timestamp": BASE_MS + n}
        assert client.post("/interactions", json=body).is_success
    with opened(browser, service, user) as page:
        unfold(page, "Ask differently")
        live = page.get_by_role("button", name="Now", exact=True)
        slider = page.get_by_role("slider", name="Asked at")
        expect(live).to_have_attribute("aria-pressed", "true")
        found = set()
        for position, said, gap_s in (
            ("0", "the moment of the last interaction", 0),
            ("500", "1 hour after the last interaction", 5618),
            ("1000", "1 year after the last interaction", 31_557_600),
        ):
            slider.fill(position)
            expect(page.locator("#about")).to_contain_text(f"asked for {said}")
            assert slider.get_attribute("aria-valuetext") == said
            at = BASE_MS + 2 + 1000 * gap_s
            answer = client.get("/recommend", params={"user_id": user, "at": at}).json()
            expect(page.locator("#list .title")).to_have_text(
                [item["title"] for item in answer["items"]]
            )
            given = [float(score.removeprefix("score")) for score in scores(page)]
            assert given == pytest.approx([i["score"] for i in answer["items"]], abs=0.006)
            found.add(tuple(given))
        assert len(found) == 3
        live.click()
        expect(page.locator("#about")).to_contain_text("asked for now")
        expect(live).to_have_attribute("aria-pressed", "true")


def test_reasons(browser: Browser, service: Service, client: httpx.Client, user: str) -> None:
    """What speaks for an item is said first; what speaks against it, when it is asked for."""
    for n, item in enumerate(ITEMS[:3]):
        body = {"user_id": user, "item_id": item, "timestamp": BASE_MS + n}
        assert client.post("/interactions", json=body).is_success
    with opened(browser, service, user) as page:
        unfold(page, "Ask differently")
        page.get_by_role("slider", name="Asked at").fill("500")
        expect(page.locator("#about")).to_contain_text("asked for 1 hour")
        query = {"user_id": user, "at": BASE_MS + 2 + 5_618_000, "explain": True, "reasons": 20}
        negatives = 0
        for place, item in enumerate(client.get("/recommend", params=query).json()["items"]):
            why = page.locator("#list .why").nth(place)
            said = {True: list[str](), False: list[str]()}
            for reason in item["because"]:
                title = TITLES[ITEMS.index(reason["item_id"])]
                said[reason["contribution"] > 0].append(title)
            first = " and ".join(said[True][:2])
            held = " and ".join(said[False][:2])
            expect(why.locator("> p").first).to_contain_text(
                f"Because you took {first}." if first else "No single interaction"
            )
            if held:
                negatives += 1
                expect(why.locator("details p")).to_be_hidden()
                why.locator("summary").click()
                expect(why.locator("details p")).to_have_text(
                    f"It would stand higher without {held}."
                )
        assert negatives
        page.get_by_label("Why?").uncheck()
        expect(page.locator("#list .why").first).to_be_hidden()


def test_similar_items(browser: Browser, service: Service, client: httpx.Client, user: str) -> None:
    with opened(browser, service, user) as page:
        first = page.locator("#picker-list .title").first.inner_text()
        page.get_by_role("button", name=f"Similar to {first}", exact=True).first.click()
        expect(page.locator("#picker-title")).to_have_text(f"Similar to {first}")
        item = quote(ITEMS[TITLES.index(first)], safe="")
        answer = client.get(f"/items/{item}/similar", params={"k": 20}).json()
        titles = [item["title"] for item in answer["items"]]
        expect(page.locator("#picker-list .title")).to_have_text(titles)
        page.get_by_role("button", name="Back").click()
        expect(page.locator("#picker-title")).to_have_text("Popular")


def test_users_are_switched_and_forgotten(
    browser: Browser, service: Service, client: httpx.Client, user: str
) -> None:
    other = f"ä/{user}#&."
    with opened(browser, service, user) as page:
        page.locator("#list .pick").first.click()
        has_stored(page, 1)
        unfold(page, "This user")
        page.get_by_label("User", exact=True).fill(other)
        page.get_by_role("button", name="Switch").click()
        expect(page.locator("#about")).to_contain_text("Nothing is known of you")
        has_stored(page, 0)
        for number in (1, 2):
            page.locator("#list .pick").nth(3).click()
            has_stored(page, number)
        page.evaluate(f"location.hash = 'user={quote(user)}'")
        has_stored(page, 1)
        page.get_by_role("button", name="Forget").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text(f"All interactions of {user}")
        dialog.get_by_role("button", name="Cancel").click()
        expect(dialog).to_be_hidden()
        assert len(history(client, user)) == 1
        page.get_by_role("button", name="Forget").click()
        dialog.get_by_role("button", name="Forget").click()
        expect(page.locator("#said")).to_contain_text("Forgotten")
        has_stored(page, 0)
        assert history(client, user) == []
        assert len(history(client, other)) == 2
        page.get_by_role("button", name="Be somebody new").click()
        expect(page.get_by_label("User", exact=True)).to_have_value(re.compile("^guest-"))


def test_without_a_mouse(browser: Browser, service: Service, user: str) -> None:
    def focused(page: Page) -> str:
        text: str = page.evaluate("document.activeElement.textContent")
        return " ".join(text.split())

    with opened(browser, service, user) as page:
        press = page.keyboard.press
        press("Tab")
        assert focused(page) == "Try it"
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) == "solid"
        press("ArrowRight")
        assert focused(page) == "Health"
        expect(page.locator("#view-health")).to_be_visible()
        expect(page.locator("#view-try")).to_be_hidden()
        press("ArrowLeft")
        expect(page.locator("#view-try")).to_be_visible()
        for _ in range(80):
            press("Tab")
            if page.evaluate("document.activeElement.id") == "search":
                break
        page.keyboard.type("Film 2")
        expect(page.locator("#picker-list .title").first).to_have_text("Film 2")
        press("Tab")
        assert "Take F" in focused(page)
        assert "Film 2" in focused(page)
        press("Enter")
        has_stored(page, 1)
        expect(page.locator("#history .title")).to_have_text(["Film 2"])
        page.locator("#list .pick").nth(4).focus()
        chosen = focused(page)
        press("Space")
        has_stored(page, 2)
        # It has left the list, and the focus is on what took its place.
        assert focused(page).startswith("Take ")
        assert focused(page) != chosen
        assert page.evaluate("document.activeElement.closest('#list') !== null")


@pytest.mark.slow
def test_on_a_phone(browser: Browser, service: Service, user: str) -> None:
    with opened(browser, service, user, viewport=PHONE, has_touch=True) as page:
        width = "document.documentElement.scrollWidth"
        assert page.evaluate(width) == 360
        page.locator("#list .pick").first.tap()
        has_stored(page, 1)
        assert page.evaluate(width) == 360
        expect(page.locator("#said")).to_be_in_viewport()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(browser: Browser, service: Service, user: str, scheme: Any) -> None:
    """axe has nothing to say, of contrast neither; each scheme has its own colours."""
    options = {"color_scheme": scheme, "reduced_motion": "reduce", "bypass_csp": True}
    with opened(browser, service, user, **options) as page:
        page.locator("#list .pick").first.click()
        has_stored(page, 1)
        for name in ("Where the time went", "Ask differently", "The request", "This user"):
            unfold(page, name)
        page.get_by_role("slider", name="Asked at").fill("700")
        expect(page.locator("#about")).to_contain_text("asked for")
        expect(page.locator("#options fieldset").first).to_be_visible()
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        light = sum(map(int, re.findall(r"\d+", back))) > 384
        assert light == (scheme == "light")
        assert page.evaluate("document.getAnimations().length") == 0
        faults = violations(page)
        page.get_by_role("button", name="Forget").click()
        faults += violations(page)
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        assert faults == [], "\n".join(faults)
        # It finds what is wrong.
        page.evaluate("document.querySelector('label[for=user]').remove()")
        assert any(fault.startswith("label") for fault in violations(page))


def test_a_key_is_asked_for(browser: Browser, service: Service, user: str) -> None:
    with opened(browser, service, user, key=None) as page:
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("This service wants a key")
        field = page.get_by_label("X-API-Key")
        field.fill("wrong")
        field.press("Enter")
        expect(dialog).to_contain_text("not one of its keys")
        field.fill(KEY)
        dialog.get_by_role("button", name="Use it").click()
        expect(page.locator("#list li")).to_have_count(10)
        expect(page.locator("#picker-list li")).to_have_count(20)
        assert KEY not in page.url
        page.reload()
        expect(page.locator("#list li")).to_have_count(10)
        page.evaluate("sessionStorage.clear()")
        page.reload()
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#said")).to_contain_text("answers only with a key")
        expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_titles_are_text(
    browser: Browser, service: Service, client: httpx.Client, user: str
) -> None:
    body = {"user_id": user, "item_id": ITEMS[-1]}
    assert client.post("/interactions", json=body).is_success
    with opened(browser, service, user) as page:
        expect(page.locator("#history .title")).to_have_text([SCRIPT])
        page.get_by_label("Search items by title or id").fill("<script>")
        expect(page.locator("#picker-list .title")).to_have_text([SCRIPT])
        expect(page.locator("#picker-list .categories")).to_have_text(["Odd & even · <b>Bold</b>"])
        page.locator("#picker-list .similar").click()
        expect(page.locator("#picker-title")).to_have_text(f"Similar to {SCRIPT}")
        assert page.evaluate("window.hacked") is None
        assert (
            page.locator("main script, main img, main b:not(.legend b, .facts-of b)").count() == 0
        )
        with pytest.raises(Error, match="TrustedHTML"):
            page.evaluate("document.getElementById('said').innerHTML = '<b>x</b>'")


@pytest.mark.slow
def test_what_the_store_did_not_answer_is_sent_again(
    browser: Browser, service: Service, client: httpx.Client, store: ValkeyServer, user: str
) -> None:
    with opened(browser, service, user) as page:
        sent: list[str] = []
        page.on(
            "request",
            lambda request: (
                sent.append(request.post_data_json["event_id"])
                if request.method == "POST"
                else None
            ),
        )
        store.send(signal.SIGSTOP)
        try:
            page.locator("#list .pick").first.click()
            expect(page.locator("#said")).to_contain_text("The service can't answer just now")
            expect(page.locator("#about")).to_contain_text("Your click is kept. Trying again in")
        finally:
            store.send(signal.SIGCONT)
        has_stored(page, 1)
        expect(page.locator("#said")).to_contain_text("of 10")
        assert len(sent) > 1
        assert len(set(sent)) == 1
        (event,) = history(client, user)
        assert event["event_id"] == sent[0]


def test_what_is_refused_is_said(browser: Browser, service: Service, user: str) -> None:
    with opened(browser, service, user) as page:
        unfold(page, "This user")
        page.get_by_label("User", exact=True).fill("é" * 200)  # 400 bytes
        page.get_by_role("button", name="Switch").click()
        expect(page.locator("#said")).to_contain_text("That was refused")
        expect(page.locator("#said")).to_contain_text("256 bytes")


def test_quantiles_of_an_exposition(browser: Browser, service: Service) -> None:
    """As Prometheus has them: linear within a bucket, the last bound beyond it."""
    text = "\n".join(
        [
            "# TYPE d histogram",
            'd_bucket{route="/a\\"b\\\\",le="0.1"} 10',
            'd_bucket{route="/a\\"b\\\\",le="0.2"} 20',
            'd_bucket{route="/a\\"b\\\\",le="0.5"} 60',
            'd_bucket{route="/a\\"b\\\\",le="+Inf"} 61',
            'd_bucket{route="/other",le="+Inf"} 1000',
        ]
    )
    with opened(browser, service, "nobody") as page:
        found = page.evaluate(
            """async (after) => {
                const { parse, buckets, quantile } = await import("/page/metrics.js");
                const fits = (labels) => labels.route === '/a"b\\\\';
                const grown = buckets({}, parse(after), "d", fits);
                const none = buckets(parse(after), parse(after), "d", fits);
                return [[0.1, 0.5, 0.9, 0.99].map((share) => quantile(share, grown)),
                        quantile(0.5, none)];
            }""",
            text,
        )
        assert found == [
            pytest.approx([0.061, 0.2 + 0.3 * 10.5 / 40, 0.2 + 0.3 * 34.9 / 40, 0.5]),
            None,
        ]
