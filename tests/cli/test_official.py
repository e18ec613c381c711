"""An official checkpoint becomes an artefact with the same scores, and none of its code runs."""

from __future__ import annotations

import enum
import gzip
import json
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from cli.official_checkpoint import Foreign
from model import TiM4Rec
from model.artefact import load_artefact
from model.items import Items
from tests.cli.test_untrusted_files import little_memory

GOLDEN = sorted((Path(__file__).parents[1] / "model" / "golden").glob("*.npz"))
TOLERANCE = 1e-5  # ours is float32, the files are float64
FAKE = ("recbole", "recbole.config", "recbole.config.configurator", "recbole.utils.enum_type")


def read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    config = json.loads(str(arrays.pop("config")))
    weights = {k[2:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("w/")}
    return config, weights, {k: torch.from_numpy(v) for k, v in arrays.items() if "/" not in k}


@pytest.fixture
def recbole() -> Iterator[ModuleType]:
    """A module with RecBole's names, there only while a checkpoint is written."""
    modules = {name: ModuleType(name) for name in FAKE}

    class Config:
        def __init__(self, final: Mapping[str, Any], kind: object) -> None:
            self.parameters = {"General": ["seed"]}
            self.yaml_loader = Loader
            self.model_class = Loader
            self.model, self.dataset = "TiM4Rec", "some-data"
            self.final_config_dict = {"MODEL_TYPE": kind, "device": torch.device("cpu"), **final}

    class Loader:
        pass

    class ModelType(enum.Enum):
        SEQUENTIAL = 2

    for cls, name in ((Config, FAKE[2]), (Loader, FAKE[2]), (ModelType, FAKE[3])):
        cls.__module__, cls.__qualname__ = name, cls.__name__
        setattr(modules[name], cls.__name__, cls)
    modules[FAKE[2]].kind = ModelType.SEQUENTIAL  # type: ignore[attr-defined]
    sys.modules.update(modules)
    yield modules[FAKE[2]]
    forget_recbole()


def forget_recbole() -> None:
    for name in FAKE:
        sys.modules.pop(name, None)


def save(
    recbole: Any, path: Path, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]
) -> Path:
    """Writes what RecBole's trainer writes."""
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}
    content = {
        "config": recbole.Config(config, recbole.kind),
        "epoch": 7,
        "cur_step": 0,
        "best_valid_score": np.float64(0.5),
        "state_dict": dict(weights),
        "other_parameter": None,
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
    }
    torch.save(content, path)
    forget_recbole()
    return path


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["import-official", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def refusal(*arguments: str | Path) -> str:
    code, stdout, stderr = run(*arguments)
    assert code == 1
    assert stdout == ""
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    return stderr.removeprefix("error: ").rstrip("\n")


def write_items(path: Path, n_items: int) -> Path:
    path.write_text("".join(f"item-{i}\n" for i in range(1, n_items + 1)))
    return path


class Made:
    """A checkpoint of a golden file and its item list."""

    def __init__(self, recbole: ModuleType, folder: Path, golden: Path) -> None:
        self.config, self.weights, self.data = read(golden)
        self.n_items = self.config["n_items_with_pad"] - 1
        self.checkpoint = save(recbole, folder / "TiM4Rec.pth", self.config, self.weights)
        self.items = write_items(folder / "items.txt", self.n_items)
        self.out = folder / "artefact"

    def arguments(self, **other: Path) -> list[str | Path]:
        options = {"items": self.items, "out": self.out, **other}
        return [self.checkpoint, *(part for n, v in options.items() for part in (f"--{n}", v))]


@pytest.fixture
def made(recbole: ModuleType, tmp_path: Path) -> Made:
    return Made(recbole, tmp_path, next(p for p in GOLDEN if p.stem == "paper_time"))


def assert_scores(scores: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(scores[:, 1:].double(), expected[:, 1:], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda p: p.stem)
def test_the_artefact_scores_as_the_official_code(
    recbole: ModuleType, tmp_path: Path, golden: Path
) -> None:
    made = Made(recbole, tmp_path, golden)
    code, stdout, stderr = run(*made.arguments())
    assert code == 0, stderr
    assert "39 items" in stdout
    loaded = load_artefact(made.out)
    model, data = loaded.model, made.data
    assert loaded.identity in stdout
    assert loaded.items.ids == [f"item-{i}" for i in range(1, 40)]
    assert loaded.metrics["official"]["epoch"] == 7
    assert model.item_embedding.weight.dtype == torch.float32
    with torch.no_grad():
        output = model.window_output(data["items"], data["lengths"], data["timestamps"])
        assert_scores(model.scores(output), data["scores"])
        # As it is served: from a state, which for a `sequence` model is the window itself.
        state = model.prefill(
            data["items"], data["timestamps"] * 1000, data["lengths"], model.new_state(5)
        )
        assert_scores(model.scores(model.query(state)), data["scores"])
    assert model.steppable == (not made.config["is_time"])
    card = (made.out / "README.md").read_text()
    assert f"| norm_eps | {made.config['norm_eps']} |" in card
    assert ("recomputing the window" in card) == made.config["is_time"]


def test_a_window_longer_than_the_models_slides(made: Made) -> None:
    assert run(*made.arguments())[0] == 0
    model: TiM4Rec = load_artefact(made.out).model
    items, times = made.data["items"][:1], made.data["timestamps"][:1] * 1000
    before = torch.randint(1, 40, (1, 5)), times[:, :5] - 10**6
    with torch.no_grad():
        state = model.prefill(*before, torch.tensor([5]), model.new_state(1))
        for i in range(12):
            state = model.step(items[:, i], times[:, i], state)
        assert_scores(model.scores(model.query(state)), made.data["scores"][:1])


def test_no_foreign_code_runs(made: Made, tmp_path: Path) -> None:
    class Attack:
        def __init__(self, function: object, *arguments: object) -> None:
            self.call = function, arguments

        def __reduce__(self) -> Any:
            return self.call

    proof = tmp_path / "proof"
    content = {"config": made.config, "state_dict": made.weights}
    inert = [
        Attack(exec, f"open({str(proof)!r}, 'w')"),
        Attack(eval, f"open({str(proof)!r}, 'w')"),
        Attack(open, str(proof), "w"),
    ]
    torch.save({**content, "other_parameter": inert}, made.checkpoint)
    code, _, stderr = run(*made.arguments())
    assert code == 0, stderr
    assert not proof.exists()
    for attack in (Attack(os.system, f"touch {proof}"), Attack(Path.touch, proof)):
        torch.save({**content, "other_parameter": attack}, made.checkpoint)
        message = refusal(*made.arguments())
        assert str(made.checkpoint) in message
        assert "weights_only" not in message
        assert not proof.exists()
    safe = torch.serialization.get_safe_globals()
    assert not [name for name in safe if isinstance(name, tuple) and name[0] is Foreign]
    torch.load(made.checkpoint, weights_only=False)  # the attack is a real one
    assert proof.exists()


def test_popularity_of_the_list_else_of_its_order_else_of_a_log(made: Made, tmp_path: Path) -> None:
    def popularity(**options: Path) -> tuple[list[int], str]:
        code, _, stderr = run(*made.arguments(**options))
        assert code == 0, stderr
        card = (made.out / "README.md").read_text()
        told = stderr.splitlines()[-1].removeprefix("popularity: ")
        assert told in card
        return load_artefact(made.out).items.popularity.tolist(), told

    counts, told = popularity()
    assert counts == list(range(39, 0, -1))
    assert "order of items.txt" in told
    assert "--log FILE" in told

    table = tmp_path / "items.csv"
    rows = [f'item-{i},{i * i},"Title, {i}",a|b\n' for i in range(1, 40)]
    table.write_text("item_id,popularity,title,genres\n" + "".join(rows))
    counts, told = popularity(items=table)
    assert counts == [i * i for i in range(1, 40)]
    assert told == "the column of items.csv"
    items: Items = load_artefact(made.out).items
    assert items.titles is not None
    assert items.titles[6] == "Title, 7"
    assert items.categories == [["a", "b"]] * 39

    log = tmp_path / "log.csv"
    events = ["u,item-3,1", "u,item-5,2", "v,item-3,1", "v,other,9"]
    log.write_text("user_id,item_id,timestamp\n" + "\n".join(events))
    counts, told = popularity(items=table, log=log)
    assert {i: n for i, n in enumerate(counts, 1) if n} == {3: 2, 5: 1}
    assert "3 of 4 interactions" in told
    log.write_text("user_id,item_id,timestamp\nu,other,1\n")
    assert "another data set" in refusal(*made.arguments(log=log))


@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.parametrize("form", ["txt", "txt.gz", "crlf", "csv", "csv.gz", "json", "items.json"])
def test_forms_of_the_item_list(made: Made, tmp_path: Path, form: str, padding: bool) -> None:
    ids = ["[PAD]"] * padding + [str(i * 7) for i in range(1, 40)]
    counts = [0] * padding + list(range(1, 40))
    text = {
        "txt": "\n".join(ids),
        "crlf": "\ufeff" + "".join(f"{i}\r\n" for i in ids),
        "csv": "item_id,popularity\n"
        + "".join(f"{i},{n}\n" for i, n in zip(ids, counts, strict=True)),
        "json": json.dumps([int(i) if i.isdigit() else i for i in ids]),
        "items.json": json.dumps({"ids": ids, "popularity": counts, "titles": None}),
    }[form.removesuffix(".gz")]
    made.items = tmp_path / f"list.{form}"
    data = text.encode()
    made.items.write_bytes(gzip.compress(data) if form.endswith("gz") else data)
    code, _, stderr = run(*made.arguments())
    assert code == 0, stderr
    items = load_artefact(made.out).items
    assert items.ids == [str(i * 7) for i in range(1, 40)]
    if "csv" in form or form == "items.json":
        assert items.popularity.tolist() == list(range(1, 40))


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.txt", "a\nb\n", "2 items, but the checkpoint has 39"),
        ("a.txt", "", "0 items"),
        ("a.txt", "a\n\nb\n", "item 2 has no id"),
        ("a.txt", "a\nb\na\n", "items 1 and 3 are both 'a'"),
        ("a.csv", "id\na\n", "no column item_id"),
        ("a.csv", "item_id,popularity\na,1\nb\n", "line 3: 1 fields instead of 2"),
        ("a.csv", 'item_id\n"a\n', "line 2"),
        (
            "a.csv",
            "item_id,popularity\n" + "".join(f"{i},0\n" for i in range(39)),
            "is 0 for every",
        ),
        ("a.csv", "item_id,popularity\n" + "".join(f"{i},x\n" for i in range(39)), "'x' is not a"),
        (
            "a.csv",
            "item_id,popularity\n" + "".join(f"{i},-1\n" for i in range(39)),
            "'-1' is not a",
        ),
        ("a.json", "{", "not readable as JSON"),
        ("a.json", '{"items": []}', "array of ids"),
        ("a.json", '["a", null]', "entry 2"),
        ("a.json", '{"ids": ["a"], "popularity": [1, 2]}', "2 popularity for 1 ids"),
        ("a.txt", b"\xff\xfe\n", "UTF-8"),
        ("a.txt", b"\x1f\x8b\x00", "UTF-8"),
    ],
)
def test_item_lists_that_do_not_fit(
    made: Made, tmp_path: Path, name: str, text: str | bytes, reason: str
) -> None:
    made.items = tmp_path / name
    made.items.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refusal(*made.arguments())
    assert str(made.items) in message
    assert reason in message
    assert not made.out.exists()


