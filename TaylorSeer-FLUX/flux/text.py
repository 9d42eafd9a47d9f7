"""Prompts of FLUX.1 as T5 tokens and a CLIP vector, encoded once and kept on disk (flux modules/conditioner.py)."""

import hashlib
import json
import re
import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flux.config import USAGE
from flux.weights import REPOS, licence_hint
from seerkit.files import written_whole
from seerkit.weights import SUFFIXES, NotFoundError, Published, find_weights

MAX_LENGTH = {name: USAGE[name].text_tokens for name in REPOS}  # T5 tokens, to which every prompt is padded or cut
CLIP_LENGTH = 77
FORMAT = "taylorseer prompt 1"


# ---------------------------------------------------------------------------------------------------------------- find


@dataclass(frozen=True)
class Source:
    """A hub repository with a text encoder and its tokenizer, and the folders that they have in it."""

    repo: str
    model: str = "."
    tokenizer: str = "."
    weights: str = "model.safetensors"  # where all is in one folder, perhaps with the weights in other formats

    @property
    def folder(self) -> Path:
        """Where a download by `command` lies."""
        return Published(".", repo=self.repo).place

    @property
    def patterns(self) -> list[str]:
        if self.model != ".":
            return [f"{self.model}/*", f"{self.tokenizer}/*"]
        return ["*.json", "*.txt", "spiece.model", self.weights]

    @property
    def command(self) -> str:
        include = [word for pattern in self.patterns for word in ("--include", pattern)]
        return shlex.join(["hf", "download", self.repo, *include, "--local-dir", str(self.folder)])

    def within(self, folder: Path) -> tuple[Path, Path]:
        """Folders of the encoder and of the tokenizer, in a copy of the repository."""
        return folder / self.model, folder / self.tokenizer

    def cached(self) -> Path | None:
        """The repository in the hub's cache, maybe incomplete."""
        try:
            from huggingface_hub import snapshot_download
        except ImportError:
            return None
        try:
            return Path(snapshot_download(self.repo, allow_patterns=self.patterns, local_files_only=True))
        except OSError:
            return None

    def download(self) -> Path:
        """The repository in the hub's cache; OSError if it cannot be had."""
        find_weights(None, [Published(f"{self.model}/config.json".removeprefix("./"), repo=self.repo)])  # fails soon
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.repo, allow_patterns=self.patterns))
        except Exception as error:  # of its HTTP client, its transfer backend or its own, with no common base
            raise OSError(str(error)) from error


# The official code loads the last of each; black-forest-labs' repositories have the same T5 in bf16 and without its decoder,
# 9.5 GB instead of 45.
SOURCES = {
    "T5": (
        *(Source(repo, "text_encoder_2", "tokenizer_2") for repo in REPOS.values()),
        Source("google/t5-v1_1-xxl", weights="pytorch_model.bin"),
    ),
    "CLIP": (
        *(Source(repo, "text_encoder", "tokenizer") for repo in REPOS.values()),
        Source("openai/clip-vit-large-patch14"),
    ),
}


def find_encoder(kind: str, given: str | Path | None = None, *, download: bool = True) -> tuple[Path, Path]:
    """Folders of a text encoder and of its tokenizer.

    kind: a key of SOURCES. given: a folder with both, or a FLUX repository in diffusers' layout; it is then the only place
    looked at. None: the folder for downloads, the hub's cache, then a download of the first source that can be had.
    Raises FileNotFoundError with the places and the commands that fetch it.
    """
    sources = SOURCES[kind]
    if given:
        folder = Path(given).expanduser()
        for source in sources:
            if _complete(pair := source.within(folder)):
                return pair
        raise _not_found(kind, named=f"{folder} ({'incomplete' if folder.is_dir() else 'not a folder'})")
    places = []
    for source in sources:
        for folder in (source.folder, source.cached()):
            if folder is not None and _complete(pair := source.within(folder)):
                return pair
        places.append(str(source.folder / source.model))
    failures = []
    for source in sources if download else ():
        try:
            if _complete(pair := source.within(source.download())):
                return pair
            failures.append(f"{source.repo}: files are missing in it")
        except OSError as error:
            failures.append(_reason(source, error))
    raise _not_found(kind, places=[*places, "the hub's cache"], failures=failures)


