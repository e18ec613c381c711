"""Artefacts in an object store: BUCKET/PREFIX/NAME/FILE, by whatever fsspec has for the URL.

What makes an artefact visible is its `config.json`, the last of it that is written and the first
that is removed.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from model.artefact import CONFIG, CONFIG_BYTES, ArtefactError, edition_claimed_by
from model.artefact_cache import cached, fill
from model.artefact_contents import Contents, file_sizes
from model.store_names import (
    LISTED,
    SMALL_BYTES,
    ArtefactStoreError,
    ModelNameError,
    is_hidden,
    require_name,
    require_new_name,
)

_CLAIM = ".publishing"
_URL = re.compile(
    r"[a-z][a-z0-9+.-]*://[\w.-]+(@[\w.-]+)?(:\d{1,5})?(/[^/@?#\s\x00-\x1f]+)*/?", re.ASCII
)
_UNREADABLE = (
    "the URL of the models can't be read; give s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or a folder, "
    "without user, password and options: credentials come from the environment"
)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_SECRET = re.compile("SECRET|TOKEN|PASSWORD|KEY")
_IN_URL = re.compile(r"(?<=://)[^/\s]*@|\?\S*")


class ObjectStore:
    """An ArtefactStore.

    Raises:
        ArtefactStoreError: the URL can't be read, or its library is not installed.
    """

    def __init__(self, url: str) -> None:
        if not _URL.fullmatch(url):
            raise ArtefactStoreError(_UNREADABLE)
        self._url = url.rstrip("/")
        try:
            # What others put there is seen at once.
            self._files, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            scheme = url.partition(":")[0]
            extra = _EXTRAS.get(scheme)
            fix = f"needs the extra `{extra}`: pip install 'tim4rec[{extra}]'" if extra else error
            raise ArtefactStoreError(f"{scheme}:// {fix}") from None
        self._root = root.rstrip("/")

    @property
    def url(self) -> str:
        return self._url

    def publish(self, folder: Path, name: str) -> None:
        require_new_name(name)
        with self._faults():
            contents = Contents.of_folder(folder)
            files = contents.files(file_sizes(folder))
            contents.require_in(folder)
            config = self._path(name, CONFIG)
            there = self._read(config, CONFIG_BYTES)
            if there is None:
                there = self._claim(name, contents.config)
                if there == contents.config:
                    for file in files:
                        self._files.put_file(str(folder / file), self._path(name, file))
                    self._files.pipe_file(config, there)
            if there != contents.config:
                raise ArtefactStoreError(f"{self._url}/{name} is another model: use a new name")

    def names(self) -> dict[str, str]:
        with self._faults():
            there = [
                (_modified(about), name, about["size"])
                for path, about in self._listed().items()
                for name, _, file in [path.partition("/")]
                if file == CONFIG and not is_hidden(name) and 0 < about["size"] <= CONFIG_BYTES
            ]
            newest = heapq.nlargest(LISTED, there)
            paths = [self._path(name, CONFIG) for _, name, _ in newest]
            sizes = [size for _, _, size in newest]
            # All at once, where the library can.
            contents = self._files.cat_ranges(paths, [0] * len(paths), sizes, on_error="return")
        found = {}
        for (_, name, _), content in zip(newest, contents, strict=True):
            if isinstance(content, bytes):  # else it is gone meanwhile
                with suppress(ArtefactError):
                    found[name] = edition_claimed_by(content, f"{self._url}/{name}/{CONFIG}")
        return found

    def fetch(self, name: str, cache: Path, edition: str | None = None) -> Path:
        require_name(name)
        if edition is not None and (there := cached(cache, edition, name)) is not None:
            return there
        with self._faults():
            config = self._read(self._path(name, CONFIG), CONFIG_BYTES)
            if config is None:
                raise ModelNameError(f"there is no model {name!r} in {self._url}")
            contents = Contents.of(config, f"{self._url}/{name}")
            if (there := cached(cache, contents.edition, name)) is not None:
                return there
            return fill(
                cache, contents.edition, name, lambda folder: self._download(contents, name, folder)
            )

    def remove(self, name: str) -> bool:
        require_name(name)
        with self._faults():
            there = self._listed(name)
            for file in sorted(there, key=lambda file: (file != CONFIG, file == _CLAIM)):
                self._files.rm_file(self._path(name, file))
        return bool(there)

    def read(self, name: str) -> bytes | None:
        require_name(name)
        with self._faults():
            return self._read(self._path(name), SMALL_BYTES)

    def write(self, name: str, content: bytes) -> None:
        require_new_name(name)
        with self._faults():
            self._files.pipe_file(self._path(name), content)

    def _path(self, *names: str) -> str:
        return "/".join((self._root, *names))

    def _read(self, path: str, most: int) -> bytes | None:
        try:
            if (size := self._files.info(path)["size"]) > most:
                raise ArtefactStoreError(f"{path} has {size:,} bytes: at most {most:,} are read")
            content: bytes = self._files.cat_file(path)
        except FileNotFoundError:
            return None
        return content

    def _claim(self, name: str, config: bytes) -> bytes:
        """The `config.json` that may be written by this name: of two who publish, the first one's,
        also after it was killed."""
        path = self._path(name, _CLAIM)
        try:
            self._files.pipe_file(path, config, mode="create")
        except OSError:  # not of all a FileExistsError
            if (there := self._read(path, CONFIG_BYTES)) is None:
                raise
            return there
        return config

    def _listed(self, *names: str) -> dict[str, dict[str, Any]]:
        """What is known of all objects below, by the rest of their paths."""
        top = self._path(*names, "")
        found = self._files.find(top, detail=True)
        return {path.removeprefix(top): about for path, about in found.items() if path != top}

    def _download(self, contents: Contents, name: str, folder: Path) -> None:
        sizes = {file: about["size"] for file, about in self._listed(name).items()}
        for file in contents.files(sizes):
            self._files.get_file(self._path(name, file), str(folder / file))
        contents.require_in(folder)
        (folder / CONFIG).write_bytes(contents.config)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        # Every library behind fsspec has errors of its own.
        try:
            yield
        except (ArtefactStoreError, ArtefactError):
            raise
        except Exception as error:
            raise ArtefactStoreError(f"{self._url}: {_reason(error)}") from None


def _modified(about: Mapping[str, Any]) -> float:
    """When an object was written: each library has a name of its own for it."""
    names = ("LastModified", "mtime", "last_modified", "created")
    time = next((about[name] for name in names if about.get(name) is not None), 0.0)
    return time.timestamp() if isinstance(time, datetime) else float(time)


def _reason(error: Exception) -> str:
    """An error on one short line, without what may let others in."""
    text = " ".join(str(error).split())
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET.search(name.upper()):
            text = text.replace(value, "...")
    return f"{type(error).__name__}: {_IN_URL.sub('', text)[:300]}"
