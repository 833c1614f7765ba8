import asyncio
from pathlib import Path

import pytest

from gpu_service.access import Access
from gpu_service.engine import EngineStoppedError
from gpu_service.server import Server
from gpu_service.settings import Settings


async def test_an_engine_that_failed_while_the_experts_were_gone_is_noticed(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(model=tiny, device="cpu", metrics_port=0)
    server = Server(settings, Access.read(settings))
    monkeypatch.setattr(server._experts, "is_serving", lambda: True)
    server._step_failed(EngineStoppedError("a fault on the device"))
    await asyncio.sleep(0)
    server._lost.clear()  # as when the experts are back
    await asyncio.wait_for(server._until_lost(), 5)
    server._experts.close()
