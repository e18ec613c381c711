"""Images by digest: asked of their registries, and wanted where manifests are made.

    python deploy/digests.py pin FILE...       write the digests of what a file names by tag
    python deploy/digests.py render OVERLAY    print an overlay's manifests; refused without digests

A FILE is one of NAME=IMAGE lines (images.env), or a kustomization with `images`. A tag can be made
to mean another image, a digest can't. `crane` is asked, or else `docker buildx imagetools`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
OVERLAYS = Path(__file__).parent / "kubernetes" / "overlays"


class DigestError(Exception):
    """One line that names the image, and what to do."""


def ask(image: str) -> str:
    """The digest that a tag stands for now, of all platforms together.

    Raises:
        DigestError: no tool, no answer, or no digest in it.
    """
    if shutil.which("crane"):
        command = ["crane", "digest", image]
    elif shutil.which("docker"):
        command = ["docker", "buildx", "imagetools", "inspect", "--format", "{{json .Manifest}}"]
        command.append(image)
    else:
        raise DigestError("neither crane nor docker is here: install one of them to ask registries")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = " ".join(done.stderr.split())[-200:] or f"exit status {done.returncode}"
        raise DigestError(f"{image}: {command[0]} says: {said}")
    found = done.stdout.strip()
    if command[0] == "docker":
        try:
            found = str(json.loads(found)["digest"])
        except (ValueError, KeyError, TypeError):
            found = found[:80]
    if not DIGEST.fullmatch(found):
        raise DigestError(f"{image}: {command[0]} answers {found!r}, which is no digest")
    return found


def pinned(text: str, digest_of: Callable[[str], str]) -> str:
    """A file of NAME=IMAGE lines with the digest of each image behind its tag."""

    def line(found: re.Match[str]) -> str:
        name, image = found.groups()
        tagged = image.partition("@")[0]
        return f"{name}={tagged}@{digest_of(tagged)}"

    return re.sub(r"^(\w+)=(\S+)$", line, text, flags=re.MULTILINE)


def pinned_overlay(text: str, digest_of: Callable[[str], str]) -> str:
    """A kustomization with the digest of each of its `images`.

    Raises:
        DigestError: it has none, or one has no tag to ask for.
    """
    before, heading, rest = text.partition("\nimages:\n")
    if not heading:
        raise DigestError("a kustomization without `images`: name them there")
    end = re.search(r"^(?![ \-#]|$)", rest, re.MULTILINE)
    block, after = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    entries = re.split(r"^(?= *- )", block, flags=re.MULTILINE)
    for place, entry in enumerate(entries):
        given = dict(re.findall(r"^[ \-]*(\w+): *[\"']?([^\s\"']+)", entry, re.MULTILINE))
        if "name" not in given:
            continue
        if "newTag" not in given:
            raise DigestError(f"image {given['name']} has no newTag: say which one is meant")
        digest = digest_of(f"{given.get('newName', given['name'])}:{given['newTag']}")
        if "digest" in given:
            entry = re.sub(r"(?<=digest: )\S+", digest, entry)
        else:
            indent = " " * (len(entry) - len(entry.lstrip()) + 2)
            entry = f"{entry.rstrip()}\n{indent}digest: {digest}\n"
        entries[place] = entry
    return before + heading + "".join(entries) + after


def pin(files: list[Path]) -> None:
    """Writes all of the files, or none."""
    asked: dict[str, str] = {}

    def digest_of(image: str) -> str:
        if image not in asked:
            asked[image] = ask(image)
        return asked[image]

    texts = {}
    for file in files:
        change = pinned if file.suffix == ".env" else pinned_overlay
        texts[file] = change(file.read_text("utf-8"), digest_of)
    for file, text in texts.items():
        new = file.with_name(f".{file.name}.new")
        new.write_text(text, "utf-8")
        new.replace(file)
    for image, digest in asked.items():
        print(f"{image}@{digest}")


def render(overlay: str) -> str:
    """The manifests of an overlay.

    Raises:
        DigestError: it can't be made, or names an image otherwise than by digest.
    """
    folder = OVERLAYS / overlay
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    if done.returncode:
        raise DigestError(f"overlay {overlay}: {' '.join(done.stderr.split())}")
    images = re.findall(r"^[ \-]*image: *[\"']?([^\s\"']+)", done.stdout, re.MULTILINE)
    loose = [image for image in images if not re.search(rf"@{DIGEST.pattern}$", image)]
    if loose or not images:
        raise DigestError(
            f"overlay {overlay}: no digest of {', '.join(sorted(set(loose))) or 'anything'}: say "
            f"your registry and tags in {folder / 'kustomization.yaml'}, then "
            f"make digests OVERLAY={overlay}"
        )
    return done.stdout


def main(words: list[str]) -> None:
    match words:
        case ["pin", *files] if files:
            pin([Path(file) for file in files])
        case ["render", overlay]:
            print(render(overlay), end="")
        case _:
            raise DigestError("give pin FILE... or render OVERLAY")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (DigestError, OSError) as error:
        sys.exit(f"error: {error}")
