"""The autoencoder on a small stand-in in the layout of the published file."""

import re
from pathlib import Path

import pytest
import torch

from seerkit.weights import checkpoints as weights
from seerkit.weights.autoencoders import Pixels
from wan import decode
from wan.config import DIFFUSERS_REPOS, REPOS
from wan.decode import CONFIG, ENV, load_autoencoder

SMALL = CONFIG | {"base_dim": 4, "num_res_blocks": 1}


@pytest.fixture(autouse=True)
def nowhere(without_checkpoints) -> Path:
    return without_checkpoints(ENV)


@pytest.fixture(scope="module")
def model(need):
    """A diffusers autoencoder with random weights; its statistics are the published ones."""
    torch.manual_seed(0)
    return need("diffusers").AutoencoderKLWan.from_config(SMALL).eval().requires_grad_(False)


@pytest.fixture
def repository(model, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "Wan" / "vae")
    return tmp_path / "Wan"


@pytest.fixture(scope="module")
def latents():
    return torch.randn(2, 16, 2, 4, 6, generator=torch.Generator().manual_seed(1))


def statistics(model) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.tensor(model.config[key]).view(1, 16, 1, 1, 1) for key in ("latents_mean", "latents_std"))


class TestLatents:
    def test_decodes_as_diffusers(self, model, repository, latents):
        """To the rounding of the statistics."""
        mean, std = statistics(model)
        video = load_autoencoder(repository).decode(latents)
        assert video.shape == (2, 3, 5, 32, 48), "one frame, then four a latent; eight pixels a latent"
        assert video.abs().max() <= 1
        torch.testing.assert_close(video, model.decode(latents * std + mean).sample, rtol=1e-5, atol=1e-5)

    def test_encodes_as_diffusers(self, model, repository):
        mean, std = statistics(model)
        video = torch.rand(1, 3, 5, 16, 24, generator=torch.Generator().manual_seed(2)) * 2 - 1
        latents = load_autoencoder(repository).encode(video)
        assert latents.shape == (1, 16, 2, 2, 3)
        expected = (model.encode(video).latent_dist.mode() - mean) / std
        torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-6)

    def test_statistics_are_the_official_ones(self, repository):
        """Of the first and last channel, wan modules/vae.py."""
        made = load_autoencoder(repository)
        torch.testing.assert_close(made.shift.flatten()[[0, -1]], torch.tensor([-0.7571, -0.2921]))
        torch.testing.assert_close(1 / made.scale.flatten()[[0, -1]], torch.tensor([2.8184, 1.9160]))
        assert (made.channels, made.factor, made.frame_factor) == (16, 8, 4)

    def test_dtype(self, repository, latents):
        exact = load_autoencoder(repository).decode(latents)
        made = load_autoencoder(repository, "cpu", torch.bfloat16)
        rounded = made.decode(latents)
        assert rounded.dtype == torch.bfloat16
        assert (rounded - exact).abs().mean() <= 0.05 * exact.abs().mean()
        assert made.encode(rounded).dtype == torch.float32

    def test_large_videos_in_tiles(self, repository, model):
        latents = torch.randn(1, 16, 1, 2, 40, generator=torch.Generator().manual_seed(1))
        whole, tiled = (load_autoencoder(repository, tiled=tiled).decode(latents) for tiled in (False, True))
        assert tiled.shape == whole.shape == (1, 3, 1, 16, 320)
        assert 0 < (tiled - whole).abs().mean() <= 0.1 * whole.abs().mean()

    @pytest.mark.parametrize("how", ["file", "vae folder", "variable", "downloads"])
    def test_places(self, repository, latents, nowhere, monkeypatch, how):
        vae = repository / "vae"
        given = {"file": vae / "diffusion_pytorch_model.safetensors", "vae folder": vae}.get(how)
        if how == "variable":
            monkeypatch.setenv(ENV, str(repository))
        if how == "downloads":
            nowhere.mkdir()
            repository.rename(nowhere / list(DIFFUSERS_REPOS.values())[-1].split("/")[1])
        assert load_autoencoder(given, download=False).decode(latents[:1, :, :1]).shape == (1, 3, 1, 32, 48)


def official_names(state: dict[str, torch.Tensor], num_res_blocks: int) -> dict[str, torch.Tensor]:
    """diffusers' state dict under the names of wan/modules/vae.py."""
    parts = [
        ("norm1.", "residual.0."), ("conv1.", "residual.2."), ("norm2.", "residual.3."), ("conv2.", "residual.6."),
        ("conv_shortcut.", "shortcut."), ("conv_in.", "conv1."), ("norm_out.", "head.0."), ("conv_out.", "head.2."),
        ("mid_block.resnets.0", "middle.0"), ("mid_block.attentions.0", "middle.1"), ("mid_block.resnets.1", "middle.2"),
        ("down_blocks", "downsamples"), ("post_quant_conv", "conv2"), ("quant_conv", "conv1"),
    ]  # fmt: skip

    def flat(match: re.Match) -> str:
        inner = int(match[3]) if match[2] == "resnets" else num_res_blocks + 1
        return f"upsamples.{int(match[1]) * (num_res_blocks + 2) + inner}."

    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in parts:
            name = name.replace(ours, theirs)
        renamed[re.sub(r"up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)\.", flat, name)] = tensor.clone()
    return renamed


