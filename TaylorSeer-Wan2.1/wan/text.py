"""Prompts of Wan2.1 as UMT5 tokens (wan modules/t5.py, modules/tokenizers.py)."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seerkit.devices.distributed import World
from seerkit.devices.parallel import shard_blocks
from seerkit.text.encoders import (
    Embedding,
    Encoder,
    PromptEncoder,
    Source,
    from_folder,
    tokenize,
    warn_if_cut,
)
from wan.config import DIFFUSERS_REPOS

MAX_LENGTH = 512  # tokens, beyond which a prompt is cut
# The same encoder in each.
T5 = Encoder(
    "text encoder UMT5",
    "--t5",
    tuple(Source(repo, "text_encoder", "tokenizer") for repo in DIFFUSERS_REPOS.values()),
)


def clean(prompt: str) -> str:
    """A prompt with its encoding and HTML entities repaired and white space made single spaces."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


class TextEncoder(PromptEncoder):
    """The encoder of UMT5-XXL.

    t5: a folder as in `find_encoder`. max_length: tokens of a prompt at most. world: share the weights among its processes,
    each of which then encodes the same prompts.
    """

    PARTS = ("context",)

    def __init__(
        self,
        t5: str | Path | None = None,
        *,
        max_length: int = MAX_LENGTH,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        download: bool = True,
        world: World | None = None,
    ) -> None:
        super().__init__({T5: t5}, max_length=max_length, device=device, dtype=dtype, download=download)
        self.world = world

    def _load(self, t5: tuple[Path, Path]) -> tuple[Any, ...]:
        from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

        model = from_folder(UMT5EncoderModel, t5[0], dtype=self.dtype)
        if self.world is None:
            model.to(self.device)
        else:
            shard_blocks(model, model.encoder.block, self.world)
        return (
            model,
            # tokenizer.json as it is: T5Tokenizer would rebuild it and may lose its normalisation of characters.
            from_folder(PreTrainedTokenizerFast, t5[1]),
        )

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """For each prompt the context (L, 4096) of its L tokens, on the encoder's device in its dtype.

        Padding is masked in the encoder and cut off; the model pads with zeros.
        """
        return [context for (context,) in self.embed(prompts)]

    def _embed(self, prompt: str) -> Embedding:
        t5, tokens = self.load()
        text = clean(prompt)
        warn_if_cut(prompt, len(tokens(text).input_ids), self.max_length)
        ids, mask = tokenize(tokens, text, self.max_length, self.device)
        context = t5(input_ids=ids, attention_mask=mask).last_hidden_state
        return (context[0, : mask.sum()].to(self.dtype),)