def as_yaml(config: Mapping[str, Any]) -> str:
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items())


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_a_config_of_its_own_file(made: Made, tmp_path: Path, form: str) -> None:
    torch.save(made.weights, made.checkpoint)  # nothing but weights
    message = refusal(*made.arguments())
    assert str(made.checkpoint) in message
    assert "--config" in message

    if form == "yaml":
        pytest.importorskip("yaml")
    config = tmp_path / f"official.{form}"
    text = json.dumps(made.config) if form == "json" else as_yaml(made.config)
    config.write_text(text)
    code, _, stderr = run(*made.arguments(config=config))
    assert code == 0, stderr
    loaded = load_artefact(made.out).model
    data = made.data
    assert loaded.config.norm_eps == made.config["norm_eps"] == 1e-12
    with torch.no_grad():
        output = loaded.window_output(data["items"], data["lengths"], data["timestamps"])
        assert_scores(loaded.scores(output), data["scores"])


def test_a_config_file_wins_over_the_checkpoint(made: Made, tmp_path: Path) -> None:
    config = tmp_path / "official.json"
    config.write_text('{"norm_eps": 1e-5}')
    assert run(*made.arguments(config=config))[0] == 0
    assert load_artefact(made.out).model.config.norm_eps == 1e-5


def test_an_eps_nobody_gave_is_said(made: Made, recbole: ModuleType) -> None:
    del made.config["norm_eps"]
    torch.save({"config": made.config, "state_dict": made.weights}, made.checkpoint)
    code, _, stderr = run(*made.arguments())
    assert code == 0
    assert "1e-12" in stderr


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("c.json", "{", "not readable as JSON"),
        ("c.json", "[]", "must hold settings"),
        ("c.json", '{"lr": 0.1}', "none of the official settings"),
        ("c.json", '{"d_state": "eight"}', "d_state must be a whole number, not 'eight'"),
        ("c.json", '{"d_state": 8.5}', "d_state must be a whole number, not 8.5"),
        ("c.json", '{"d_state": [8]}', "d_state must be a whole number"),
        ("c.json", '{"norm_eps": NaN}', "norm_eps must be a number"),
        ("c.json", '{"hidden_size": Infinity}', "hidden_size must be a whole number"),
        ("c.json", '{"is_time": "False"}', "is_time must be true or false"),
        ("c.yaml", "a: [", "not readable as YAML"),
    ],
)
def test_configs_that_can_not_be_used(
    made: Made, tmp_path: Path, name: str, text: str, reason: str
) -> None:
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    config = tmp_path / name
    config.write_text(text)
    message = refusal(*made.arguments(config=config))
    assert str(config) in message
    assert reason in message


