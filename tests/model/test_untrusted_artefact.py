"""Whatever stands in an artefact's folder, it is loaded as it was saved or refused in one line,
soon, and without memory for what the files only claim."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load_file, save_file

from model import ModelConfig, TiM4Rec
from model import artefact as module
from model import weights as weights_module
from model.artefact import (
    CONFIG,
    METRICS,
    Artefact,
    ArtefactError,
    load_artefact,
    save_artefact,
)
from model.config import SIZES
from model.content import About, Content, content_bytes
from model.description import CONTENT, ITEMS, MIXTURE, SCORED_ITEMS, SCORING, WEIGHTS, identity_of
from model.items import Items, ItemsError
from model.live.mixture import MOST_BYTES
from model.scoring import Scoring
from tests.depth import examples
from tests.model.mixtures import same, some_mixture
from tests.waited import LONG_S

ROOT = Path(__file__).parents[2]
READ = (CONFIG, WEIGHTS, ITEMS, METRICS, MIXTURE, CONTENT, SCORING, SCORED_ITEMS)
SHAPE = ModelConfig(n_items=5, d_model=8, n_layers=1, head_dim=4, d_state=3)
VOCABULARY = Items(
    ["a", "ü", "3", " d", "e" * 256],
    np.array([5, 0, 3, 2**53, 1]),
    ["A", None, "Ü", "", "\n"],
    [["x", "y"], [], ["x"], [], ["ž"]],
)
SCORED = Items([*VOCABULARY.ids, "new", "newer"], np.arange(7))
MEMORY = 256 << 20  # bytes of addresses; a load of this artefact takes a few MB
CPU_S = 10.0


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved") / "model"
    metrics = {"protocol": {"core": 5}}
    model = TiM4Rec(SHAPE)
    model.scoring = Scoring(SCORED, torch.randn(8, 8), torch.randn(8))
    vectors = torch.randn(4, 8).numpy()
    model.content = Content(np.array([-7, 0, 3, 2**62]), vectors[:4], vectors[0], 0.5)
    save_artefact(folder, model, VOCABULARY, metrics, "", some_mixture())
    for _ in range(2):  # what is allocated once is there
        loaded = load_artefact(folder)
    return loaded


@contextmanager
def copied(saved: Artefact) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tim4rec-") as top:
        folder = Path(top).resolve() / "models" / "model"
        shutil.copytree(saved.folder, folder)
        yield folder


@contextmanager
def bounded() -> Iterator[None]:
    """Fails where something waits, computes for long or takes much memory."""

    def hangs(*_: object) -> None:
        raise TimeoutError("it waits")

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, hangs)
    left, _ = signal.setitimer(signal.ITIMER_REAL, LONG_S)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, limits[1]))
    began, real = time.process_time(), time.monotonic()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # that of the test itself
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - real)))
    assert time.process_time() - began < CPU_S


def tried(folder: Path) -> Artefact | None:
    """What is loaded; None: it was refused, as it should be."""
    with bounded():
        try:
            return load_artefact(folder)
        except ArtefactError as error:
            message = str(error)
    assert message.isprintable(), message
    assert len(message) < 1000
    assert any(str(folder / name) in message for name in READ), message
    assert "alloc" not in message, message
    return None


def refused(folder: Path, name: str, *parts: str) -> None:
    with bounded(), pytest.raises(ArtefactError) as caught:
        load_artefact(folder)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000
    for part in (str(folder / name), *parts):
        assert part in message


def assert_same(loaded: Artefact, saved: Artefact, but: str) -> None:
    assert loaded.identity == saved.identity
    assert loaded.model.config == saved.model.config
    assert loaded.metrics == saved.metrics or but == METRICS
    assert saved.mixture is not None
    if loaded.mixture is None:
        assert but == CONFIG, "only what says that there is one can say that there is none"
    else:
        assert same(loaded.mixture, saved.mixture)
    assert saved.model.content is not None
    if loaded.model.content is None:
        assert but == CONFIG, "only what says that there is one can say that there is none"
    else:
        assert loaded.model.content.to_bytes() == saved.model.content.to_bytes()
    assert vars(loaded.items).keys() == vars(saved.items).keys()
    for name, column in vars(loaded.items).items():
        assert (
            np.array_equal(column, getattr(saved.items, name)) or column == vars(saved.items)[name]
        )
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, saved.model.state_dict()[name])
    assert saved.model.scoring is not None
    if loaded.model.scoring is None:
        assert but == CONFIG, "only what says that there is one can say that there is none"
        return
    assert loaded.scored_items.ids == SCORED.ids
    for name, tensor in loaded.model.scoring.tensors().items():
        assert torch.equal(tensor, saved.model.scoring.tensors()[name])


def assert_sound(loaded: Artefact) -> None:
    """What was changed by somebody who knows how to make the hashes right is an artefact, too."""
    items, model = loaded.items, loaded.model
    assert len(items) == model.config.n_items == len(set(items.ids))
    assert all(isinstance(item, str) and 0 < len(item.encode()) <= 256 for item in items.ids)
    assert items.popularity.dtype == np.int64
    assert items.popularity.shape == (len(items),)
    assert (items.popularity >= 0).all()
    json.dumps([items.titles, items.categories], ensure_ascii=False).encode()
    assert items.titles is None or len(items.titles) == len(items)
    assert items.categories is None or len(items.categories) == len(items)
    scored = loaded.scored_items
    assert scored.ids[: len(items)] == items.ids
    tensors = {} if model.scoring is None else model.scoring.tensors()
    for tensor in (*model.state_dict().values(), *tensors.values()):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
    if loaded.mixture is not None:
        assert all(np.isfinite(part).all() for part in loaded.mixture.weights)
    if model.content is not None:
        new = model.content.vector(About("a title", ["category"]))
        assert new.shape == (model.config.d_model,)
        assert np.isfinite(new).all()
    state = model.step(torch.tensor([1]), torch.tensor([0]), model.new_state(1))
    assert model.scores(model.query(state)).shape == (1, len(scored) + 1)


def seal(folder: Path) -> None:
    """Makes the hashes and the identity right again, where what is there can have some."""
    try:
        description = json.loads((folder / CONFIG).read_text())
        hashes = {name: module._hash(folder / name) for name in (WEIGHTS, ITEMS)}
        description["hashes"] = hashes
        if (folder / MIXTURE).exists():
            description["mixture"] = module._hash(folder / MIXTURE)
        if (folder / CONTENT).exists():
            description["content"] = module._hash(folder / CONTENT)
        scoring = {name: module._hash(folder / name) for name in (SCORING, SCORED_ITEMS)}
        if "scoring" in description:
            description["scoring"]["hashes"] = scoring
        config = ModelConfig.from_dict(description["architecture"])
        description["identity"] = identity_of(config, description["repeat_bias"], hashes)
        (folder / CONFIG).write_text(json.dumps(description))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass


# What may be changed; each returns the file that it was.
Change = Callable[[Path], str]


def bytes_changed(draw: st.DrawFn) -> Change:
    name = draw(st.sampled_from(READ))
    place, length = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 20))
    put = draw(st.binary(max_size=20))

    def change(folder: Path) -> str:
        data = (folder / name).read_bytes()
        at = int(place * len(data))
        (folder / name).write_bytes(data[:at] + put + data[at + length :])
        return name

    return change


def cut(draw: st.DrawFn) -> Change:
    name, kept = draw(st.sampled_from(READ)), draw(st.floats(0, 1, exclude_max=True))

    def change(folder: Path) -> str:
        os.truncate(folder / name, int(kept * (folder / name).stat().st_size))
        return name

    return change


DEEP = "[" * 20_000 + "]" * 20_000
RAW = st.sampled_from(
    ["null", "true", "false", "0", "-1", "1", "1.0", "0.5", "1e3", "NaN", "Infinity", "-Infinity",
     "1e400", "9" * 5000, str(2**31), str(2**63), str(10**400), '""', '"\\ud800"', '"\\u0000"',
     '"a\\nb"', '"' + "x" * 300 + '"', "[]", "{}", "[[]]", '{"a":1,"a":2}', "[null]", "[1]",
     '["a"]', '{"": {}}', DEEP, "", ",", "{"]
)  # fmt: skip
"""JSON texts, and what is none."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, key))


