"""ImageReward: one load for many calls, weights that must fit, and inputs that are refused before anything is scored."""

import json
from pathlib import Path

import numpy as np
import pytest

from cache_dic import UserError
from evaluation.image_reward import ImageReward, facts, image_reward, missing
from evaluation.legacy import LegacyError, MissingFilesError

NAMES = ["blip.a", "mlp.b", "blip.embeddings.position_ids"]


@pytest.fixture
def weights(stubbed, tmp_path) -> Path:
    """A folder of weights that fit the stub's model."""
    folder = tmp_path / "reward"
    (folder / "bert-base-uncased").mkdir(parents=True)
    (folder / "bert-base-uncased" / "vocab.txt").write_text("[PAD]")
    (folder / "med_config.json").write_text("{}")
    (folder / "ImageReward.pt").write_text(json.dumps(NAMES))
    return folder


@pytest.fixture
def images(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        path.write_bytes(bytes(100 * index + 1))
    return paths


def test_each_image_is_scored_for_its_prompt_by_a_model_that_is_loaded_once(weights, stubbed, images):
    with ImageReward("cpu") as model:
        assert model.device_name == "cpu"
        assert model.scores(["fox", "an owl", "a"], images) == pytest.approx([3.001, 6.101, 1.201])
        assert model.scores(["a"], images[:1]) == pytest.approx([1.001])
    (loaded,) = stubbed.done
    assert loaded == {"loaded": str(weights / "ImageReward.pt"), "cwd": str(weights)}, "beside its bert-base-uncased"
    assert image_reward(["fox"], images[:1]) == pytest.approx([3.001])
    assert len(stubbed.done) == 2


def test_pixels_are_scored_as_the_file_of_them(weights, images, tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "own.png")
    with ImageReward() as model:
        of_pixels, of_file = model.scores(["fox", "fox"], [pixels, tmp_path / "own.png"])
    assert of_pixels == of_file


def test_what_is_missing_is_named_with_size_and_place(weights, tmp_path):
    assert missing() == []
    for path in (weights / "ImageReward.pt", weights / "bert-base-uncased" / "vocab.txt"):
        path.unlink()
    assert missing() == [
        f"{weights}/ImageReward.pt (1.79 GB), from https://huggingface.co/THUDM/ImageReward",
        f"{weights}/bert-base-uncased/vocab.txt (231,508 bytes), from https://huggingface.co/bert-base-uncased",
    ]
    with pytest.raises(MissingFilesError, match=r"ImageReward needs what is not here:\n  .*ImageReward\.pt"):
        ImageReward().__enter__()


def test_without_the_environment_its_command_comes_first(no_legacy, tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGE_REWARD_DIR", str(tmp_path))
    first, *files = missing()
    assert "bash scripts/setup_legacy_eval.sh" in first
    assert len(files) == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[:1], "lack 1 of the 3 tensors of the model: mlp.b"),
        ([*NAMES, "head.c"], "have beside them 1 of the 3 tensors of the model: head.c"),
    ],
)
def test_weights_of_another_model_are_refused(weights, names, message):
    """The package itself loads them with strict=False and scores."""
    (weights / "ImageReward.pt").write_text(json.dumps(names))
    with pytest.raises(UserError, match=rf"ImageReward\.pt cannot be used: .*WeightsError: the weights {message}"):
        ImageReward().__enter__()


def test_positions_may_be_missing_from_weights(weights, images):
    (weights / "ImageReward.pt").write_text(json.dumps(NAMES[:2]))
    assert len(image_reward(["a"], images[:1])) == 1


@pytest.mark.parametrize(
    ("prompts", "paths", "message"),
    [
        (["a", "b"], ["0.png"], "2 prompts and 1 images do not belong together"),
        ("fox", ["0.png", "1.png", "2.png"], "1 prompts and 3 images"),
        (["a", " ", ""], ["0.png", "1.png", "2.png"], r"prompts 1, 2 \(counted from 0\) are empty"),
        (["a", "b"], ["0.png", "gone.png"], r"images are missing: .*gone\.png"),
    ],
)
def test_what_it_would_stumble_over_is_refused_before_it_starts(
    weights, stubbed, images, tmp_path, prompts, paths, message
):
    with pytest.raises(UserError, match=message):
        image_reward(prompts, [tmp_path / path for path in paths])
    assert stubbed.done == []


def test_images_that_cannot_be_read_and_scores_that_are_not_finite_are_named(weights, images):
    images[1].write_bytes(b"")
    with ImageReward() as model:
        with pytest.raises(LegacyError, match=r"1\.png: OSError: cannot identify image file"):
            model.scores(["a", "b"], images[:2])
        with pytest.raises(UserError, match=r"ImageReward of .*2\.png is not finite"):
            model.scores(["a", "nan"], [images[0], images[2]])
        assert model.scores(["a"], images[:1]) == pytest.approx([1.001])


def test_facts_tell_weights_apart(weights):
    before = facts()
    assert [*before["weights"]] == ["ImageReward.pt", "med_config.json", "bert-base-uncased/vocab.txt"]
    assert before["versions"]["torch"]
    (weights / "ImageReward.pt").write_text("[]")
    after = facts()
    assert before["weights"]["ImageReward.pt"] != after["weights"]["ImageReward.pt"]
    assert before["versions"] == after["versions"]
