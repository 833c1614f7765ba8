"""A checkpoint without its weights: small files and headers as on the hub, and files of weights that are holes.

A dry run on it gives the answers that the whole checkpoint would give. It takes no space on the disk but headers.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fiddler.errors import UserError
from fiddler.hub.cache import repository_folder
from fiddler.hub.remote import RemoteModel

if TYPE_CHECKING:
    from huggingface_hub.utils._safetensors import TensorInfo

_LENGTH_BYTES = 8


@contextmanager
def preview(model: RemoteModel, directory: Path) -> Iterator[Path]:
    """Makes the checkpoint for the time of a block.

    Args:
        model: The model on the hub.
        directory: The folder in the cache that has the small files.

    Yields:
        A folder that is named as in the cache, so that messages have the model's name.

    Raises:
        UserError: The hub does not give the headers.
    """
    with tempfile.TemporaryDirectory(prefix="fiddler-") as parent:
        folder = Path(parent) / repository_folder(model.name.repository) / "snapshots" / model.commit
        folder.mkdir(parents=True)
        for path in model.small_files:
            link = folder / path
            link.parent.mkdir(exist_ok=True)
            link.symlink_to((directory / path).resolve())
        weights = model.weight_files(directory)
        for path in model.sizes.keys() - {*model.small_files, *weights}:
            if "/" not in path:  # its name alone tells what the repository holds instead of weights
                (folder / path).touch()
        if weights:
            headers = model.headers().files_metadata
            for name in weights:
                write_hole(folder / name, headers[name].tensors if name in headers else {})
        try:
            yield folder
        except UserError as error:  # its files are the hub's, whatever folder stands for them
            raise UserError(str(error).replace(str(folder), str(model.name))) from None


def write_hole(path: Path, tensors: "Mapping[str, TensorInfo]") -> None:
    """Writes a safetensors file whose data is a hole in the file, read as zeros.

    Args:
        path: The file.
        tensors: By name, as the header has them.
    """
    entries = {
        name: {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": list(info.data_offsets)}
        for name, info in tensors.items()
    }
    header = json.dumps(entries).encode()
    data_bytes = max((info.data_offsets[1] for info in tensors.values()), default=0)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(_LENGTH_BYTES, "little") + header)
        file.truncate(_LENGTH_BYTES + len(header) + data_bytes)