def value_changed(draw: st.DrawFn) -> Change:
    """Another JSON value, a part more, a part less, or one twice."""
    name, which = (
        draw(st.sampled_from((CONFIG, ITEMS, METRICS, SCORED_ITEMS))),
        draw(st.integers(0, 10**6)),
    )
    how, raw = draw(st.sampled_from(["put", "put", "put", "add", "drop", "twice"])), draw(RAW)

    def change(folder: Path) -> str:
        whole = json.loads((folder / name).read_text())
        paths = list(places(whole))
        *path, last = paths[1 + which % (len(paths) - 1)]
        owner = whole
        for key in path:
            owner = owner[key]
        if how == "put":
            owner[last] = "@@"
        elif how == "drop":
            del owner[last]
        elif isinstance(owner, list):
            owner.append(owner[last] if how == "twice" else "@@")
        else:
            owner["@@twice" if how == "twice" else "more"] = "@@"
        text = json.dumps(whole).replace('"@@twice"', json.dumps(last)).replace('"@@"', raw)
        (folder / name).write_text(text)
        return name

    return change


def tensor_changed(draw: st.DrawFn) -> Change:
    file = draw(st.sampled_from((WEIGHTS, SCORING)))
    which, place = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    how = draw(
        st.sampled_from(
            [torch.nan, torch.inf, -torch.inf, torch.float16, torch.float64, torch.bfloat16,
             torch.int32, torch.bool, torch.uint8, "drop", "add", "name", "flat", "longer", "none"]
        )
    )  # fmt: skip

    def change(folder: Path) -> str:
        weights = load_file(folder / file)
        name = sorted(weights)[which % len(weights)]
        tensor = weights.pop(name)
        match how:
            case float():
                tensor.view(-1)[place % tensor.numel()] = how
                weights[name] = tensor
            case torch.dtype():
                weights[name] = tensor.to(how)
            case "add":
                weights |= {name: tensor, "an other\n" * 100: torch.zeros(3)}
            case "name":
                weights[name + "."] = tensor
            case "flat":
                weights[name] = tensor.flatten()[None]
            case "longer":
                weights[name] = torch.cat([tensor, tensor])
            case "none":
                weights[name] = tensor[:0]
        save_file(weights, folder / file)
        return file

    return change