def test_yaml_without_its_package(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    config = tmp_path / "c.yaml"
    config.write_text("d_state: 8\n")
    assert "PyYAML" in refusal(*made.arguments(config=config))


def test_checkpoints_that_nobody_should_trust(made: Made) -> None:
    """Each is refused in one line, before memory is taken for what it only claims."""

    def written(content: Any, **how: Any) -> str:
        torch.save(content, made.checkpoint, **how)
        with little_memory():
            message = refusal(*made.arguments())
        assert message.startswith(f"{made.checkpoint}: ")
        assert len(message) < 1000
        assert message.isprintable()
        return message

    def with_weights(changed: Mapping[Any, Any], **settings: Any) -> str:
        content = {"config": made.config | settings, "state_dict": {**made.weights, **changed}}
        return written(content)

    name = "ssd_layers.0.ssd.in_proj.weight"
    one = torch.ones(1, dtype=torch.float64)
    wide = one.as_strided(made.weights[name].shape, (0, 0))
    assert f"{name} is not a floating-point tensor" in with_weights({name: wide})
    huge = one.as_strided((2**40, 16), (0, 0))
    assert "not a floating-point" in with_weights({"item_embedding.weight": huge})
    for kind in (torch.zeros(3, device="meta"), one.to_sparse(), one.to(torch.float8_e5m2),
                 one.int(), one.bool(), one.to(torch.complex64), "x", None, [one]):  # fmt: skip
        assert "not a floating-point tensor" in with_weights({name: kind})
    assert "7 is not a floating-point tensor" in with_weights({7: one})
    assert "not finite" in with_weights({name: made.weights[name] * 1e300})  # beyond float32
    assert "has no place" in with_weights({"more\nlines" * 100: one})
    ours = made.weights["ssd_layers.0.ssd.norm.weight"]
    assert "by another name" in with_weights({"blocks.0.ssd.norm.weight": ours})
    conv = made.weights["ssd_layers.0.ssd.conv1d.weight"]
    for other in (conv.expand(-1, 2, -1).contiguous(), conv[:, :0]):
        message = with_weights({"ssd_layers.0.ssd.conv1d.weight": other})
        assert "the configuration asks for" in message or "not a floating-point" in message
    for setting in ("hidden_size", "num_layers", "expand", "d_state", "MAX_ITEM_LIST_LENGTH"):
        for value in (10**9, 10**30, "9" * 5000, [[[]]]):
            assert "must be" in with_weights({}, **{setting: value})
    assert "asks for" in with_weights({}, hidden_size=2**16)
    nested: list[Any] = []
    for _ in range(60):
        nested = [nested, nested]
    assert "d_state must be a whole number" in with_weights({}, d_state=nested)
    assert "not readable" in written(made.weights, _use_new_zipfile_serialization=False)


def test_checkpoints_that_unpack_to_more_than_they_are(made: Made) -> None:
    whole = zipfile.ZipFile(made.checkpoint)
    parts = {name: whole.read(name) for name in whole.namelist()}
    largest = max(parts, key=lambda name: len(parts[name]))
    with zipfile.ZipFile(made.checkpoint, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in parts.items():
            packed.writestr(name, content if name != largest else b"\0" * (1 << 26))
    with little_memory():
        assert "compressed" in refusal(*made.arguments())
    with zipfile.ZipFile(made.checkpoint, "w") as stored:
        for name, content in parts.items():
            stored.writestr(name, content)
        for entry in list(stored.filelist):  # the same bytes again and again
            stored.filelist += [entry] * 10
    assert "overlap" in refusal(*made.arguments())


@pytest.mark.parametrize("option", ["checkpoint", "items", "config", "log"])
def test_no_file_is_waited_for(made: Made, tmp_path: Path, option: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    if option in ("checkpoint", "items"):
        setattr(made, option, fifo)
        message = refusal(*made.arguments())
    else:
        message = refusal(*made.arguments(**{option: fifo}))
    assert message == f"{fifo}: is a FIFO: give a file"
    assert not made.out.exists()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json", b'{"ids": [], "ids": []}', "ids stands twice"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "digits"),
        ("a.json", json.dumps([*range(38), "\ud800"]).encode(), "id 39 is not a string of Unicode"),
        (
            "a.json",
            json.dumps({"ids": [*range(39)], "titles": ["\ud800"] * 39}).encode(),
            "title 1",
        ),
        ("a.txt", ("\n".join(map(str, range(38))) + "\n" + "x" * 257).encode(), "257 bytes"),
        ("a.txt", b"x" * (1 << 21), "at most"),
        ("a.txt.gz", gzip.compress(b"x" * (1 << 26), mtime=0), "bytes unpacked"),
        ("a.txt.gz", gzip.compress(b"a\nb\n", mtime=0)[:-9], "UTF-8"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_item_lists_that_nobody_should_trust(
    made: Made, tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    made.items = tmp_path / name
    made.items.write_bytes(content)
    with little_memory():
        message = refusal(*made.arguments())
    assert str(made.items) in message
    assert reason in message


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("c.json", '{"d_state": ' + "[" * 50_000, "nested too deeply"),
        ("c.json", '{"d_state": 1e400}', "1e400"),
        ("c.json", '{"d_state": ' + "9" * 5000 + "}", "digits"),
        ("c.json", '{"d_state": 8, "d_state": 4}', "d_state stands twice"),
        ("c.json", " " * (1 << 18), "at most 131,072"),
        ("c.yaml", "d_state: " + "[" * 50_000, "not readable as YAML: it is nested too deeply"),
        ("c.yaml", "a: &a [1, 1]\nb: &b [*a, *a]\nd_state: [*b, *b]\n", "an alias"),
        ("c.yaml", "d_state: 2026-99-99\n", "not readable as YAML"),
    ],
    ids=lambda text: text[:20],
)
def test_configs_that_nobody_should_trust(
    made: Made, tmp_path: Path, name: str, text: str, reason: str
) -> None:
    test_configs_that_can_not_be_used(made, tmp_path, name, text, reason)


def test_checkpoints_that_can_not_be_used(made: Made, tmp_path: Path) -> None:
    def message() -> str:
        found = refusal(*made.arguments())
        assert str(made.checkpoint) in found
        assert not made.out.exists()
        return found

    whole = made.checkpoint.read_bytes()
    made.checkpoint.write_bytes(whole[: len(whole) // 2])
    assert "not readable" in message()
    made.checkpoint.write_bytes(b"no checkpoint")
    assert "not readable" in message()
    torch.save([1], made.checkpoint)
    assert "holds a list" in message()
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, made.checkpoint)
    assert "not a TiM4Rec model" in message()

    def with_weights(**changed: Any) -> str:
        weights = {**made.weights, **{k.replace("__", "."): v for k, v in changed.items()}}
        torch.save({"config": made.config, "state_dict": weights}, made.checkpoint)
        return message()

    assert "item_embedding.weight has no items" in with_weights(
        item_embedding__weight=torch.zeros(1, 16)
    )
    assert "extra is not a floating-point tensor" in with_weights(extra="x")
    assert "extra has values that are not finite" in with_weights(extra=torch.tensor([torch.nan]))
    assert "extra has no place" in with_weights(extra=torch.zeros(1))
    made.config["head_dim"] = 5
    assert "head_dim 5 must divide" in with_weights()
    made.checkpoint.unlink()
    assert "No such file" in message()
