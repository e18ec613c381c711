"""An artefact comes back as it was saved, or is refused in one line that names the file."""

from __future__ import annotations

import ast
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import ModelConfig, TiM4Rec, tensor_file
from model import artefact as module
from model.artefact import (
    FILES,
    Artefact,
    ArtefactError,
    claimed_edition,
    load_artefact,
    save_artefact,
)
from model.content import Content
from model.description import identity_of
from model.items import Items, ItemsError
from model.scoring import Scoring
from tests.model.mixtures import same, some_mixture

ROOT = Path(__file__).parents[2]
CONFIG = ModelConfig(n_items=6, d_model=8, n_layers=2, head_dim=4, d_state=3, max_len=4)
ITEMS = Items(
    ids=["a", "b", "ü", "d/é", "5", " e"],
    popularity=np.array([5, 4, 3, 2, 1, 2**40]),
    titles=["A", None, "Ü", "", "five", "E"],
    categories=[["x", "y"], [], ["x"], [], [], ["z"]],
)


def make(config: ModelConfig = CONFIG, seed: int = 0) -> TiM4Rec:
    torch.manual_seed(seed)
    model = TiM4Rec(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.item_embedding.weight[0] = 0
    return model


SCORED = Items([*ITEMS.ids, "new"], np.arange(7))


def with_scoring(model: TiM4Rec, seed: int = 0, items: Items = SCORED) -> TiM4Rec:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(items) + 1, 8, generator=generator)
    model.scoring = Scoring(items, vectors, torch.randn(len(items) + 1, generator=generator))
    return model


def with_content(model: TiM4Rec, seed: int = 0) -> TiM4Rec:
    """A model that knows what three features add."""
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(3, model.config.d_model)).astype(np.float32)
    model.content = Content(np.array([-3, 4, 5]), vectors, vectors[0], 2.0)
    return model


def outputs(model: TiM4Rec) -> torch.Tensor:
    items = torch.tensor([[1, 2, 3, 6], [4, 5, 0, 0]])
    times = torch.tensor([[0, 1000, 9000, 10**9], [5, 6, 0, 0]])
    lengths = torch.tensor([4, 2])
    with torch.no_grad():
        state = model.prefill(items, times, lengths, model.new_state(2))
        return model.scores(model.query(state, torch.tensor([2 * 10**9, 10**7])))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = with_content(with_scoring(make()))
    save_artefact(tmp_path / "model", model, ITEMS, {"ndcg@10": 0.25}, "# A card\n", some_mixture())
    return tmp_path / "model"


@pytest.mark.parametrize("time", ["causal", "none", "sequence"])
def test_loading_gives_the_same_scores(tmp_path: Path, time: str) -> None:
    model = make(replace(CONFIG, time=time))
    model.repeat_bias = -3.25
    identity = save_artefact(tmp_path / "new" / "m", model, ITEMS, {"ndcg@10": 0.25}, "# A card\n")
    loaded = load_artefact(tmp_path / "new" / "m")
    assert torch.equal(outputs(loaded.model), outputs(model))
    assert not loaded.model.training
    assert loaded.model.config == model.config
    assert loaded.model.repeat_bias == -3.25
    assert loaded.metrics == {"ndcg@10": 0.25}
    assert loaded.identity == identity
    assert loaded.items.ids == ITEMS.ids
    assert loaded.items.titles == ITEMS.titles
    assert loaded.items.categories == ITEMS.categories
    assert loaded.items.popularity.dtype == np.int64
    assert loaded.items.popularity.tolist() == ITEMS.popularity.tolist()
    assert loaded.mixture is None
    assert loaded.edition == identity
    names = {p.name for p in (tmp_path / "new" / "m").iterdir()}
    optional = {
        "mixture.safetensors", "content.safetensors", "scoring.safetensors", "scoring.json"
    }  # fmt: skip
    assert names == {*FILES} - optional
    assert (tmp_path / "new" / "m" / "README.md").read_text() == "# A card\n"
    assert len({p.stat().st_mode for p in (tmp_path / "new" / "m").iterdir()}) == 1
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["m"]