def header_changed(draw: st.DrawFn) -> Change:
    """A safetensors file that claims other tensors, or another length of what describes them."""
    file = draw(st.sampled_from((WEIGHTS, MIXTURE, CONTENT, SCORING)))
    which, raw = draw(st.integers(0, 10**6)), draw(RAW)
    length = draw(st.none() | st.integers(0, 2**64 - 1))
    what = draw(st.sampled_from(["dtype", "shape", "data_offsets", "whole"]))
    claim = draw(st.sampled_from(["[1099511627776,8]", "[4294967296,4294967296]", raw]))

    def change(folder: Path) -> str:
        data = (folder / file).read_bytes()
        old = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + old])
        name = sorted(header)[which % len(header)]
        if what == "whole":
            header[name] = "@@"
        else:
            header[name][what] = "@@"
        text = json.dumps(header).replace('"@@"', claim).encode()
        told = (len(text) if length is None else length).to_bytes(8, "little")
        (folder / file).write_bytes(told + text + data[8 + old :])
        return file

    return change


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket has to be short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def linked(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


KINDS: dict[str, Callable[[Path], None]] = {
    "fifo": fifo,
    "folder": Path.mkdir,
    "socket": bound_socket,
    "sparse": sparse,
    "zeros": linked("/dev/zero"),
    "full": linked("/dev/full"),
    "terminal": linked("/dev/tty"),
    "process": linked("/proc/self/mem"),
    "outside": linked("/etc/passwd"),
    "itself": lambda path: path.symlink_to(path.name),
    "nowhere": linked("nowhere"),
    "up": linked(".."),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_at_once(saved: Artefact, kind: str, name: str) -> None:
    with copied(saved) as folder:
        (folder / name).unlink()
        KINDS[kind](folder / name)
        refused(folder, name)


@st.composite
def changes(draw: st.DrawFn) -> Change:
    make = draw(
        st.sampled_from(
            [bytes_changed, cut, value_changed, value_changed, tensor_changed, header_changed]
        )
    )
    return make(draw)


@pytest.mark.slow
@settings(max_examples=examples(300), deadline=None)
@given(change=changes(), sealed=st.booleans())
def test_it_is_loaded_as_it_was_saved_or_refused(
    saved: Artefact, change: Change, sealed: bool
) -> None:
    with copied(saved) as folder:
        changed = change(folder)
        if sealed:
            seal(folder)
        loaded = tried(folder)
        if loaded is not None and sealed:
            assert_sound(loaded)
        elif loaded is not None:
            assert_same(loaded, saved, changed)


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


ONE_EACH = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("values", "part"),
    [
        *(({"ids": [*ONE_EACH[:4], bad]}, part) for bad, part in (
            (7, "id 5 is not a string"), (None, "id 5"), (True, "id 5"), (["e"], "id 5"),
            ("\ud800", "id 5 is not a string of Unicode"), ("", "0 bytes"),
            ("ü" * 129, "258 bytes"), ("a", "twice"),
        )),
        *(({"popularity": [1, 2, bad, 4, 5]}, "popularity 3 is no count") for bad in (
            -1, 1.5, 1.0, True, None, "1", [1], 2**63, 10**400, -(10**400),
        )),
        *(({"titles": ["A", bad, None, None, None]}, "title 2") for bad in (7, True, [], "\udfff")),
        *(({"categories": [[], [], [], bad, []]}, "categories 4") for bad in (
            None, "x", [None], [7], [["x"]], {"x": 1}, ["x", "\ud800"],
        )),
        *(({name: bad}, f"a list of {name}") for name in ("ids", "popularity") for bad in (
            None, "abcde", {}, 5, False,
        )),
        *(({name: bad}, f"a list of {name}") for name in ("titles", "categories") for bad in (
            "abcde", {}, 5, False,
        )),
        ({"ids": ["a"] * 4}, "4 items"), ({"popularity": [1] * 4}, "4 popularity for 5 ids"),
        *(({name: []}, f"0 {name} for 5 ids") for name in ("titles", "categories")),
        ({"ids": ["a"] * 4, "popularity": [1] * 4, "titles": None, "categories": None}, "4 items"),
    ],
    ids=lambda value: repr(value)[:60],
)  # fmt: skip
def test_items_of_another_kind(saved: Artefact, values: dict[str, Any], part: str) -> None:
    with copied(saved) as folder:
        change_json(folder / ITEMS, **values)
        seal(folder)
        refused(folder, ITEMS, part)


@pytest.mark.parametrize(
    "value",
    [7, True, [], {}, "view", "view:fly", "view:step,view:hide", "two words:step", "v:step\n\x1b",
     ",".join(f"k{n}:step" for n in range(3000))],
    ids=lambda value: repr(value)[:60],
)  # fmt: skip
def test_rules_for_kinds_that_are_none(saved: Artefact, value: object) -> None:
    with copied(saved) as folder:
        change_json(folder / CONFIG, kinds=value)
        refused(folder, CONFIG, "`kinds` must be rules such as view:step,*:count")


@pytest.mark.parametrize("name", ["ids", "popularity", "titles", "categories"])
def test_a_column_that_is_missing(saved: Artefact, name: str) -> None:
    with copied(saved) as folder:
        table = json.loads((folder / ITEMS).read_text())
        del table[name]
        (folder / ITEMS).write_text(json.dumps(table))
        seal(folder)
        refused(folder, ITEMS, f"a list of {name}")


@pytest.mark.parametrize(
    "value", [0, -1, 2**16, 2**31 - 1, 2**63, 10**400, 6.0, True, None, "6", [6]], ids=str
)
@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_the_tensors_do_not_have(saved: Artefact, name: str, value: object) -> None:
    with copied(saved) as folder:
        architecture = json.loads((folder / CONFIG).read_text())["architecture"]
        if name == "max_len" and value == 2**16:
            return  # no size of this model's
        change_json(folder / CONFIG, architecture=architecture | {name: value})
        seal(folder)
        assert tried(folder) is None


@pytest.mark.parametrize("value", [None, True, "0.5", [], 2, -1, 10**400], ids=str)
@pytest.mark.parametrize(
    "name", ["dropout", "time_dropout", "norm_eps", "ffn_norm_eps", "ffn", "time", "gap_range_s"]
)
def test_a_field_of_another_kind(saved: Artefact, name: str, value: object) -> None:
    if (name, value) in [("ffn", True), ("norm_eps", 2), ("ffn_norm_eps", 2)]:
        return  # as good as what was there
    with copied(saved) as folder:
        architecture = json.loads((folder / CONFIG).read_text())["architecture"]
        change_json(folder / CONFIG, architecture=architecture | {name: value})
        refused(folder, CONFIG, name)


def test_a_state_that_no_weights_account_for(tmp_path: Path) -> None:
    config = ModelConfig(n_items=1, d_model=1, n_layers=1, expand=2048, head_dim=1, d_state=2048)
    items = Items(["a"], np.array([1]))
    save_artefact(tmp_path / "m", TiM4Rec(config), items, {}, "")
    refused(tmp_path / "m", CONFIG, "a user's state has 16,", "d_state")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(saved: Artefact, value: float) -> None:
    for name in ("item_embedding.weight", "blocks.0.ssd.A_log", "request_norm.bias"):
        with copied(saved) as folder:
            weights = load_file(folder / WEIGHTS)
            weights[name].view(-1)[-1] = value
            save_file(weights, folder / WEIGHTS)
            seal(folder)
            refused(folder, WEIGHTS, f"{name} has values that are not finite")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_mixture_that_is_not_finite_or_of_other_features(saved: Artefact, value: float) -> None:
    for change, part in (
        (lambda a: np.full_like(a, value), "linear is not finite"),
        (lambda a: a[:-1], "linear is not float32 of shape"),
        (lambda a: a.astype(np.float64), "linear is not float32"),
    ):
        with copied(saved) as folder:
            parts = load_arrays((folder / MIXTURE).read_bytes())
            parts["linear"] = change(parts["linear"])
            (folder / MIXTURE).write_bytes(save_arrays(parts))
            seal(folder)
            refused(folder, MIXTURE, part)
            (folder / MIXTURE).write_bytes(b"x" * (MOST_BYTES + 1))
            seal(folder)
            refused(folder, MIXTURE, "bytes: at most 1,048,576 are read")


def test_a_content_that_does_not_fit(saved: Artefact) -> None:
    for name, change, part in (
        ("vectors", lambda a: np.full_like(a, np.nan), "vectors is not finite"),
        ("vectors", lambda a: a[:-1], "vectors is not float32 of shape"),
        ("shift", lambda a: a[:-1], "vectors is not float32 of shape"),
        ("hashes", lambda a: a[::-1].copy(), "rising"),
        ("hashes", lambda a: a.astype(np.int32), "hashes are not int64"),
        ("scale", lambda a: np.full_like(a, np.inf), "scale is not finite"),
        ("format", lambda a: a + 1, "it has format 2"),
    ):
        with copied(saved) as folder:
            parts = load_arrays((folder / CONTENT).read_bytes())
            parts[name] = change(parts[name])
            (folder / CONTENT).write_bytes(save_arrays(parts))
            seal(folder)
            refused(folder, CONTENT, part)
            (folder / CONTENT).write_bytes(b"x" * (content_bytes(8) + 1))
            seal(folder)
            refused(folder, CONTENT, "bytes: at most")
            (folder / CONTENT).unlink()
            refused(folder, CONTENT, "is missing")


@pytest.mark.parametrize(
    ("n_items", "name"),
    [*((bad, CONFIG) for bad in (0, -1, 2**31, 2**63, 7.0, True, None, "7")),
     *((bad, SCORED_ITEMS) for bad in (4, 6, 8, 2**31 - 1))],
)  # fmt: skip
def test_a_number_of_scored_items_that_are_not_there(
    saved: Artefact, n_items: object, name: str
) -> None:
    with copied(saved) as folder:
        scoring = json.loads((folder / CONFIG).read_text())["scoring"]
        change_json(folder / CONFIG, scoring=scoring | {"n_items": n_items})
        refused(folder, name)


def test_a_scoring_of_other_items(saved: Artefact) -> None:
    with copied(saved) as folder:
        for ids in (SCORED.ids[::-1], ["b", *SCORED.ids[1:]]):
            change_json(folder / SCORED_ITEMS, ids=ids)
            seal(folder)
            refused(folder, SCORED_ITEMS, "does not begin with the items of items.json")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: t["vectors"].fill_(torch.nan), "vectors has values that are not finite"),
        (lambda t: t["bias"].fill_(torch.inf), "bias has values that are not finite"),
        (lambda t: t.update(bias=t["bias"][:-1]), "bias is F32 [7], and must be F32 [8]"),
        (lambda t: t.update(vectors=t["vectors"][:, :-1].contiguous()), "vectors is F32 [8, 7]"),
        (lambda t: t.update(bias=t["bias"].double()), "bias is F64 [8]"),
        (lambda t: t.pop("bias"), "bias is missing"),
        (lambda t: t.update(more=torch.zeros(1)), "more is F32 [1], and must be missing"),
    ],
)
def test_a_scoring_that_does_not_fit(
    saved: Artefact, change: Callable[[dict[str, torch.Tensor]], object], part: str
) -> None:
    with copied(saved) as folder:
        tensors = load_file(folder / SCORING)
        change(tensors)
        save_file(tensors, folder / SCORING)
        refused(folder, SCORING)
        seal(folder)
        refused(folder, SCORING, part)