class TestOfficial:
    @pytest.fixture
    def official(self, model, tmp_path, monkeypatch) -> Path:
        """Beside it lies the configuration of the transformer, as in the published repository."""
        monkeypatch.setattr(decode, "CONFIG", SMALL)
        folder = tmp_path / "Wan2.1-T2V-1.3B"
        folder.mkdir()
        (folder / "config.json").write_text('{"_class_name": "WanModel"}')
        torch.save(official_names(model.state_dict(), SMALL["num_res_blocks"]), folder / "Wan2.1_VAE.pth")
        return folder

    def test_every_weight_finds_its_place(self, model, official, latents):
        made = load_autoencoder(official)
        state = made.model.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())

    def test_downloads_are_found(self, official, nowhere, latents):
        nowhere.mkdir()
        official.rename(nowhere / next(iter(REPOS.values())).split("/")[1])
        assert load_autoencoder(download=False).decode(latents[:1, :, :1]).shape == (1, 3, 1, 32, 48)

    def test_names_are_those_that_diffusers_converts(self, need):
        """The published file's 194 tensors; a few by hand from the official modules."""
        from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

        with torch.device("meta"):
            full = need("diffusers").AutoencoderKLWan.from_config(CONFIG).state_dict()
        names = official_names(full, CONFIG["num_res_blocks"])
        assert len(names) == len(full) == 194
        for name, shape in {
            "encoder.downsamples.3.shortcut.weight": (192, 96, 1, 1, 1),
            "encoder.downsamples.5.time_conv.weight": (192, 192, 3, 1, 1),
            "encoder.downsamples.10.residual.6.weight": (384, 384, 3, 3, 3),
            "encoder.middle.1.to_qkv.weight": (1152, 384, 1, 1),
            "decoder.upsamples.3.time_conv.weight": (768, 384, 3, 1, 1),
            "decoder.upsamples.11.resample.1.weight": (96, 192, 3, 3),
            "decoder.upsamples.14.residual.0.gamma": (96, 1, 1, 1),
            "decoder.head.2.weight": (3, 96, 3, 3, 3),
            "conv1.weight": (32, 32, 1, 1, 1),
            "conv2.weight": (16, 16, 1, 1, 1),
        }.items():
            assert tuple(names[name].shape) == shape
        layout = decode.official_layout(4, 2)
        theirs = convert_wan_vae_to_diffusers(names)
        ours = layout.convert(names)
        assert ours.keys() == theirs.keys() == full.keys()
        assert all(ours[name] is theirs[name] for name in full)


def test_without_a_configuration_it_is_the_published_one(repository):
    """Whose layers the stand-in does not have."""
    (repository / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"safetensors: the weights do not fit AutoencoderKLWan: .*model \(96,"):
        load_autoencoder(repository)


def test_pixels_need_no_autoencoder(latents):
    decoder = Pixels()
    assert decoder.decode(latents) is latents
    assert (decoder.channels, decoder.factor, decoder.frame_factor) == (3, 1, 1)


class TestErrors:
    def test_missing_file_says_how_to_fetch_it(self, nowhere):
        with pytest.raises(weights.NotFoundError) as caught:
            load_autoencoder()
        for part in (
            "Wan2.1_VAE.pth (Wan-AI/Wan2.1-T2V-1.3B)",
            f"{nowhere}/Wan2.1-T2V-1.3B-Diffusers/vae/diffusion_pytorch_model.safetensors",
            f"`hf download Wan-AI/Wan2.1-T2V-1.3B Wan2.1_VAE.pth --local-dir {nowhere}/Wan2.1-T2V-1.3B`",
        ):
            assert part in str(caught.value)

    def test_variable_that_points_nowhere(self, monkeypatch, tmp_path):
        monkeypatch.setenv(ENV, str(tmp_path / "gone"))
        with pytest.raises(FileNotFoundError, match=r"gone \(does not exist, named by WAN_VAE\)"):
            load_autoencoder()

    def test_another_kind_of_model(self, repository):
        path = repository / "vae" / "config.json"
        path.write_text(path.read_text().replace("AutoencoderKLWan", "AutoencoderKLMochi"))
        with pytest.raises(ValueError, match="is the configuration of AutoencoderKLMochi, not of AutoencoderKLWan"):
            load_autoencoder(repository)
        path.write_text("nothing")
        with pytest.raises(ValueError, match=r"config\.json is not JSON"):
            load_autoencoder(repository)

    def test_damaged_weights(self, repository):
        path = repository / "vae" / "diffusion_pytorch_model.safetensors"
        state = weights.read_state(path)
        del state["quant_conv.bias"]
        weights.export_safetensors(path, state)
        with pytest.raises(ValueError, match=r"safetensors: .*1 missing \(quant_conv\.bias\)"):
            load_autoencoder(repository)

    def test_shapes(self, repository):
        made = load_autoencoder(repository)
        with pytest.raises(ValueError, match=r"latents of shape \(1, 4, 1, 2, 2\) must be \(B, 16, T, h, w\)"):
            made.decode(torch.zeros(1, 4, 1, 2, 2))
        with pytest.raises(ValueError, match=r"a video of shape \(3, 1, 8, 8\) must be \(B, 3, F, H, W\)"):
            made.encode(torch.zeros(3, 1, 8, 8))
        for frames, height in ((4, 16), (5, 12)):
            with pytest.raises(ValueError, match=rf"{frames} frames of {height} x 16 pixels cannot be encoded"):
                made.encode(torch.zeros(1, 3, frames, height, 16))