def refusal(folder: Path) -> str:
    with pytest.raises(ArtefactError) as caught:
        load_artefact(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_another_mixture_is_another_edition_and_no_other_identity(
    folder: Path, tmp_path: Path
) -> None:
    first = load_artefact(folder)
    assert first.mixture is not None
    assert same(first.mixture, some_mixture())
    assert {p.name for p in folder.iterdir()} == {*FILES}
    found = {}
    for name, mixture in (("same", some_mixture()), ("new", some_mixture(1)), ("none", None)):
        model = with_content(with_scoring(make()))
        identity = save_artefact(tmp_path / name, model, ITEMS, {}, "", mixture)
        loaded = load_artefact(tmp_path / name)
        assert identity == loaded.identity == first.identity
        assert loaded.edition == claimed_edition(tmp_path / name)
        found[name] = loaded.edition
    assert found["same"] == first.edition
    assert len({*found.values()}) == 3
    save_artefact(folder, make(), ITEMS, {}, "")
    assert not (folder / "mixture.safetensors").exists(), "the old one's is none of the new one's"
    assert load_artefact(folder).mixture is None
    assert load_artefact(folder).edition == first.identity


def test_another_content_is_another_edition_and_no_other_identity(tmp_path: Path) -> None:
    found = {}
    models = {"none": make(), "one": with_content(make()), "other": with_content(make(), 1)}
    for mixture in (None, some_mixture()):
        for name, model in models.items():
            folder = tmp_path / name
            save_artefact(folder, model, ITEMS, {}, "", mixture)
            loaded = load_artefact(folder)
            assert loaded.edition == claimed_edition(folder)
            assert (folder / "content.safetensors").exists() == (name != "none")
            if model.content is not None:
                assert loaded.model.content is not None
                assert loaded.model.content.to_bytes() == model.content.to_bytes()
            found[name, mixture is None] = loaded.edition
    assert len({edition.partition("+")[0] for edition in found.values()}) == 1
    assert len({*found.values()}) == len(found)


def test_another_scoring_is_another_edition_and_no_other_identity(tmp_path: Path) -> None:
    other_items = replace(SCORED, popularity=SCORED.popularity + 1)
    models = {
        "none": make(),
        "same": with_scoring(make()),
        "again": with_scoring(make()),
        "vectors": with_scoring(make(), seed=1),
        "items": with_scoring(make(), items=other_items),
        "fewer": with_scoring(make(), items=ITEMS),
    }
    loaded = {}
    for name, model in models.items():
        save_artefact(tmp_path / name, model, ITEMS, {}, "")
        loaded[name] = load_artefact(tmp_path / name)
        assert loaded[name].edition == claimed_edition(tmp_path / name)
        assert torch.equal(outputs(loaded[name].model), outputs(model))
        assert loaded[name].items.ids == ITEMS.ids
    assert len({one.identity for one in loaded.values()}) == 1
    assert loaded["same"].edition == loaded["again"].edition
    assert len({one.edition for one in loaded.values()}) == len(models) - 1
    assert loaded["items"].scored_items.popularity.tolist() == other_items.popularity.tolist()
    assert loaded["none"].scored_items is loaded["none"].items
    same = loaded["same"]
    save_artefact(tmp_path / "saved again", same.model, same.items, {}, "", some_mixture())
    again = load_artefact(tmp_path / "saved again")
    assert again.identity == same.identity
    assert torch.equal(outputs(again.model), outputs(same.model))


def test_a_scoring_that_does_not_begin_with_the_vocabulary_is_not_saved(tmp_path: Path) -> None:
    other = replace(SCORED, ids=["new", *ITEMS.ids])
    with pytest.raises(ArtefactError, match="does not begin with"):
        save_artefact(tmp_path / "m", with_scoring(make(), items=other), ITEMS, {}, "")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="must have 8 rows"):
        Scoring(SCORED, torch.zeros(7, 8), torch.zeros(8))


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "items.json", "mixture.safetensors", "content.safetensors",
     "scoring.safetensors", "scoring.json"],
)  # fmt: skip
def test_a_changed_byte_is_refused(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).write_bytes(data)
    message = refusal(folder)
    assert str(folder / name) in message
    assert "hash" in message


