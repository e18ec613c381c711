"""Callers with a key whose requests are well-formed, and cost more than they look, or say what they
should not be able to."""

from __future__ import annotations

import base64
import json
import random
import time
from urllib.parse import quote
from zlib import crc32

from benchmarks.hostile.attack import Attack
from benchmarks.hostile.inputs import answered, refused
from benchmarks.hostile.target import Found, Target

COUNTED_AFTER_S = 7.0
"""Longer than `popular_refresh_s`."""


def _invented_names(target: Target, found: Found) -> None:
    """Filters that name attributes no item has; then items are written."""
    draw = random.Random(0)
    for _ in range(250):
        names = (f"{draw.choice('abcdefgh')}{draw.randrange(16**5):x}" for _ in range(120))
        expression = quote(" or ".join(f"has({name})" for name in names))
        answer, seconds = target.ask("GET", f"/recommend?user_id=user-0&k=1&filter={expression}")
        answered(found, answer, seconds, "a filter")
    items = [{"item_id": f"i{n}", "attributes": {"price": n}} for n in range(20)]
    answer, seconds = target.post("/items/batch", {"items": items})
    answered(found, answer, seconds, "20 items")
    found.expect(answer is not None and answer.status == 200, "20 items were not written")
    found.expect(seconds < 1, f"20 items took {seconds:.1f} s to write")


