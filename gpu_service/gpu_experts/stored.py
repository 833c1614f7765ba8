"""The experts as they are stored: views of the checkpoint's files, and a check that the files are still whole."""

import os
from pathlib import Path

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.errors import FileFormatError
from fiddler.checkpoint.views import RepackedView, WeightView
from fiddler.expert_math import ExpertWeights, expert_weights, layer_weights
from gpu_service.gpu_experts.keys import ExpertKey


class StoredExperts:
    """Every expert of a checkpoint. May be read from any thread until `close`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        # repacked experts are copies: each is made when it is asked for, and is freed once it is on the device
        lasting = () if checkpoint.is_repacked else checkpoint.layers
        self._layers = tuple(layer_weights(checkpoint, layer) for layer in lasting)
        self._files: dict[Path, int] = {path: os.open(path, os.O_RDONLY) for path in checkpoint.files}
        self._forms: dict[tuple[object, ...], ExpertWeights] = {}

    @property
    def num_experts(self) -> list[int]:
        """Experts of each layer."""
        return [layer.num_experts for layer in self._checkpoint.layers]

    def __getitem__(self, key: ExpertKey) -> ExpertWeights:
        layer, expert = key
        if not self._layers:
            return expert_weights(self._checkpoint, self._checkpoint.layers[layer].experts[expert])
        return self._layers[layer].experts[expert]

    def form(self, key: ExpertKey) -> ExpertWeights:
        """The expert as far as shapes and dtypes go; it reads no more than one repacked expert of each form.

        Raises:
            FileFormatError: A file has become too short.
        """
        views = self._checkpoint.layers[key[0]].experts[key[1]].views
        if not all(isinstance(view, RepackedView) for view in views.values()):
            return self[key]
        form = tuple((name, view.shape, view.coding) for name, view in views.items() if isinstance(view, RepackedView))
        if form not in self._forms:
            self.check(key)
            expert = self[key]
            self._forms[form] = expert.with_tensors({name: tensor.to("meta") for name, tensor in expert.tensors()})
        return self._forms[form]

    def check(self, key: ExpertKey) -> None:
        """Checks that the expert can be read: a read past the end of a mapped file kills the process.

        A file that is cut short between the check and the read still kills it.

        Raises:
            FileFormatError: A file has become too short.
        """
        for view in self._views(key):
            _, end = view.span_bytes
            size = os.fstat(self._files[view.file]).st_size
            if size < end:
                raise FileFormatError(
                    f"{view.file} has been cut short to {size} bytes; the tensor {view.name!r} ends at {end}."
                )

    def close(self) -> None:
        """Closes the files."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def _views(self, key: ExpertKey) -> list[WeightView]:
        layer, number = key
        views = self._checkpoint.layers[layer].experts[number].views.values()
        return [plane for view in views for plane in view.planes]