def _reason(source: Source, error: OSError) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = re.search(r"download failed: (.*?); fetch it", lines[0])  # by find_weights
    return said[1] if said else f"{source.repo}: {lines[0][:160]}"


def _complete(folders: tuple[Path, Path]) -> bool:
    model, tokenizer = folders
    weights = any(path.suffix in SUFFIXES for path in model.glob("*model*"))
    return (model / "config.json").is_file() and weights and any(tokenizer.glob("tokenizer*.json"))


def _not_found(
    kind: str, *, named: str | None = None, places: Sequence[str] = (), failures: Sequence[str] = ()
) -> NotFoundError:
    sources = SOURCES[kind]
    parts = [
        f"the text encoder {kind} (config.json, weights and tokenizer of {' or '.join(s.repo for s in sources)}) was not "
        f"found; looked at {named or ', '.join(places)}"
    ]
    if failures:
        parts.append(f"download failed: {'; '.join(failures)}")
    parts.append(f"fetch it with {' or '.join(f'`{source.command}`' for source in sources)}")
    parts.append(f"name a folder of your own with --{kind.lower()}")
    parts.append(licence_hint(sources[0].repo))
    return NotFoundError("; ".join(parts), named=named, failures=failures)


# -------------------------------------------------------------------------------------------------------------- encode


