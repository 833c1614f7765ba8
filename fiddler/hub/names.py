"""What `--model` may be: a path, `demo`, or `ORG/NAME[@REVISION]` of a model in the Hugging Face cache.

Nothing here asks the hub: fiddler/hub/download.py does.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from typing_extensions import override

from fiddler.hub.cache import cache_directory, repository_folder, snapshot_at

DEMO: Final = "demo"
"""The name of the small model that comes with the project."""
_NAME: Final = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?!.*\.\.)(\w[\w./-]*))?")
_PACKAGE: Final = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class HubName:
    """A model of the Hugging Face hub."""

    repository: str
    """ORG/NAME."""
    revision: str | None = None
    """A branch, a tag or a commit; None for the branch main."""

    @classmethod
    def parse(cls, text: str | Path) -> "HubName | None":
        """The model that a text names; None if the text does not have the form ORG/NAME[@REVISION]."""
        match = _NAME.fullmatch(str(text))
        return cls(match[1], match[2]) if match else None

    @override
    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def cached(name: HubName) -> Path | None:
    """The folder of a model's files in the cache; None if there is none. It may be incomplete."""
    return snapshot_at(cache_directory() / repository_folder(name.repository), name.revision or "main")


def locate(model: Path) -> Path:
    """The directory that a model's name stands for; a path that exists stands for itself.

    Args:
        model: A path, "demo", or ORG/NAME[@REVISION].

    Returns:
        The directory; if nothing is found, what was given, for which `absence_of` has the reason.
    """
    if os.path.lexists(model):
        return model
    if str(model) == DEMO:
        return demo_directory() or model
    name = HubName.parse(model)
    return (cached(name) if name else None) or model


def demo_directory() -> Path | None:
    """The demo model: in an installed package, or in the repository; None if neither has it."""
    places = (_PACKAGE / "demo", _PACKAGE.parent / "models" / DEMO)
    return next((place for place in places if (place / "config.json").is_file()), None)


def absence_of(model: Path) -> str:
    """Why there is no directory of that name, as a sentence."""
    if os.path.lexists(model):
        return f"{model} is {'not a directory' if model.exists() else 'a link that leads nowhere'}."
    if str(model) == DEMO:
        return "demo: this installation lacks the demo model; give the directory of a model."
    name = HubName.parse(model)
    if name is None:
        return f"{model} does not exist."
    return (
        f"{model} does not exist, and the Hugging Face cache ({cache_directory()}) holds no model of that name: "
        f"`fiddler serve {name}` downloads it, and `hf download {name.repository}"
        f"{'' if name.revision is None else f' --revision {name.revision}'}`."
    )
