"""Encoders of prompts (and of images): where they are found, how prompts become tensors, and their cache on disk."""

import hashlib
import json
import re
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cache_dic import UserError
from seerkit.devices.memory import is_out_of_memory
from seerkit.io.files import check_space, content_digest
from seerkit.weights.checkpoints import (
    INDEX,
    SUFFIXES,
    NotFoundError,
    Published,
    checkpoint_files,
    find_weights,
    hub_command,
    missing_shards,
    save_tensors,
)
from seerkit.weights.layouts import listed

CLIP_LENGTH = 77
FORMAT = "taylorseer prompt 1"
Embedding = tuple[Tensor, ...]
"""The tensors of one prompt, without a batch dimension."""


# ---------------------------------------------------------------------------------------------------------------- find


@dataclass(frozen=True)
class Source:
    """A hub repository with an encoder and its tokenizer (or image processor), and the folders that they have in it."""

    repo: str
    model: str = "."
    processor: str = "."
    weights: str = "model.safetensors"  # where all is in one folder, perhaps with the weights in other formats
    cache: ClassVar[str] = "the hub's cache"

    @property
    def folder(self) -> Path:
        """Where a download by `command` lies."""
        return Published(".", repo=self.repo).folder

    @property
    def address(self) -> str:
        return self.repo

    @property
    def patterns(self) -> list[str]:
        if self.model != ".":
            return [f"{self.model}/*", f"{self.processor}/*"]
        return ["*.json", "*.txt", "spiece.model", self.weights]

    @property
    def command(self) -> str:
        return self.command_into(self.folder)

    def command_into(self, folder: Path) -> str:
        """The shell command that completes, or makes, a copy of the repository in a folder or in the hub's cache."""
        in_cache = "snapshots" in folder.parts  # where it goes anyway
        return hub_command(self.repo, self.patterns, None if in_cache else folder)

    def within(self, folder: Path) -> tuple[Path, Path]:
        """Folders of the encoder and of its processor, in a copy of the repository."""
        return folder / self.model, folder / self.processor

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


@dataclass(frozen=True)
class Encoder:
    """An encoder: its name in messages, the flag that names a folder with it, and where it is published, best first.

    processor: what prepares its inputs, and the beginning of the name of that one's JSON file.
    hint: what to do where the hub refuses access.
    """

    name: str
    flag: str
    sources: tuple[Source, ...]
    processor: str = "tokenizer"
    hint: str | None = None

    def source(self, repo: str) -> Source:
        """The source in a repository, the first where none is."""
        return next((source for source in self.sources if source.repo == repo), self.sources[0])

    def is_in(self, folders: tuple[Path, Path]) -> bool:
        model, processor = folders
        weights = any(path.suffix in SUFFIXES for path in model.glob("*model*"))
        return (model / "config.json").is_file() and weights and any(processor.glob(f"{self.processor}*.json"))


def _weights(folder: Path) -> Path | None:
    """The weights that transformers takes of those in a folder, an index where they are in shards."""
    paths = (folder / f"{stem}{end}" for stem in ("model.safetensors", "pytorch_model.bin") for end in ("", INDEX))
    return next((path for path in paths if path.is_file() or missing_shards(path)), None)


def find_encoder(encoder: Encoder, given: str | Path | None = None, *, download: bool = True) -> tuple[Path, Path]:
    """Folders of an encoder and of its tokenizer or image processor.

    given: a folder with both, or a whole repository of `encoder.sources`; it is then the only place looked at. None: the
    folder for downloads, the hub's cache, then a download of the first source that can be had.
    Raises FileNotFoundError with the places and the commands that fetch it.
    """
    if given:
        folder = Path(given).expanduser()
        for source, pair in [
            *((source, source.within(folder)) for source in encoder.sources),
            (None, (folder, folder)),
        ]:
            if encoder.is_in(pair):
                return _complete(encoder, pair, source.command_into(folder) if source else None)
        raise _not_found(encoder, named=f"{folder} ({'incomplete' if folder.is_dir() else 'not a folder'})")
    places, failures, incomplete = [], [], []

    def usable(source: Source, folder: Path | None) -> tuple[Path, Path] | None:
        if folder is None or not encoder.is_in(pair := source.within(folder)):
            return None
        try:
            return _complete(encoder, pair, source.command_into(folder))
        except NotFoundError as error:
            incomplete.append(error)
            return None

    for source in encoder.sources:
        for place in (source.folder, source.cached()):
            if found := usable(source, place):
                return found
        places.append(str(source.folder / source.model))
    for source in encoder.sources if download else ():
        try:
            fetched = source.download()
        except OSError as error:
            failures.append(_reason(source, error))
            continue
        if found := usable(source, fetched):
            return found
        failures.append(f"{source.repo}: files are missing in it")
    if incomplete:
        raise incomplete[0]
    raise _not_found(encoder, places=[*places, "the hub's cache"], failures=failures)


