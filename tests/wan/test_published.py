"""generate.py for a published task, from image and prompt to file, with small models and encoders in the official places."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import wan.pipeline
from seerkit.weights.checkpoints import export_safetensors
from wan import CONFIGS, Wan, WanConfig
from wan.config import NEGATIVE_PROMPT_I2V

NAME = "wan-i2v-14B-480P"
CONFIG = WanConfig(
    model_type="i2v", in_dim=36, dim=32, ffn_dim=64, text_dim=20, text_len=16, num_heads=2, num_layers=2, image_dim=24
)


class Encoder:
    """Tokens that depend on the prompt alone; shows what it was given."""

    def __init__(self, t5: Path | None, **options: object) -> None:
        self.options = options

    def encode_to_files(self, prompts: list[str], folder: None) -> "Encoder":
        return self

    def load(self, prompt: str) -> tuple[Tensor]:
        return (torch.full((len(prompt) % 11 + 1, CONFIG.text_dim), len(prompt) / 100),)


@dataclass
class Clip:
    given: Path | None
    device: torch.device

    def encode(self, image: Tensor) -> Tensor:
        return image.mean().expand(1, 5, CONFIG.image_dim)

    def drop(self) -> None:
        pass


class Autoencoder:
    frame_factor, scale = 4, torch.tensor(1.0)

    def encode(self, video: Tensor) -> Tensor:
        first = F.avg_pool2d(video[:, :, 0].mean(1, keepdim=True), 8)
        return first[:, :, None].repeat(1, 16, (video.shape[2] + 3) // 4, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        frames = latents[:, :3].repeat_interleave(4, dim=2)[:, :, 3:]
        return F.interpolate(frames.flatten(0, 1), scale_factor=8).unflatten(0, frames.shape[:2])


@pytest.fixture
def places(tmp_path, monkeypatch) -> dict[str, Path]:
    monkeypatch.setitem(CONFIGS, NAME, CONFIG)
    for name, value in (("TextEncoder", Encoder), ("ImageEncoder", Clip)):
        monkeypatch.setattr(wan.pipeline, name, value)
    monkeypatch.setattr(wan.pipeline, "load_autoencoder", lambda vae, device: Autoencoder())
    for name in ("find_autoencoder", "find_encoder", "autoencoder_files", "encoder_files"):
        monkeypatch.setattr(wan.pipeline, name, lambda *given: [])
    checkpoint, image = tmp_path / "model.safetensors", tmp_path / "fox.png"
    torch.manual_seed(0)
    export_safetensors(checkpoint, Wan(CONFIG).state_dict())
    Image.fromarray(np.arange(60 * 90 * 3, dtype=np.uint8).reshape(60, 90, 3)).save(image)
    return {"checkpoint": checkpoint, "image": image, "out": tmp_path / "out"}


@pytest.mark.slow
def test_image_and_prompt_become_a_video(load_command, places, tmp_path):
    """The official command line with a cache; the picture's aspect ratio in the area asked for; the settings beside it."""
    command = load_command("TaylorSeer-Wan2.1/generate.py")
    saved = tmp_path / "fox.mp4"
    command.main(
        [
            "--task", "i2v-14B", "--size", "832*480", "--frame_num", "5", "--ckpt_dir", str(places["checkpoint"]),
            "--image", str(places["image"]), "--prompt", "a fox runs", "--sample_steps", "4", "--interval", "2",
            "--offload_model", "True", "--t5_cpu", "--save_file", str(saved), "--output-dir", str(places["out"]),
            "--device", "cpu", "--precision", "bf16", "--method", "taylorseer",
        ]
    )  # fmt: skip
    record = json.loads((places["out"] / "record.json").read_text())
    s = record["settings"]
    assert (s["model"], s["width"], s["height"], s["frames"]) == (NAME, 768, 512, 5)
    assert (s["shift"], s["guidance"], s["solver"], s["negative_prompt"]) == (3.0, 5.0, "unipc", NEGATIVE_PROMPT_I2V)
    (row,) = record["rows"]
    assert row["full_steps"] == [0, 2]
    assert row["branches"] == 2
    assert saved.read_bytes() == (places["out"] / row["label"] / "000000.mp4").read_bytes()
