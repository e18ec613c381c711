"""Ways to find the best items of large catalogues: recall, time, size.

    python -m benchmarks.catalogue artefacts/amazon-beauty amazon-beauty/interactions.csv.gz \
        --items 10000 --items 100000 --items 1000000 --json runs/catalogue.json

The catalogue `grown` has the model's own item vectors, or a sample of them. What is missing is
drawn between a vector and one of its 10 nearest (by cosine), at a uniform place on the line, plus
Gaussian noise of 0.3 of their distance; its length is interpolated likewise (geometrically), so
lengths and clusters stay the model's. Queries are the model's own, after whole histories of the
log, asked for a week later. `gaussian` is the hard case: vectors and queries of independent normal
numbers, without any structure to use.

Every way serves as the service's does: 200 items may not be returned, which are drawn from each
query's best 1 000, and what is returned has exact scores. Recall is the share of the exact best 10
that are returned. usearch is measured if it is installed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import faiss
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.table import Table

from cli.console import CommandError, err, errors_without_traceback, out
from model.artefact import Artefact, load_artefact
from model.items import Items
from service.catalogue import item_index
from service.catalogue.ask import Ask
from service.catalogue.retrieval import Retrieval
from training import dataset
from training.batches import gather_padded
from training.dataset import Histories, build_dataset
from training.interactions import read_log

Float32s = NDArray[np.float32]

WEEK_MS = 7 * 86_400_000
NEIGHBOURS = 10
NOISE = 0.3
WAVE = 64
MASKED, MASKED_FROM = 200, 1000
LINKS, BUILD_LINKS = 32, 64
"""Of the graphs: neighbours of a node (twice that on the ground), candidates while building."""
LEAST_WAVES, MEASURE_S = 15, 6.0


Vectors = Literal["grown", "gaussian"]


class Source(Protocol):
    """What proposes candidates: as `ItemIndex.search`, (B, count) places."""

    nbytes: int

    def search(self, query_BD: Float32s, count: int) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Row:
    """One way to search one catalogue: bytes are what it needs beside the vectors, times are
    milliseconds of one query, and of 64 at once. `exact`: share answered without the index."""

    vectors: str
    items: int
    way: str
    recall: float
    exact: float
    build_s: float
    bytes: int
    one_p50: float
    one_p99: float
    wave_p50: float
    wave_p99: float


def grow(own_VD: Float32s, size: int) -> Float32s:
    """A catalogue of `size` vectors like the given ones, as the module describes it."""
    draw = np.random.default_rng(0)
    if size <= len(own_VD):
        sample: Float32s = own_VD[draw.choice(len(own_VD), size, replace=False)]
        return sample
    length = np.linalg.norm(own_VD, axis=1)
    cosine = (own_VD / length[:, None]) @ (own_VD / length[:, None]).T
    np.fill_diagonal(cosine, -np.inf)
    near = np.argpartition(-cosine, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    more = size - len(own_VD)
    one = draw.integers(len(own_VD), size=more)
    other = near[one, draw.integers(NEIGHBOURS, size=more)]
    place = draw.random((more, 1), dtype=np.float32)
    way = own_VD[other] - own_VD[one]
    noise = draw.standard_normal(way.shape, dtype=np.float32) * NOISE / way.shape[1] ** 0.5
    new = own_VD[one] + place * way + noise * np.linalg.norm(way, axis=1, keepdims=True)
    wanted = length[one, None] ** (1 - place) * length[other, None] ** place
    new *= wanted / np.linalg.norm(new, axis=1, keepdims=True)
    grown: Float32s = np.concatenate([own_VD, new])
    return grown


@torch.inference_mode()
def queries_of(artefact: Artefact, histories: Histories, count: int) -> Float32s:
    """(count, D): queries of users drawn at random."""
    model = artefact.model
    lengths = np.diff(histories.offsets)
    users = np.random.default_rng(0).permutation(np.flatnonzero(lengths))[:count]
    found = []
    for part in np.array_split(users, max(1, len(users) // 100)):
        items, times = gather_padded(histories, histories.offsets[part], lengths[part])
        state = model.prefill(
            torch.from_numpy(items),
            torch.from_numpy(times),
            torch.from_numpy(lengths[part]),
            model.new_state(len(part)),
        )
        asked = torch.from_numpy(times.max(1) + WEEK_MS)
        found.append(model.query(state, asked))
    return torch.cat(found).numpy()


def _histories(log: Path, artefact: Artefact) -> Histories:
    everybody = dataset.Protocol(1, 1)
    return build_dataset(read_log(log), everybody, artefact.items.ids).histories


class FaissSource:
    """An index of faiss; graphs of it search by distance, among vectors made equally long by
    another dimension, which gives the order of inner products."""

    def __init__(self, vectors_VD: Float32s, make: Callable[[int], Any], lengthen: bool) -> None:
        self._lengthen = lengthen
        data = _equally_long(vectors_VD) if lengthen else vectors_VD
        faiss.omp_set_num_threads(1)
        self._index = make(data.shape[1])
        if not self._index.is_trained:
            self._index.train(data[:: max(1, len(data) // 200_000)])
        self._index.add(data)
        self.nbytes = faiss.serialize_index(self._index).nbytes

    def search(self, query_BD: Float32s, count: int) -> NDArray[np.int64]:
        if self._lengthen:
            query_BD = np.pad(query_BD, ((0, 0), (0, 1)))
        if hasattr(self._index, "hnsw"):
            self._index.hnsw.efSearch = max(256, count)
        faiss.omp_set_num_threads(1)
        places: NDArray[np.int64] = self._index.search(query_BD, count)[1]
        return places


class UsearchSource:
    """An index of usearch, by distance as FaissSource."""

    def __init__(self, vectors_VD: Float32s, kind: str) -> None:
        from usearch.index import Index  # type: ignore[import-not-found, unused-ignore]

        data = _equally_long(vectors_VD)
        self._index = Index(
            ndim=data.shape[1],
            metric="l2sq",
            dtype=kind,
            connectivity=LINKS,
            expansion_add=BUILD_LINKS,
            expansion_search=256,
        )
        self._index.add(np.arange(len(data)), data, threads=1)
        self.nbytes = int(self._index.serialized_length)

    def search(self, query_BD: Float32s, count: int) -> NDArray[np.int64]:
        found = self._index.search(np.pad(query_BD, ((0, 0), (0, 1))), count, threads=1)
        return np.asarray(found.keys).astype(np.int64).reshape(len(query_BD), count)


def _equally_long(vectors_VD: Float32s) -> Float32s:
    squares = (vectors_VD**2).sum(1)
    longer: Float32s = np.c_[vectors_VD, np.sqrt(squares.max() - squares)].astype(np.float32)
    return longer


def _ivf(width: int, size: int) -> Any:
    groups = min(item_index.MOST_GROUPS, size // 32, round(6 * size**0.5))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, groups, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.max_points_per_centroid = 6, 48
    index.cp.min_points_per_centroid = 1
    index.nprobe = max(item_index.GROUPS_PROBED, -(-item_index.ITEMS_PROBED * groups // size))
    return index


def _graph(width: int, metric: int = faiss.METRIC_L2) -> Any:
    index = faiss.IndexHNSWFlat(width, LINKS, metric)
    index.hnsw.efConstruction = BUILD_LINKS
    return index


WAYS: dict[str, Callable[[Float32s], Source] | None] = {
    "exact": None,
    "index": lambda v: item_index.ItemIndex(item_index.build(v)),
    "faiss-flat": lambda v: FaissSource(v, faiss.IndexFlatIP, False),
    "faiss-ivf": lambda v: FaissSource(v, lambda width: _ivf(width, len(v)), False),
    "faiss-hnsw": lambda v: FaissSource(v, _graph, True),
    "faiss-hnsw-product": lambda v: FaissSource(
        v, lambda width: _graph(width, faiss.METRIC_INNER_PRODUCT), False
    ),
    "usearch": lambda v: UsearchSource(v, "f32"),
    "usearch-i8": lambda v: UsearchSource(v, "i8"),
}
"""`index` is the service's."""


