"""The Dockerfile without an engine: linted, and true to the package that it installs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click import Context

from cli.main import COMMANDS, _load
from service.settings import Settings
from tests.deploy.dockerfile import ROOT, Image, instructions

HADOLINT = Path(sys.executable).with_name("hadolint")
FILES = [ROOT / "Dockerfile", ROOT / "deploy" / "kubernetes" / "model.Dockerfile"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    done = subprocess.run([HADOLINT, "--no-color", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_base_images_have_a_version(file: Path) -> None:
    stages, arguments, bases = set(), {}, []
    for name, rest in instructions(file):
        if name == "ARG":
            argument, _, default = rest.partition("=")
            arguments.setdefault(argument, default)
        elif name == "FROM":
            base, _, stage = rest.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], base)
            if base not in stages:
                bases.append(base)
            stages.add(stage)
    assert bases
    for base in bases:
        assert re.search(r":.*\d", base), base


def test_the_image_runs_unprivileged_and_hears_signals() -> None:
    image = Image()
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", image.user)  # numbers: Kubernetes can check them
    assert image.entrypoint == ["tini", "--", "tim4rec"]
    for command in (image.command, image.health[1:]):
        name, *arguments = command
        assert name in COMMANDS
        _load(name).parse_args(Context(_load(name)), arguments)  # raises on what it does not know


def test_its_settings_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image()
    named = {k: v for k, v in image.environment.items() if k.startswith("TIM4REC_")}
    assert named
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    settings = Settings(artefact=image.command[1])
    assert {str(getattr(settings, n.removeprefix("TIM4REC_").lower())) for n in named} == set(
        named.values()
    )


def test_what_it_copies_is_the_package_and_no_more() -> None:
    copied = {
        source
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    found = PROJECT["tool"]["setuptools"]["packages"]["find"]
    (here, client) = found["where"]
    assert here == "."
    packages = {name.rstrip("*") for name in found["include"]} - {"tim4rec_client"} | {client}
    lists = {"pyproject.toml", "constraints.txt", "deploy/cpu.lock"}
    assert copied == packages | lists | {PROJECT["project"]["readme"]}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


def test_it_installs_what_the_package_asks_for(tmp_path: Path) -> None:
    (step,) = (rest for name, rest in instructions() if name == "RUN" and "tomllib" in rest)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    subprocess.run(["sh", "-ec", step], cwd=tmp_path, env=python, check=True)
    wanted = PROJECT["project"]
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    assert lines == wanted["dependencies"]
    gpu = (tmp_path / "gpu.txt").read_text().splitlines()
    assert gpu == wanted["optional-dependencies"]["gpu"]
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {re.match(r"[\w-]+", line)[0] for line in lines + gpu} <= pinned  # type: ignore[index]
