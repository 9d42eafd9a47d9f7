"""Prompts of HiDream-I1 as T5 tokens, Llama's hidden states and a vector of two CLIPs (pipeline_hidream_image.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache_dic import UserError
from hidream.config import REPOS, USAGE
from seerkit.devices.offload import nf4_kernels, store_nf4
from seerkit.devices.staging import staged_on
from seerkit.text.encoders import (
    Embedding,
    Encoder,
    PromptEncoder,
    Source,
    from_folder,
    stacked,
    tokenize,
    warn_if_cut,
)

MAX_LENGTH = {name: USAGE[name].text_tokens for name in REPOS}  # tokens, to which every prompt is padded or cut
# HiDream's CLIPs were trained further to take more than the usual 77 tokens (HiDream-ai/HiDream-I1 issue 17), at most 218.
CLIP_LENGTH = 218
TOGETHER = 32  # prompts that encoders which take turns on the device encode at a turn; 35 MB each
LLAMA_REPO = "meta-llama/Llama-3.1-8B-Instruct"


def _beside_transformer(number: str) -> tuple[Source, ...]:
    return tuple(Source(repo, f"text_encoder{number}", f"tokenizer{number}") for repo in REPOS.values())


CLIP_L = Encoder("text encoder CLIP-L", "--clip-l", _beside_transformer(""))
CLIP_G = Encoder("text encoder CLIP-G", "--clip-g", _beside_transformer("_2"))
T5 = Encoder("text encoder T5", "--t5", _beside_transformer("_3"))
LLAMA = Encoder(
    "text encoder Llama-3.1-8B-Instruct",
    "--llama",
    (Source(LLAMA_REPO, weights="model*.safetensors"),),
    hint=f"access must be requested at https://huggingface.co/{LLAMA_REPO}; once it is granted, log in with `hf auth login`",
)

KINDS = {  # classes of transformers
    CLIP_L: ("CLIPTextModelWithProjection", "CLIPTokenizer"),
    CLIP_G: ("CLIPTextModelWithProjection", "CLIPTokenizer"),
    T5: ("T5EncoderModel", "T5TokenizerFast"),
    LLAMA: ("LlamaForCausalLM", "PreTrainedTokenizerFast"),
}


class TextEncoders(PromptEncoder):
    """T5 for the tokens, Llama for the hidden states, CLIP-L and CLIP-G for the pooled vector.

    t5, clip_l, clip_g, llama: folders as in `find_encoder`. max_length: tokens of a prompt.
    nf4: the blocks of T5 and Llama in 4 bits, `seerkit.devices.offload.store_nf4`, which leaves 9.5 of 26 GB (in bf16).
    offload: they stay on the host, and each is on the device for its own use alone.
    Raises UserError for nf4 where bitsandbytes is missing or cannot.
    """

    PARTS = ("t5", "llama", "pooled")

    def __init__(
        self,
        t5: str | Path | None = None,
        clip_l: str | Path | None = None,
        clip_g: str | Path | None = None,
        llama: str | Path | None = None,
        *,
        max_length: int = 128,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        download: bool = True,
        nf4: bool = False,
        offload: bool = False,
    ) -> None:
        given = {CLIP_L: clip_l, CLIP_G: clip_g, T5: t5, LLAMA: llama}
        super().__init__(given, max_length=max_length, device=device, dtype=dtype, download=download)
        self.nf4, self.offload = nf4, offload
        self.together = TOGETHER if offload else 1
        if nf4:
            nf4_kernels(self.device)

    @property
    def names(self) -> tuple[str, ...]:
        return (*super().names, "nf4") if self.nf4 else super().names

    @property
    def lengths(self) -> dict[Encoder, int]:
        """Tokens that each encoder gets."""
        clip = min(self.max_length, CLIP_LENGTH)
        return {CLIP_L: clip, CLIP_G: clip, T5: self.max_length, LLAMA: self.max_length}

    def _load(self, *folders: tuple[Path, Path]) -> tuple[Any, ...]:
        import transformers

        loaded = []
        for encoder, (folder, tokenizer_folder) in zip(self.given, folders, strict=True):
            kind, tokenizer_kind = (getattr(transformers, name) for name in KINDS[encoder])
            tokenizer = from_folder(tokenizer_kind, tokenizer_folder)
            model = from_folder(kind, folder, dtype=self.dtype)
            if encoder is LLAMA:
                model, tokenizer.pad_token = model.model, tokenizer.eos_token  # the head, of words, is not needed
            if encoder in (CLIP_L, CLIP_G):
                self._check_positions(encoder, folder, model.config.max_position_embeddings)
            elif self.nf4:
                store_nf4(model.encoder if encoder is T5 else model, self.device)  # what has the blocks
            loaded.append((model if self.offload else model.to(self.device), tokenizer))
        return tuple(loaded)

    def _check_positions(self, encoder: Encoder, folder: Path, positions: int) -> None:
        if positions < self.lengths[encoder]:
            raise UserError(
                f"{folder} has positions for {positions} tokens, prompts are padded to {self.lengths[encoder]}: HiDream-I1 has "
                f"a {encoder.name.removeprefix('text encoder ')} of its own; name that of {encoder.sources[0].repo} with "
                f"{encoder.flag}"
            )

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """t5 (B, max_length, 4096), llama (layers, B, max_length, 4096) and pooled (B, 2048), in the encoders' dtype.

        On their device. llama: the states behind every layer, the last one normalised. T5 and Llama are given the mask of
        tokens. Pooled: CLIP-L's 768 numbers, then CLIP-G's.
        """
        return by_layer(stacked(self.embed(prompts)))

    def _embed_all(self, prompts: Sequence[str]) -> list[Embedding]:
        """One encoder after the other, each for all prompts."""
        loaded = dict(zip(self.given, self.load(), strict=True))
        for prompt in prompts:
            found = max(len(tokenizer(prompt).input_ids) for _, tokenizer in loaded.values())
            warn_if_cut(prompt, found, self.max_length)

        def outputs(encoder: Encoder, **options: Any) -> list[Any]:
            model, tokenizer = loaded[encoder]
            made = []
            with staged_on(self.device, model, self.offload):
                for prompt in prompts:
                    ids, mask = tokenize(tokenizer, prompt, self.lengths[encoder], self.device)
                    mask = None if encoder in (CLIP_L, CLIP_G) else mask
                    made.append(model(input_ids=ids, attention_mask=mask, **options))
            return made

        tokens = [output.last_hidden_state[0] for output in outputs(T5)]
        states = [
            torch.cat(output.hidden_states[1:]) for output in outputs(LLAMA, output_hidden_states=True, use_cache=False)
        ]
        pairs = zip(outputs(CLIP_L), outputs(CLIP_G), strict=True)
        pooled = [torch.cat([large.text_embeds[0], giant.text_embeds[0]]) for large, giant in pairs]
        return list(zip(tokens, states, pooled, strict=True))


def by_layer(embeddings: Embedding) -> tuple[Tensor, Tensor, Tensor]:
    """Batches of embeddings with Llama's states layer by layer, (layers, B, L, D), as the model takes them."""
    t5, llama, pooled = embeddings
    return t5, llama.transpose(0, 1).contiguous(), pooled
