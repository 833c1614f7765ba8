import asyncio
from pathlib import Path

from gpu_service.api.auth import Access
from gpu_service.errors import EngineStoppedError
from gpu_service.server import Server
from gpu_service.settings import Settings


async def test_an_engine_that_failed_ends_the_service_whatever_is_under_way(tiny: Path) -> None:
    settings = Settings(model=tiny, device="cpu", metrics_port=0)
    server = Server(settings, Access.read(settings))
    error = EngineStoppedError("a fault on the device")
    for _ in range(2):
        server._step_failed(error)
    assert await asyncio.wait_for(server._fatal, 5) is error
    server._experts.close()
