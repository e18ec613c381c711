"""An embedded Valkey in a data directory, shared by every process that opens it.

Files in the directory: `appendonlydir/` (the data), `valkey.sock`, `valkey.log`, `valkey.pid`, and
three locks (flock, released by the kernel however a process ends):

    start.lock    held while a process starts, attaches to or stops the server
    users.lock    shared by every user; who gets it alone is the last one
    server.lock   inherited by the server: held is alive, whatever became of its socket

The directory and all files in it are for their owner alone, whatever umask a process has.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.store.errors import EmbeddedStoreError
from service.store.private_folder import FolderError, private_folder
from service.store.valkey_binary import valkey_binary

logger = logging.getLogger(__name__)

_LONGEST_SOCKET_PATH = 103  # bytes; Linux takes 107, macOS 103
_ANSWERS_WITHIN_S = 15.0
_STOPS_WITHIN_S = 15.0
_POLL_S = 0.01
_UMASK = 0o077
_OWN = ("appendonlydir", "dump.rdb", "index", "server.", "start.", "temp-", "users.", "valkey.")
"""How the names begin of what is in the directory, the index of items included."""


def own_directory(data_dir: Path, *, close: bool = True) -> Path:
    """The data directory, made where it is missing, past its links and closed to other users; with
    `close` False it is only looked whether that can be.

    Raises:
        EmbeddedStoreError: it can't be had for its user alone, or not be written to.
    """
    try:
        return private_folder(data_dir.expanduser().absolute(), _OWN, close=close)
    except FolderError as error:
        raise EmbeddedStoreError(str(error)) from None


class EmbeddedStore:
    """The Valkey server of a data directory, as a context manager that yields its unix:// URL.

    The first user starts the server, others attach to it, the last one to leave stops it. After
    a kill -9 of its users it lives on, and the next user attaches. It takes no signals from the
    terminal, opens no TCP port and writes every accepted interaction to its append-only file:
    `fsync` "always" before it answers, "everysec" within a second or two.

        with EmbeddedStore("state") as url:
            ...

    Raises EmbeddedStoreError on entering. A context belongs to the process that entered it.
    """

    def __init__(
        self, data_dir: str | Path, *, fsync: Literal["always", "everysec"] = "always"
    ) -> None:
        if fsync not in ("always", "everysec"):
            raise ValueError(f"fsync is {fsync!r}; give 'always' or 'everysec'")
        self._folder = Path(data_dir).expanduser().absolute()
        self._fsync = fsync
        self._users: int | None = None
        self._owner = 0

    def __enter__(self) -> str:
        if self._users is not None:
            raise RuntimeError("this EmbeddedStore is entered already")
        self._folder = own_directory(self._folder)
        try:
            with self._starting():
                users = _open(self._folder / "users.lock")
                try:
                    fcntl.flock(users, fcntl.LOCK_SH)
                    url = self._start_or_attach()
                except BaseException:
                    os.close(users)
                    raise
        except OSError as error:
            raise EmbeddedStoreError(
                f"{self._folder}: {error.strerror or error}; "
                "the embedded store needs a local directory it can write to"
            ) from error
        self._users, self._owner = users, os.getpid()
        return url

    def __exit__(self, *exc_info: object) -> None:
        users, self._users = self._users, None
        if users is None or self._owner != os.getpid():
            return
        with self._starting():
            try:
                if not _held_elsewhere(users):
                    self._stop()
            finally:
                os.close(users)

    def ensure_running(self) -> None:
        """Start the server again if it has died under its users. Blocks until it answers."""
        with self._starting():
            self._start_or_attach()

    @contextmanager
    def _starting(self) -> Iterator[None]:
        lock = _open(self._folder / "start.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _start_or_attach(self) -> str:
        socket = self._socket()
        with _client(socket) as client:
            if not (self._server_lives() and self._answers(client)):
                self._start(socket)
                if not self._answers(client):
                    self._fail("stopped while starting", _read(self._folder / "valkey.log"))
            if self._fsync == "always":
                client.config_set("appendfsync", "always")  # it may have been started without
        return f"unix://{socket}"

    def _start(self, socket: Path) -> None:
        options = {
            "port": "0",
            "unixsocket": str(socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "pidfile": str(self._folder / "valkey.pid"),
            "logfile": str(self._folder / "valkey.log"),
            "daemonize": "yes",
            "appendonly": "yes",
            "appendfsync": self._fsync,
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        command = [str(valkey_binary())]
        for name, value in options.items():
            command += [f"--{name}", value]
        server_lock = _open(self._folder / "server.lock")
        try:
            fcntl.flock(server_lock, fcntl.LOCK_EX)
            started = subprocess.run(
                command,
                pass_fds=[server_lock],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                umask=_UMASK,
                check=False,
            )
        finally:
            os.close(server_lock)
        if started.returncode != 0:
            self._fail("could not be started", started.stdout.decode(errors="replace"))

    def _stop(self) -> None:
        try:
            with _client(self._socket()) as client:
                client.shutdown(nosave=True)
        except redis.RedisError as error:
            logger.warning("embedded store in %s: %s", self._folder, error)
        deadline = time.monotonic() + _STOPS_WITHIN_S
        while self._server_lives():
            if time.monotonic() > deadline:
                logger.warning("embedded store in %s is still stopping", self._folder)
                break
            time.sleep(_POLL_S)

    def _answers(self, client: redis.Redis) -> bool:
        """Wait until the server answers; False if it dies instead."""
        silent_since = time.monotonic()
        while True:
            try:
                client.ping()
                return True
            except redis.exceptions.BusyLoadingError:
                silent_since = time.monotonic()  # reading its file, however long that takes
            except (redis.ConnectionError, redis.TimeoutError) as error:
                if not self._server_lives():
                    return False
                if time.monotonic() - silent_since > _ANSWERS_WITHIN_S:
                    pid = _read(self._folder / "valkey.pid").strip() or "?"
                    raise EmbeddedStoreError(
                        f"{self._folder}: its valkey-server (pid {pid}) does not answer; "
                        "stop that process and try again"
                    ) from error
            time.sleep(_POLL_S)

    def _server_lives(self) -> bool:
        server_lock = _open(self._folder / "server.lock")
        try:
            return _held_elsewhere(server_lock)
        finally:
            os.close(server_lock)

    def _socket(self) -> Path:
        path = self._folder / "valkey.sock"
        if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
            return path
        # Every process must find the same one, so not under TMPDIR.
        short = Path("/tmp") / f"tim4rec-{os.getuid()}"
        short.mkdir(mode=0o700, exist_ok=True)
        status = short.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077 or short.is_symlink():
            raise EmbeddedStoreError(
                f"{short} is open to other users; remove it, or give a shorter data directory"
            )
        return short / f"{hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:16]}.sock"

    def _fail(self, what: str, output: str) -> None:
        lines = [line.strip() for line in output[-4000:].splitlines() if line.strip()]
        # Valkey marks its warnings and fatal errors with "#".
        telling = [line.partition(" # ")[2] or line for line in lines if " # " in line] or lines
        reason = " ".join(telling[-2:]) or "it said nothing"
        raise EmbeddedStoreError(
            f"{self._folder}: valkey-server {what}: {reason} (all of it: valkey.log there)"
        )


def _client(socket: Path) -> redis.Redis:
    return redis.Redis(
        unix_socket_path=str(socket), socket_timeout=2.0, retry=Retry(NoBackoff(), 0)
    )


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _held_elsewhere(descriptor: int) -> bool:
    """Whether another open file has the lock; otherwise this one has it alone now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
