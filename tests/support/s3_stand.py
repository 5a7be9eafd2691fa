"""A store whose large values lie in the strict S3: embedded, and behind a server of this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from agent_memory import AgentMemory
from agent_memory.client import Client, Opened
from agent_memory.service import StateService
from agent_memory.signing import Keyring
from agent_memory.storage.object_blobs import ObjectBlobs
from agent_memory.storage.sqlite.catalog import SqliteCatalog

from .stores import Clock, ThreadServer, _Shared
from .strict_s3 import BUCKET, StrictS3

KIB: Final = 1024
CHUNK: Final = 64 * KIB


class Stand:
    """One service with a clock that the test turns, and clients of it. The environment leads to ``s3``."""

    def __init__(self, s3: StrictS3, server: ThreadServer, folder: Path) -> None:
        self.s3 = s3
        self.server = server
        self.clock = Clock()
        self.blobs = ObjectBlobs(f"s3://{BUCKET}/prefix")
        self.service = StateService(SqliteCatalog(folder / "memory.db", durable=False, clock=self.clock), self.blobs)
        server.serve(self.service)

    def remote(self, **options: Any) -> AgentMemory:
        """Open a client of the server, which goes to the object store by signed URLs."""
        return AgentMemory(self.server.url, application="a", blob_hosts=[self.s3.host], **options)

    def embedded(self, **options: Any) -> AgentMemory:
        """Open a client of the service without a server in between."""
        template = AgentMemory("memory://", application="a", **options)
        template.close()
        config = template._client.config._replace(
            volatile_owner=None, open=lambda config: Opened(_Shared(self.service), Keyring(config.signing_keys))
        )
        return AgentMemory.of(Client(config))

    def close(self) -> None:
        self.service.close()
