"""Chooses the device of --device, and says why it is not a GPU."""

import structlog
import torch

from fiddler.machine.gpus import read_build, read_nvidia, why_unusable
from gpu_service.errors import FlagError

_log = structlog.get_logger("gpu_service")


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA if PyTorch can compute on a GPU, else the CPU.

    Raises:
        FlagError: CUDA is requested, and PyTorch cannot compute on a GPU. The text says why and what helps.
    """
    if name == "cpu":
        return torch.device("cpu")
    why = why_no_gpu()
    if why is None:
        return torch.device("cuda", torch.cuda.current_device())
    if name == "cuda":
        raise FlagError(f"--device: PyTorch finds no CUDA device that it can use: {why}. Or set --device cpu")
    return torch.device("cpu")


def why_no_gpu() -> str | None:
    """Why "auto" is the CPU, as the end of a sentence; None if there is a GPU to compute on."""
    return why_unusable(read_build(torch), read_nvidia())


def choose_device(name: str) -> torch.device:
    """As `device_of`, and the log says why "auto" is the CPU: in a warning if there is a GPU that cannot be used."""
    device = device_of(name)
    if name == "auto" and device.type == "cpu" and (why := why_no_gpu()):
        log = _log.warning if read_nvidia().num_gpus else _log.info
        log("computing on the CPU", reason=why)
    return device
