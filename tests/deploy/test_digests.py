"""Images by digest: asked of a tool, written down, and wanted where manifests are made."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dotenv import dotenv_values

from tests.deploy.dockerfile import ROOT, instructions
from tests.deploy.test_compose import FILE, compose
from tests.deploy.test_kubernetes import KUSTOMIZE, kustomize_version

IMAGES = ROOT / "deploy" / "images.env"
with_kustomize = pytest.mark.skipif(
    kustomize_version() < KUSTOMIZE,
    reason="kubectl 1.27 or newer is missing: Debian package kubernetes-client",
)

# What each tool says of an image, as far as it is asked: a digest made of the name.
CRANE = """\
#!/bin/sh
[ "$1" = digest ] || exit 64
echo "$2" >> "$0.asked"
case "$2" in
*unknown*) echo "Error: fetching $2: MANIFEST_UNKNOWN" >&2; exit 1;;
*odd*) echo "latest";;
*) printf 'sha256:%s\\n' "$(printf %s "$2" | sha256sum | cut -d ' ' -f 1)";;
esac
"""
DOCKER = """\
#!/bin/sh
[ "$1 $2 $3 $4 $5" = "buildx imagetools inspect --format {{json .Manifest}}" ] || exit 64
echo "$6" >> "$0.asked"
case "$6" in
*unknown*) echo "ERROR: $6: not found" >&2; exit 1;;
*odd*) echo '{"mediaType": "application/vnd.oci.image.index.v1+json"}';;
*) printf '{"digest": "sha256:%s"}\\n' "$(printf %s "$6" | sha256sum | cut -d ' ' -f 1)";;
esac
"""
TOOLS = {"crane": CRANE, "docker": DOCKER}


def digest_of(image: str) -> str:
    return f"sha256:{hashlib.sha256(image.encode()).hexdigest()}"


Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(params=TOOLS)
def tool(request: pytest.FixtureRequest, tmp_path: Path) -> Tool:
    """deploy/digests.py of a copy of the manifests, with one tool to ask."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sha256sum", "cut", "kubectl"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    (programs / request.param).write_text(TOOLS[request.param])
    (programs / request.param).chmod(0o755)

    def digests(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "deploy/digests.py", *words]
        environment = {"PATH": str(programs), "HOME": str(tmp_path)}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return digests


