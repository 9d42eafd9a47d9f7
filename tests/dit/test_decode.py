"""The latent decoder on a small autoencoder in the layout of the published one."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit import dit_config
from dit.decode import CONFIG, LATENT_SCALE, find_autoencoder, load_autoencoder
from seerkit.weights.autoencoders import autoencoder_files

FILE = "diffusion_pytorch_model.safetensors"
XL = dit_config("DiT-XL/2")


@pytest.fixture(autouse=True)
def nowhere(without_checkpoints) -> Path:
    return without_checkpoints()


@pytest.fixture(scope="module")
def autoencoder(need, tmp_path_factory):
    """A folder as the hub has it, and the model that was saved there."""
    torch.manual_seed(0)
    model = need("diffusers").AutoencoderKL(
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
    images = load_autoencoder(XL, str(folder)).decode(latents)
    assert images.shape == (2, 3, 32, 32), "eight pixels a latent"
    torch.testing.assert_close(images, model.decode(latents / LATENT_SCALE).sample, rtol=0, atol=1e-5)


def test_attention_is_read_under_the_names_that_it_was_published_with(autoencoder, need, tmp_path):
    """Those of diffusers before 0.18, which diffusers itself renames, too."""
    folder, model = shutil.copytree(autoencoder[0], tmp_path / "vae"), autoencoder[1]
    before = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = {}
    for name, value in load_file(folder / FILE).items():
        for new, old in before.items():
            name = name.replace(new, old)
        state[name] = value
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in state
    save_file(state, folder / FILE, {"format": "pt"})
    ours = load_autoencoder(XL, str(folder)).model.state_dict()
    theirs = need("diffusers").AutoencoderKL.from_pretrained(folder).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(ours[name], value)
        assert torch.equal(theirs[name], value)


def test_configuration_of_the_published_one(need):
    """It stands where the file was fetched alone."""
    with torch.device("meta"):
        model = need("diffusers").AutoencoderKL.from_config(CONFIG)
    assert sum(parameter.numel() for parameter in model.parameters()) == 83_653_863
    assert model.config.shift_factor is None


def test_pixel_models_need_no_autoencoder():
    samples = torch.randn(1, 1, 32, 32)
    assert load_autoencoder(dit_config("fashion-mnist"), None).decode(samples) is samples


@pytest.mark.parametrize("vae", ["ema", "mse", "someone/vae"])
def test_a_missing_one_of_the_hub_is_named_with_the_command(nowhere, vae):
    repo = {"ema": "stabilityai/sd-vae-ft-ema", "mse": "stabilityai/sd-vae-ft-mse"}.get(vae, vae)
    place = nowhere / repo.split("/")[1]
    with pytest.raises(FileNotFoundError) as caught:
        load_autoencoder(XL, vae)
    assert f"`hf download {repo} --include {FILE} --include config.json --local-dir {place}`" in str(caught.value)
    place.mkdir(parents=True)
    (place / FILE).touch()
    assert find_autoencoder(vae) == place / FILE, "which puts it where it is looked for"


@pytest.mark.parametrize(
    "vae",
    ["nowhere", "a b/c", "a/b/c", "/a/b", "a--b/c", "a/b..c", "-a/b", "a/b.", "a/b.git", "é/b", "a/" + "b" * 97, "\0"],
)
def test_what_is_no_repository_is_a_folder(vae, need):
    hub = need("huggingface_hub")
    with pytest.raises(FileNotFoundError, match=r"\(does not exist\)"):
        load_autoencoder(XL, vae)
    if "/" in vae:
        with pytest.raises(hub.errors.HFValidationError):
            hub.utils.validate_repo_id(vae)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"looked at .*gone \(does not exist\); fetch it with `hf download"):
        load_autoencoder(XL, str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "[" * 100_000, r"config\.json"),
        ("config.json", "[]", r"config\.json is no object"),
        ("config.json", '{"block_out_channels": "many"}', r"config\.json has block_out_channels 'many'"),
        (FILE, "", "is truncated or damaged"),
        (FILE, "\xff" * 100, "is truncated or damaged"),
    ],
)
def test_a_folder_with_other_files_is_one_line(autoencoder, tmp_path, name, content, said):
    folder = shutil.copytree(autoencoder[0], tmp_path / "vae")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=said) as caught:
        load_autoencoder(XL, str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_read(autoencoder):
    files = autoencoder_files(find_autoencoder(str(autoencoder[0])))
    assert [path.name for path in files] == [FILE, "config.json"]
