"""The latent decoder on a small autoencoder in the layout of the published one."""

import shutil

import pytest
import torch

from dit import dit_config
from dit.decode import LATENT_SCALE, find_vae, load_decoder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A folder as the hub has it, and the model that was saved there."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()  # fmt: skip
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return folder, model


@torch.inference_mode()
def test_latents_are_unscaled_and_decoded(autoencoder):
    folder, model = autoencoder
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    images = load_decoder(dit_config("DiT-XL/2"), str(folder), torch.device("cpu"))(latents)
    assert images.shape == (2, 3, 32, 32), "eight pixels a latent"
    torch.testing.assert_close(images, model.decode(latents / LATENT_SCALE).sample)


def test_pixel_models_need_no_autoencoder():
    samples = torch.randn(1, 1, 32, 32)
    assert load_decoder(dit_config("fashion-mnist"), "nowhere", torch.device("cpu"))(samples) is samples


def test_a_missing_autoencoder_says_how_to_fetch_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"hf download .*nowhere --local-dir .* and pass --vae"):
        load_decoder(dit_config("DiT-XL/2"), str(tmp_path / "nowhere"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[" * 100_000),
        ("config.json", "[]"),
        ("config.json", '{"block_out_channels": "many"}'),
        ("diffusion_pytorch_model.safetensors", ""),
        ("diffusion_pytorch_model.safetensors", "\xff" * 100),
    ],
)
def test_a_folder_with_other_files_is_one_line(autoencoder, tmp_path, name, content):
    folder = shutil.copytree(autoencoder[0], tmp_path / "vae")
    (folder / name).write_text(content)
    with pytest.raises(
        ValueError, match=r"--vae .*vae cannot be read as an AutoencoderKL \(.*fetch it again"
    ) as caught:
        load_decoder(dit_config("DiT-XL/2"), str(folder), torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_files_that_are_read(autoencoder):
    files = find_vae(str(autoencoder[0]))
    assert [path.name for path in files] == ["config.json", "diffusion_pytorch_model.safetensors"]
