import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from fiddler.v1 import experts_pb2
from gpu_service import server
from gpu_service.api.auth import Access
from gpu_service.errors import EngineStoppedError, FlagError
from gpu_service.model_runner.model import Model
from gpu_service.server import Server
from gpu_service.settings import Settings


async def test_an_engine_that_failed_ends_the_service_whatever_is_under_way(tiny: Path) -> None:
    settings = Settings(model=tiny, device="cpu", metrics_port=0)
    service = Server(settings, Access.read(settings))
    error = EngineStoppedError("a fault on the device")
    for _ in range(2):
        service._step_failed(error)
    assert await asyncio.wait_for(service._fatal, 5) is error
    service._experts.close()


async def test_a_device_without_memory_for_experts_is_told_in_a_sentence(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs_out(*arguments: object, **more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(server, "make_orchestration", runs_out)
    settings = Settings(model=tiny, device="cpu", metrics_port=0)
    service = Server(settings, Access.read(settings))
    with pytest.raises(FlagError, match=r"--device: cuda has too little memory for .* \(--gpu-expert-memory\)"):
        await service._make_orchestration(
            cast("Model", SimpleNamespace(device=torch.device("cuda"))), experts_pb2.DescribeResponse(), 16
        )
    service._experts.close()