@pytest.mark.parametrize("name", [name for name in FILES if name != "README.md"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    message = refusal(folder)
    assert str(folder / name) in message
    assert "missing" in message


def test_the_card_may_be_edited_or_missing(folder: Path) -> None:
    identity = load_artefact(folder).identity
    (folder / "README.md").unlink()
    assert load_artefact(folder).identity == identity


@pytest.mark.parametrize("found", [2, "1", None])
def test_another_format_says_to_upgrade(folder: Path, found: object) -> None:
    change(folder / "config.json", format=found)
    message = refusal(folder)
    assert str(folder / "config.json") in message
    assert "upgrade" in message


@pytest.mark.parametrize(
    "values",
    [
        {"d_model": 16},
        {"n_layers": 1},
        {"n_items": 7},
        {"norm_eps": 1e-12},
        {"activation": "silu"},
        {"gap_range_s": [1.0, 60.0]},
        {"head_dim": 3},
        {"head_dim": "4"},
        {"n_items": 6.0},
        {"gap_range_s": [1.0]},
        {"time": "sometimes"},
        {"width": 3},
    ],
    ids=str,
)
def test_a_changed_architecture_is_refused(folder: Path, values: dict[str, Any]) -> None:
    architecture = json.loads((folder / "config.json").read_text())["architecture"]
    change(folder / "config.json", architecture=architecture | values)
    message = refusal(folder)
    assert str(folder / "config.json") in message
    assert "architecture" in message


@pytest.mark.parametrize("value", [None, [], "x"])
@pytest.mark.parametrize(
    "field",
    ["architecture", "hashes", "identity", "state", "repeat_bias", "mixture", "scoring", "content"],
)
def test_a_field_of_another_type_is_refused(folder: Path, field: str, value: object) -> None:
    if field in ("mixture", "scoring", "content") and value is None:
        return  # there need not be one
    change(folder / "config.json", **{field: value})
    assert str(folder / "config.json") in refusal(folder)


def test_a_changed_repeat_bias_is_refused(folder: Path) -> None:
    change(folder / "config.json", repeat_bias=0.5)
    assert "repeat_bias" in refusal(folder)


def test_an_artefact_from_before_there_was_a_repeat_bias_has_none(folder: Path) -> None:
    path = folder / "config.json"
    description = json.loads(path.read_text())
    del description["repeat_bias"]
    path.write_text(json.dumps(description))
    assert load_artefact(folder).model.repeat_bias == 0


def test_artefacts_of_earlier_versions_keep_their_identity(folder: Path) -> None:
    hashes = {"model.safetensors": "a", "items.json": "b"}
    known = {
        "c4ab1f4c1e0ba715": (ModelConfig(n_items=3), 0.0),
        "55aa728059993b2b": (ModelConfig(n_items=3, d_model=16, time="sequence"), 0.5),
    }
    assert {identity_of(config, bias, hashes) for config, bias in known.values()} == set(known)
    path, identity = folder / "config.json", load_artefact(folder).identity
    description = json.loads(path.read_text())
    del description["architecture"]["n_groups"]
    path.write_text(json.dumps(description))
    assert load_artefact(folder).identity == identity


def seal(folder: Path, name: str) -> None:
    """Makes the hashes right again, as a careless tool would."""
    path = folder / "config.json"
    hashes = json.loads(path.read_text())["hashes"] | {name: module._hash(folder / name)}
    change(path, hashes=hashes)
    description = json.loads(path.read_text())
    config = ModelConfig.from_dict(description["architecture"])
    change(path, identity=identity_of(config, description["repeat_bias"], hashes))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"ids": ["a", "b"], "popularity": [1, 2], "titles": None, "categories": None}, "2 items"),
        ({"popularity": [1, 2]}, "2 popularity for 6 ids"),
        ({"ids": ["a"] * 6}, "twice"),
        ({"ids": [1, 2, 3, 4, 5, 6]}, "not a string"),
        ({"ids": None}, "items.json"),
        ({"popularity": ["many"] * 6}, "many"),
    ],
)
def test_items_that_do_not_fit(folder: Path, values: dict[str, Any], reason: str) -> None:
    change(folder / "items.json", **values)
    seal(folder, "items.json")
    message = refusal(folder)
    assert str(folder / "items.json") in message
    assert reason in message


