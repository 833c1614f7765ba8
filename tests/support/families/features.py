"""The structures that distinguish a model, computed from the model and its checkpoint."""

from typing import Any

from transformers import DynamicCache

from fiddler.checkpoint import Checkpoint
from fiddler.checkpoint.views import CodedView, Expert, MatrixView, WeightView
from gpu_service.model_runner.encoder_decoder import num_layers
from tests.support.weights import plain_view


def features_of(checkpoint: Checkpoint, config: Any) -> tuple[str, ...]:
    """The words of gpu_service.models.families for a model, in alphabetical order."""
    expert = checkpoint.layers[0].experts[0]
    features = {*_expert_features(expert), *_state_features(config)}
    names = [tensor.name for file in checkpoint._stored_files for tensor in file.tensors]
    if any("shared_expert" in name or "shared_mlp" in name for name in names):
        features.add("shared experts")
    if any(".kv_b_proj." in name for name in names):
        features.add("latent attention")
    if any(name.endswith(("correction_bias", "expert_bias", "correction.bias")) for name in names):
        features.add("corrected router")
    if len(checkpoint.layers) < num_layers(config):
        features.add("dense layers")
    if getattr(config, "is_encoder_decoder", False):
        features.add("encoder-decoder")
    if hasattr(config, "expert_capacity"):
        features.add("limited capacity")
    activation = checkpoint.layers[0].activation.name
    if activation != "silu":
        features.add(activation)
    return tuple(sorted(features))


def _expert_features(expert: Expert) -> set[str]:
    features = set()
    if expert.gate is None:
        features.add("not gated")
    elif expert.gate.file == expert.up.file and expert.gate.name == expert.up.name:
        features.add("fused")
        gate, up = _elements(expert.gate), _elements(expert.up)
        apart = (up.offset_bytes - gate.offset_bytes) // up.dtype.itemsize
        if apart in (1, up.shape[1]) and expert.up.shape[0] > 1:
            features.add("interleaved")
    if _elements(expert.up).strides[1] != 1 or _elements(expert.down).strides[1] != 1:
        features.add("transposed")
    if expert.up_bias is not None:
        features.add("biases")
    return features


def _elements(view: MatrixView) -> WeightView:
    """Where a matrix's weights, or their codes, are stored."""
    return view.codes if isinstance(view, CodedView) else plain_view(view)


def _state_features(config: object) -> set[str]:
    layers = DynamicCache(config=config).layers  # type: ignore[arg-type]
    kinds = {type(layer).__name__ for layer in layers}
    features = set()
    if any("Linear" in kind for kind in kinds):
        features.add("recurrent state")
    if any("Sliding" in kind for kind in kinds):
        features.add("sliding window")
    if any(
        "Linear" not in kind and kind not in ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")
        for kind in kinds
    ):
        features.add("sparse attention")
    return features
