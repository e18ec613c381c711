"""The documentation names nothing that does not exist: links, settings, metrics, commands, routes,
files, tests and alerts."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest
import typer
from prometheus_client import generate_latest

from cli.main import COMMANDS, _load, app
from learning.metrics import REGISTRY
from service.app import create_app
from service.observe.exposition import exposition
from service.settings import Settings

ROOT = Path(__file__).parents[1]
OPERATE = ROOT / "docs" / "operate.md"
CONTRIBUTING = ROOT / "docs" / "contributing.md"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "model|training|service|learning|cli|client|benchmarks|tests|deploy|docs"

FENCED = re.compile(r"^ *```.*?\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def snippets(text: str) -> list[str]:
    """What stands as code: blocks and inline pieces."""
    blocks = FENCED.findall(text)
    return [*blocks, *INLINE.findall(FENCED.sub("", text))]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*)$", FENCED.sub("", page.read_text("utf-8")), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        same = sum(other == slug or re.fullmatch(f"{slug}-\\d+", other) is not None
                   for other in found)  # fmt: skip
        found.add(f"{slug}-{same}" if same else slug)
    return found


# Each check yields what is wrong with a text that stands in `page`.


def links(text: str, page: Path) -> Iterator[str]:
    prose = INLINE.sub("", FENCED.sub("", text))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if urlsplit(target).scheme:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            yield f"link to {target}: no such file"
        elif anchor and anchor not in anchors(file):
            yield f"link to {target}: no such heading"


@cache
def commands() -> dict[str, click.Command]:
    return {name: _load(name) for name in COMMANDS}


@cache
def flags(command: str | None) -> set[str]:
    """All flags of a command and of those in it; None: of all commands."""
    if command is None:
        return set().union(*(flags(name) for name in COMMANDS))
    group = [parameter.opts for parameter in _group().params]
    called = commands()[command]
    parts = [called, *getattr(called, "commands", {}).values()]
    own = [[*p.opts, *p.secondary_opts] for part in parts for p in part.params]
    return {"--help", *(flag for names in (*group, *own) for flag in names)}


def _group() -> click.Command:
    return typer.main.get_command(app)


def command_lines(text: str) -> Iterator[str]:
    for snippet in snippets(text):
        for line in snippet.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|\|\|?|;|&$", line):
                # What follows `--` is a command of its own.
                outer, _, inner = command.partition(" -- ")
                yield from (
                    (outer, f"tim4rec {inner}") if "tim4rec" in outer and inner else (command,)
                )


def called(text: str, page: Path) -> Iterator[str]:
    for line in command_lines(text):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # no shell command
        if "tim4rec" in words[:-1]:
            name, *rest = words[words.index("tim4rec") + 1 :]
            if name not in COMMANDS:
                if re.fullmatch(r"[a-z][a-z-]+", name):
                    yield f"`tim4rec {name}`: no such command"
                continue
            known = flags(name)
        elif words and words[0].startswith("--"):
            known, rest = flags(None), words[:1]
        else:
            continue
        for word in rest:
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in known:
                yield f"`{line.strip()}`: no flag {flag}"


def variables(text: str, page: Path) -> Iterator[str]:
    known = {f"TIM4REC_{name.upper()}" for name in Settings.model_fields}
    for command in commands().values():
        for parameter in command.params:
            names = parameter.envvar or ()
            known.update([names] if isinstance(names, str) else names)
    for name in sorted(set(re.findall(r"\bTIM4REC_[A-Z0-9_]+\b", text)) - known):
        yield f"{name}: no such variable"


@cache
def exported() -> set[str]:
    """The names of all series of the service, and of the learner."""
    names: set[str] = set()
    described = exposition()[0] + generate_latest(REGISTRY)
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", described.decode(), re.MULTILINE):
        suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ()
        names |= {name, *(name + suffix for suffix in suffixes)}
    return names


def metrics(text: str, page: Path) -> Iterator[str]:
    for name in sorted(set(re.findall(r"(?<![\w:/.-])tim4rec_[a-z0-9_]+\b(?!:)", text))):
        if name not in exported() and name != "tim4rec_client":  # a package
            yield f"{name}: no such metric"
    rules = (ALERTS.parent / "rules.yml").read_text("utf-8")
    for query in queries(text):
        for name in re.findall(r"\btim4rec:[\w:]+", query):
            if f"record: {name}\n" not in rules:
                yield f"{name}: no such recording rule"


def queries(text: str) -> list[str]:
    """The queries in a text: one a line, longer ones go on in indented lines."""
    blocks = re.findall(r"^```promql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [query for block in blocks for query in block.replace("\n  ", " ").splitlines()]


@cache
def routes() -> list[tuple[str, re.Pattern[str]]]:
    found = []
    described = create_app(Settings(artefact=Path())).api.openapi()["paths"]
    for path, methods in {
        **described,
        **{path: ["get"] for path in ("/", "/metrics", "/docs")},
    }.items():
        pattern = re.compile(re.sub(r"\{\w+\}", "[^/]+", path))
        found += [(method.upper(), pattern) for method in methods]
    return found


def asked(text: str, page: Path) -> Iterator[str]:
    named = [
        (method, path)
        for snippet in snippets(text)
        for method, path in re.findall(r"\b(GET|POST|PUT|DELETE) (/[^\s`?|'\"]*)", snippet)
    ]
    for line in command_lines(text.replace("?", "%3F")):  # a query may hold an &
        sent = re.search(r"-X (\w+)", line)
        if "curl" in line:
            method = sent.group(1) if sent else "GET"
            pattern = r"https?://(?:127\.0\.0\.1|localhost):8\d{3}(/[^\s'\"%]*)"
            named += [(method, path) for path in re.findall(pattern, line)]
    for method, path in named:
        if not any(method == m and pattern.fullmatch(path) for m, pattern in routes()):
            yield f"{method} {path}: no such route"


def files(text: str, page: Path) -> Iterator[str]:
    pattern = rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]+\.\w+)\b"
    for snippet in snippets(text):
        for name in re.findall(pattern, snippet):
            if not (ROOT / name).exists():
                yield f"{name}: no such file"
        for name in re.findall(rf"python -m ((?:{FOLDERS})\.[\w.]+)", snippet):
            if not (ROOT / name.replace(".", "/")).with_suffix(".py").exists():
                yield f"python -m {name}: no such module"


@cache
def defined() -> dict[str, set[str]]:
    """The names that each test file defines at its top level."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "tests").rglob("test_*.py"):
        names = re.findall(r"^(?:def |class )?(\w+)\b", file.read_text("utf-8"), re.MULTILINE)
        found.setdefault(file.name, set()).update(names)
    return found


