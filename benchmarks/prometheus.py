"""A Prometheus of one's own, with the configuration of deploy/prometheus."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml  # type: ignore[import-untyped]

FOLDER = Path(__file__).parents[1] / "deploy" / "prometheus"
READY_WITHIN_S = 30


def scrape_interval_s() -> float:
    """The one of deploy/prometheus, in seconds."""
    text: str = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["global"]["scrape_interval"]
    return float(text.removesuffix("s"))


class Prometheus:
    """A server that scrapes one service, and one learner; nothing of the configuration is changed
    but addresses (it tells no Alertmanager) and, where given, how often.

    Args:
        target: host:port of the service. learner: of the learner; None: there is none.
        every_s: seconds between two scrapes, and two evaluations of rules; None: as configured.

    Raises:
        FileNotFoundError: the program `prometheus` (Debian package prometheus) is missing.
    """

    def __init__(self, target: str, every_s: int | None = None, learner: str | None = None) -> None:
        program = shutil.which("prometheus")
        if program is None:
            raise FileNotFoundError("prometheus is missing: install the Debian package prometheus")
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self._folder = tempfile.TemporaryDirectory(prefix="prometheus-")
        folder = Path(self._folder.name)
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["rule_files"] = [str(FOLDER / name) for name in config["rule_files"]]
        if every_s is not None:
            times = ("scrape_interval", "scrape_timeout", "evaluation_interval")
            config["global"] |= dict.fromkeys(times, f"{every_s}s")
        del config["alerting"]
        targets = {"tim4rec": target, "tim4rec-learner": learner, "prometheus": address}
        for job in config["scrape_configs"]:
            job.pop("dns_sd_configs", None)
            found = targets[job["job_name"]]
            job["static_configs"] = [{"targets": [found] if found else []}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.client = httpx.Client(base_url=f"http://{address}", timeout=30)
        self._command = [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            "--log.level=error",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command)
        until = time.monotonic() + READY_WITHIN_S
        while True:
            try:
                if self.client.get("/-/ready").is_success:
                    return self
            except httpx.TransportError:
                pass
            if self._process.poll() is not None or time.monotonic() > until:
                self.__exit__(None, None, None)
                raise RuntimeError("prometheus did not start: see what it said above")
            time.sleep(0.05)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        self.client.close()
        self._folder.cleanup()

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """Series with their `metric` and `value`; `at`: epoch seconds, None: now.

        Raises:
            ValueError: Prometheus can't answer it.
        """
        return self._data("query", {"query": expression} | ({"time": at} if at else {}))

    def query_range(
        self, expression: str, start: float, end: float, step_s: float
    ) -> list[dict[str, Any]]:
        """Series with their `metric` and `values`; times in epoch seconds.

        Raises:
            ValueError: Prometheus can't answer it.
        """
        asked = {"query": expression, "start": start, "end": end, "step": step_s}
        return self._data("query_range", asked)

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health and, of alerts, its state."""
        answer = self.client.get("/api/v1/rules").raise_for_status().json()
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]

    def _data(self, path: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
        answer = self.client.post(f"/api/v1/{path}", data=asked).json()
        if answer["status"] != "success":
            raise ValueError(f"{asked['query']}: {answer['error']}")
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result
