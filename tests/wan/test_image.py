"""First-frame conditions and the image encoder on tiny random stand-ins in the layouts of the published ones."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from seerkit.text.encoders import find_encoder
from seerkit.weights import checkpoints as weights
from seerkit.weights.autoencoders import VideoAutoencoder
from wan import image
from wan.image import CLIP, ImageEncoder, first_frame_condition, output_size, read_image, resized

SIDE, WIDTH = 28, 16  # pixels that the encoder sees, and its width
FRAMES, HEIGHT, VIDEO_WIDTH = 9, 32, 48


@pytest.fixture(autouse=True)
def nowhere(without_checkpoints) -> Path:
    return without_checkpoints()


@pytest.fixture(scope="module")
def parts(need):
    """Image encoder, image processor and autoencoder with random weights."""
    tf, diffusers = need("transformers"), need("diffusers")
    torch.manual_seed(0)
    encoder = tf.CLIPVisionModel(
        tf.CLIPVisionConfig(
            hidden_size=WIDTH, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE,
            patch_size=14,
        )
    )  # fmt: skip
    processor = tf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    vae = diffusers.AutoencoderKLWan.from_config({"base_dim": 4, "num_res_blocks": 1})
    for module in (encoder, vae):
        module.eval().requires_grad_(False)
    return SimpleNamespace(encoder=encoder, processor=processor, vae=vae)


@pytest.fixture(scope="module")
def autoencoder(parts):
    config = parts.vae.config
    scale = [1 / std for std in config.latents_std]
    return VideoAutoencoder(parts.vae, channels=16, factor=8, frame_factor=4, scale=scale, shift=config.latents_mean)


@pytest.fixture(scope="module")
def pipeline(parts, need):
    return need("diffusers").WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, scheduler=None, vae=parts.vae, image_encoder=parts.encoder,
        image_processor=parts.processor,
    )  # fmt: skip


@pytest.fixture
def repository(parts, tmp_path) -> Path:
    folder = tmp_path / "Wan"
    parts.encoder.save_pretrained(folder / "image_encoder")
    parts.processor.save_pretrained(folder / "image_processor")
    return folder


def picture(height: int, width: int, path: Path) -> Path:
    """A file of random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