def _complete(encoder: Encoder, folders: tuple[Path, Path], command: str | None) -> tuple[Path, Path]:
    """The folders, if no shard of the weights is missing; NotFoundError with the command that completes them otherwise."""
    weights = _weights(folders[0])
    if weights is None or not (missing := missing_shards(weights)):
        return folders
    remedy = f"fetch the rest with `{command}`" if command else "copy the rest there"
    raise NotFoundError(
        f"the {encoder.name} in {folders[0]} is incomplete: {listed(missing)} missing; {remedy}",
        named=f"{folders[0]}, without {listed(missing)}",
        command=command,
    )


def encoder_files(folders: tuple[Path, Path]) -> list[Path]:
    """All files that loading from the folders of `find_encoder` reads: the weights, and what describes both parts."""
    model, processor = folders
    weights = _weights(model)
    described = (path for folder in (model, processor) for path in sorted(folder.iterdir()) if path.is_file())
    texts = (path for path in described if path.suffix in (".json", ".txt", ".model") and not path.name.endswith(INDEX))
    return [*(checkpoint_files(weights) if weights else ()), *dict.fromkeys(texts)]


def _reason(source: Source, error: OSError) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = re.search(r"download failed: (.*?); fetch it", lines[0])  # by find_weights
    return said[1] if said else f"{source.repo}: {lines[0][:160]}"


def _not_found(
    encoder: Encoder, *, named: str | None = None, places: Sequence[str] = (), failures: Sequence[str] = ()
) -> NotFoundError:
    parts = [
        f"the {encoder.name} (config.json, weights and {encoder.processor} of "
        f"{' or '.join(source.repo for source in encoder.sources)}) was not found; looked at {named or ', '.join(places)}"
    ]
    if failures:
        parts.append(f"download failed: {'; '.join(failures)}")
    parts.append(f"fetch it with {' or '.join(f'`{source.command}`' for source in encoder.sources)}")
    parts.append(f"name a folder of your own with {encoder.flag}")
    if encoder.hint:
        parts.append(encoder.hint)
    return NotFoundError("; ".join(parts), named=named, failures=failures)


# -------------------------------------------------------------------------------------------------------------- encode


def from_folder(kind: Any, folder: Path, **options: Any) -> Any:
    """`kind.from_pretrained`, of transformers, on a local folder; models in eval mode, without gradients.

    Raises UserError if the folder cannot be read as one.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        made = kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # files of another kind raise almost anything there
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{folder} cannot be read by {kind.__name__} ({reason[0][:160]})") from error
    return made.eval().requires_grad_(False) if isinstance(made, torch.nn.Module) else made


def tokenize(tokenizer: Any, text: str, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token numbers and mask (1 for tokens, 0 for padding), both (1, length), padded or cut."""
    rows = tokenizer([text], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return rows.input_ids.to(device), rows.attention_mask.to(device)


def warn_if_cut(prompt: str, found: int, length: int) -> None:
    """Warn that a prompt has more tokens than are used."""
    if found > length:
        warnings.warn(f"the prompt {prompt[:60]!r}… has {found} tokens; all beyond {length} are cut", stacklevel=2)


class PromptEncoder:
    """Encoders that together make the embedding of a prompt, loaded at the first one and freed by `drop`.

    A subclass names the tensors of an embedding (PARTS) and has `_load` and `_embed`, or `_embed_all`.
    given: for each encoder a folder as in `find_encoder`. max_length: tokens of a prompt. together: prompts that are encoded
    between two stores to a cache, more than one where encoders take turns on the device.
    """

    PARTS: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        given: Mapping[Encoder, str | Path | None],
        *,
        max_length: int,
        device: str | torch.device,
        dtype: torch.dtype,
        download: bool,
    ) -> None:
        if max_length < 1:
            raise UserError(f"max_length = {max_length} of text tokens must be at least 1")
        self.given, self.max_length = dict(given), max_length
        self.device, self.dtype, self.download = torch.device(device), dtype, download
        self.together = 1
        self._loaded: tuple[Any, ...] | None = None

    def find(self) -> list[tuple[Path, Path]]:
        """The folders of each encoder, as `find_encoder`."""
        return [find_encoder(encoder, given, download=self.download) for encoder, given in self.given.items()]

    @property
    def names(self) -> tuple[str, ...]:
        """What the embeddings depend on besides the prompt and max_length: the contents of the encoders, and the dtype."""
        digests = [content_digest(*encoder_files(folders)) for folders in self.find()]
        return (*digests, str(self.dtype).removeprefix("torch."))

    @property
    def is_loaded(self) -> bool:
        return self._loaded is not None

    def load(self) -> tuple[Any, ...]:
        """The models and tokenizers, in the subclass's order."""
        if self._loaded is None:
            self._loaded = self._load(*self.find())
        return self._loaded

    def _load(self, *folders: tuple[Path, Path]) -> tuple[Any, ...]:
        """The models, on the device, and their tokenizers; folders: of each encoder and its tokenizer."""
        raise NotImplementedError

    def _embed(self, prompt: str) -> Embedding:
        raise NotImplementedError

    def _embed_all(self, prompts: Sequence[str]) -> list[Embedding]:
        """One goes through an encoder at a time: an embedding, once stored, must not depend on the others."""
        return [self._embed(prompt) for prompt in prompts]

    @torch.inference_mode()
    def embed(self, prompts: Sequence[str]) -> list[Embedding]:
        """The tensors PARTS of each prompt, on the encoders' device."""
        if not prompts:
            raise UserError("no prompts to encode")
        return self._embed_all(prompts)

    def encode_to_files(self, prompts: Iterable[str], folder: str | Path | None = None) -> "PromptCache":
        """The embeddings of prompts in a folder, None for a temporary one that goes with the result.

        The encoders are loaded only if a prompt is not there, and dropped afterwards. Each prompt is encoded once and stored
        soon, so that an interrupted run goes on where it stopped, and memory does not grow with the number of prompts.
        """
        prompts = list(dict.fromkeys(prompts))
        if not prompts:
            raise UserError("no prompts to encode")
        names = self.names if folder is not None else ()  # a temporary folder has no other encoders' embeddings
        cache = PromptCache(folder, parts=self.PARTS, encoders=names, max_length=self.max_length)
        missing = [prompt for prompt in prompts if not cache.check(prompt)]
        try:
            for start in range(0, len(missing), self.together):
                some = missing[start : start + self.together]
                for prompt, embedding in zip(some, self.embed(some), strict=True):
                    if prompt == missing[0]:
                        size = sum(tensor.nbytes for tensor in embedding)
                        check_space(cache.folder, size * len(missing), f"the embeddings of {len(missing)} prompts")
                    cache.store(prompt, embedding)
        finally:
            if missing:
                self.drop()
        return cache

    def drop(self) -> None:
        """Free the encoders; the next prompt loads them again."""
        self._loaded = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def stacked(embeddings: Sequence[Embedding]) -> Embedding:
    """The embeddings of several prompts as batches (B, …)."""
    return tuple(torch.stack(part) for part in zip(*embeddings, strict=True))


