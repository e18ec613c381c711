"""`/admin/model` of a service, without the service: what was set is what its processes serve."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

KEY = "of the admin"


class AdminServer:
    """Attributes:
    posted: the models that were set, by name and share, in order.
    fault: what its one process says of any change from now on.
    """

    def __init__(self, started_with: str = "unpublished") -> None:
        self.base: str | None = None
        self.trials: dict[str, float] = {}
        self.decisions: list[dict[str, str]] = []
        self.version = 0
        self.posted: list[tuple[str, float]] = []
        self.fault: str | None = None
        self.started_with = started_with
        self._lock = threading.Lock()
        own = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(own.shown())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                own.set(**body)
                self._answer(own.shown())

            def do_DELETE(self) -> None:
                own.delete(unquote(self.path.removeprefix("/admin/model").removeprefix("/trials/")))
                self._answer(own.shown())

            def _answer(self, said: dict[str, Any]) -> None:
                allowed = self.headers["X-API-Key"] == KEY
                content = json.dumps(said if allowed else {"detail": "no key"}).encode()
                self.send_response(200 if allowed else 401)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def set(self, model: str, share: float, decide: bool) -> None:
        with self._lock:
            assert decide == (share < 1)
            self.posted.append((model, share))
            self.version += 1
            if share < 1:
                self.trials[model] = share
            else:
                self.trials.pop(model, None)
                self.base = model

    def delete(self, trial: str) -> None:
        with self._lock:
            self.version += 1
            if trial:
                del self.trials[trial]
            else:
                self.base, self.trials = None, {}

    def decide(self, trial: str, decision: str, reason: str) -> None:
        with self._lock:
            self.version += 1
            del self.trials[trial]
            if decision == "promoted":
                self.base = trial
            said = {"trial": trial, "decision": decision, "reason": reason}
            self.decisions.insert(0, said)

    def shown(self) -> dict[str, Any]:
        process = {
            "process": "a:1",
            "version": self.version - (self.fault is not None),
            "base": {"name": self.base or "folder", "identity": self.started_with},
            "fault": self.fault,
        }
        return {
            "version": self.version,
            "base": None if self.base is None else {"name": self.base},
            "trials": [{"name": name, "share": share} for name, share in self.trials.items()],
            "decisions": self.decisions,
            "processes": [process],
        }