def test_tags_get_the_digest_that_they_stand_for(
    tool: Tool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before = dotenv_values(IMAGES)
    file = tmp_path / "deploy" / "images.env"
    for _ in range(2):  # again: the tag may stand for another by now, so it is asked anew
        done = tool("pin", str(file))
        assert done.returncode == 0, done.stderr
        after = dotenv_values(file)
        assert after == {n: f"{image}@{digest_of(str(image))}" for n, image in before.items()}
    unpinned = re.sub(r"@sha256:[0-9a-f]{64}$", "", file.read_text(), flags=re.MULTILINE)
    assert unpinned == IMAGES.read_text()  # comments and all
    asked = (tmp_path / "bin" / f"{request.node.callspec.params['tool']}.asked").read_text()
    assert sorted(set(asked.split())) == sorted(str(image) for image in before.values())


@with_kustomize
@pytest.mark.parametrize("overlay", ["production", "gpu"])
def test_no_manifests_without_digests(tool: Tool, tmp_path: Path, overlay: str) -> None:
    done = tool("render", overlay)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    for part in ("tim4rec-model:1@missing", f"make digests OVERLAY={overlay}"):
        assert part in done.stderr
    file = tmp_path / "deploy" / "kubernetes" / "overlays" / overlay / "kustomization.yaml"
    text = file.read_text().replace("registry.example.com", "registry.invalid:5000/shop")
    file.write_text(text)
    done = tool("pin", str(file))
    assert done.returncode == 0, done.stderr
    assert re.sub(r"sha256:[0-9a-f]{64}", "missing", file.read_text()) == text
    done = tool("render", overlay)
    assert done.returncode == 0, done.stderr
    pods = [
        found["spec"]["template"]["spec"]
        for found in yaml.safe_load_all(done.stdout)
        if found["kind"] == "Deployment"
    ]
    images = [c["image"] for pod in pods for c in pod["containers"] + pod["initContainers"]]
    variant = "cuda" if overlay == "gpu" else "cpu"
    tags = (f"tim4rec:{variant}", "tim4rec-model:1")
    tagged = [f"registry.invalid:5000/shop/{tag}" for tag in tags]
    assert images == [f"{image}@{digest_of(image)}" for image in tagged]
    # One of them is enough.
    file.write_text(re.sub(r"digest: \S+", "digest: missing", file.read_text(), count=1))
    done = tool("render", overlay)
    assert (done.returncode, done.stdout) == (1, "")
    assert "tim4rec-model" not in done.stderr


def test_as_kustomize_itself_writes_them(tool: Tool, tmp_path: Path) -> None:
    """`kustomize edit set image` sorts what it writes, and leaves a digest out."""
    file = tmp_path / "kustomization.yaml"
    file.write_text(
        "resources:\n- ../../base\nimages:\n- name: tim4rec\n  newName: r/a\n  newTag: cpu\n"
        '- digest: missing\n  name: tim4rec-model\n  newName: r/b\n  newTag: "7"\n'
        "patches:\n- path: x.yaml\n"
    )
    done = tool("pin", str(file))
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(file.read_text()) == {
        "resources": ["../../base"],
        "images": [
            {"name": "tim4rec", "newName": "r/a", "newTag": "cpu", "digest": digest_of("r/a:cpu")},
            {
                "name": "tim4rec-model", "newName": "r/b", "newTag": "7",
                "digest": digest_of("r/b:7"),
            },
        ],
        "patches": [{"path": "x.yaml"}],
    }  # fmt: skip


@pytest.mark.parametrize("image", ["r/unknown:1", "r/odd:1"])
def test_what_is_not_answered_is_one_line_and_changes_nothing(
    tool: Tool, tmp_path: Path, image: str
) -> None:
    file, other = tmp_path / "images.env", tmp_path / "other.env"
    for each in (other, file):
        each.write_text("ONE=r/one:1\n")
    file.write_text(f"ONE=r/one:1\nTWO={image}\n")
    done = tool("pin", str(other), str(file))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert image in done.stderr
    assert other.read_text() == "ONE=r/one:1\n"
    assert file.read_text() == f"ONE=r/one:1\nTWO={image}\n"


def test_without_a_tool_it_says_which(tool: Tool, tmp_path: Path) -> None:
    for name in TOOLS:
        (tmp_path / "bin" / name).unlink(missing_ok=True)
    done = tool("pin", "deploy/images.env")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: neither crane nor docker")
    assert (tmp_path / "deploy" / "images.env").read_text() == IMAGES.read_text()


def test_what_can_t_be_pinned_is_named(tmp_path: Path) -> None:
    for text, said in [
        ("resources: [a]\n", "without `images`"),
        ("a: b\nimages:\n  - name: x\n    newName: y\n", "x has no newTag"),
    ]:
        file = tmp_path / "kustomization.yaml"
        file.write_text(text)
        command = [sys.executable, ROOT / "deploy" / "digests.py", "pin", file]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
        assert file.read_text() == text


def test_the_list_is_what_is_used() -> None:
    """By compose, by both Dockerfiles, and by the store of the local overlay."""
    listed = dotenv_values(IMAGES)
    used: dict[str, str] = {}
    for file in (ROOT / "Dockerfile", ROOT / "deploy" / "kubernetes" / "model.Dockerfile"):
        for name, rest in instructions(file):
            argument, _, default = rest.partition("=")
            if name == "ARG" and argument.endswith("_IMAGE"):
                used[argument] = default
    text = FILE.read_text()
    found = dict(re.findall(r"\$\{(\w+_IMAGE):-([^}]*)\}", text))
    assert found.items() >= {"PYTHON_IMAGE": used["PYTHON_IMAGE"]}.items()
    assert listed == used | found
    named = compose(**{n: f"{n}@{digest_of(n)}".lower() for n in found})["services"].values()
    images = {service["image"].partition("@")[0] for service in named}
    ours = {"tim4rec:cpu", "tim4rec:cuda"}
    assert images == ours | {n.lower() for n in found if n != "PYTHON_IMAGE"}
    (store,) = re.findall(r"image: (\S+)", (ROOT / "deploy" / "store" / "store.yaml").read_text())
    assert store == listed["VALKEY_IMAGE"]
    # What is committed says nothing that nobody has asked for.
    for digest in re.findall(r"@(\S+)", IMAGES.read_text()):
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest)


def test_make_knows_them() -> None:
    for target in ("digests", "manifests"):
        command = ["make", "-n", "--no-print-directory", target, "OVERLAY=gpu"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        words = done.stdout.replace("\\\n", "").split()
        assert (ROOT / words[1]).exists()
        assert words[2] == ("pin" if target == "digests" else "render")
        assert all((ROOT / word).exists() or word == "gpu" for word in words[3:])