@dataclass(frozen=True)
class Case:
    """A catalogue with queries, items that may not be returned, and the 10 that should be."""

    vectors: str
    embedding: torch.Tensor
    queries: torch.Tensor
    asks: list[Ask]
    best: list[set[int]]


def make_case(name: str, vectors_VD: Float32s, queries_QD: Float32s) -> Case:
    embedding = torch.from_numpy(np.concatenate([np.zeros_like(vectors_VD[:1]), vectors_VD]))
    queries = torch.from_numpy(queries_QD)
    draw = np.random.default_rng(1)
    asks, best = [], []
    for start in range(0, len(queries), WAVE):
        near = (queries[start : start + WAVE] @ embedding[1:].T).topk(
            MASKED_FROM + 10, dim=1
        ).indices.numpy() + 1
        for row in near:
            barred = draw.choice(row[:MASKED_FROM], MASKED, replace=False)
            asks.append(Ask(10, barred.astype(np.int32)))
            best.append(set(row[~np.isin(row, barred)][:10].tolist()))
    return Case(name, embedding, queries, asks, best)


def measure(case: Case, way: str) -> Row:
    """Builds one way's index, then searches, all in this thread."""
    size = len(case.embedding) - 1
    items = Items([str(n) for n in range(size)], np.zeros(size, np.int64))
    make = WAYS[way]
    started = time.perf_counter()
    source = None if make is None else make(case.embedding.numpy()[1:])
    build_s, nbytes = (0.0, 0) if source is None else (time.perf_counter() - started, source.nbytes)
    retrieval = Retrieval(case.embedding, items, index=source)  # type: ignore[arg-type]
    found = []
    waves, first = [], True
    for seconds, rankings in _timed(case, retrieval, WAVE):
        waves.append(seconds)
        if first:
            found += rankings
        first = first and len(found) < len(case.queries)
    ones = [seconds for seconds, _ in _timed(case, retrieval, 1)]
    hits = [
        len(best & set(ranking.items.tolist()))
        for best, ranking in zip(case.best, found, strict=False)
    ]
    return Row(
        case.vectors,
        size,
        way,
        float(np.sum(hits)) / (10 * len(hits)),
        sum(not ranking.indexed for ranking in found) / len(found),
        build_s,
        nbytes,
        *(float(1e3 * np.percentile(ones, q)) for q in (50, 99)),
        *(float(1e3 * np.percentile(waves, q)) for q in (50, 99)),
    )


