"""The index of items: kept, checked, built once; what it finds is right, through to the service."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.artefact import Artefact
from model.items import Items
from service.catalogue import item_index, retrieval
from service.catalogue.approximate_search import ApproximateSearch
from service.catalogue.ask import Ask
from service.catalogue.item_index import open_index
from service.catalogue.retrieval import Retrieval, open_retrieval
from tests.service.processes import BASE_MS, ROOT, Service, make_artefact, offline_scores

torch.set_num_threads(1)

SIZE, WIDTH = 6000, 24
MODEL = "0123456789abcdef"


def vectors(size: int = SIZE, seed: int = 0) -> NDArray[np.float32]:
    """Clusters of vectors of different lengths."""
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((60, WIDTH))[draw.integers(60, size=size)]
    noise = draw.standard_normal((size, WIDTH))
    return ((centres + 0.4 * noise) * draw.uniform(0.5, 2, (size, 1))).astype(np.float32)


def best(scores: NDArray[np.float32], mask: NDArray[np.int32], k: int) -> list[int]:
    """Of scores of items 0 (the padding) to V."""
    left = np.setdiff1d(np.arange(1, len(scores)), mask)
    return [int(item) for item in left[np.argsort(-scores[left], kind="stable")][:k]]


class Both:
    """A catalogue with an index, and all scores of 40 queries."""

    def __init__(self, folder: Path) -> None:
        self.items = items = Items([str(n) for n in range(SIZE)], np.zeros(SIZE, np.int64))
        embedding = torch.from_numpy(np.pad(vectors(), ((1, 0), (0, 0))))
        self.embedding, self.index = embedding, open_index(folder, MODEL, vectors())
        self.indexed = Retrieval(embedding, items, index=self.index)
        self.queries = torch.from_numpy(vectors(40, seed=1))
        self.scores = (self.queries @ embedding.T).numpy()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp("index"))


@pytest.mark.parametrize(
    ("hidden", "k"), [(0, 10), (5, 10), (300, 10), (0, 100), (2000, 300), (0, 2000)]
)
def test_it_finds_nearly_all_of_the_best(both: Both, hidden: int, k: int) -> None:
    """Also where the very best may not be returned."""
    nothing = np.empty(0, np.int32)
    masks = [np.array(best(row, nothing, hidden), np.int32) for row in both.scores]
    found = both.indexed.answer(both.queries, [Ask(k, mask) for mask in masks])
    hits = 0
    for row, mask, ranking in zip(both.scores, masks, found, strict=True):
        items = ranking.items.tolist()
        assert len(set(items)) == len(items) == k
        assert not set(items) & set(mask.tolist())
        np.testing.assert_allclose(ranking.scores, row[items], atol=1e-4)
        assert (np.diff(ranking.scores) <= 0).all()
        hits += len(set(items) & set(best(row, mask, k)))
    assert hits >= 0.98 * k * len(masks)
    assert all(ranking.indexed for ranking in found) == (k + hidden < SIZE // 4 // 3)


def test_k_are_returned_while_so_many_are_left(both: Both) -> None:
    """Requests of very different needs in one wave, each answered for itself."""
    draw = np.random.default_rng(2)
    sizes = [0, 3, 200, 3000, SIZE - 3, SIZE, SIZE - 50, 0]
    masks = [(draw.permutation(SIZE)[:size] + 1).astype(np.int32) for size in sizes]
    masks[1] = np.repeat(masks[1], 5)
    ks = [1, 10, 400, 25, 10, 10, 50, SIZE + 7]
    found = both.indexed.answer(both.queries[: len(ks)], list(map(Ask, ks, masks)))
    for place, (mask, k, ranking) in enumerate(zip(masks, ks, found, strict=True)):
        items = ranking.items.tolist()
        assert len(set(items)) == len(items) == min(k, SIZE - len(set(mask.tolist())))
        assert not set(items) & set(mask.tolist())
        if not ranking.indexed:
            assert items == best(both.scores[place], mask, k)
    assert [ranking.indexed for ranking in found][:2] == [True, True]


def test_similar_items_by_the_index(both: Both) -> None:
    """Nearly all of the nearest by cosine, though the lengths differ by a factor of four."""
    unit = vectors() / np.linalg.norm(vectors(), axis=1, keepdims=True)
    hits = 0
    for row in range(1, 41):
        masked = np.array([row + 1, row + 2], np.int32)
        found = both.indexed.similar(row, "any", Ask(10, masked))
        cosines = np.concatenate([[-2], unit @ unit[row - 1]])
        expected = best(cosines, np.append(masked, row), 10)
        np.testing.assert_allclose(found.scores, cosines[found.items], atol=1e-5)
        assert len(found.items) == 10
        assert not {row, row + 1, row + 2} & set(found.items.tolist())
        hits += len(set(found.items.tolist()) & set(expected))
    assert hits >= 0.98 * 400
    everything = both.indexed.similar(1, "any", Ask(SIZE))
    assert len(everything.items) == SIZE - 1


@pytest.mark.parametrize("bias", [-300.0, 300.0])
def test_what_the_user_has_had_is_weighed(both: Both, bias: float) -> None:
    """Also items far from the query, which no index would find; none twice, masked ones not."""
    indexed = Retrieval(both.embedding, both.items, bias, both.index)
    nothing = np.empty(0, np.int32)
    had = [
        np.array([*best(row, nothing, 3), SIZE, SIZE - 1, SIZE], np.int32) for row in both.scores
    ]
    masks = [own[:1] for own in had]
    masks[1], had[2] = nothing, nothing
    found = indexed.answer(both.queries, list(map(Ask, [20] * len(masks), masks, had)))
    hits = 0
    for row, mask, own, ranking in zip(both.scores, masks, had, found, strict=True):
        weighed = row.copy()
        weighed[np.unique(own)] += bias
        items = ranking.items.tolist()
        assert len(set(items)) == len(items) == 20
        np.testing.assert_allclose(ranking.scores, weighed[items], atol=1e-3)
        hits += len(set(items) & set(best(weighed, mask, 20)))
    assert hits >= 0.98 * 20 * len(masks)
    shown = set(found[0].items.tolist())
    assert int(had[0][0]) not in shown
    assert ({SIZE, SIZE - 1} <= shown) == (bias > 0)


def builds(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.getMessage().startswith("building") for record in caplog.records)


def test_a_kept_index_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = open_index(tmp_path, MODEL, vectors())
    again = open_index(tmp_path, MODEL, vectors())
    assert builds(caplog) == 1
    query = vectors(5, seed=1)
    assert (again.search(query, 50) == first.search(query, 50)).all()


def test_an_index_of_another_model_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    open_index(tmp_path, "other", vectors(seed=3))
    open_index(tmp_path, MODEL, vectors())
    assert builds(caplog) == 2
    shutil.copy(tmp_path / "other.safetensors", tmp_path / f"{MODEL}.safetensors")
    index = open_index(tmp_path, MODEL, vectors())
    assert builds(caplog) == 3
    own = vectors()[:50]
    assert (index.search(own / np.linalg.norm(own, axis=1)[:, None], 600) == -1).mean() < 0.5
    monkeypatch.setattr(item_index, "_ITERATIONS", 3)
    open_index(tmp_path, MODEL, vectors())
    assert builds(caplog) == 4


def test_a_damaged_index_is_built_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / f"{MODEL}.safetensors"
    expected = open_index(tmp_path, MODEL, vectors()).search(vectors(5, seed=1), 50)
    good = path.read_bytes()
    middle = len(good) // 2
    flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
    for damaged in (flipped, good[:middle], b"", b"not an index" * 1000):
        path.write_bytes(damaged)
        caplog.clear()
        found = open_index(tmp_path, MODEL, vectors()).search(vectors(5, seed=1), 50)
        assert (found == expected).all()
        assert f"{path} is damaged and is built anew" in caplog.text
        open_index(tmp_path, MODEL, vectors())
        assert builds(caplog) == 1


def test_where_nothing_can_be_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert len(open_index(tmp_path / "file" / "index", MODEL, vectors())) == SIZE
    assert "TIM4REC_DATA_DIR" in caplog.text


def test_the_files_of_old_models_go(tmp_path: Path) -> None:
    for number in range(7):
        open_index(tmp_path, f"model{number}", vectors(1000))
        time.sleep(0.01)
    kept = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert kept == [f"model{number}.safetensors" for number in (3, 4, 5, 6)]


BUILDER = """
import logging, sys, time
from pathlib import Path
from service.catalogue.item_index import open_index
from tests.service.test_item_index import MODEL, vectors
logging.basicConfig(level=logging.INFO)
data, folder = vectors(40_000), Path(sys.argv[1])
(folder / f"ready{sys.argv[2]}").touch()
while len(list(folder.glob("ready*"))) < 2:
    time.sleep(0.001)
