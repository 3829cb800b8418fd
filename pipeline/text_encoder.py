"""`mini`'s text encoder: words from bytes, by convolutions that see more and more of their neighbours."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn.functional import gelu
from transformers.modeling_outputs import BaseModelOutput

KERNEL = 5


class ByteTextEncoder(ModelMixin, ConfigMixin):
    """Byte tokens (B, L) to states (B, L, width), as a `transformers` encoder gives them.

    Convolution n looks 2 * 2**n bytes to both sides: three of them span 29 bytes, words with what they stand beside.
    """

    @register_to_config
    def __init__(self, vocab_size: int = 384, width: int = 128, layers: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, KERNEL, padding="same", dilation=2**index) for index in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: torch.Tensor) -> BaseModelOutput:
        states = self.embedding(input_ids).transpose(1, 2)
        for convolution in self.convolutions:
            states = states + gelu(convolution(states))
        return BaseModelOutput(last_hidden_state=self.norm(states.transpose(1, 2)))
