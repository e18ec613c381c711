"""Writes the made-up shop of the quick start: `python tests/data/make_shop.py tests/data/shop`.

Nobody's data. Customers walk along the items of a taste; the files have what shops' exports often
have: other names, semicolons, blanks, a byte order mark, an older encoding, orders of guests
without a customer, and a customer who is none.
"""

from __future__ import annotations

import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

NOUNS = {
    "Schuhe": ["Wanderschuh", "Sneaker", "Sandale", "Stiefel"],
    "Café": ["Espresso", "Filterkaffee", "Mühle", "Kännchen"],
    "Garten": ["Spaten", "Saatgut", "Gießkanne", "Handschuh"],
    "Bücher": ["Roman", "Krimi", "Kochbuch", "Atlas"],
    "Spiele": ["Würfel", "Puzzle", "Kartenspiel", "Brettspiel"],
    "Büro": ["Heft", "Füller", "Ordner", "Lampe"],
}
WORDS = ["rot", "blau", "grün", "klein", "groß"]
GUEST, BOT = "NULL", "K1999"


def items(rng: random.Random) -> list[str]:
    names = [
        (f"{noun} {word}", category)
        for category, nouns in NOUNS.items()
        for noun in nouns
        for word in WORDS
    ]
    rows = ["sku; name; category; price_eur; stock; ean"]
    for number, (name, category) in enumerate(names):
        price, stock = rng.randint(199, 9999) / 100, rng.randint(0, 40)
        ean = f"{400638133000 + 97 * number:014d}"
        rows.append(f"{number:05d}; {name}; {category}; {price:.2f}; {stock}; {ean}")
    return rows


def interactions(rng: random.Random) -> list[str]:
    found: list[tuple[datetime, str, int, str]] = []
    for customer in range(220):
        name = GUEST if customer % 55 == 54 else f"K{1000 + customer}"
        now = datetime(2026, 5, 1, tzinfo=UTC) + timedelta(minutes=rng.randrange(60 * 24 * 80))
        taste, place = rng.randrange(6), rng.randrange(20)
        for _ in range(rng.randint(3, 12)):
            if rng.random() < 0.15:
                taste = rng.randrange(6)
            place = (place + rng.choice([1, 1, 2, 5])) % 20
            now += timedelta(minutes=rng.choice([1, 3, 8, 60 * 26, 60 * 24 * 6]))
            found.append((now, name, 20 * taste + place, "view"))
            if rng.random() < 0.4:
                found.append((now + timedelta(minutes=2), name, 20 * taste + place, "cart"))
                if rng.random() < 0.6:
                    found.append((now + timedelta(minutes=5), name, 20 * taste + place, "purchase"))
    begin = datetime(2026, 6, 3, 4, tzinfo=UTC)
    found += [(begin + timedelta(seconds=n), BOT, n % 120, "view") for n in range(800)]
    rows = ["event_time; customer_id; sku; event_type"]
    for time, name, item, kind in sorted(found):
        rows.append(f"{time:%Y-%m-%d %H:%M:%S} UTC; {name}; {item:05d}; {kind}")
    return rows


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    for name, rows, encoding in (
        ("items.csv", items(rng), "cp1252"),
        ("interactions.csv", interactions(rng), "utf-8-sig"),
    ):
        text = "".join(f"{row}\r\n" for row in rows)
        (folder / name).write_bytes(text.encode(encoding))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
