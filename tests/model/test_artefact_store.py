"""Artefacts in a folder and in an object store: whole or not there, what is right or refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelConfig, TiM4Rec, folder_store
from model.artefact import (
    CARD,
    CONFIG,
    FILES,
    ITEMS,
    METRICS,
    MIXTURE,
    WEIGHTS,
    ArtefactError,
    load_artefact,
    save_artefact,
)
from model.artefact_cache import fill, prune
from model.artefact_store import (
    ArtefactStore,
    ArtefactStoreError,
    ModelNameError,
    local_artefact,
    open_artefact_store,
)
from model.folder_store import FolderStore
from model.items import Items, items_bytes
from model.object_store import ObjectStore
from tests.depth import examples
from tests.model.mixtures import some_mixture
from tests.s3_server import BUCKET, SECRET, S3Server

ROOT = Path(__file__).parents[2]
NOT_NAMES = ("", ".", "..", "a/b", "a\\b", "../elsewhere/real", "/etc", "\0")
SHAPE = ModelConfig(n_items=5, d_model=8, n_layers=1, head_dim=4, d_state=3)


def made(folder: Path, seed: int = 0, mixture: bool = False) -> Path:
    items = Items([f"{seed}-{n}" for n in range(5)], np.arange(5))
    save_artefact(
        folder, TiM4Rec(SHAPE), items, {"seed": seed}, "a card", some_mixture() if mixture else None
    )
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("trained") / "one", mixture=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("trained") / "two", 1)


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.kill()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty store."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.make_bucket()
    return f"s3://{BUCKET}/the/models"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtefactStore:
    if request.param == "s3":
        return open_artefact_store(request.getfixturevalue("s3"))
    return open_artefact_store(str(tmp_path / "models"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


def test_what_is_published_is_fetched(
    store: ArtefactStore, one: Path, two: Path, cache: Path
) -> None:
    assert store.names() == {}
    for name, folder in (("older", one), ("newer", two)):
        time.sleep(1.1)  # an object's time is in seconds
        store.publish(folder, name)
        fetched = store.fetch(name, cache)
        assert contents(fetched) == contents(folder)
        assert load_artefact(fetched).edition == load_artefact(folder).edition
        assert fetched.name == name
    editions = {"newer": load_artefact(two).edition, "older": load_artefact(one).edition}
    assert list(store.names().items()) == list(editions.items())


def test_a_name_keeps_its_model(store: ArtefactStore, one: Path, two: Path, cache: Path) -> None:
    store.publish(one, "a")
    store.publish(one, "a")
    with pytest.raises(ArtefactStoreError, match="another model"):
        store.publish(two, "a")
    assert contents(store.fetch("a", cache)) == contents(one)
    assert store.remove("a")
    assert store.names() == {}
    with pytest.raises(ModelNameError):
        store.fetch("a", cache)
    assert not store.remove("a")
    store.publish(two, "a")
    assert store.names() == {"a": load_artefact(two).edition}


def test_a_name_is_no_way_out(store: ArtefactStore, one: Path, cache: Path) -> None:
    store.publish(one, "a")
    for name in NOT_NAMES:
        for ask in (
            lambda name=name: store.publish(one, name),
            lambda name=name: store.fetch(name, cache),
            lambda name=name: store.fetch(name, cache, load_artefact(one).edition),
            lambda name=name: store.remove(name),
            lambda name=name: store.read(name),
            lambda name=name: store.write(name, b""),
        ):
            with pytest.raises(ModelNameError):
                ask()
    for name in (".hidden", "x" * 201, "a\nb"):
        with pytest.raises(ModelNameError):
            store.publish(one, name)
    assert list(store.names()) == ["a"]


def test_small_files(store: ArtefactStore, one: Path) -> None:
    assert store.read("journal.jsonl") is None
    for content in (b"", b"one\n", b"one\ntwo\n" * 1000, b""):
        store.write("journal.jsonl", content)
        assert store.read("journal.jsonl") == content
    store.publish(one, "a")
    assert list(store.names()) == ["a"]


@pytest.mark.parametrize("file", [WEIGHTS, ITEMS, MIXTURE, CONFIG])
def test_a_damaged_one_is_not_published(
    store: ArtefactStore, one: Path, tmp_path: Path, file: str
) -> None:
    damaged = Path(shutil.copytree(one, tmp_path / "damaged"))
    content = bytearray((damaged / file).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / file).write_bytes(content)
    with pytest.raises(ArtefactError):
        store.publish(damaged, "a")
    assert store.names() == {}
    (damaged / file).unlink()
    with pytest.raises(ArtefactError, match=file):
        store.publish(damaged, "a")
    assert store.names() == {}


def test_a_reader_never_sees_a_part(store: ArtefactStore, one: Path, cache: Path) -> None:
    done, seen, faults = threading.Event(), set[str](), list[BaseException]()
    other = open_artefact_store(store.url)

    def read() -> None:
        try:
            while not (done.is_set() and len(seen) == 5):
                for name in other.names():
                    assert contents(other.fetch(name, cache)) == contents(one)
                    seen.add(name)
        except BaseException as error:
            faults.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(5):
        store.publish(one, f"model {number}")
    done.set()
    reader.join()
    assert not faults


class Killed(BaseException):
    pass


def once(act: Callable[[str], None], path: str) -> None:
    act(path)
    raise Killed


def test_a_publication_that_was_killed(
    s3: str, one: Path, two: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(s3)
    put = store._files.put_file
    for survived in range(4):
        left = [survived]

        def put_some(source: str, target: str, left: list[int] = left) -> None:
            if not left[0]:
                raise Killed
            left[0] -= 1
            put(source, target)

        monkeypatch.setattr(store._files, "put_file", put_some)
        with pytest.raises(Killed):
            store.publish(one, "a")
        assert store.names() == {}
        with pytest.raises(ModelNameError):
            store.fetch("a", cache)
    other = ObjectStore(s3)
    with pytest.raises(ArtefactStoreError, match="another model"):
        other.publish(two, "a")
    other.publish(one, "a")
    assert contents(other.fetch("a", cache)) == contents(one)
    monkeypatch.setattr(other._files, "rm_file", partial(once, other._files.rm_file))
    with pytest.raises(Killed):
        other.remove("a")
    store = ObjectStore(s3)
    assert store.names() == {}
    store.remove("a")
    store.publish(two, "a")
    assert store.names() == {"a": load_artefact(two).edition}


@pytest.mark.parametrize("file", [WEIGHTS, ITEMS, MIXTURE])
def test_what_is_damaged_in_the_store_is_not_used(
    s3: str, one: Path, cache: Path, file: str
) -> None:
    store = ObjectStore(s3)
    store.publish(one, "a")
    store._files.pipe_file(store._path("a", file), (one / file).read_bytes()[:-1] + b"!")
    with pytest.raises(ArtefactError, match=f"a/{file}.*damaged"):
        store.fetch("a", cache)
    store._files.rm_file(store._path("a", file))
    with pytest.raises(ArtefactError, match=f"a/{file} is missing"):
        store.fetch("a", cache)
    assert not list(cache.rglob(CONFIG))


@pytest.mark.parametrize(
    ("file", "bound"), [(ITEMS, items_bytes(5)), (METRICS, 1 << 20), (CARD, 1 << 20)]
)
def test_what_is_too_large_is_not_downloaded(
    s3: str, one: Path, cache: Path, file: str, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(s3)
    store.publish(one, "a")
    store._files.pipe_file(store._path("a", file), b"x" * (bound + 1))
    monkeypatch.setattr(store._files, "get_file", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(ArtefactError, match=f"a/{file} has .* bytes"):
        store.fetch("a", cache)
    store._files.pipe_file(store._path("a", CONFIG), b" " * ((1 << 16) + 1))
    with pytest.raises(ArtefactStoreError, match="bytes"):
        store.fetch("a", cache)
    assert store.names() == {}


def test_a_cached_one_needs_no_store(
    s3: str, one: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, edition = ObjectStore(s3), load_artefact(one).edition
    store.publish(one, "a")
    folder = store.fetch("a", cache)
    assert folder == cache / edition / "a"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    away = ObjectStore(s3)
    assert away.fetch("a", cache, edition) == folder
    for name, other in (("b", edition), ("a", "0" * 16), ("a", "../../x"), ("a", "")):
        with pytest.raises(ArtefactStoreError, match=s3):
            away.fetch(name, cache, other)


@pytest.mark.slow
def test_processes_that_fetch_at_once(s3: str, one: Path, cache: Path) -> None:
    ObjectStore(s3).publish(one, "a")
    script = (
        "import sys\nfrom pathlib import Path\nfrom model.artefact_store import *\n"
        "print(open_artefact_store(sys.argv[1]).fetch('a', Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", script, s3, str(cache)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        said, _ = process.communicate()
        assert process.returncode == 0
        assert contents(Path(said.decode().strip())) == contents(one)
    (edition,) = (entry.name for entry in cache.iterdir() if entry.is_dir())
    assert edition == load_artefact(one).edition


def test_what_is_pruned(cache: Path) -> None:
    def download(folder: Path) -> None:
        (folder / CONFIG).write_bytes(b"{}")

    prune(cache, ())
    editions = [f"{n:016x}+{n:08x}" for n in range(6)]
    for age, edition in enumerate(editions):
        fill(cache, edition, "a", download)
        os.utime(cache / edition, (age, age))
    assert fill(cache, editions[0], "a", lambda _: pytest.fail("again")).is_dir()  # used just now
    (cache / f".{editions[1]}.partial").mkdir()
    (cache / "somebody's").mkdir()
    (cache / ".hidden").mkdir()
    prune(cache, {editions[1]}, newest=2)
    left = {entry.name for entry in cache.iterdir() if entry.is_dir()}
    assert left == {"somebody's", ".hidden", editions[0], editions[1], editions[5]}


def test_a_download_that_fails_leaves_nothing(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / CONFIG).write_bytes(b"{}")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fill(cache, "0" * 16, "a", fail)
    assert [entry.name for entry in cache.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "url",
    [
        f"s3://somebody:{SECRET}@{BUCKET}/models",
        f"s3://somebody:{SECRET}/{SECRET}@{BUCKET}/models",
        f"s3://{BUCKET}/models?secret={SECRET}",
        f"s3://{BUCKET}/models#{SECRET}",
        f"https://a:b:{SECRET}@host/models",
        f"s3:///{SECRET}?",
        f"s3://{BUCKET}//models/{SECRET}//",
        f"no such thing://{SECRET}",
        f"simplecache::s3://{BUCKET}/{SECRET}",
        f"unheard-of://{SECRET}",
        "gs://bucket/models",
    ],
)
def test_a_url_that_can_not_be_used(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ArtefactStoreError) as refused:
        open_artefact_store(url)
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)
    if url.startswith("gs:"):
        assert "tim4rec[gcs]" in str(refused.value)


def test_a_fault_names_the_store_and_no_secret(
    s3: str, one: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "AWS_ENDPOINT_URL", f"http://somebody:{SECRET}@127.0.0.1:1/{SECRET}?{SECRET}"
    )
    store = ObjectStore(s3)
    for ask in (
        store.names,
        lambda: store.fetch("a", cache),
        lambda: store.publish(one, "a"),
        lambda: store.read("journal"),
    ):
        with pytest.raises(ArtefactStoreError) as refused:
            ask()
        assert str(refused.value).startswith(f"{s3}: ")
        assert SECRET not in str(refused.value)
        assert "\n" not in str(refused.value)
        assert refused.value.__suppress_context__


def test_a_bucket_that_is_not_there(s3: str) -> None:
    store = ObjectStore("s3://nobodys/models")
    with pytest.raises(ArtefactStoreError, match="s3://nobodys/models: "):
        store.names()


def test_a_path_or_a_url_names_an_artefact(s3: str, one: Path, cache: Path) -> None:
    assert local_artefact(one, cache) == local_artefact(f"{one}/", cache) == one
    assert local_artefact(f"file://{one}", cache) == one
    assert local_artefact("artefacts/my shop", cache) == Path("artefacts/my shop")
    assert not cache.exists()
    ObjectStore(s3).publish(one, "a")
    for url in (f"{s3}/a", f"{s3}/a/"):
        assert contents(local_artefact(url, cache)) == contents(one)
    with pytest.raises(ModelNameError):
        local_artefact(f"{s3}/b", cache)
    for url in (f"s3://{BUCKET}", "s3://", f"{s3}/.."):
        with pytest.raises(ArtefactStoreError):
            local_artefact(url, cache)
    assert open_artefact_store("file:///a%20b").url == "/a b"


def test_the_list_of_a_folder_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_store, "LISTED", 30)
    looked_at: list[Path] = []
    find = FolderStore.find
    monkeypatch.setattr(
        FolderStore, "find", lambda self, name: looked_at.append(name) or find(self, name)
    )
    order = np.random.default_rng(0).permutation(400)
    for age, number in enumerate(order):
        (tmp_path / str(number)).mkdir()
        if age >= 300:
            (tmp_path / str(number) / CONFIG).write_text(json.dumps({"identity": f"of {number}"}))
        os.utime(tmp_path / str(number), (age, age))
    (tmp_path / ".being-written").mkdir()
    newest = [str(number) for number in reversed(order[-30:])]
    store = FolderStore(tmp_path)
    assert list(store.names().items()) == [(name, f"of {name}") for name in newest]
    assert len(looked_at) == 30
    for claim in (7, None, "x" * 1000, ["x"], {}):
        (tmp_path / newest[0] / CONFIG).write_text(json.dumps({"identity": claim}))
        assert newest[0] not in store.names()
    shutil.rmtree(tmp_path)
    assert store.names() == {}


def test_only_what_is_in_the_folder_is_found(tmp_path: Path, one: Path) -> None:
    inside, outside = tmp_path / "models", tmp_path / "elsewhere"
    shutil.copytree(one, inside / "real")
    shutil.copytree(one, outside / "real")
    (inside / "current").symlink_to("real")
    (inside / "out").symlink_to(outside / "real")
    (inside / "half").mkdir()
    for file in (inside / "real").iterdir():
        (inside / "half" / file.name).symlink_to(outside / "real" / file.name)
    (inside / "loop").symlink_to("loop")
    store = FolderStore(inside)
    assert store.find("real") == store.find("current") == (inside / "real").resolve()
    for name in (*NOT_NAMES, "out", "half", "loop"):
        with pytest.raises(ModelNameError):
            store.find(name)
    assert set(store.names()) == {"real", "current"}
    (outside / "journal").write_bytes(b"secret")
    (inside / "journal").symlink_to(outside / "journal")
    with pytest.raises(ArtefactStoreError, match="leads out"):
        store.read("journal")
    store.write("journal", b"ours")
    assert (outside / "journal").read_bytes() == b"secret"
    store.remove("out")
    store.remove("current")
    assert (outside / "real" / CONFIG).exists()
    assert (inside / "real" / CONFIG).exists()


NAMES = st.sampled_from(["a", "b", "a.b", "ü", "a b", "ab", "*", "[a]", "config.json"])
ACTS = st.lists(
    st.tuples(st.sampled_from(["publish 0", "publish 1", "remove", "write"]), NAMES), max_size=8
)


@pytest.mark.slow
@given(acts=ACTS, in_memory=st.booleans())
@settings(max_examples=examples(25))
def test_any_order_of_acts(
    one: Path, two: Path, tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, str]],
    in_memory: bool,
) -> None:  # fmt: skip
    top = tmp_path_factory.mktemp("any")
    MemoryFileSystem.store.clear()
    store = open_artefact_store("memory://models" if in_memory else top / "models")
    models, files = dict[str, Path](), dict[str, bytes]()
    for act, name in acts:
        if act.startswith("publish"):
            folder = (one, two)[int(act[-1])]
            if models.get(name, folder) == folder:
                store.publish(folder, name)
                models[name] = folder
            else:
                with pytest.raises(ArtefactStoreError):
                    store.publish(folder, name)
        elif act == "remove":
            store.remove(name)
            models.pop(name, None)
        else:
            content = files[f"{name}.txt"] = f"{len(files)} {name}".encode()
            store.write(f"{name}.txt", content)
        assert store.names() == {
            name: load_artefact(folder).edition for name, folder in models.items()
        }
    for name, folder in models.items():
        assert contents(store.fetch(name, top / "cache")) == contents(folder)
    for name, content in files.items():
        assert store.read(name) == content
    shutil.rmtree(top)
