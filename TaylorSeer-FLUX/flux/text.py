"""Prompts of FLUX.1 as T5 tokens and a CLIP vector (flux modules/conditioner.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flux.config import REPOS, USAGE
from flux.weights import licence_hint
from seerkit.text.encoders import (
    CLIP_LENGTH,
    Embedding,
    Encoder,
    PromptEncoder,
    Source,
    from_folder,
    stacked,
    tokenize,
    warn_if_cut,
)

MAX_LENGTH = {name: USAGE[name].text_tokens for name in REPOS}  # T5 tokens, to which every prompt is padded or cut
# The official code loads the last source of each; black-forest-labs' repositories have the same T5 in bf16 and without its
# decoder, 9.5 GB instead of 45.
_HINT = licence_hint(next(iter(REPOS.values())))
T5 = Encoder(
    "text encoder T5",
    "--t5",
    (
        *(Source(repo, "text_encoder_2", "tokenizer_2") for repo in REPOS.values()),
        Source("google/t5-v1_1-xxl", weights="pytorch_model.bin"),
    ),
    hint=_HINT,
)
CLIP = Encoder(
    "text encoder CLIP",
    "--clip",
    (*(Source(repo, "text_encoder", "tokenizer") for repo in REPOS.values()), Source("openai/clip-vit-large-patch14")),
    hint=_HINT,
)


class TextEncoders(PromptEncoder):
    """T5 for the tokens and CLIP for the pooled vector.

    t5, clip: folders as in `find_encoder`. max_length: T5 tokens of a prompt, as in MAX_LENGTH.
    """

    PARTS = ("txt", "y")

    def __init__(
        self,
        t5: str | Path | None = None,
        clip: str | Path | None = None,
        *,
        max_length: int = 512,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        download: bool = True,
    ) -> None:
        super().__init__({T5: t5, CLIP: clip}, max_length=max_length, device=device, dtype=dtype, download=download)

    def _load(self, t5: tuple[Path, Path], clip: tuple[Path, Path]) -> tuple[Any, ...]:
        from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

        return (
            from_folder(T5EncoderModel, t5[0], dtype=self.dtype).to(self.device),
            from_folder(T5TokenizerFast, t5[1]),
            from_folder(CLIPTextModel, clip[0], dtype=self.dtype).to(self.device),
            from_folder(CLIPTokenizer, clip[1]),
        )

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token embeddings txt (B, max_length, 4096) and pooled y (B, 768), on the encoders' device in their dtype.

        T5 gets no attention mask, so that padding is attended to, as the model was trained.
        """
        return stacked(self.embed(prompts))

    def _embed(self, prompt: str) -> Embedding:
        t5, t5_tokens, clip, clip_tokens = self.load()
        warn_if_cut(prompt, len(t5_tokens(prompt).input_ids), self.max_length)
        ids, _ = tokenize(t5_tokens, prompt, self.max_length, self.device)
        clip_ids, _ = tokenize(clip_tokens, prompt, CLIP_LENGTH, self.device)
        txt = t5(input_ids=ids, attention_mask=None).last_hidden_state
        y = clip(input_ids=clip_ids, attention_mask=None).pooler_output
        return txt[0].to(self.dtype), y[0].to(self.dtype)