# --------------------------------------------------------------------------------------------------------------- cache


class PromptCache:
    """Embeddings of prompts on disk, one file per prompt.

    folder: None for a temporary one, which is removed with this object, at the latest when the process ends.
    parts: names of an embedding's tensors. encoders: what made them (`PromptEncoder.names`); other encoders, and other
    lengths, have other files.
    """

    def __init__(
        self, folder: str | Path | None, *, parts: Sequence[str], encoders: Sequence[str], max_length: int
    ) -> None:
        if folder is None:
            folder = tempfile.mkdtemp(prefix="prompts-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.folder = Path(folder)
        self.parts = tuple(parts)
        self.encoders, self.max_length = tuple(encoders), max_length

    def path(self, prompt: str) -> Path:
        key = json.dumps([prompt, *self.encoders, self.max_length])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def check(self, prompt: str) -> bool:
        """Whether the embedding is there; UserError for a file that is not it."""
        return self.path(prompt).is_file() and self._read(prompt, ()) == ()

    def load(self, prompt: str) -> Embedding:
        """The embedding on the CPU; UserError for a file that is not it."""
        return self._read(prompt, self.parts)

    def load_batch(self, prompts: Sequence[str]) -> Embedding:
        """The embeddings of several prompts as batches (B, …)."""
        return stacked([self.load(prompt) for prompt in prompts])

    def _read(self, prompt: str, parts: Sequence[str]) -> Embedding:
        path = self.path(prompt)
        try:
            with safe_open(path, framework="pt") as file:
                metadata, embedding = file.metadata() or {}, tuple(file.get_tensor(part) for part in parts)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}); delete it, and the prompt is encoded again") from error
        if not self._metadata(prompt).items() <= metadata.items():
            raise UserError(f"{path} is not the embedding of {prompt!r}; delete it, and the prompt is encoded again")
        return embedding

    def store(self, prompt: str, embedding: Embedding) -> None:
        """Write an embedding, whole."""
        tensors = {part: t.detach().cpu().contiguous() for part, t in zip(self.parts, embedding, strict=True)}
        save_tensors(self.path(prompt), tensors, self._metadata(prompt))

    def _metadata(self, prompt: str) -> dict[str, str]:
        return {"format": FORMAT, "prompt": prompt, "encoders": json.dumps(self.encoders)}