class TextEncoders:
    """T5 for the tokens and CLIP for the pooled vector, loaded at the first prompt and freed by `drop`.

    t5, clip: folders as in `find_encoder`. max_length: T5 tokens of a prompt, as in MAX_LENGTH.
    """

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
        if max_length < 1:
            raise ValueError(f"max_length = {max_length} of text tokens must be at least 1")
        self.t5, self.clip, self.max_length = t5, clip, max_length
        self.device, self.dtype, self.download = torch.device(device), dtype, download
        self._loaded: tuple[Any, Any, Any, Any] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What the embeddings depend on besides the prompt and max_length, for `PromptCache`."""
        given = {"T5": self.t5, "CLIP": self.clip}
        folders = [str(Path(g).expanduser().resolve()) if g else SOURCES[kind][-1].repo for kind, g in given.items()]
        return (*folders, str(self.dtype).removeprefix("torch."))

    @property
    def is_loaded(self) -> bool:
        return self._loaded is not None

    def load(self) -> tuple[Any, Any, Any, Any]:
        """T5 and its tokenizer, CLIP and its tokenizer."""
        if self._loaded is None:
            (t5, t5_tokens), (clip, clip_tokens) = (
                find_encoder(kind, given, download=self.download)
                for kind, given in (("T5", self.t5), ("CLIP", self.clip))
            )
            from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast
            from transformers.utils import logging

            logging.disable_progress_bar()
            self._loaded = (
                self._from(T5EncoderModel, t5, dtype=self.dtype).to(self.device),
                self._from(T5TokenizerFast, t5_tokens),
                self._from(CLIPTextModel, clip, dtype=self.dtype).to(self.device),
                self._from(CLIPTokenizer, clip_tokens),
            )
        return self._loaded

    @staticmethod
    def _from(kind: type, folder: Path, **options: Any) -> Any:
        try:
            made = kind.from_pretrained(folder, local_files_only=True, **options)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(f"{folder} cannot be read as a {kind.__name__} ({reason[0][:160]})") from error
        return made.eval().requires_grad_(False) if isinstance(made, torch.nn.Module) else made

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token embeddings txt (B, max_length, 4096) and pooled y (B, 768), on the encoders' device in their dtype.

        T5 gets no attention mask, so that padding is attended to, as the model was trained. Prompts go through one by one:
        an embedding, once stored, must not depend on what it was encoded with.
        """
        pairs = [self._encode(prompt) for prompt in prompts]
        if not pairs:
            raise ValueError("no prompts to encode")
        return torch.stack([txt for txt, _ in pairs]), torch.stack([y for _, y in pairs])

    def _encode(self, prompt: str) -> tuple[Tensor, Tensor]:
        t5, t5_tokens, clip, clip_tokens = self.load()
        length = len(t5_tokens(prompt).input_ids)
        if length > self.max_length:
            warnings.warn(
                f"the prompt {prompt[:60]!r}… has {length} tokens; all beyond {self.max_length} are cut", stacklevel=2
            )
        txt = t5(input_ids=self._ids(t5_tokens, prompt, self.max_length), attention_mask=None).last_hidden_state
        y = clip(input_ids=self._ids(clip_tokens, prompt, CLIP_LENGTH), attention_mask=None).pooler_output
        return txt[0].to(self.dtype), y[0].to(self.dtype)

    def _ids(self, tokenizer: Any, prompt: str, length: int) -> Tensor:
        """Token numbers (1, length), padded or cut."""
        rows = tokenizer([prompt], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return rows.input_ids.to(self.device)

    def drop(self) -> None:
        """Free the encoders; the next prompt loads them again."""
        self._loaded = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


# --------------------------------------------------------------------------------------------------------------- cache


class PromptCache:
    """Embeddings of prompts on disk, one file a prompt.

    encoders: what made them (`TextEncoders.names`); other encoders, and other lengths, have other files.
    """

    def __init__(self, folder: str | Path, *, encoders: Sequence[str], max_length: int) -> None:
        self.folder, self.encoders, self.max_length = Path(folder), tuple(encoders), max_length

    def path(self, prompt: str) -> Path:
        key = json.dumps([prompt, *self.encoders, self.max_length])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def __contains__(self, prompt: str) -> bool:
        return self.path(prompt).is_file()

    def load(self, prompt: str) -> tuple[Tensor, Tensor]:
        """txt (max_length, 4096) and y (768,) on the CPU; ValueError for a file that is not such a pair."""
        path = self.path(prompt)
        try:
            with safe_open(path, framework="pt") as file:
                metadata, txt, y = file.metadata() or {}, file.get_tensor("txt"), file.get_tensor("y")
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); delete it, and the prompt is encoded again") from error
        if metadata.get("format") != FORMAT or metadata.get("prompt") != prompt or len(txt) != self.max_length:
            raise ValueError(f"{path} is not the embedding of {prompt!r}; delete it, and the prompt is encoded again")
        return txt, y

    def store(self, prompt: str, txt: Tensor, y: Tensor) -> None:
        """Write txt (max_length, 4096) and y (768,), whole."""
        tensors = {"txt": txt.detach().cpu().contiguous(), "y": y.detach().cpu().contiguous()}
        metadata = {"format": FORMAT, "prompt": prompt, "encoders": json.dumps(self.encoders)}
        with written_whole(self.path(prompt)) as temporary:
            save_file(tensors, temporary, metadata)


def encode_cached(
    prompts: Sequence[str], make_encoder: Callable[[], TextEncoders], cache: PromptCache | None = None
) -> tuple[Tensor, Tensor]:
    """txt (B, max_length, 4096) and y (B, 768) of prompts on the CPU.

    The encoders are made only if a prompt is not in the cache, and dropped afterwards. Each prompt is encoded once and
    stored at once, so that an interrupted run goes on where it stopped.
    """
    if not prompts:
        raise ValueError("no prompts to encode")
    known = {prompt: cache.load(prompt) for prompt in dict.fromkeys(prompts) if cache is not None and prompt in cache}
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    if missing:
        encoder = make_encoder()
        if cache is not None and (encoder.names, encoder.max_length) != (cache.encoders, cache.max_length):
            raise ValueError(
                f"encoders {encoder.names} of {encoder.max_length} tokens do not fit a cache of {cache.encoders} and "
                f"{cache.max_length}"
            )
        try:
            for prompt in missing:
                txt, y = encoder.encode([prompt])
                known[prompt] = txt[0].cpu(), y[0].cpu()
                if cache is not None:
                    cache.store(prompt, *known[prompt])
        finally:
            encoder.drop()
    pairs = [known[prompt] for prompt in prompts]
    return torch.stack([txt for txt, _ in pairs]), torch.stack([y for _, y in pairs])
