"""CLIP score against a cosine by hand and torchmetrics; ImageReward by a stub; the scores of the embedded models' judges."""

import string
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from cache_dic import UserError
from evaluation.scoring.measures import find_measure
from evaluation.scoring.read import Shard, Task, check_task, score
from evaluation.scoring.samples import open_samples
from evaluation.scoring.texts import CLIPS, clip_reader
from evaluation.scoring.weights import STAND_INS
from seerkit.data.fashion_mnist import CLASS_NAMES
from seerkit.devices.distributed import World
from seerkit.io.media import save_mp4, save_png

ALONE = World(0, 1, torch.device("cpu"))
PROMPTS = ["a red apple, noto", "a dog", "x" * 300]


def random_images(seed: int, count: int = 3, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write_images(folder: Path, images: np.ndarray) -> Path:
    for index, pixels in enumerate(images):
        save_png(folder / f"{index:06d}.png", pixels)
    return folder


@pytest.fixture(scope="module")
def clip_folder(need, tmp_path_factory) -> Path:
    """A CLIP of two small towers with random weights, saved as transformers saves them."""
    tf = need("transformers")
    symbols = [c + end for end in ("", "</w>") for c in string.ascii_lowercase + ","] + [
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocab = {symbol: number for number, symbol in enumerate(symbols)}
    shared = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = tf.CLIPConfig(
        text_config={
            **shared, "vocab_size": len(vocab), "max_position_embeddings": 77, "bos_token_id": len(vocab) - 2,
            "eos_token_id": len(vocab) - 1,
        },
        vision_config={**shared, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = tf.CLIPModel(config).eval()
        for parameter in model.parameters():  # so that cosines of both signs come out
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        for embedding in (model.vision_model.embeddings.patch_embedding, model.text_model.embeddings.token_embedding):
            embedding.weight.data *= 10
    model.save_pretrained(folder)
    tf.CLIPTokenizer(vocab=vocab, merges=[], pad_token="<|endoftext|>", model_max_length=77).save_pretrained(folder)
    tf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def stand_in(clip_folder, without_checkpoints, monkeypatch) -> Path:
    """The small CLIP in the place of ViT-L/14."""
    without_checkpoints("CLIP_B32")
    monkeypatch.setenv("CLIP_L14", str(clip_folder))
    monkeypatch.setenv(STAND_INS, "1")
    return clip_folder


def clip_by_hand(folder: Path, pixels: np.ndarray, prompt: str) -> float:
    """100 x cosine of the outputs of the two towers, each called alone."""
    import transformers as tf
    from PIL import Image

    model, tokens = tf.CLIPModel.from_pretrained(folder), tf.CLIPTokenizer.from_pretrained(folder)
    height, width = pixels.shape[:2]
    size = (32 * width // min(height, width), 32 * height // min(height, width))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - 32) // 2, (size[1] - 32) // 2
    values = np.asarray(image.crop((left, top, left + 32, top + 32))) / 255.0
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # of OpenAI's CLIP
    x = torch.from_numpy((values - mean) / std).permute(2, 0, 1)[None].float()
    numbers = tokens(prompt).input_ids
    numbers = torch.tensor([numbers[:76] + numbers[-1:] if len(numbers) > 77 else numbers])
    with torch.no_grad():
        image_vector = model.visual_projection(model.vision_model(x).pooler_output)[0]
        text_vector = model.text_projection(model.text_model(numbers).pooler_output)[0]
    return 100 * (image_vector @ text_vector / image_vector.norm() / text_vector.norm()).item()


def test_clip_score_is_the_cosine_of_both_towers(stand_in, tmp_path):
    images = random_images(0)
    task = Task(samples=open_samples(write_images(tmp_path / "a", images)), prompts=PROMPTS)
    found = score(task, ["clip-l14"], tmp_path / "work", ALONE, quiet=True)["clip-l14"]
    cosines = [clip_by_hand(stand_in, *pair) for pair in zip(images, PROMPTS, strict=True)]
    assert found["value"] == pytest.approx(np.mean([max(0, value) for value in cosines]), rel=1e-4)
    assert found["title"] == "CLIP score (ViT-L/14) (stand-in weights)"
    assert found["facts"]["backbone"] == "ViT-L/14"
    assert {"weights", "transformers"} <= found["facts"].keys()
    assert min(abs(value) for value in cosines) > 1, "far from zero, so that signs are certain"


def test_a_negative_cosine_counts_as_zero_for_its_image_alone(stand_in, tmp_path):
    """torchmetrics would clip the mean."""
    images, words = random_images(1, 12) // 2, list(string.ascii_lowercase[:12])
    images += np.random.default_rng(2).integers(0, 128, (12, 1, 1, 3), dtype=np.uint8)
    read = clip_reader(stand_in, torch.device("cpu"))
    task = Task(samples=open_samples(write_images(tmp_path / "a", images)), prompts=words)
    values = read(Shard(task, range(12)))["score"]
    cosines = np.array([clip_by_hand(stand_in, *pair) for pair in zip(images, words, strict=True)])
    assert (cosines < -1).any()
    assert (cosines > 1).any()
    np.testing.assert_allclose(values, np.maximum(cosines, 0), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_clip_score_of_an_image_is_torchmetrics(stand_in, tmp_path, need):
    """transformers 5 returns more than the features that torchmetrics 1.9 expects, so they are picked for it."""
    functional = need("torchmetrics.functional.multimodal")
    import transformers as tf

    class Features(torch.nn.Module):
        """The model, whose projected features are all that it returns."""

        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model, self.config = model, model.config

        def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.model.get_image_features(pixels).pooler_output

        def get_text_features(self, numbers: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.model.get_text_features(numbers, mask).pooler_output

    images = random_images(0)
    model, tokens = tf.CLIPModel.from_pretrained(stand_in), tf.CLIPTokenizer.from_pretrained(stand_in)
    processor = tf.CLIPProcessor(tf.CLIPImageProcessorPil.from_pretrained(stand_in), tokens)
    model_of, pairs = Features(model), list(zip(images, PROMPTS[:3], strict=True))[:2]
    single = [
        functional.clip_score(torch.from_numpy(pixels).permute(2, 0, 1), prompt, lambda: (model_of, processor)).item()
        for pixels, prompt in pairs
    ]
    assert max(single) > 1
    task = Task(samples=open_samples(write_images(tmp_path / "a", images[:2])), prompts=PROMPTS[:2])
    found = score(task, ["clip-l14"], tmp_path / "work", ALONE, quiet=True)["clip-l14"]
    assert found["value"] == pytest.approx(np.mean(single), rel=1e-4)


def test_a_video_has_the_mean_over_its_frames(stand_in, tmp_path):
    frames = random_images(2, 4, 32, 48)
    save_mp4(tmp_path / "v" / "a dog-0.mp4", frames, 8, quality="lossless")
    task = Task(samples=open_samples(tmp_path / "v"), prompts=["a dog"])
    found = score(task, ["clip-l14"], tmp_path / "work", ALONE, quiet=True)["clip-l14"]
    expected = np.mean([max(0, clip_by_hand(stand_in, one, "a dog")) for one in frames])
    assert found["value"] == pytest.approx(expected, rel=1e-4)
    assert (found["low"], found["high"], found["num"]) == (None, None, 1)


def test_a_score_is_the_same_in_any_company(stand_in, tmp_path):
    images = random_images(0)
    together = Task(samples=open_samples(write_images(tmp_path / "a", images)), prompts=PROMPTS)
    read = clip_reader(stand_in, torch.device("cpu"))
    values = read(Shard(together, range(3)))["score"]
    alone = Task(samples=open_samples(write_images(tmp_path / "b", images[1:2])), prompts=PROMPTS[1:2])
    assert read(Shard(alone, range(1)))["score"][0] == values[1]


def test_missing_models_are_named_with_size_and_command(without_checkpoints, tmp_path, monkeypatch):
    without_checkpoints("CLIP_L14", "CLIP_B32", STAND_INS)
    task = Task(samples=open_samples(write_images(tmp_path / "a", random_images(0))), prompts=PROMPTS)
    for name, repo, size in (
        ("clip-l14", "openai/clip-vit-large-patch14", "1.7 GB"),
        ("clip-b32", "openai/clip-vit-base-patch32", "0.6 GB"),
    ):
        (line,) = check_task(task, [name])
        assert line.startswith(f"{name} needs {size} of weights: the CLIP {CLIPS[name].backbone} ")
        assert f"hf download {repo} --include" in line.replace(f"{Path(sys.executable).parent}/", "").replace(
            ".venv/bin/", ""
        )
        assert f"the variable {CLIPS[name].variable}" in line


def test_another_model_under_the_name_is_refused(clip_folder, without_checkpoints, monkeypatch):
    without_checkpoints(STAND_INS)
    monkeypatch.setenv("CLIP_B32", str(clip_folder))
    (line,) = find_measure("clip-b32").missing()
    assert "of its image tower are (32, 2, 8) instead of (768, 12, 32)" in line


def test_a_damaged_folder_is_named(clip_folder, tmp_path, without_checkpoints, monkeypatch):
    import shutil

    without_checkpoints(STAND_INS)
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    (folder / "config.json").write_text("{")
    monkeypatch.setenv("CLIP_L14", str(folder))
    with pytest.raises(UserError, match="cannot be read by CLIPConfig"):
        find_measure("clip-l14").missing()


# --------------------------------------------------------------------------------------------------------- ImageReward


@pytest.fixture
def image_reward(monkeypatch) -> ModuleType:
    """A stand-in of `evaluation.image_reward`: a reward is the mean grey value over 100 plus the length of the prompt."""
    stub = ModuleType("evaluation.image_reward")
    stub.ended, stub.devices = [], []

    class ImageReward:
        def __init__(self, device: str) -> None:
            stub.devices.append(device)

        def __enter__(self) -> "ImageReward":
            return self

        def __exit__(self, *_: object) -> None:
            stub.ended.append(True)

        def scores(self, prompts: list[str], images: list[np.ndarray]) -> list[float]:
            return [image.mean() / 100 + len(prompt) for prompt, image in zip(prompts, images, strict=True)]

    stub.ImageReward, stub.missing, stub.facts = ImageReward, list, lambda: {"weights": "abc"}
    monkeypatch.setitem(sys.modules, "evaluation.image_reward", stub)
    return stub


def test_image_reward_is_the_mean_of_what_the_worker_says(image_reward, tmp_path):
    images = random_images(0)
    task = Task(samples=open_samples(write_images(tmp_path / "a", images)), prompts=PROMPTS)
    found = score(task, ["image-reward"], tmp_path / "work", ALONE, quiet=True)["image-reward"]
    expected = [image.mean() / 100 + len(prompt) for image, prompt in zip(images, PROMPTS, strict=True)]
    assert found["value"] == pytest.approx(np.mean(expected))
    assert (image_reward.devices, image_reward.ended) == (["cpu"], [True]), "one process, which has ended"


def test_what_image_reward_lacks_is_told(image_reward, tmp_path):
    image_reward.missing = lambda: ["ImageReward.pt (1.79 GB), from there"]
    task = Task(samples=open_samples(write_images(tmp_path / "a", random_images(0))), prompts=PROMPTS)
    assert check_task(task, ["image-reward"]) == ["image-reward needs ImageReward.pt (1.79 GB), from there"]


# -------------------------------------------------------------------------------------------------------------- judges


def test_the_emoji_score_is_that_of_the_judge(tmp_path):
    from evaluation.images import emoji_judge

    images = np.concatenate([random_images(0, 2, 32, 32), random_images(1, 1, 32, 32)])
    prompts = ["red apple, noto", "dog face, 3d render", "red apple, 3d render"]
    task = Task(samples=open_samples(write_images(tmp_path / "a", images)), prompts=prompts)
    found = score(task, ["emoji-score"], tmp_path / "work", ALONE, quiet=True)["emoji-score"]
    expected = emoji_judge().score(torch.from_numpy(images).permute(0, 3, 1, 2), prompts)
    assert found["value"] == pytest.approx(expected.mean().item(), rel=1e-5)
    assert found["facts"]["ceiling"] > found["value"]


def test_unknown_words_of_a_prompt_are_told(tmp_path, monkeypatch):
    from seerkit.text import minilm

    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    task = Task(samples=open_samples(write_images(tmp_path / "a", random_images(0, 1))), prompts=["quantum foam, noto"])
    with pytest.raises(UserError, match="'quantum foam' is not among the"):
        score(task, ["emoji-score"], tmp_path / "work", ALONE, quiet=True)


def test_class_accuracy_is_the_share_that_the_classifier_takes_for_their_class(tmp_path):
    from evaluation.classifier import classify, load_classifier

    grey = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 1), dtype=np.uint8)
    taken = classify(load_classifier(), torch.from_numpy(grey).permute(0, 3, 1, 2)).argmax(dim=1).tolist()
    classes = [CLASS_NAMES[number] for number in taken]
    classes[0] = CLASS_NAMES[taken[0] - 1]
    samples = open_samples(write_images(tmp_path / "a", grey))
    found = score(Task(samples=samples, prompts=classes), ["class-accuracy"], tmp_path / "w", ALONE, quiet=True)
    assert found["class-accuracy"]["value"] == pytest.approx(5 / 6)
    for prompts, message in ((["hat"] * 6, "class 'hat' is unknown"),):
        with pytest.raises(UserError, match=message):
            score(Task(samples=samples, prompts=prompts), ["class-accuracy"], tmp_path / "w", ALONE, quiet=True)


@pytest.mark.parametrize(
    ("images", "message"), [(random_images(0, 2, 32, 32), "coloured"), (random_images(0, 2, 28, 28), "28 x 28")]
)
def test_class_accuracy_refuses_what_the_classifier_does_not_know(images, message, tmp_path):
    task = Task(samples=open_samples(write_images(tmp_path / "a", images)), prompts=["bag", "bag"])
    with pytest.raises(UserError, match=message):
        score(task, ["class-accuracy"], tmp_path / "w", ALONE, quiet=True)


def test_judges_do_not_look_at_videos(tmp_path):
    save_mp4(tmp_path / "v" / "bag-0.mp4", random_images(0, 3, 32, 32), 8)
    task = Task(samples=open_samples(tmp_path / "v"), prompts=["bag"])
    assert check_task(task, ["emoji-score", "class-accuracy"]) == ["emoji-score, class-accuracy need image"]