open_index(folder / "index", MODEL, data)
"""


@pytest.mark.slow
def test_of_two_processes_at_once_one_builds(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(tmp_path), str(number)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sorted(text.count("building the index") for text in said) == [0, 1]
    assert sorted(text.count("loaded the index") for text in said) == [0, 1]


# -- the service -------------------------------------------------------------------------

IDS = [f"item{n}" for n in range(1500)]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("indexed") / "model", IDS)


def is_indexed(retrieval: Retrieval) -> bool:
    return isinstance(retrieval._search, ApproximateSearch)


def test_large_catalogues_have_an_index(
    artefact: Artefact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not is_indexed(open_retrieval(artefact, "auto", tmp_path))
    monkeypatch.setattr(retrieval, "INDEX_FROM", len(IDS))
    assert is_indexed(open_retrieval(artefact, "auto", tmp_path))
    assert not is_indexed(open_retrieval(artefact, "exact", tmp_path))
    assert not caplog.records
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert not is_indexed(open_retrieval(artefact, "auto", tmp_path))
    assert "pip install 'tim4rec[index]'" in caplog.text


def test_a_small_catalogue_has_none(tmp_path: Path) -> None:
    small = make_artefact(tmp_path / "model", IDS[: item_index.LEAST_ITEMS - 1])
    assert not is_indexed(open_retrieval(small, "index", tmp_path))


@pytest.fixture
def service(artefact: Artefact, store_url: str, folder: Path) -> Iterator[Service]:
    running = Service(
        artefact.folder, folder / "output", "--workers", "2",
        retrieval="index", redis_url=store_url, data_dir=folder / "state", exactness_every_s=0,
    )  # fmt: skip
    running.start()
    yield running
    running.kill()


def test_the_service_answers_by_an_index(service: Service, artefact: Artefact) -> None:
    draw = np.random.default_rng(0)
    k, users, hits = 20, 30, 0
    with service.client() as client:
        for user in range(users):
            events = [(str(draw.choice(IDS)), BASE_MS + n * 60_000) for n in range(5)]
            sent = [
                {"user_id": f"u{user}", "item_id": item, "timestamp": ms} for item, ms in events
            ]
            client.post("/interactions/batch", json={"interactions": sent}).raise_for_status()
            at = BASE_MS + 3_600_000
            banned = str(draw.choice(IDS))
            query = {"user_id": f"u{user}", "k": k, "at": at, "exclude": banned}
            answer = client.get("/recommend", params=query).raise_for_status().json()
            scores = offline_scores(artefact, events, at)
            for item in {banned, *(item for item, _ in events)}:
                del scores[item]
            found = [item["item_id"] for item in answer["items"]]
            given = [item["score"] for item in answer["items"]]
            np.testing.assert_allclose(given, [scores[item] for item in found], atol=1e-4)
            hits += found == sorted(scores, key=lambda item: -scores[item])[:k]
        assert hits >= 0.9 * users
        metrics = client.get("/metrics").text
    assert f'tim4rec_retrievals_total{{by="index"}} {float(users)}' in metrics
    logged = [record["message"] for record in service.logged(logger="service.catalogue.item_index")]
    assert sum(message.startswith("built the index of 1500") for message in logged) == 1
    assert sum(message.startswith("loaded the index of 1500") for message in logged) == 1
    assert httpx.get(f"{service.url}/readyz").is_success
