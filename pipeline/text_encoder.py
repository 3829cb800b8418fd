"""`mini`'s text encoder: the words of its instructions by convolutions that see more and more of their neighbours.

One token is one word. A model of this size learns from a few hundred thousand instructions, and spends most of them on
learning to spell where tokens are bytes.
"""

from __future__ import annotations

import string
from collections.abc import Iterable

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from tokenizers import Tokenizer, normalizers
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from torch.nn.functional import gelu
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

KERNEL = 5
PAD, UNKNOWN = "[PAD]", "[UNK]"


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of lower-case words: one token for each of `words`; any other by its letters, after the longest of
    `words` that it begins with. Accents are dropped; a word with a letter beyond ASCII is one unknown token."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    names = dict.fromkeys([PAD, UNKNOWN, *letters, *(f"##{each}" for each in letters), *sorted(words)])
    vocabulary = {name: index for index, name in enumerate(names)}
    core = Tokenizer(WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=1000))
    core.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()])
    core.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, unk_token=UNKNOWN)


class WordEncoder(ModelMixin, ConfigMixin):
    """Tokens (B, L) to states (B, L, width), as a `transformers` encoder gives them.

    Convolution n looks 2 * 2**n tokens to both sides: three of them span 29, an instruction whole.
    empty (width,), where it is configured: the state at all places of an empty prompt, which asks for no change; at
    first zeros, as of padding, which stand for whatever may have been asked.
    """

    @register_to_config
    def __init__(self, vocab_size: int = 256, width: int = 128, layers: int = 3, empty_prompt: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, KERNEL, padding="same", dilation=2**index) for index in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.empty = nn.Parameter(torch.zeros(width)) if empty_prompt else None

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> BaseModelOutput:
        """attention_mask (B, L) int64: 1 for tokens, 0 for the padding behind them, which changes nothing."""
        mask = attention_mask[:, None]
        states = self.embedding(input_ids).transpose(1, 2) * mask
        for convolution in self.convolutions:
            states = states + gelu(convolution(states)) * mask
        states = self.norm(states.transpose(1, 2))
        if self.empty is not None:
            states = torch.where(mask.any(dim=2, keepdim=True), states, self.empty)
        return BaseModelOutput(last_hidden_state=states)
