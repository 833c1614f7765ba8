"""Is my speed normal? In words: the share of the bound, the part that takes the time, and what would change it."""

from dataclasses import dataclass

from client import ModelInfo
from fiddler_checkup.bench.bound import Bound
from fiddler_checkup.bench.cases import Measurement

_NORMAL = 0.6
_LOW = 0.3
_SMALL_STEP_SECONDS = 0.02
"""A step that is bound to be shorter than this spends much of its time on what does not depend on the model's size."""
_READING_WELL = 0.7
_BYTES_OF_INT4 = 0.5625
_FOUR_BITS = ("int4", "fp4")
"""What the format of the dense part begins with if most of it is in 4 bits."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a step.

    Attributes:
        name: What it does.
        seconds: Of one step.
        key: "experts", "messages", "device", "dense" or "rest".
    """

    name: str
    seconds: float
    key: str


def parts_of(measurement: Measurement, *, on_cpu: bool) -> list[Part]:
    """The parts of one step of decoding, longest first. Parts of a layer overlap with a GPU; the layer counts once.

    The layers are counted in the prompts' steps, too: they are taken to have the same share of both kinds of steps. A
    step is a mean and what the caller waited a median, so that a slow round can make the step the longer of the two.
    """
    counted = measurement.counters
    step = min(counted.step_seconds / max(1, measurement.steps), measurement.seconds_per_step)
    all_steps = counted.step_seconds + counted.prefill_seconds
    layer = step * min(1.0, counted.layer_seconds / all_steps) if all_steps else 0.0
    whole = {key: counted.parts[key] for key in ("cpu", "hop", "gpu")}
    scale = layer / max(total, counted.layer_seconds) if (total := sum(whole.values())) else 0.0
    dense = "attention, head and router on the CPU" if on_cpu else "attention, head and router on the GPU"
    parts = [
        Part("experts computed by the CPU expert service", whole["cpu"] * scale, "experts"),
        Part("messages between the services", whole["hop"] * scale, "messages"),
        Part("experts on the GPU, and copying them there", whole["gpu"] * scale, "device"),
        Part(dense, max(0.0, step - layer), "dense"),
        Part("sampling, scheduling and sending tokens", max(0.0, measurement.seconds_per_step - step), "rest"),
    ]
    known = sum(part.seconds for part in parts)
    unknown = max(0.0, measurement.seconds_per_step - known)
    if unknown > 0.1 * measurement.seconds_per_step:
        parts.append(Part("planning, and waiting for a core that another service uses", unknown, "waiting"))
    return sorted((part for part in parts if part.seconds > 0), key=lambda part: -part.seconds)


def explain(measurement: Measurement, bound: Bound | None, model: ModelInfo, *, on_cpu: bool, kernel: str) -> list[str]:
    """The answer, a sentence or two for each line.

    Args:
        measurement: Decoding one stream.
        bound: What memory allows; None if that is not known.
        model: The model.
        on_cpu: Whether there is no GPU.
        kernel: What computes experts on the CPU.
    """
    lines = [_verdict(measurement, bound)]
    parts = parts_of(measurement, on_cpu=on_cpu)
    if not parts:
        return lines
    total = measurement.seconds_per_step
    shares = "; ".join(f"{part.name}: {part.seconds * 1e3:.3g} ms, {part.seconds / total:.0%}" for part in parts)
    lines.append(f"A token takes {total * 1e3:.3g} ms. {shares}.")
    lines.append(_what_changes(parts[0], measurement, model, on_cpu=on_cpu, kernel=kernel))
    return lines


def _verdict(measurement: Measurement, bound: Bound | None) -> str:
    if bound is None:
        return "The memory's bound is not known, since the CPU expert service did not measure it at its start."
    share = measurement.tokens_per_second / bound.tokens_per_second
    reached = f"{measurement.tokens_per_second:.3g} tokens/s are {share:.0%} of what reading the weights allows"
    if share >= _NORMAL:
        return f"Your speed is normal: {reached} on this machine. Little is left to gain but by reading fewer bytes."
    if measurement.case.rows / bound.tokens_per_second < _SMALL_STEP_SECONDS:
        return (
            f"{reached}. That is normal for so small a model: what does not depend on its size takes most of the "
            "time, and says little about a large one."
        )
    if share >= _LOW:
        return f"Your speed is a little low: {reached}."
    return f"Your speed is low: {reached}."


def _what_changes(part: Part, measurement: Measurement, model: ModelInfo, *, on_cpu: bool, kernel: str) -> str:
    """What would make the longest part shorter."""
    if part.key == "experts":
        return _about_reading(measurement, model, on_cpu=on_cpu, kernel=kernel)
    if part.key == "device":
        return (
            "The largest part is the GPU's experts: if copies dominate, --gpu-expert-memory and --popularity keep more "
            "of the chosen ones resident, and more PCIe lanes copy faster (`fiddler doctor` measures them)."
        )
    if part.key in ("messages", "waiting"):
        return (
            "The largest part is the way between the services, which does not grow with the model: give each service "
            "CPUs of its own (--cpus, --threads), and end other programs. Several streams share it."
        )
    if part.key == "dense":
        where = _dense_on_cpu(model) if on_cpu else "a faster GPU, or several streams at once, helps"
        return f"The largest part is dense, {model.dense_memory_bytes / 1e9:.3g} GB read for each token: {where}."
    return (
        "The largest part is outside the model: sampling options such as logprobs and penalties cost time; try without."
    )


def _about_reading(measurement: Measurement, model: ModelInfo, *, on_cpu: bool, kernel: str) -> str:
    counted = measurement.counters
    rate = counted.read_bytes / counted.read_seconds if counted.read_seconds else 0.0
    if kernel == "pytorch":
        return (
            f"The largest part is computing experts{f', which reads {rate / 1e9:.3g} GB/s' if rate else ''}: PyTorch "
            "does it; the native kernels are faster, and `fiddler doctor` says what they lack."
        )
    if rate and counted.limit and rate < _READING_WELL * counted.limit:
        return (
            f"The largest part is reading experts, at {rate / 1e9:.3g} GB/s of the {counted.limit / 1e9:.3g} that were "
            "measured at the start: other programs, or the GPU service's threads, use the same cores or the memory; "
            "small experts also cost more for starting than for reading."
        )
    less = _fewer_bytes(model)
    resident = "" if on_cpu else "; more GPU memory for experts (--gpu-expert-memory) takes them off the CPU"
    near = ", near the memory's limit" if counted.limit else ""
    speed = f" at {rate / 1e9:.3g} GB/s{near}" if rate else ""
    return (
        f"The largest part is reading experts{speed}. Fewer bytes help: {less}{resident}; so do more memory channels."
    )


def _dense_on_cpu(model: ModelInfo) -> str:
    gpu = "a GPU takes it over (--device cuda)"
    if model.dense_format.startswith(_FOUR_BITS):
        return gpu
    return f"{gpu}, and --dense-format int4 keeps it in 4 bits, so that less is read"


def _fewer_bytes(model: ModelInfo) -> str:
    if model.dtype not in ("bfloat16", "float16", "float32"):
        return "several streams at once share what is read"
    times = (4 if model.dtype == "float32" else 2) / _BYTES_OF_INT4
    return (
        f"--expert-format int4 serves a copy, converted once, whose experts have up to {times:.1f} times "
        "fewer (if they are not in 8 or 4 bits already), and several streams share what is read"
    )