def test_hashes_that_lie(saved: Artefact) -> None:
    with copied(saved) as folder:
        description = json.loads((folder / CONFIG).read_text())
        for name in (WEIGHTS, ITEMS):
            lying = dict(description["hashes"]) | {name: "0" * 64}
            identity = identity_of(saved.model.config, description["repeat_bias"], lying)
            change_json(folder / CONFIG, hashes=lying, identity=identity)
            refused(folder, name, "hash", "damaged")
        save_artefact(folder.with_name("other"), TiM4Rec(SHAPE), VOCABULARY, {}, "")
        other = json.loads((folder.with_name("other") / CONFIG).read_text())
        change_json(folder / CONFIG, **other)
        refused(folder, WEIGHTS, "hash")


@pytest.mark.slow
def test_an_outline_is_the_model_without_its_memory() -> None:
    code = """if True:
        import sys
        from model import ModelConfig, TiM4Rec
        from model.tim4rec import outline
        configs = [{}, {"time": "sequence"}, {"time": "none", "ffn": False, "n_layers": 1},
                   {"n_groups": 2, "gap_mix": "product"}, {"gap_embedding": False},
                   {"time": "sequence", "p2p_residual": True}, {"request_time": False}]
        for one in configs:
            config = ModelConfig(n_items=5, **one)
            model, outlined = TiM4Rec(config), outline(config)
            assert outlined.state_layout == model.state_layout
            wanted = {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
            found = {name: (t.shape, t.dtype) for name, t in outlined.state_dict().items()}
            assert found == wanted
            assert all(t.is_meta for t in outlined.state_dict().values())
        outline(ModelConfig(n_items=2**31 - 1, d_model=2**16))
        print("torch._dynamo" in sys.modules)  # seconds and much memory
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=LONG_S
    )
    assert done.stdout == "False\n", done.stderr


def test_links(saved: Artefact) -> None:
    with copied(saved) as folder:
        current = folder.with_name("current")
        current.symlink_to("model")
        assert_same(load_artefact(current), saved, "")
        (folder / "..1").mkdir()
        (folder / "..data").symlink_to("..1")
        for name in READ:  # as Kubernetes mounts files
            (folder / name).rename(folder / "..1" / name)
            (folder / name).symlink_to(Path("..data", name))
        assert_same(load_artefact(current), saved, "")
        shutil.copytree(saved.folder, folder.with_name("other"))
        for name in READ:
            (folder / name).unlink()
            (folder / name).symlink_to(folder.with_name("other") / name)
            refused(current, name, "leads out of")
            (folder / name).unlink()
            (folder / name).symlink_to(Path("..data", name))


def test_one_that_changes_all_the_time(saved: Artefact, monkeypatch: pytest.MonkeyPatch) -> None:
    load = module._load

    def touched(folder: Path, device: str) -> Artefact:
        loaded = load(folder, device)
        (folder / METRICS).write_text(json.dumps({"now": time.monotonic_ns()}))
        return loaded

    monkeypatch.setattr(module, "_load", touched)
    monkeypatch.setattr(module, "_REPLACED_FOR_S", 0.2)
    with copied(saved) as folder, pytest.raises(ArtefactError, match="again and again"):
        load_artefact(folder)


def test_weights_that_are_overwritten_while_they_are_read(
    saved: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `cp` does it: the file is empty first. What was mapped into memory is gone then."""
    with copied(saved) as folder:
        weights, build = (folder / WEIGHTS).read_bytes(), weights_module.TiM4Rec

        def emptied(config: ModelConfig) -> TiM4Rec:
            (folder / WEIGHTS).write_bytes(b"")
            return build(config)

        with monkeypatch.context() as patch:
            patch.setattr(weights_module, "TiM4Rec", emptied)
            refused(folder, WEIGHTS, "damaged")
        (folder / WEIGHTS).write_bytes(weights)
        assert_same(load_artefact(folder), saved, "")


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    long = ["t" * 2_000_000, *VOCABULARY.titles[1:]] if VOCABULARY.titles else None
    vocabulary = Items(VOCABULARY.ids, VOCABULARY.popularity, long)
    with pytest.raises(ArtefactError, match="would have"):
        save_artefact(tmp_path / "m", TiM4Rec(SHAPE), vocabulary, {}, "")
    assert not list(tmp_path.iterdir())
    for popularity in (np.array([1, 2, 3, 4, -5]), np.ones(5)):
        with pytest.raises(ItemsError, match="popularity"):
            Items(VOCABULARY.ids, popularity)