def _timed(case: Case, retrieval: Retrieval, batch: int) -> Iterator[tuple[float, list[Any]]]:
    """Every query once and on from the start, until MEASURE_S are over; the seconds of each."""
    until = time.perf_counter() + MEASURE_S
    done = 0
    while time.perf_counter() < until or done < LEAST_WAVES:
        for start in range(0, len(case.queries) - batch + 1, batch):
            part = slice(start, start + batch)
            began = time.perf_counter()
            rankings = retrieval.answer(case.queries[part], case.asks[part])
            yield time.perf_counter() - began, rankings
            done += 1
            if time.perf_counter() > until and done >= LEAST_WAVES:
                return


def main(
    artefact: Annotated[Path, typer.Argument(help="Folder of a model.")],
    log: Annotated[Path, typer.Argument(help="Log of interactions with its items.")],
    items: Annotated[list[int] | None, typer.Option(min=2000, help="Sizes.")] = None,
    ways: Annotated[list[str] | None, typer.Option("--way", help=f"Of {', '.join(WAYS)}.")] = None,
    vectors: Annotated[Vectors, typer.Option(help="Which catalogue.")] = "grown",
    queries: Annotated[int, typer.Option(min=64, help="How many queries.")] = 960,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Add the figures to this file.")
    ] = None,
) -> None:
    """Compare ways to search catalogues of several sizes."""
    torch.set_num_threads(1)
    columns = "items", "way", "recall", "build, s", "MB", "one", "p99", "wave", "p99"
    table = Table(*columns, title=vectors, box=None, padding=(0, 2, 0, 0))
    for column in table.columns:
        column.no_wrap = True
    chosen = ways or [way for way in WAYS if "usearch" not in way or find_spec("usearch")]
    with errors_without_traceback():
        unknown = [way for way in chosen if way not in WAYS]
        if unknown:
            raise CommandError(f"--way {unknown[0]}: give one of {', '.join(WAYS)}")
        loaded = load_artefact(artefact)
        own = loaded.model.item_embedding.weight.detach().numpy()[1:]
        asked = queries_of(loaded, _histories(log, loaded), queries)
    rows = []
    for size in items or [10_000, 100_000, 1_000_000]:
        if vectors == "grown":
            case = make_case(vectors, grow(own, size), asked)
        else:
            draw = np.random.default_rng(0)
            shapes = (size, own.shape[1]), asked.shape
            case = make_case(vectors, *(draw.standard_normal(s, np.float32) for s in shapes))
        for way in chosen:
            err.print(f"{size:,} {vectors} {way} ...", highlight=False)
            with torch.inference_mode():
                row = measure(case, way)
            rows.append(row)
            _write(json_file, row)
    for row in rows:
        table.add_row(
            f"{row.items:,}",
            row.way,
            f"{row.recall:.4f}",
            f"{row.build_s:.1f}",
            f"{row.bytes / 1e6:.1f}",
            *(f"{ms:.2f}" for ms in (row.one_p50, row.one_p99, row.wave_p50, row.wave_p99)),
        )
    out.print(table)


def _write(path: Path | None, row: Row) -> None:
    """Adds a row to what the file holds; one of the same case gives way."""
    if path is None:
        return
    held = json.loads(path.read_text())["rows"] if path.exists() else []
    same = ("vectors", "items", "way")
    new = asdict(row)
    held = [old for old in held if any(old[name] != new[name] for name in same)]
    machine = {"cores": os.cpu_count()}
    path.write_text(json.dumps({"machine": machine, "rows": [*held, new]}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
