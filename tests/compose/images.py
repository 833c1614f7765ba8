"""The content of the images."""

import json

from tests.compose.stack import OWN_IMAGES, ComposeError, image, run

_COMPILERS = "gcc g++ cc c++ cpp clang clang++ ld as make ninja cmake"
_LIST_COMPILERS = f"for name in {_COMPILERS}; do command -v $name; done; find /usr/lib /usr/libexec -name 'cc1*'; true"
_LIST_TOOLS = (
    "find /opt -mindepth 2 -path '/opt/tools/*' -o -path '*/fiddler/kernels/csrc' -o -path '*/site-packages/pip'"
    " -o -path '*/torch/include'"
)


def check(service: str) -> None:
    """Raises ComposeError if an image runs as root, or contains what only builds need."""
    name = image(service)
    config = json.loads(run("docker", "image", "inspect", name))[0]["Config"]
    if config["User"].partition(":")[0] in ("", "0", "root"):
        raise ComposeError(f"{name} runs as root")
    in_image = ["docker", "run", "--rm", "--network", "none", "--read-only", "--entrypoint", "sh", name, "-c"]
    if run(*in_image, "id -u").strip() == "0":
        raise ComposeError(f"{name} runs as root")
    if found := run(*in_image, _LIST_COMPILERS).split():
        raise ComposeError(f"{name} has compilers: {found}")
    if found := run(*in_image, _LIST_TOOLS).split():
        raise ComposeError(f"{name} contains what only builds need: {found}")


def check_all() -> None:
    """Checks both images."""
    for service in OWN_IMAGES:
        check(service)
