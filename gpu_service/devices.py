"""The device that the dense part is computed on, by the name that a user gives it."""

import torch

from gpu_service import host_memory


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, where keys and values are held."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_memory.measure().free_bytes


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one.

    Raises:
        ValueError: CUDA is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: cuda was asked for, and PyTorch finds no CUDA device")
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
