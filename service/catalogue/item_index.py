"""An index of the items' vectors that finds those with the largest inner products.

Vectors are grouped around centroids (IVF); what is left of each after its centroid is kept at 4
bits a number (product quantization with one number a part). A search looks at the groups whose
centroids fit the query best. Needs the extra `index` (faiss).

On disk an index is a safetensors file: the bytes of it, what it was made from, and their SHA-256.
Nothing is pickled.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from model.plain_file import open_plain
from service.store.private_folder import private_folder

logger = logging.getLogger(__name__)

LEAST_ITEMS = 1000
"""Fewer are not worth an index, and too few to train one."""
MOST_GROUPS = 8192
GROUPS_PROBED, ITEMS_PROBED = 80, 20_000
"""A search looks at so many groups at least, and at about so many items."""
_BITS = 4
_ITERATIONS, _POINTS = 6, 48  # of k-means; vectors it looks at for each centroid
_LEAST_POINTS = 32
_KEPT = 4  # files of the newest models: a model may be rolled back


class ItemIndex:
    """Approximate search among V vectors.

    Attributes:
        nbytes: the size, in memory as on disk.
    """

    def __init__(self, stored: NDArray[np.uint8]) -> None:
        """Raises RuntimeError: the bytes are no index."""
        index: Any = faiss.deserialize_index(stored)
        self._index = index
        centroids = index.quantizer.reconstruct_n(0, index.nlist)
        self.nbytes = stored.nbytes
        self._centroids_DG = torch.from_numpy(centroids).T.contiguous()

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, query_BD: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """(B, count) places of the vectors that score best, about in that order; -1 where the
        groups looked at hold no more. The more are asked for, the more groups are."""
        groups = self._index.nlist
        fair = -(-ITEMS_PROBED * groups // len(self))
        probed = min(groups, max(GROUPS_PROBED, fair, count))
        # The library does the same with a heap, which takes twice as long.
        fit_BG = (torch.from_numpy(query_BD) @ self._centroids_DG).numpy()
        chosen_BP = np.argpartition(fit_BG, groups - probed, axis=1)[:, groups - probed :]
        _as_many_threads()
        self._index.nprobe = probed
        _, found = self._index.search_preassigned(
            query_BD, count, chosen_BP, np.take_along_axis(fit_BG, chosen_BP, 1)
        )
        places: NDArray[np.int64] = found
        return places


def build(vectors_VD: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The bytes of an index of at least LEAST_ITEMS vectors."""
    size, width = vectors_VD.shape
    logger.info("building the index of %d items", size)
    started = time.perf_counter()
    groups = min(MOST_GROUPS, size // _LEAST_POINTS, round(6 * size**0.5))
    _as_many_threads()
    index = faiss.IndexIVFPQFastScan(
        faiss.IndexFlatIP(width), width, groups, width, _BITS, faiss.METRIC_INNER_PRODUCT
    )
    index.by_residual = True
    index.cp.niter, index.cp.max_points_per_centroid = _ITERATIONS, _POINTS
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    sample = np.random.default_rng(0).choice(size, min(size, _POINTS * groups), replace=False)
    index.train(vectors_VD[np.sort(sample)])
    index.add(vectors_VD)
    stored: NDArray[np.uint8] = faiss.serialize_index(index)
    _log("built", size, started, stored.nbytes)
    return stored


def open_index(folder: Path, identity: str, vectors_VD: NDArray[np.float32]) -> ItemIndex:
    """The index of a model's items, from the folder, or built and kept there.

    Of several processes at once, one builds and the others wait for it. A file that is damaged
    or of something else is written anew; where none can be written, the index is this process's.
    """
    settings = [MOST_GROUPS, _LEAST_POINTS, _BITS, _ITERATIONS, _POINTS]
    made_from = json.dumps([identity, vectors_VD.shape, settings, faiss.__version__])
    stored = None
    try:
        path = private_folder(folder) / f"{identity}.safetensors"
        with _alone(path.with_name("build.lock")):
            if (found := _load(path, made_from)) is not None:
                return found
            stored = build(vectors_VD)
            _save(path, stored, made_from)
    except (OSError, SafetensorError) as error:
        logger.warning(
            "%s; the item index is built at every start: give TIM4REC_DATA_DIR a folder that "
            "can be written to",
            error,
        )
    return ItemIndex(build(vectors_VD) if stored is None else stored)


def _as_many_threads() -> None:
    """As torch has. More than there are cores free wait for each other, and take ten times as long;
    the number holds for the calling thread."""
    faiss.omp_set_num_threads(torch.get_num_threads())


def _load(path: Path, made_from: str) -> ItemIndex | None:
    try:
        open_plain(path).close()
        with safe_open(path, "np") as file:
            about, stored = file.metadata() or {}, file.get_tensor("index")
        if about.get("made_from") != made_from:
            return None
        if about.get("sha256") != hashlib.sha256(stored.data).hexdigest():
            raise ValueError("its hash is another")
        started = time.perf_counter()
        index = ItemIndex(stored)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        logger.warning("%s is damaged and is built anew: %s", path, error)
        return None
    _log("loaded", len(index), started, index.nbytes)
    return index


def _log(done: str, items: int, started: float, nbytes: int) -> None:
    seconds = time.perf_counter() - started
    logger.info("%s the index of %d items in %.1f s: %.1f MB", done, items, seconds, nbytes / 1e6)


def _save(path: Path, stored: NDArray[np.uint8], made_from: str) -> None:
    about = {"made_from": made_from, "sha256": hashlib.sha256(stored.data).hexdigest()}
    partial = path.with_suffix(".partial")
    save_file({"index": stored}, partial, about)
    partial.chmod(0o600)
    partial.replace(path)
    kept = sorted(path.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    for old in kept[:-_KEPT]:
        old.unlink()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