def test_weights_that_do_not_fit_name_the_tensor(folder: Path, tmp_path: Path) -> None:
    save_artefact(tmp_path / "wider", make(replace(CONFIG, d_state=5)), ITEMS, {}, "")
    (folder / "model.safetensors").write_bytes(
        (tmp_path / "wider" / "model.safetensors").read_bytes()
    )
    seal(folder, "model.safetensors")
    message = refusal(folder)
    assert str(folder / "model.safetensors") in message
    assert "blocks.0.ssd.in_proj.weight" in message
    (folder / "model.safetensors").write_bytes(b"no tensors")
    seal(folder, "model.safetensors")
    assert str(folder / "model.safetensors") in refusal(folder)


@pytest.mark.parametrize("text", [b"{", b"", b"[1]", b"\xff\xfe", b"not json"])
@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_what_is_not_json_is_named(folder: Path, name: str, text: bytes) -> None:
    (folder / name).write_bytes(text)
    assert str(folder / name) in refusal(folder)


def test_what_is_no_artefact(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refusal(tmp_path / "none")
    assert "tim4rec train" in refusal(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in refusal(tmp_path / "file")
    (tmp_path / "other").mkdir()
    assert str(tmp_path / "other" / "config.json") in refusal(tmp_path / "other")


def test_another_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "config.json").write_text('{"mine": true}')
    (tmp_path / "file").write_text("mine")
    for taken in ("notes", "file"):
        with pytest.raises(ArtefactError, match="choose another folder"):
            save_artefact(tmp_path / taken, make(), ITEMS, {}, "")
    assert (tmp_path / "notes" / "config.json").read_text() == '{"mine": true}'
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "notes"]
    (tmp_path / "empty").mkdir()
    save_artefact(tmp_path / "empty", make(), ITEMS, {}, "")
    load_artefact(tmp_path / "empty")


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="6 items for a model of 5"):
        save_artefact(tmp_path / "m", make(replace(CONFIG, n_items=5)), ITEMS, {}, "")
    assert not list(tmp_path.iterdir())


