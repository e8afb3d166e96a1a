"""Google's and Azure's storage on loopback, as the crashes see a server: one that is not killed.

Both hold what they hold in memory, so only drivers die.
"""

import os
from contextlib import AbstractContextManager

from cloud_servers import BUCKET, azurite, fake_gcs_server

from ldm_batch.config import SinkConfig

CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"


class Google:
    """fake-gcs-server."""

    is_lasting = False

    def __init__(self) -> None:
        self._server: AbstractContextManager[str] = fake_gcs_server()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._url = self._server.__enter__()

    def wait_ready(self) -> None:
        """It answers since it was started."""

    def sink(self, name: str) -> SinkConfig:
        """Where a dataset of that name is written."""
        options = {"endpoint_url": self._url, "token": "anon", "retry_s": 90}
        return SinkConfig(uri=f"gs://{BUCKET}/{name}", storage=options)

    def kill(self) -> None:
        """End the server."""
        self._server.__exit__(None, None, None)


class Azure:
    """Azurite."""

    is_lasting = False

    def __init__(self) -> None:
        self._server: AbstractContextManager[str] = azurite()

    def start(self) -> None:
        """Start the server and wait until it answers; how to reach it goes to the environment."""
        os.environ[CONNECTION] = self._server.__enter__()

    def wait_ready(self) -> None:
        """It answers since it was started."""

    def sink(self, name: str) -> SinkConfig:
        """Where a dataset of that name is written."""
        return SinkConfig(uri=f"az://{BUCKET}/{name}", storage={"retry_s": 90})

    def kill(self) -> None:
        """End the server."""
        self._server.__exit__(None, None, None)
        del os.environ[CONNECTION]