def _strings(target: Target, found: Found) -> None:
    """As many comparisons of text as a filter holds, over all items."""
    for field, turn in (("id", 1), ("title", 2), ("id", 3)):
        expression = "or ".join(f'{field}<"z{turn}{n:x}"' for n in range(2000 // 14))
        body = {"user_id": "user-0", "filter": expression[:2000]}
        answered(found, *target.post("/recommend", body), f"comparisons of {field}")
        body |= {"promote": "not (" + expression[:1900].rpartition("or ")[0] + ")"}
        answered(found, *target.post("/recommend", body), f"comparisons of {field}, promoted")
    many = ",".join(f'"{n:x}"' for n in range(300))
    for expression in (f"id in ({many})", f"title not in ({many})", "not " * 400 + 'id<"a"',
                       "(" * 900 + 'id<"a"' + ")" * 900):  # fmt: skip
        answered(found, *target.post("/recommend", {"user_id": "u", "filter": expression}),
                 expression[:20])  # fmt: skip


def sealed(places: int, seed: int = 0) -> str:
    """A cursor of so many items that nobody was shown, whose check sum is right."""
    body = random.Random(seed).randbytes(4 * places)
    whole = crc32(body).to_bytes(4, "little") + body
    return base64.urlsafe_b64encode(whole).decode().rstrip("=")


def _cursors(target: Target, found: Found) -> None:
    for places in (1500, 10_000, 1_000_000, 4_000_000):
        for path, body in (
            ("/recommend", {"user_id": "user-0"}), ("/recommend/session", {"events": []}),
        ):  # fmt: skip
            answer, seconds = target.post(path, body | {"after": sealed(places)})
            refused(found, answer, seconds, f"{path}: a cursor of {places:,} places", "after")
    for inner in (b"[" * 30_000, b'{"a":' * 9000, b"[0," + b"9" * 40_000 + b',"a"]',
                  b'[0,"' + b"a" * 40_000 + b'","b"]', b"\xff" * 100, b"[0,NaN,1]",
                  b'[0,"\\ud800","a"]', b"[[],[],[]]"):  # fmt: skip
        after = base64.urlsafe_b64encode(inner).decode().rstrip("=")
        for path in ("/items?after=", "/items?q=t&after=", "/recommend?user_id=u&after="):
            answered(found, *target.ask("GET", path + after), f"{path}{inner[:12]!r}")


def _weight(target: Target, found: Found) -> None:
    """One interaction of weight 1e9 against 300 users who had the same item."""
    liked, pushed = "i5", "i7"
    honest = [{"user_id": f"honest-{n}", "item_id": liked} for n in range(300)]
    found.took(*target.post("/interactions/batch", {"interactions": honest}))
    heavy = {"user_id": "heavy", "item_id": pushed, "weight": 1e9}
    answered(found, *target.post("/interactions", heavy), "weight 1e9")
    batch = [heavy | {"user_id": f"heavy-{n}"} for n in range(3)]
    answered(found, *target.post("/interactions/batch", {"interactions": batch}), "weights")
    time.sleep(COUNTED_AFTER_S)
    for window in ("recent", "all"):
        answer, _ = target.ask("GET", f"/popular?window={window}&k=1")
        best = json.loads(answer.body)["items"][0]["item_id"] if answer is not None else None
        found.expect(best != pushed, f"{pushed} owns /popular?window={window}")


def _hosts(target: Target, found: Found) -> None:
    """Without keys, a page elsewhere could have a browser ask: only under our own names."""
    own = f"127.0.0.1:{target.port}"
    for host in ("evil.example", f"evil.example:{target.port}", "127.0.0.1.evil.example",
                 f"{own}.evil.example", "", "evil.example@127.0.0.1"):  # fmt: skip
        for method, path in (("GET", "/recommend?user_id=user-0"), ("DELETE", "/users/user-0"),
                             ("GET", "/items"), ("GET", "/openapi.json")):  # fmt: skip
            request = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
            answer, seconds = target.exchange(request, method)
            found.took(answer, seconds)
            status = None if answer is None else answer.status
            allowed = (421,) if host else (400, 421)
            found.expect(status in allowed, f"{method} {path}, Host {host!r}: {status}")
    for host in (own, f"localhost:{target.port}", "127.0.0.1"):
        request = f"GET /recommend?user_id=user-0 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        answer, _ = target.exchange(request)
        status = None if answer is None else answer.status
        found.expect(status == 200, f"Host {host!r}, which is ours: {status}")


def _largest(target: Target, found: Found) -> None:
    """What the settings allow at most."""
    long = [{"user_id": "long", "item_id": f"i{n}"} for n in range(1000)]
    found.took(*target.post("/interactions/batch", {"interactions": long}))
    for query in ("k=1000&diversity=1", "k=1000&diversity=0.5&paged=true", "k=1000&exclude_seen=0",
                  "k=20&explain=true&reasons=1000000000",
                  "k=20&explain=true&reasons=50&diversity=1"):  # fmt: skip
        answer, seconds = target.ask("GET", f"/recommend?user_id=long&{query}")
        answered(found, answer, seconds, query)
    candidates = {"user_id": "long", "item_ids": [f"i{n}" for n in range(5000)]}
    answered(found, *target.post("/rank", candidates), "5,000 candidates")
    candidates["item_ids"] = [f"no such {n}" for n in range(5000)]
    answered(found, *target.post("/rank", candidates), "5,000 unknown candidates")
    for path in ("/items?limit=1000&q=", "/items?limit=1000&q=o",
                 "/items?q=zzzzz&category=c", "/items?category=of+no+item",
                 "/popular?k=1000", "/items/i0/similar?k=1000",
                 "/users/long/history?limit=10000"):  # fmt: skip
        answered(found, *target.ask("GET", path), path)
    session = {"events": [{"item_id": f"i{n}"} for n in range(200)], "k": 1000, "diversity": 1}
    answered(found, *target.post("/recommend/session", session), "a session")


ATTACKS: list[Attack] = [
    Attack("250 filters of 120 invented names", "no memory kept, writes as before",
           _invented_names),
    Attack("filters of as many texts as they hold", "others answered meanwhile", _strings),
    Attack("cursors made up", "422 at once", _cursors, growth_mb=96),
    Attack("weights of 1e9", "the item does not own /popular", _weight),
    Attack("the largest that is allowed", "others answered meanwhile", _largest),
    Attack("no keys: another's Host", "421", _hosts, on="open"),
]  # fmt: skip
