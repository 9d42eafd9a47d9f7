"""The autoencoder on a small stand-in in the layout of the published one; FLUX's official layout is tested there."""

from pathlib import Path

import pytest
import torch

from hidream.config import CONFIGS, REPOS, USAGE
from hidream.decode import ENV, find_autoencoder, load_autoencoder

FILE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def nowhere(without_checkpoints) -> Path:
    return without_checkpoints(ENV)


@pytest.fixture
def repository(small_vae, tmp_path) -> Path:
    """A HiDream-I1 repository, as far as the autoencoder goes."""
    small_vae.save_pretrained(tmp_path / "HiDream" / "vae")
    return tmp_path / "HiDream"


@pytest.fixture(scope="module")
def latents():
    return torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("how", ["repository", "folder", "file", "variable", "downloads"])
def test_places(small_vae, repository, latents, nowhere, monkeypatch, how):
    given = {"repository": repository, "folder": repository / "vae", "file": repository / FILE}.get(how)
    if how == "variable":
        monkeypatch.setenv("HIDREAM_VAE", str(repository))
    if how == "downloads":
        nowhere.mkdir()
        repository.rename(nowhere / "HiDream-I1-Dev")
    decoder = load_autoencoder("hidream-dev", given)
    expected = small_vae.decode(latents / 0.3611 + 0.1159).sample
    assert expected.shape == (2, 3, 32, 48), "eight pixels a latent"
    torch.testing.assert_close(decoder.decode(latents), expected, rtol=1e-6, atol=1e-6)


def test_dtype_and_tiles(repository, latents):
    whole = load_autoencoder("hidream-full", repository).decode(latents)
    rounded = load_autoencoder("hidream-full", repository, "cpu", torch.bfloat16, tiled=True)
    assert rounded.model.use_tiling
    assert (rounded.decode(latents).float() - whole).abs().max() <= 0.1 * whole.abs().max()


def test_decoders_fit_what_is_sampled(repository):
    for name, usage in USAGE.items():
        decoder = load_autoencoder(name, repository)
        assert (decoder.channels, decoder.factor) == (CONFIGS[name].in_channels, usage.factor)


def test_pixel_models_need_no_autoencoder():
    samples = torch.randn(1, 3, 32, 32)
    assert load_autoencoder("hidream-tiny", "nowhere").decode(samples) is samples


@pytest.mark.parametrize("name", REPOS)
def test_missing_file_says_how_to_fetch_it(nowhere, name):
    with pytest.raises(FileNotFoundError) as caught:
        find_autoencoder(name)
    repo = REPOS[name]
    for part in (
        f"{FILE} ({repo}) was not found; looked at {nowhere}/{repo.split('/')[1]}/{FILE}",
        f"`hf download {repo} {FILE} --local-dir {nowhere}/{repo.split('/')[1]}`",
    ):
        assert part in str(caught.value)


def test_bad_input_is_named(monkeypatch, tmp_path, repository):
    monkeypatch.setenv(ENV, str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"gone \(does not exist, named by HIDREAM_VAE\)"):
        load_autoencoder("hidream-full")
    with pytest.raises(ValueError, match="model 'hidream' is unknown"):
        load_autoencoder("hidream", repository)
    with pytest.raises(ValueError, match=r"latents of shape \(1, 4, 8, 8\) must be \(B, 16, h, w\)"):
        load_autoencoder("hidream-full", repository).decode(torch.zeros(1, 4, 8, 8))
