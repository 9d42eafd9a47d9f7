"""The autoencoder on small stand-ins in the layouts of the published files."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from cache_dic import UserError
from flux.config import USAGE
from flux.decode import ENV, find_autoencoder, load_autoencoder
from seerkit.weights import autoencoders
from seerkit.weights.autoencoders import FLUX_CONFIG, autoencoder_files

SCALE, SHIFT = 0.3611, 0.1159


@pytest.fixture(autouse=True)
def nowhere(without_checkpoints, small_vae, monkeypatch) -> Path:
    """A file without a configuration is read as that of `small_vae`."""
    monkeypatch.setattr(autoencoders, "FLUX_CONFIG", dict(small_vae.config))
    return without_checkpoints(ENV)


def official_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' state dict under the names, and in the shapes, of black-forest-labs/flux modules/autoencoder.py."""
    replacements = [
        (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{3 - int(m[1])}.block."),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"\.to_out\.0\.", ".proj_out."),
        (r"\.to_([qkv])\.", r".\1."),
        (r"\.group_norm\.", ".norm."),
        (r"\.conv_norm_out\.", ".norm_out."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
    ]
    renamed = {}
    for name, tensor in state.items():
        ours = name
        for pattern, replacement in replacements:
            ours = re.sub(pattern, replacement, ours)
        is_attention = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", ours)
        renamed[ours] = (tensor[:, :, None, None] if is_attention else tensor).contiguous()
    return renamed


class Official:
    """The official decoder written out over a state dict: three levels of up-sampling, attention in the middle."""

    def __init__(self, state: dict[str, torch.Tensor], groups: int) -> None:
        self.state, self.groups = state, groups

    def conv(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight = self.state[f"decoder.{name}.weight"]
        return F.conv2d(x, weight, self.state[f"decoder.{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        affine = (self.state[f"decoder.{name}.{part}"] for part in ("weight", "bias"))
        return F.group_norm(x, self.groups, *affine, eps=1e-6)

    def residual(self, name: str, x: torch.Tensor) -> torch.Tensor:
        h = x
        for i in (1, 2):
            h = self.conv(f"{name}.conv{i}", F.silu(self.norm(f"{name}.norm{i}", h)))
        has_shortcut = f"decoder.{name}.nin_shortcut.weight" in self.state
        return h + (self.conv(f"{name}.nin_shortcut", x) if has_shortcut else x)

    def attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).flatten(2).transpose(1, 2) for part in "qkv")  # (B, h·w, C)
        out = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1) @ v
        return x + self.conv(f"{name}.proj_out", out.transpose(1, 2).unflatten(2, x.shape[2:]))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        h = self.conv("conv_in", latents / SCALE + SHIFT)
        h = self.residual("mid.block_2", self.attention("mid.attn_1", self.residual("mid.block_1", h)))
        for level in (3, 2, 1, 0):
            for block in range(3):
                h = self.residual(f"up.{level}.block.{block}", h)
            if level > 0:
                h = self.conv(f"up.{level}.upsample.conv", F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv("conv_out", F.silu(self.norm("norm_out", h)))


@pytest.fixture(scope="module")
def latents():
    return torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def official(small_vae, tmp_path):
    path = tmp_path / "FLUX" / "ae.safetensors"
    path.parent.mkdir()
    save_file(official_names(small_vae.state_dict()), path)
    return path


class TestOfficial:
    def test_decodes_as_the_official_architecture(self, small_vae, official, latents):
        images = load_autoencoder("flux-dev", official).decode(latents)
        assert images.shape == (2, 3, 32, 48), "eight pixels a latent"
        expected = Official(official_names(small_vae.state_dict()), small_vae.config.norm_num_groups).decode(latents)
        assert (images - expected).abs().max() <= 2e-5 * expected.abs().max()

    def test_every_weight_finds_its_place(self, small_vae, official):
        """The encoder's, too, which decoding does not show."""
        loaded = load_autoencoder("flux-dev", official).model.state_dict()
        assert loaded.keys() == small_vae.state_dict().keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in small_vae.state_dict().items())

    def test_names_are_the_official_ones(self, small_vae):
        """A few by hand from the official modules, at both ends of each list."""
        names = official_names(small_vae.state_dict())
        for name, shape in {
            "encoder.down.0.block.1.norm2.weight": (8,),
            "encoder.down.1.block.0.nin_shortcut.weight": (16, 8, 1, 1),
            "encoder.down.2.downsample.conv.weight": (24, 24, 3, 3),
            "encoder.mid.attn_1.q.weight": (24, 24, 1, 1),
            "encoder.conv_out.weight": (32, 24, 3, 3),
            "decoder.conv_in.weight": (24, 16, 3, 3),
            "decoder.mid.block_2.conv1.bias": (24,),
            "decoder.up.0.block.0.nin_shortcut.weight": (8, 16, 1, 1),
            "decoder.up.0.block.2.conv2.weight": (8, 8, 3, 3),
            "decoder.up.3.upsample.conv.bias": (24,),
            "decoder.norm_out.bias": (8,),
        }.items():
            assert tuple(names[name].shape) == shape
        assert "decoder.up.0.upsample.conv.weight" not in names
        assert len(names) == len(small_vae.state_dict())

    @pytest.mark.parametrize("how", ["file", "folder", "variable", "downloads"])
    def test_places(self, official, latents, nowhere, monkeypatch, how):
        given = {"file": official, "folder": official.parent}.get(how)
        if how == "variable":
            monkeypatch.setenv("AE", str(official))
        if how == "downloads":
            (nowhere / "FLUX.1-dev").mkdir(parents=True)
            official.rename(nowhere / "FLUX.1-dev" / "ae.safetensors")
        decoded = load_autoencoder("flux-schnell", given)
        assert decoded.decode(latents).shape == (2, 3, 32, 48)
        assert (decoded.channels, decoded.factor) == (16, 8)

    def test_dtype(self, official, latents):
        exact = load_autoencoder("flux-dev", official).decode(latents)
        rounded = load_autoencoder("flux-dev", official, "cpu", torch.bfloat16).decode(latents)
        assert rounded.dtype == torch.bfloat16
        assert (rounded - exact).abs().max() <= 0.1 * exact.abs().max()

    def test_large_images_in_tiles(self, official, small_vae, monkeypatch):
        """Far from the seams a tile is the image; the group norms see the tile alone, hence the tolerance."""
        monkeypatch.setattr(autoencoders, "FLUX_CONFIG", dict(small_vae.config) | {"sample_size": 64})
        latents = torch.randn(1, 16, 8, 20, generator=torch.Generator().manual_seed(1))
        whole, tiled = (load_autoencoder("flux-dev", official, tiled=tiled).decode(latents) for tiled in (False, True))
        assert tiled.shape == whole.shape
        assert 0 < (tiled - whole).abs().mean() <= 0.5 * whole.abs().mean()


class TestDiffusers:
    @pytest.mark.parametrize("inside", [True, False])
    def test_folder(self, small_vae, latents, tmp_path, inside):
        """Its own, or a repository with the folder vae; the configuration is the file's."""
        small_vae.save_pretrained(tmp_path / "FLUX" / "vae")
        decoded = load_autoencoder("flux-dev", tmp_path / "FLUX" / ("vae" if inside else ""))
        expected = small_vae.decode(latents / SCALE + SHIFT).sample
        torch.testing.assert_close(decoded.decode(latents), expected, rtol=1e-6, atol=1e-6)

    def test_its_own_scale_counts(self, small_vae, latents, tmp_path, need):
        other = need("diffusers").AutoencoderKL.from_config(
            dict(small_vae.config) | {"scaling_factor": 0.5, "shift_factor": None}
        )
        other.load_state_dict(small_vae.state_dict())
        other.save_pretrained(tmp_path)
        expected = small_vae.decode(latents / 0.5).sample
        torch.testing.assert_close(load_autoencoder("flux-dev", tmp_path).decode(latents), expected)

    def test_another_kind_of_model(self, small_vae, tmp_path):
        small_vae.save_pretrained(tmp_path)
        text = (tmp_path / "config.json").read_text().replace("AutoencoderKL", "AutoencoderDC")
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="is the configuration of AutoencoderDC, not of AutoencoderKL"):
            load_autoencoder("flux-dev", tmp_path)


def test_the_published_architecture_is_diffusers(need):
    """The configuration that diffusers' conversion gives FLUX's autoencoder, and the size of the official one."""
    with torch.device("meta"):
        full = need("diffusers").AutoencoderKL.from_config(FLUX_CONFIG)
    config, state = full.config, official_names(full.state_dict())
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (244, 83_819_683)
    assert (config.latent_channels, config.scaling_factor, config.shift_factor) == (16, SCALE, SHIFT)
    assert tuple(config.block_out_channels) == (128, 256, 512, 512)
    assert config.layers_per_block == 2
    assert config.mid_block_add_attention


def test_pixel_models_need_no_autoencoder():
    samples = torch.randn(1, 3, 32, 32)
    decoder = load_autoencoder("flux-tiny", "nowhere")
    assert decoder.decode(samples) is samples
    assert (decoder.channels, decoder.factor) == (3, 1)


def test_decoders_fit_what_is_sampled(official):
    for name, usage in USAGE.items():
        decoder = load_autoencoder(name, official)
        assert (decoder.channels, decoder.factor) == (usage.latent_channels, usage.factor)
    with pytest.raises(ValueError, match="model 'flux' is unknown"):
        load_autoencoder("flux")


class TestErrors:
    @pytest.mark.parametrize("name", ["dev", "schnell"])
    def test_missing_file_says_how_to_fetch_it(self, nowhere, name):
        with pytest.raises(FileNotFoundError) as caught:
            load_autoencoder(f"flux-{name}")
        for part in (
            f"ae.safetensors (black-forest-labs/FLUX.1-{name})",
            f"looked at {nowhere}/FLUX.1-{name}/ae.safetensors",
            f"`hf download black-forest-labs/FLUX.1-{name} ae.safetensors --local-dir {nowhere}/FLUX.1-{name}`",
            "vae/diffusion_pytorch_model.safetensors",
            f"https://huggingface.co/black-forest-labs/FLUX.1-{name} and log in with `hf auth login`",
        ):
            assert part in str(caught.value)

    def test_variable_that_points_nowhere(self, monkeypatch, tmp_path):
        monkeypatch.setenv("AE", str(tmp_path / "gone"))
        with pytest.raises(FileNotFoundError, match=r"gone \(does not exist, named by AE\)"):
            load_autoencoder("flux-dev")

    def test_other_files(self, official, small_vae, tmp_path):
        state = official_names(small_vae.state_dict())
        del state["decoder.up.2.block.1.conv1.weight"]
        save_file(state, official)
        with pytest.raises(
            ValueError, match=r"ae\.safetensors: .*1 missing \(decoder\.up_blocks\.1\.resnets\.1\.conv1"
        ):
            load_autoencoder("flux-dev", official)
        save_file({"img_in.weight": torch.zeros(2)}, official)
        with pytest.raises(ValueError, match=r"unknown layout \(img_in\.weight\)"):
            load_autoencoder("flux-dev", official)

    def test_latents_of_another_model(self, official):
        with pytest.raises(ValueError, match=r"latents of shape \(1, 4, 8, 8\) must be \(B, 16, h, w\)"):
            load_autoencoder("flux-dev", official).decode(torch.zeros(1, 4, 8, 8))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "is not JSON"),
            ("[]", "is no object with names but of type list"),
            ("3", "is no object with names but of type int"),
            ("[" * 100_000, "nested too deeply"),
            ('{"a":' * 100_000, "nested too deeply"),
            ("9" * 5000, "is not JSON"),
            ('{"_class_name": "AutoencoderKLWan"}', "is the configuration of AutoencoderKLWan, not of AutoencoderKL"),
            ('{"block_out_channels": "many"}', "has block_out_channels 'many'"),
            ('{"block_out_channels": 3}', "has block_out_channels 3"),
            ('{"scaling_factor": "1"}', "has scaling_factor '1'"),
            ('{"layers_per_block": [1]}', r"has layers_per_block \[1\]"),
            ('{"block_out_channels": ["a", "b", "c", "d"]}', "is not of AutoencoderKL"),
            ('{"block_out_channels": [8], "down_block_types": ["Nothing"]}', "is not of AutoencoderKL"),
            ('{"norm_num_groups": 0}', "is not of AutoencoderKL"),
            ("{}", "diffusion_pytorch_model.safetensors: the weights are of an unknown layout"),
            ('{"hidden_size": 12}', "diffusion_pytorch_model.safetensors: the weights are of an unknown layout"),
        ],
    )
    def test_configurations_of_another_kind_are_one_line(self, small_vae, tmp_path, content, message):
        small_vae.save_pretrained(tmp_path / "vae")
        (tmp_path / "vae" / "config.json").write_text(content)
        with pytest.raises(UserError, match=message) as caught:
            load_autoencoder("flux-dev", tmp_path / "vae")
        assert "\n" not in str(caught.value)


def test_files_that_are_read(official, small_vae, tmp_path):
    assert autoencoder_files(official) == [official]
    small_vae.save_pretrained(tmp_path / "vae")
    path = find_autoencoder("flux-dev", tmp_path / "vae")
    assert autoencoder_files(path) == [path, path.with_name("config.json")]


def test_the_autoencoder_of_a_file_with_several_models(official, small_vae, latents, tmp_path):
    """As ComfyUI's checkpoints have it."""
    expected = load_autoencoder("flux-dev", official).decode(latents)
    state = {f"vae.{name}": x for name, x in official_names(small_vae.state_dict()).items()}
    save_file(state | {"model.diffusion_model.img_in.weight": torch.zeros(2)}, tmp_path / "all.safetensors")
    assert torch.equal(load_autoencoder("flux-dev", tmp_path / "all.safetensors").decode(latents), expected)
