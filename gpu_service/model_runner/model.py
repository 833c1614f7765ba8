"""transformers' model without its experts: one forward over rows of the slot cache."""

import time
from contextlib import nullcontext

import torch
from torch import nn

from fiddler.checkpoint import Checkpoint
from gpu_service.model_runner import host_linear
from gpu_service.model_runner.encoder_decoder import forced_bos_token_of, num_layers, start_token_of
from gpu_service.model_runner.forward_input import Logits
from gpu_service.model_runner.forwards import build_forward
from gpu_service.model_runner.loading import ModelError, load, read_config, read_generation_config
from gpu_service.model_runner.threads import as_few_as_pay
from gpu_service.models.registry import architecture_of
from gpu_service.moe.dispatcher import Dispatcher
from gpu_service.moe.layer import MoeLayer
from gpu_service.moe.router import find_router


class Model:
    """The dense part of a checkpoint on one device, its experts computed by others."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dispatcher: Dispatcher,
        device: torch.device,
        dtype: torch.dtype,
        num_slots: int,
        max_context: int,
    ) -> None:
        """Loads the dense weights; reads no expert.

        Raises:
            ModelError: transformers has no such model, or tensors are missing or left over.
        """
        self.device = device
        self.dtype = dtype
        self.config = config = read_config(checkpoint.directory)
        self.generation_config = read_generation_config(checkpoint.directory, config)
        self._module = load(checkpoint, config, dtype).to(device)
        self._module.requires_grad_(False)
        self._host_products_per_row = 0
        if device.type == "cpu":
            host_linear.install(self._module)
            self._host_products_per_row = host_linear.products_per_row(self._module)
        self.text_config = config.get_text_config(decoder=True)
        self.vocab_size = int(self.text_config.vocab_size)
        self.max_context = min(max_context, getattr(self.text_config, "max_position_embeddings", None) or max_context)
        self.start_token_id = start_token_of(self.generation_config, config)
        """What a decoder's output begins with where the prompt is an encoder's input; None elsewhere."""
        self.forced_bos_token_id = forced_bos_token_of(self.generation_config, config)
        """What a decoder makes first where a request does not say; None: what it chooses."""
        self._forward = build_forward(
            self._module, num_slots, self.max_context, device, dispatcher.spoiled_rows, self.start_token_id
        )
        self.cache = self._forward.cache
        self.dispatcher = dispatcher
        self.routers: dict[int, nn.Module] = {}
        """The router of each MoE layer, by its index into the checkpoint's, where it is a module that can be asked."""
        self._batch_shape = (0, 1)
        # an index and not a number: a slice of the rows is not contiguous, and its product copies the whole head
        self._kept = {
            Logits.NONE: torch.empty(0, dtype=torch.int64, device=device),
            Logits.LAST: torch.tensor([-1], device=device),
            Logits.ALL: 0,  # as transformers says all of them
        }
        self._architecture = architecture_of(config.model_type)
        self._connect(checkpoint)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Token ids that end a generation."""
        ids = self.generation_config.eos_token_id
        if ids is None:
            ids = self.text_config.eos_token_id
        return frozenset([] if ids is None else [ids] if isinstance(ids, int) else ids)

    @property
    def num_experts_per_token(self) -> int:
        """Experts that each token uses in a MoE layer."""
        return self._architecture.num_experts_per_token(self.config)

    @property
    def num_layers(self) -> int:
        """Layers of the decoder, and of the encoder where there is one."""
        return num_layers(self.config)

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor, first_row: int, wants: Logits) -> torch.Tensor:
        """Computes tokens of adjacent rows and stores their keys and values.

        Args:
            token_ids: [sequences, tokens] int64 on the CPU. More than one token only for one sequence.
            positions: [sequences, tokens] int64 on the CPU, ascending runs.
            first_row: The cache's row of the first sequence.
            wants: Which tokens' logits are computed.

        Returns:
            [rows, vocab] float32: no rows, one for each sequence, or one for each token of the only one.

        Raises:
            ExpertServiceError: Experts can be computed nowhere.
        """
        self._batch_shape = token_ids.shape[0], token_ids.shape[1]
        self.dispatcher.spoiled_rows.clear()
        began = time.monotonic()
        try:
            logits = self._compute(token_ids, positions, first_row, wants)
        except torch.OutOfMemoryError:
            self.dispatcher.cancel_batch()
            if not self.dispatcher.make_room() or not self._forward.is_repeatable:
                raise
            logits = self._compute(token_ids, positions, first_row, wants)
        except Exception:
            self.dispatcher.cancel_batch()
            raise
        self.dispatcher.end_of_step(token_ids.numel(), time.monotonic() - began)
        return logits

    @property
    def poisoned_rows(self) -> set[int]:
        """Rows of the latest batch, from 0 on, whose experts gave what is not finite: their logits mean nothing."""
        _, tokens = self._batch_shape
        return {row // tokens for row in self.dispatcher.spoiled_rows}

    def _compute(self, token_ids: torch.Tensor, positions: torch.Tensor, first_row: int, wants: Logits) -> torch.Tensor:
        num_products = token_ids.numel() * self._host_products_per_row
        with as_few_as_pay(num_products, host_linear.FEW_PRODUCTS) if num_products else nullcontext():
            logits = self._forward.compute(self._module, token_ids, positions, first_row, self._kept[wants])
        return logits.flatten(0, 1).to(torch.float32)

    def _connect(self, checkpoint: Checkpoint) -> None:
        by_name = {layer.name: index for index, layer in enumerate(checkpoint.layers)}
        by_decoder_layer = {layer.decoder_layer: index for index, layer in enumerate(checkpoint.layers)}
        connected = set()
        for name, module in list(self._module.named_modules()):  # connecting puts modules of ours into the blocks
            if not isinstance(module, MoeLayer):
                continue
            number = self._architecture.layer_number(name)
            index = by_name.get(name, None if number is None else by_decoder_layer.get(number))
            if index is None:
                raise ModelError(
                    f"{checkpoint.directory}: the model has experts at {name}, and the checkpoint has none"
                )
            block = self._module.get_submodule(name.rpartition(".")[0])
            module.connect(index, self.dispatcher, block)
            # the routers of families that need a row here give no ids and weights
            if self._architecture.replacements is None and (router := find_router(block)):
                self.routers[index] = router
            connected.add(index)
        for index, layer in enumerate(checkpoint.layers):
            if index not in connected:
                raise ModelError(
                    f"{checkpoint.directory}: the checkpoint has experts at {layer.name} that no layer uses"
                )
