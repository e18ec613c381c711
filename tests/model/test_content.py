"""What an item is, as features: of any text, in any order, the same in every process."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.content import (
    MOST_FEATURES,
    About,
    Content,
    feature_hashes,
)

TEXT = st.text(max_size=60)
VALUES = st.dictionaries(
    TEXT,
    st.lists(TEXT | st.booleans() | st.floats(allow_nan=False, allow_infinity=False), max_size=4),
    max_size=4,
)
ABOUTS = st.builds(About, st.none() | TEXT, st.lists(TEXT, max_size=5), VALUES)


def content_of(*abouts: About, width: int = 3, seed: int = 0) -> Content:
    """One that knows all features of these items."""
    hashes = np.unique([own for about in abouts for own in feature_hashes(about)]).astype(np.int64)
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(len(hashes), width)).astype(np.float32)
    return Content(hashes, vectors, draw.normal(size=width).astype(np.float32), 0.5)


@given(ABOUTS, st.randoms(use_true_random=False))
def test_the_order_of_what_is_said_does_not_matter(about: About, random: object) -> None:
    found = feature_hashes(about)
    assert len(found) <= MOST_FEATURES
    assert found == sorted(set(found))
    assert all(-(2**63) <= own < 2**63 for own in found)
    categories, values = list(about.categories), list(about.values.items())
    random.shuffle(categories)  # type: ignore[attr-defined]
    random.shuffle(values)  # type: ignore[attr-defined]
    turned = {name: own[::-1] for name, own in values}
    assert feature_hashes(About(about.title, categories, turned)) == found
    assert feature_hashes(About(about.title, [*categories, *categories], turned)) == found


def test_all_processes_agree() -> None:
    abouts = ["Ein Kleid, blau", "東京タワー", "ไทย", "\ud800", "ﬁne Ｗide É", "1 2"]
    code = (
        "import json, sys; from model.content import *;"
        "print(json.dumps([feature_hashes(About(t, [t], {t: [t, 3.5, True]}))"
        " for t in json.loads(sys.argv[1])]))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, json.dumps(abouts)], capture_output=True, check=True
    ).stdout
    here = [feature_hashes(About(text, [text], {text: [text, 3.5, True]})) for text in abouts]
    assert json.loads(said) == here
    assert len({tuple(own) for own in here}) == len(here)


def test_words_are_told_apart_as_people_do() -> None:
    def words(title: str) -> set[int]:
        return set(feature_hashes(About(title)))

    assert words("Red Shoe") == words("SHOE, red!") == words("ｒｅｄ　shoe")
    assert words("red shoe") & words("red hat") == words("red")
    assert not words("red") & set(feature_hashes(About(None, ["red"])))
    # Of scripts without spaces, any two characters that follow one another.
    assert words("東京タワー") & words("タワー")
    assert words("赤い靴") & words("靴") == set()
    assert words("iPhone 東京") >= words("iphone")


def test_values_of_attributes() -> None:
    def told(**values: object) -> set[int]:
        lists = {name: own if isinstance(own, list) else [own] for name, own in values.items()}
        return set(feature_hashes(About(values=lists)))  # type: ignore[arg-type]

    assert told(colour="red") == told(colour="RED")
    assert not told(colour="red") & told(brand="red")
    assert told(price=17.0) == told(price=30.0)  # one power of two
    assert not told(price=17.0) & told(price=33.0)
    assert not told(price=17.0) & told(price=-17.0)
    # A table has text where a service has numbers and booleans.
    assert told(price="17.00", new="true") == told(price=20, new=True)
    assert told(price="0") == told(price=0.0)
    assert not told(code="0017") & told(code=17.0)
    assert len(told(a="1e400", b="-", c="nan", d="1" * 400, e=2.0**62)) == 5
    assert told(tags=["a", "b"]) == told(tags="a") | told(tags="b")


def test_much_text_costs_little() -> None:
    words = " ".join(f"w{n}" for n in range(200_000))
    many = About(words, [f"c{n}" for n in range(40)], {f"a{n}": [words] for n in range(100)})
    found = feature_hashes(many)
    assert len(found) == MOST_FEATURES
    assert set(feature_hashes(About(None, many.categories))) <= set(found)


@given(st.lists(ABOUTS, min_size=1, max_size=4), ABOUTS)
def test_an_item_gets_what_its_features_add(abouts: list[About], new: About) -> None:
    known = [about for about in abouts if feature_hashes(about)]
    if not known:
        return
    content = content_of(*known)
    rows = dict(zip(content.hashes.tolist(), content.vectors, strict=True))
    own = [rows[found] for found in feature_hashes(new) if found in rows]
    expected = np.sum(own, axis=0) / len(own) ** 0.5 if own else np.zeros(3)
    np.testing.assert_allclose(content.part_of(new), expected, rtol=1e-5, atol=1e-6)
    found = content.vector(new)
    np.testing.assert_allclose(found, 0.5 * expected + content.shift, rtol=1e-5, atol=1e-6)
    again = Content.from_bytes(content.to_bytes(), 3)
    assert np.array_equal(again.vector(new), found)


def test_members_of_an_ensemble() -> None:
    abouts = [About("red shoe", ["Shoes"]), About("blue shoe", ["Shoes"])]
    members = [content_of(*abouts, seed=seed) for seed in range(3)]
    together = Content.side_by_side(members)
    for number, member in enumerate(members):
        assert together.of_member(number, 3).to_bytes() == member.to_bytes()
    parts = [member.vector(abouts[0]) for member in members]
    np.testing.assert_array_equal(together.vector(abouts[0]), np.concatenate(parts))


@pytest.mark.parametrize("title", ["", " \n\t", "!?", "\x00"])
def test_nothing_is_said(title: str) -> None:
    assert feature_hashes(About(title)) == []
