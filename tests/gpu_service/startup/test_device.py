"""--device: why auto is the CPU is told, and cuda without a GPU is refused with what helps."""

import pytest
from structlog.testing import capture_logs

from fiddler.machine.gpus import Build, Nvidia
from gpu_service.errors import FlagError
from gpu_service.startup import device
from gpu_service.startup.device import choose_device, device_of

CPU_BUILD = Build(version="2.13.0+cpu", cuda=None, num_devices=0)


@pytest.fixture
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with that many GPUs, and PyTorch's CPU build."""
    nvidia = Nvidia(num_gpus=request.param, driver="580.65.06", has_device_files=request.param > 0)
    monkeypatch.setattr(device, "read_build", lambda torch: CPU_BUILD)
    monkeypatch.setattr(device, "read_nvidia", lambda: nvidia)


@pytest.mark.parametrize(
    ("machine", "level", "reason"),
    [(1, "warning", "PyTorch 2.13.0+cpu is built without CUDA"), (0, "info", "this machine has no NVIDIA GPU")],
    indirect=["machine"],
)
def test_auto_says_why_it_is_the_cpu(machine: None, level: str, reason: str) -> None:
    with capture_logs() as lines:
        assert choose_device("auto").type == "cpu"
    assert [(line["event"], line["log_level"]) for line in lines] == [("computing on the CPU", level)]
    assert lines[0]["reason"].startswith(reason)


@pytest.mark.parametrize("machine", [1], indirect=True)
def test_cuda_is_refused_with_the_reason(machine: None) -> None:
    with pytest.raises(
        FlagError, match=r"^--device: PyTorch finds no CUDA device that it can use: PyTorch 2.13.0\+cpu is"
    ):
        device_of("cuda")
    with capture_logs() as lines:
        assert choose_device("cpu").type == "cpu"
    assert lines == []
