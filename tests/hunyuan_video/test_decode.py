"""The autoencoder on a small stand-in in the layout of the published file."""

from pathlib import Path

import pytest
import torch

from hunyuan_video import decode
from hunyuan_video.decode import CONFIG, ENV, TILE_FRAMES, TILE_STRIDE, load_autoencoder
from seerkit.weights import checkpoints as weights

SMALL = {"block_out_channels": (4, 4, 8, 8), "norm_num_groups": 2, "layers_per_block": 1}
SCALE = 0.476986


@pytest.fixture(autouse=True)
def nowhere(without_checkpoints) -> Path:
    return without_checkpoints(ENV)


@pytest.fixture(scope="module")
def model(need):
    """A diffusers autoencoder with random weights, that decodes in one piece."""
    torch.manual_seed(0)
    made = need("diffusers").AutoencoderKLHunyuanVideo.from_config(SMALL).eval().requires_grad_(False)
    made.use_framewise_encoding = made.use_framewise_decoding = False
    return made


@pytest.fixture
def repository(model, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "HunyuanVideo" / "vae")
    return tmp_path / "HunyuanVideo"


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class TestDecode:
    def test_is_diffusers(self, model, repository):
        latents = noise(2, 16, 2, 4, 6)
        video = load_autoencoder(repository).decode(latents)
        assert video.shape == (2, 3, 5, 32, 48), "one frame, then four a latent; eight pixels a latent"
        torch.testing.assert_close(video, model.decode(latents / SCALE).sample, rtol=1e-6, atol=1e-6)

    def test_encodes_as_diffusers(self, model, repository):
        video = noise(1, 3, 5, 16, 24).clamp(-1, 1)
        latents = load_autoencoder(repository).encode(video)
        assert latents.shape == (1, 16, 2, 2, 3)
        torch.testing.assert_close(latents, model.encode(video).latent_dist.mode() * SCALE, rtol=1e-6, atol=1e-6)

    def test_what_it_decodes(self, repository):
        made = load_autoencoder(repository)
        assert (made.channels, made.factor, made.frame_factor) == (16, 8, 4)

    def test_dtype(self, repository):
        latents = noise(1, 16, 1, 4, 4)
        exact = load_autoencoder(repository).decode(latents)
        rounded = load_autoencoder(repository, "cpu", torch.bfloat16).decode(latents)
        assert rounded.dtype == torch.bfloat16
        assert (rounded - exact).abs().max() <= 0.1 * exact.abs().max()


