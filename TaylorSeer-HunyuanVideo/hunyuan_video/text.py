"""Prompts of HunyuanVideo as tokens of a language model and a CLIP vector (hyvideo text_encoder/, constants.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hunyuan_video.config import DIFFUSERS_REPOS
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

MAX_LENGTH = 256  # tokens, to which every prompt is padded or cut
TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)
CROP_START = 95  # tokens of TEMPLATE, and of the beginning of text, before a prompt's own
SKIPPED_LAYERS = 2  # at the end of the language model; its final norm is skipped, too

LLM = Encoder(
    "text encoder LLaVA-LLaMA-3-8B",
    "--llm",
    (
        *(Source(repo, "text_encoder", "tokenizer") for repo in DIFFUSERS_REPOS.values()),
        Source("xtuner/llava-llama-3-8b-v1_1-transformers", weights="model*.safetensors"),
    ),
)
CLIP = Encoder(
    "text encoder CLIP",
    "--clip",
    (
        *(Source(repo, "text_encoder_2", "tokenizer_2") for repo in DIFFUSERS_REPOS.values()),
        Source("openai/clip-vit-large-patch14"),
    ),
)


class TextEncoders(PromptEncoder):
    """The language model of LLaVA-LLaMA-3-8B for the tokens and CLIP-L for the pooled vector.

    llm, clip: folders as in `find_encoder`; llm may be all of LLaVA, or its language model alone, as the official
    preprocessing leaves it. max_length: tokens of a prompt.
    """

    PARTS = ("text_states", "text_mask", "text_states_2")

    def __init__(
        self,
        llm: str | Path | None = None,
        clip: str | Path | None = None,
        *,
        max_length: int = MAX_LENGTH,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float16,
        download: bool = True,
    ) -> None:
        super().__init__({LLM: llm, CLIP: clip}, max_length=max_length, device=device, dtype=dtype, download=download)

    def _load(self, llm: tuple[Path, Path], clip: tuple[Path, Path]) -> tuple[Any, ...]:
        from transformers import AutoModel, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast

        model = from_folder(AutoModel, llm[0], dtype=self.dtype)
        return (
            getattr(model, "language_model", model).to(self.device),
            # tokenizer.json as it is: LlamaTokenizer would rebuild it without LLaMA-3's splitting of words.
            from_folder(PreTrainedTokenizerFast, llm[1], padding_side="right"),
            from_folder(CLIPTextModel, clip[0], dtype=self.dtype).to(self.device),
            from_folder(CLIPTokenizer, clip[1]),
        )

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """text_states (B, max_length, 4096), text_mask (B, max_length) bool, True for tokens, and text_states_2 (B, 768).

        On the encoders' device and in their dtype. A prompt is put into TEMPLATE, whose own tokens before it are attended to
        and then left out; the states are those before the last two layers.
        """
        return stacked(self.embed(prompts))

    def _embed(self, prompt: str) -> Embedding:
        llm, llm_tokens, clip, clip_tokens = self.load()
        text = TEMPLATE.format(prompt)
        warn_if_cut(prompt, len(llm_tokens(text).input_ids) - CROP_START, self.max_length)
        ids, mask = tokenize(llm_tokens, text, CROP_START + self.max_length, self.device)
        clip_ids, _ = tokenize(clip_tokens, prompt, CLIP_LENGTH, self.device)
        states = llm(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
        pooled = clip(input_ids=clip_ids).pooler_output
        text_states = states[-(SKIPPED_LAYERS + 1)][0, CROP_START:]
        return text_states.to(self.dtype), mask[0, CROP_START:].bool(), pooled[0].to(self.dtype)