class TestImages:
    def test_pixels(self, tmp_path):
        path = picture(3, 5, tmp_path / "a.png")
        pixels = read_image(path)
        assert pixels.shape == (1, 3, 3, 5)
        expected = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
        torch.testing.assert_close(pixels[0], (expected - 0.5) / 0.5)

    def test_grey_images_have_three_channels(self, tmp_path):
        Image.new("L", (4, 2), 255).save(tmp_path / "a.png")
        assert torch.equal(read_image(tmp_path / "a.png"), torch.ones(1, 3, 2, 4))

    def test_pictures_are_upright_and_on_white(self, tmp_path):
        """As `seerkit.io.media.read_picture` has them, whose tests are about every kind."""
        exif = Image.Exif()
        exif[0x0112] = 6  # stored as seen from the right
        pixels = np.uint8([[[255, 0, 0, 255], [0, 0, 255, 0]]])
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
        red, white = [1, -1, -1], [1, 1, 1]
        assert read_image(tmp_path / "a.png")[0].permute(1, 2, 0).tolist() == [[red], [white]]

    @pytest.mark.parametrize("content", [None, b"text"])
    def test_what_cannot_be_read_is_named(self, tmp_path, content):
        if content:
            (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"image .*a\.png cannot be read .*; name a PNG or JPEG file"):
            read_image(tmp_path / "a.png")

    @pytest.mark.parametrize(
        ("given", "area", "size"),
        [
            ((480, 832), 480 * 832, (464, 832)),
            ((720, 1280), 480 * 832, (464, 832)),
            ((1024, 1024), 720 * 1280, (960, 960)),
            ((100, 300), 480 * 832, (352, 1088)),
            ((832, 480), 480 * 832, (832, 480)),
        ],
    )
    def test_output_size_is_the_official_one(self, given, area, size):
        """wan/image2video.py written out: latents of 8 pixels in patches of 2."""
        aspect = given[0] / given[1]
        latent = [round(np.sqrt(part) // 8 // 2 * 2) for part in (area * aspect, area / aspect)]
        assert output_size(*given, area) == (latent[0] * 8, latent[1] * 8) == size

    def test_too_narrow(self):
        with pytest.raises(ValueError, match=r"an image of 1 x 9000 pixels has no place in 399360 pixels"):
            output_size(1, 9000, 480 * 832)


class TestCondition:
    def test_is_the_pipeline_of_diffusers(self, autoencoder, pipeline):
        first = torch.rand(1, 3, HEIGHT, VIDEO_WIDTH, generator=torch.Generator().manual_seed(1)) * 2 - 1
        y = first_frame_condition(first, FRAMES, HEIGHT, VIDEO_WIDTH, autoencoder)
        assert y.shape == (1, 20, 3, 4, 6)
        _, expected = pipeline.prepare_latents(
            first, 1, 16, HEIGHT, VIDEO_WIDTH, FRAMES, torch.float32, torch.device("cpu")
        )
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)

    def test_mask_is_the_official_one(self, autoencoder):
        """wan/image2video.py written out: a frame's mask, the first four times, by latent frames and then by channels."""
        y = first_frame_condition(torch.zeros(2, 3, 16, 16), FRAMES, 16, 16, autoencoder)
        mask = torch.ones(1, FRAMES, 2, 2)
        mask[:, 1:] = 0
        mask = torch.cat([mask[:, :1].repeat_interleave(4, dim=1), mask[:, 1:]], dim=1)
        mask = mask.view(1, (FRAMES + 3) // 4, 4, 2, 2).transpose(1, 2)
        assert torch.equal(y[:, :4], mask.expand(2, -1, -1, -1, -1))

    def test_any_size_is_resized(self, autoencoder):
        first = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(1)) * 2 - 1
        y = first_frame_condition(first, 5, 16, 32, autoencoder)
        scaled = F.interpolate(first, size=(16, 32), mode="bicubic")
        video = torch.cat([scaled[:, :, None], torch.zeros(1, 3, 4, 16, 32)], dim=2)
        assert torch.equal(y[:, 4:], autoencoder.encode(video))

    @pytest.mark.parametrize(("frames", "height"), [(8, 16), (5, 20)])
    def test_impossible_videos(self, autoencoder, frames, height):
        with pytest.raises(ValueError, match=rf"a video of {frames} frames of {height} x 16 pixels cannot be encoded"):
            first_frame_condition(torch.zeros(1, 3, 16, 16), frames, height, 16, autoencoder)


class TestEncoder:
    def test_square_images_as_the_pipeline_of_diffusers(self, repository, pipeline, tmp_path):
        path = picture(SIDE, SIDE, tmp_path / "a.png")
        tokens = ImageEncoder(repository).encode(read_image(path))
        assert tokens.shape == (1, 1 + (SIDE // 14) ** 2, WIDTH)
        expected = pipeline.encode_image(Image.open(path), device="cpu")
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)

    def test_others_are_squeezed_as_in_the_official_code(self, repository, parts):
        images = torch.rand(2, 3, 40, 60, generator=torch.Generator().manual_seed(1)) * 2 - 1
        made = ImageEncoder(repository)
        tokens = made.encode(images)
        assert torch.equal(tokens, made.encode(resized(images, SIDE, SIDE)))
        seen = []
        handle = parts.encoder.get_submodule(self.layer(parts.encoder)).register_forward_hook(
            lambda module, inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (parts.processor.image_mean, parts.processor.image_std))
        try:
            parts.encoder((F.interpolate(images, size=(SIDE, SIDE), mode="bicubic") * 0.5 + 0.5 - mean) / std)
        finally:
            handle.remove()
        torch.testing.assert_close(tokens, seen[0], rtol=1e-5, atol=1e-5)

    @staticmethod
    def layer(model: torch.nn.Module) -> str:
        """The name of the last layer but one."""
        return next(name for name, _ in model.named_modules() if name.endswith("encoder.layers.1"))

    def test_dtype_and_dropping(self, repository):
        made = ImageEncoder(repository, dtype=torch.bfloat16)
        assert not made.is_loaded
        assert made.encode(torch.zeros(1, 3, 20, 20)).dtype == torch.bfloat16
        assert made.is_loaded
        made.drop()
        assert not made.is_loaded

    def test_missing_encoder_says_how_to_fetch_it(self, nowhere):
        with pytest.raises(weights.NotFoundError) as caught:
            find_encoder(CLIP)
        for part in (
            "the image encoder CLIP ViT-H/14 (config.json, weights and preprocessor of "
            "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers or",
            f"looked at {nowhere}/Wan2.1-I2V-14B-480P-Diffusers/image_encoder",
            "--include 'image_encoder/*' --include 'image_processor/*'",
        ):
            assert part in str(caught.value)
        assert "T2V" not in str(caught.value)

    def test_damaged_settings_are_named(self, repository):
        (repository / "image_processor" / "preprocessor_config.json").write_text("{}")
        with pytest.raises(ValueError, match=r"preprocessor_config\.json has no image_mean and image_std"):
            ImageEncoder(repository).load()

    def test_importing_loads_no_library(self):
        assert not {"CLIPVisionModel", "transformers"} & set(vars(image))