def test_overwriting_replaces_every_file_and_keeps_others(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    model = make(seed=1)
    identity = save_artefact(folder, model, ITEMS, {"ndcg@10": 0.5}, "# Another\n")
    loaded = load_artefact(folder)
    assert loaded.identity == identity
    assert loaded.metrics == {"ndcg@10": 0.5}
    assert torch.equal(outputs(loaded.model), outputs(model))
    assert (folder / "README.md").read_text() == "# Another\n"
    assert (folder / "notes.txt").read_text() == "mine"
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_through_a_link_its_target_is_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("model")
    identity = save_artefact(tmp_path / "current", make(seed=1), ITEMS, {}, "")
    assert (tmp_path / "current").is_symlink()
    assert load_artefact(folder).identity == identity


class _Killed(BaseException):
    pass


def test_a_failure_at_any_step_leaves_the_old_or_the_new(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops the writing at its n-th call of anything that touches the disk, for every n."""
    old, new = load_artefact(folder).identity, make(seed=1)
    left, limit = itertools.count(), 0

    def counted(call: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if next(left) == limit:
                raise _Killed
            return call(*args, **kwargs)

        return wrapper

    seen, identity = set(), ""
    while not identity:
        with monkeypatch.context() as patch:
            left = itertools.count()
            patch.setattr(tensor_file, "save_file", counted(tensor_file.save_file))
            for name in ("write_text", "rename", "mkdir"):
                patch.setattr(Path, name, counted(getattr(Path, name)))
            patch.setattr(os, "fsync", counted(os.fsync))
            try:
                identity = save_artefact(folder, new, ITEMS, {}, "")
            except _Killed:
                limit += 1
        seen.add(load_artefact(folder).identity)
        save_artefact(folder, make(), ITEMS, {"ndcg@10": 0.25}, "# A card\n")
        assert load_artefact(folder).identity == old
    assert limit > 10
    assert seen == {old, identity}


WRITER = """
import sys
from pathlib import Path
import torch
from model.artefact import load_artefact, save_artefact
torch.set_num_threads(1)
folder, *sources = map(Path, sys.argv[1:])
sources = [load_artefact(source) for source in sources]
print("ready", flush=True)
n = 0
while True:
    a = sources[n % 2]
    save_artefact(folder, a.model, a.items, a.metrics, "")
    n += 1
    print(n, flush=True)
"""


@pytest.mark.slow
def test_readers_meet_the_old_or_the_new_even_if_the_writer_is_killed(tmp_path: Path) -> None:
    sources = [tmp_path / "0", tmp_path / "1"]
    seeds = {
        save_artefact(sources[seed], make(seed=seed), ITEMS, {"seed": seed}, ""): seed
        for seed in (0, 1)
    }
    expected = [outputs(make(seed=seed)) for seed in (0, 1)]
    folder = tmp_path / "m"
    save_artefact(folder, make(), ITEMS, {"seed": 0}, "")
    met = []

    def meet() -> None:
        loaded: Artefact = load_artefact(folder)
        seed = seeds[loaded.identity]
        assert loaded.metrics == {"seed": seed}
        assert torch.equal(outputs(loaded.model), expected[seed])
        met.append(seed)

    command = [sys.executable, "-c", WRITER, str(folder), *map(str, sources)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == "ready\n"
            while len(met) < 30 or len(set(met)) < 2:
                meet()
        finally:
            writer.kill()
    meet()


def test_where_names_can_not_be_swapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.folder._swap", lambda a, b: False)
    (folder / "notes.txt").write_text("mine")
    identity = save_artefact(folder, make(seed=1), ITEMS, {}, "")
    assert load_artefact(folder).identity == identity
    assert (folder / "notes.txt").read_text() == "mine"
    rename, calls = Path.rename, itertools.count()

    def second_fails(self: Path, target: Path) -> Path:
        if next(calls) == 1:
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(OSError, match="no space"):
        save_artefact(folder, make(seed=2), ITEMS, {}, "")
    assert load_artefact(folder).identity == identity
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_what_changes_the_identity(tmp_path: Path) -> None:
    def identity(model: TiM4Rec, items: Items = ITEMS, **metrics: float) -> str:
        return save_artefact(tmp_path / "m", model, items, metrics, str(metrics))

    same = identity(make())
    assert identity(make()) == same
    assert identity(make(), score=0.5) == same
    assert identity(make(replace(CONFIG, dropout=0.7))) == same
    assert identity(make(replace(CONFIG, time_dropout=0.7))) == same
    less_eps = make(replace(CONFIG, norm_eps=1e-6))
    less_eps.load_state_dict(make().state_dict())
    moved = make()
    with torch.no_grad():
        moved.item_embedding.weight[3, 2] += 1e-6
    biased = make()
    biased.repeat_bias = 0.5
    others = [
        identity(moved),
        identity(biased),
        identity(less_eps),
        identity(make(), replace(ITEMS, ids=["b", "a", *ITEMS.ids[2:]])),
        identity(make(), replace(ITEMS, popularity=ITEMS.popularity + 1)),
    ]
    assert len({same, *others}) == 6


def test_items_check_themselves() -> None:
    with pytest.raises(ItemsError, match="1 titles for 2 ids"):
        Items(["a", "b"], np.array([1, 2]), titles=["A"])
    with pytest.raises(ItemsError, match="twice"):
        Items(["a", "a"], np.array([1, 2]))


def unsafe(path: Path) -> list[str]:
    """Where a file could run a stranger's code by reading data: pickles in all their forms."""
    pickling = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve"}
    official = path.relative_to(ROOT).as_posix() == "cli/official_checkpoint.py"
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.module == "torch":
                names += [f"torch.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            value = ast.unparse(node.value)
            if (node.arg, value) not in (("allow_pickle", "False"), ("weights_only", "True")):
                found.append(f"{where}: {node.arg}={value}")
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "torch.load"
            and "weights_only" not in {keyword.arg for keyword in node.keywords}
        ):
            found.append(f"{where}: torch.load without weights_only")
        for name in names:
            banned = {"torch.save"} if official else {"torch.save", "torch.load"}
            if name.split(".")[0] in pickling or name in banned:
                found.append(f"{where}: {name}")
    return found


@pytest.mark.slow
def test_nothing_is_pickled() -> None:
    files = [
        p for part in ("model", "training", "service", "cli") for p in (ROOT / part).rglob("*.py")
    ]
    assert len(files) > 10
    assert [line for path in files for line in unsafe(path)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import load",
        "import torch; torch.load(f)",
        "import torch; torch.save(x, f)",
        "from torch import load",
        "import torch; torch.load(f, weights_only=False)",
        "import numpy; numpy.load(f, allow_pickle=True)",
    ],
)
def test_a_pickle_would_be_found(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "x.py").write_text(code)
    assert unsafe(tmp_path / "x.py")
