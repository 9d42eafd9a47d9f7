"""A small set of emoji for the tests of what is made of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from seerkit.emoji import STYLES
from seerkit.emoji_training import SHOWN
from seerkit.minilm import WIDTH, TextTable

SIZE = 8  # pixels


@pytest.fixture(scope="session")
def emoji_folder(tmp_path_factory) -> Path:
    """Images of one colour a label under the file names of the real set; the number of an image is its first pixel.

    20 labels in two styles to train on and in the held-out one; two labels that are held out, being in five styles.
    """
    folder = tmp_path_factory.mktemp("emoji")
    labels = [*SHOWN, *(f"thing {i}" for i in range(12)), "unseen", "unseen too"]
    styles = list(STYLES.values())
    common = [styles.index(name) for name in ("twemoji flat", "noto", "emojione")]
    pairs = [(label, style) for label in range(20) for style in common]
    pairs += [(label, style) for label in (20, 21) for style in range(5)]
    draw = np.random.default_rng(0)
    colours = draw.integers(0, 256, (len(labels), 1, 1, 3), dtype=np.uint8)
    images = np.concatenate([colours[label].repeat(SIZE, 0).repeat(SIZE, 1)[None] for label, _ in pairs])
    images[:, 0, 0] = np.arange(len(pairs))[:, None]
    label, style = np.array(pairs, np.int32).T
    names = {"labels": np.array(labels), "styles": np.array(styles)}
    none = np.array([""] * len(labels))
    np.savez(folder / "emoji-32.npz", images=images, label=label, style=style, chars=none, groups=none, **names)
    texts, g = [*labels, *styles], torch.Generator().manual_seed(0)
    lengths = 1 + torch.arange(len(texts)) % 3
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    tokens = torch.randn(int(offsets[-1]), WIDTH, generator=g)
    TextTable(texts, tokens, offsets, torch.randn(len(texts), WIDTH, generator=g)).save(folder / "text.safetensors")
    return folder
