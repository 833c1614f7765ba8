"""Whether the packages that are imported are this project's: others may install `client`, `pair` or `fiddler`, too.

It imports nothing of this project, since that may be what is broken. Every command loads it first, so what takes long
to import is imported where it is used.
"""

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from importlib.metadata import PackagePath

PACKAGES: Final = (
    "client",
    "cpu_expert_service",
    "fiddler",
    "fiddler_checkup",
    "fiddler_cli",
    "gpu_service",
    "http_gateway",
    "pair",
)
"""What the wheel installs beside each other."""
ADVICE: Final = "install fiddler-moe in a virtual environment of its own, and start it from there"
_DISTRIBUTION: Final = "fiddler-moe"
_ROOT: Final = Path(__file__).resolve().parents[1]
_FROM_INDEX: Final = f"--no-cache-dir --no-binary {_DISTRIBUTION} {_DISTRIBUTION}"


def troubles() -> list[str]:
    """What is wrong with the packages, one text each: taken from elsewhere, shared with others, or incomplete."""
    return [*_from_elsewhere(), *_shared(), *_damaged()]


@contextmanager
def told(program: str) -> Iterator[None]:
    """Ends the program with one line if an import within the block fails and another's package is why.

    Raises:
        SystemExit: That was why.
        ImportError: It was not.
    """
    try:
        yield
    except ImportError as error:
        found = troubles()
        if not found:
            raise
        print(f"{program}: {error}: {'; '.join(found)}; {ADVICE}", file=sys.stderr)
        raise SystemExit(1) from None


def how_to_install_again() -> str:
    """The command that builds the native kernels anew, for how this was installed: from a directory or by name."""
    from importlib import metadata

    pip = "pip install --force-reinstall --no-deps"
    try:
        origin = json.loads(metadata.distribution(_DISTRIBUTION).read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        origin = {"dir_info": {}, "url": _ROOT.as_uri()}
    if "url" not in origin:
        return f"{pip} {_FROM_INDEX}"
    if "dir_info" not in origin:
        return f"{pip} ."  # of a clone, which built the file that was installed
    editable = "--editable " if origin["dir_info"].get("editable") else ""
    return f"{pip} {editable}{shlex.quote(unquote(urlsplit(origin['url']).path))}"


def _from_elsewhere() -> Iterator[str]:
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            yield f"{name} is missing"
        elif Path(spec.origin).resolve().parents[1] != _ROOT:
            yield f"{name} is another's, {spec.origin}"


def _shared() -> Iterator[str]:
    """Distributions that have installed files into the same packages."""
    from importlib import metadata

    ours = re.compile(rf"^({'|'.join(PACKAGES)})/", re.MULTILINE)
    for other in metadata.distributions():
        if other.name == _DISTRIBUTION:
            continue
        names = set(ours.findall(other.read_text("RECORD") or ""))
        places = {name for name in names if Path(str(other.locate_file(name))).resolve() == _ROOT / name}
        for name in sorted(places):
            yield f"{name} also holds files of {other.name} {other.version}"


def _damaged() -> Iterator[str]:
    """Files that another has overwritten, or has taken along when it was removed."""
    from importlib import metadata

    try:
        installed = metadata.files(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return
    lost = [str(file) for file in installed if file.size is not None and not _has_size(file)]
    if lost:
        count = "1 file is" if len(lost) == 1 else f"{len(lost)} files are"
        yield f"{count} missing or changed, such as {lost[0]}"


def _has_size(file: "PackagePath") -> bool:
    try:
        return Path(str(file.locate())).stat().st_size == file.size
    except OSError:
        return False