class TestTiles:
    def test_wide_videos(self, model, repository):
        """Far from the seams a tile is the video, but for its group norms; hence the tolerance."""
        latents = noise(1, 16, 1, 2, 40)
        tiled = load_autoencoder(repository).decode(latents)
        whole = load_autoencoder(repository, tiled=False).decode(latents)
        torch.testing.assert_close(whole, model.decode(latents / SCALE).sample, rtol=1e-6, atol=1e-6)
        assert tiled.shape == whole.shape == (1, 3, 1, 16, 320)
        assert 0 < (tiled - whole).abs().mean() <= 0.5 * whole.abs().mean()

    def test_long_videos(self, model, repository):
        """17 latents are a tile of 17 and one from the 13th on, blended over 16 frames, as in the official code."""
        latents = noise(1, 16, 17, 1, 1)
        tiled = load_autoencoder(repository).decode(latents)
        whole = load_autoencoder(repository, tiled=False).decode(latents)
        torch.testing.assert_close(whole, model.decode(latents / SCALE).sample, rtol=1e-6, atol=1e-6)
        second = model.decode(latents[:, :, TILE_STRIDE // 4 :] / SCALE).sample[:, :, 1:]  # (…, 16, 8, 8)
        expected = whole.clone()
        blended = TILE_FRAMES - TILE_STRIDE
        share = (torch.arange(blended) / blended).view(-1, 1, 1)
        # The first tile gives all of its 65 frames to the blend, whose last 16 the second goes over into.
        expected[:, :, 1 + TILE_STRIDE :] = whole[:, :, -blended:] * (1 - share) + second * share
        torch.testing.assert_close(tiled, expected, rtol=1e-5, atol=1e-6)
        assert (tiled - whole).abs().max() > 1e-3

    def test_short_videos_are_whole_in_time(self, model, repository):
        latents = noise(1, 16, 16, 1, 1)
        expected = model.decode(latents / SCALE).sample
        torch.testing.assert_close(load_autoencoder(repository).decode(latents), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", ["file", "vae folder", "variable", "downloads"])
def test_places(repository, nowhere, monkeypatch, how):
    vae = repository / "vae"
    given = {"file": vae / "diffusion_pytorch_model.safetensors", "vae folder": vae}.get(how)
    if how == "variable":
        monkeypatch.setenv(ENV, str(repository))
    if how == "downloads":
        nowhere.mkdir()
        repository.rename(nowhere / "HunyuanVideo")
    assert load_autoencoder(given, download=False).decode(noise(1, 16, 1, 2, 2)).shape == (1, 3, 1, 16, 16)


def test_the_official_file(model, tmp_path, monkeypatch):
    """hyvideo/vae: the same names under the key state_dict, beside a configuration of the official class."""
    monkeypatch.setattr(decode, "CONFIG", CONFIG | SMALL)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKLCausal3D"}')
    torch.save({"state_dict": model.state_dict()}, tmp_path / "vae" / "pytorch_model.pt")
    latents = noise(1, 16, 2, 2, 2)
    decoded = load_autoencoder(tmp_path / "vae").decode(latents)
    torch.testing.assert_close(decoded, model.decode(latents / SCALE).sample, rtol=1e-6, atol=1e-6)


def test_the_published_configuration_is_that_of_diffusers(need):
    """diffusers' class is made for it; what CONFIG does not name goes without saying."""
    with torch.device("meta"):
        default, ours = (need("diffusers").AutoencoderKLHunyuanVideo.from_config(config) for config in ({}, CONFIG))
    assert {k: v for k, v in default.config.items() if k[0] != "_"} == {
        k: v for k, v in ours.config.items() if k[0] != "_"
    }
    assert (CONFIG["latent_channels"], CONFIG["scaling_factor"]) == (16, SCALE)


class TestErrors:
    def test_missing_file_says_how_to_fetch_it(self, nowhere):
        with pytest.raises(weights.NotFoundError) as caught:
            load_autoencoder()
        for part in (
            "hunyuan-video-t2v-720p/vae/pytorch_model.pt (tencent/HunyuanVideo)",
            "vae/diffusion_pytorch_model.safetensors (hunyuanvideo-community/HunyuanVideo)",
            f"looked at {nowhere}/HunyuanVideo/hunyuan-video-t2v-720p/vae/pytorch_model.pt",
            "`hf download hunyuanvideo-community/HunyuanVideo vae/diffusion_pytorch_model.safetensors --local-dir "
            f"{nowhere}/HunyuanVideo`",
        ):
            assert part in str(caught.value)

    def test_variable_that_points_nowhere(self, monkeypatch, tmp_path):
        monkeypatch.setenv(ENV, str(tmp_path / "gone"))
        with pytest.raises(FileNotFoundError, match=r"gone \(does not exist, named by HUNYUAN_VAE\)"):
            load_autoencoder()

    def test_another_kind_of_model(self, repository):
        path = repository / "vae" / "config.json"
        path.write_text(path.read_text().replace("AutoencoderKLHunyuanVideo", "AutoencoderKLWan"))
        with pytest.raises(
            ValueError, match="is the configuration of AutoencoderKLWan, not of AutoencoderKLHunyuanVideo"
        ):
            load_autoencoder(repository)

    def test_latents_of_another_model(self, repository):
        with pytest.raises(ValueError, match=r"latents of shape \(1, 16, 8, 8\) must be \(B, 16, T, h, w\)"):
            load_autoencoder(repository).decode(torch.zeros(1, 16, 8, 8))