def named_tests(text: str, page: Path) -> Iterator[str]:
    for snippet in snippets(text):
        for file, name in re.findall(r"(?:^|[\s/])(test_\w+\.py)(?:::(\w+))?", snippet):
            if file not in defined():
                yield f"{file}: no such file of tests"
            elif name and name not in defined()[file]:
                yield f"{file}::{name}: no such test"
        if re.fullmatch(r"test_\w+", snippet) and not any(snippet in t for t in defined().values()):
            yield f"{snippet}: no such test"


def targets(text: str, page: Path) -> Iterator[str]:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for line in command_lines(text):
        words = line.partition("#")[0].split()
        if words[:1] == ["make"]:
            for word in words[1:]:
                if re.fullmatch(r"[a-z][a-z-]*", word) and word not in known:
                    yield f"`{line.strip()}`: no target {word}"


CHECKS: list[Callable[[str, Path], Iterator[str]]] = [
    links, called, variables, metrics, asked, files, named_tests, targets,
]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_everything_named_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    assert [fault for check in CHECKS for fault in check(text, page)] == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[a](nowhere.md)", "nowhere.md: no such file"),
        ("[a](docs/operate.md#no-heading)", "operate.md#no-heading: no such heading"),
        ("`tim4rec sreve x`", "`tim4rec sreve`: no such command"),
        ("```sh\ntim4rec train a.csv \\\n    --epoch 3\n```", "no flag --epoch"),
        ("`--no-such-flag`", "no flag --no-such-flag"),
        ("TIM4REC_POOL_CAPACITIES", "TIM4REC_POOL_CAPACITIES: no such variable"),
        ("rate(tim4rec_request_total[5m])", "tim4rec_request_total: no such metric"),
        ("```promql\ntim4rec:no:rule5m\n```", "tim4rec:no:rule5m: no such recording rule"),
        ("`PUT /interactions`", "PUT /interactions: no such route"),
        ("`curl 'http://127.0.0.1:8000/recommends?user_id=a'`", "GET /recommends: no such route"),
        ("`service/engines.py`", "service/engines.py: no such file"),
        ("`python -m benchmarks.nothing`", "python -m benchmarks.nothing: no such module"),
        ("`test_pool.py::test_nothing`", "test_pool.py::test_nothing: no such test"),
        ("`test_that_is_not_there`", "test_that_is_not_there: no such test"),
        ("`make nothing`", "no target nothing"),
    ],
)
def test_what_does_not_exist_is_found(text: str, fault: str) -> None:
    faults = [fault for check in CHECKS for fault in check(text, ROOT / "README.md")]
    assert len(faults) == 1
    assert fault in faults[0]


def test_every_benchmark_is_listed() -> None:
    text = CONTRIBUTING.read_text("utf-8")
    modules = {file.stem for file in (ROOT / "benchmarks").glob("*.py")} - {"__init__"}
    assert modules
    assert [
        m for m in sorted(modules) if not re.search(rf"benchmarks\.{m}\b|`{m}\.py`", text)
    ] == []


def test_every_function_on_a_requests_path_exists() -> None:
    _, section = CONTRIBUTING.read_text("utf-8").split("\n## A request's path\n")
    steps = re.findall(r"^ *(\w[\w/]*\.py) +([\w.]+)\b", section.split("\n## ")[0], re.MULTILINE)
    assert len(steps) > 10
    for file, name in steps:
        assert name in functions(ROOT / file), f"{file}: no {name}"


def functions(file: Path) -> set[str]:
    """The functions of a file and the methods of its classes, as Class.method."""
    found: set[str] = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, FUNCTIONS)}
        elif isinstance(node, FUNCTIONS):
            found.add(node.name)
    return found


def test_links_of_the_quality_log_lead_somewhere() -> None:
    page = ROOT / "benchmarks" / "quality.md"
    assert list(links(page.read_text("utf-8"), page)) == []


def test_every_alert_has_its_section() -> None:
    text = ALERTS.read_text("utf-8")
    alerts = set(re.findall(r"^\s*- alert: *(\w+)", text, re.MULTILINE))
    assert alerts
    assert {name.lower() for name in alerts} <= anchors(OPERATE)
    linked = re.findall(r"/operate\.md#([\w-]+)", text)
    assert set(linked) <= anchors(OPERATE)
    assert len(linked) >= len(alerts)
    _, section = OPERATE.read_text("utf-8").split("\n## Alerts\n")
    written = re.findall(r"^### (\w+)$", section.split("\n## ")[0], re.MULTILINE)
    assert sorted(written) == sorted(alerts)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: Debian's prometheus")
def test_every_query_can_be_read(tmp_path: Path) -> None:
    found = [query for page in PAGES for query in queries(page.read_text("utf-8"))]
    assert found
    rules = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(found)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))  # JSON is YAML
    checked = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
