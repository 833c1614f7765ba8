"""Finds the model that a command line names, or downloads it after a dry run in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fiddler.checkpoint.first_look import first_look
from fiddler.checkpoint.tokenizer_files import check_tokenizer
from fiddler.errors import UserError
from fiddler.hub.download import Estimate, obtain
from fiddler.running.modules import command_of


def obtain_model(
    model: str, *, module: str, assume_yes: bool, gpu_arguments: Sequence[str] = (), is_served: bool = True
) -> Path:
    """The directory of a model, which is downloaded if its name is not in the cache.

    Args:
        model: A path, "demo", or ORG/NAME[@REVISION].
        module: What the lines about it begin with.
        assume_yes: Whether to download without a question.
        gpu_arguments: Flags of the GPU service that decide what fits, such as --device.
        is_served: Whether the model will be served, which takes a tokenizer.

    Raises:
        UserError: The model is not there and cannot be downloaded, cannot be served, or the user did not agree.
    """

    def say(line: str) -> None:
        print(f"{module}: {line}", file=sys.stderr, flush=True)

    directory = obtain(model, estimate=partial(dry_run, gpu_arguments=gpu_arguments), assume_yes=assume_yes, say=say)
    first_look(directory)
    if is_served:
        check_tokenizer(directory)
    return directory


def dry_run(directory: Path, gpu_arguments: Sequence[str] = ()) -> Estimate:
    """What the GPU service says that a model takes.

    Raises:
        UserError: The model cannot be served.
    """
    told = json.loads(print_dry_run(directory, "--dry-run-format", "json", *gpu_arguments).splitlines()[-1])
    return Estimate(**{name: told[name] for name in Estimate.__dataclass_fields__})


def print_dry_run(directory: Path, *gpu_arguments: str) -> str:
    """What `python -m gpu_service --dry-run` prints. Torch is loaded in that process only, and gone with it.

    Raises:
        UserError: The model cannot be served.
    """
    command = command_of("gpu_service", "--model", str(directory), "--dry-run", "--log-level", "error")
    done = subprocess.run([*command, *gpu_arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        *_, last = done.stderr.strip().splitlines() or [f"the dry run ended with status {done.returncode}"]
        raise UserError(last.removeprefix("gpu_service: "))
    return done.stdout
