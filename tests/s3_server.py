"""An S3 server of moto's, as a process."""

from __future__ import annotations

import subprocess
import sys
import time

import botocore.session
import httpx

from tests.ports import free_port
from tests.reaper import reap
from tests.waited import LONG_S

BUCKET = "shop"
SECRET = "hunter2hunter2"


class S3Server:
    """Serves one bucket on a port of this machine; `kill` ends it with all that it held."""

    def __init__(self) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Without any bucket."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        reap(self._process.pid)
        deadline = time.monotonic() + LONG_S
        while not self._answers():
            assert self._process.poll() is None, "moto did not start"
            assert time.monotonic() < deadline, "moto does not answer"
            time.sleep(0.05)

    @property
    def environment(self) -> dict[str, str]:
        """By which libraries find it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def make_bucket(self) -> None:
        """An empty one, whatever was there."""
        httpx.post(f"{self.url}/moto-api/reset")
        client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="somebody",
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/moto-api/").is_success
        except httpx.TransportError:
            return False
