import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from cache_dic import UserError
from evaluation.classifier import (
    WEIGHTS,
    Classifier,
    ClassifierConfig,
    class_accuracy,
    classify,
    extract_features,
    load_classifier,
    num_parameters,
    read_card,
    save_classifier,
)
from evaluation.classifier_training import augment
from seerkit.data.fashion_mnist import load_fashion_mnist, to_unit_range

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = REPOSITORY / "eval" / "train_classifier.py"


@pytest.fixture(autouse=True)
def one_thread():
    """As `run` has it, so that training repeats itself to the bit; and faster where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class MeanBrightness(nn.Module):
    """Class 0 for dark images, class 1 for bright ones."""

    def forward(self, images):
        assert not self.training
        brightness = images.mean(dim=(1, 2, 3))
        return torch.stack([-brightness, brightness], dim=1)


@pytest.fixture
def tiny(tmp_path):
    """A tiny classifier with random weights, its file and its card."""
    torch.manual_seed(0)
    classifier = Classifier(ClassifierConfig(widths=(4, 6))).eval()
    path = tmp_path / "tiny.safetensors"
    save_classifier(path, classifier, {"test_accuracy": 0.25, "seed": 3})
    return classifier, path


@pytest.fixture(scope="module")
def test_split():
    try:
        return load_fashion_mnist("test")
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "config",
    [
        "[" * 100_000,
        "[]",
        "3",
        '{"widths": 3}',
        '{"widths": ["a"]}',
        '{"widths": [1000000000000, 1000000000000]}',
        "9" * 5000,
    ],
)
def test_a_configuration_of_another_kind_is_one_line(tiny, config):
    _, path = tiny
    save_file({"a": torch.zeros(1)}, path, {"config": config, "test_accuracy": "0.5"})
    with pytest.raises(UserError, match="train_classifier") as caught:
        load_classifier(path)
    assert "\n" not in str(caught.value)


class TestClassAccuracy:
    labels = torch.tensor([0, 0, 1, 1, 1])
    levels = torch.tensor([0, 10, 250, 255, 5], dtype=torch.uint8)  # the last one is labelled wrongly
    images = levels.reshape(5, 1, 1, 1).expand(5, 1, 4, 4)

    @pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
    def test_of_a_trivial_classifier(self, batch_size):
        assert class_accuracy(MeanBrightness(), self.images, self.labels, batch_size) == 0.8

    def test_is_equal_for_bytes_and_unit_range(self):
        assert class_accuracy(MeanBrightness(), to_unit_range(self.images), self.labels) == 0.8

    def test_clips_as_an_image_file_does(self):
        logits = classify(MeanBrightness(), torch.full((1, 1, 4, 4), 7.0))
        assert logits.tolist() == [[-1.0, 1.0]]

    def test_leaves_the_mode_as_it_was(self):
        classifier = MeanBrightness().train()
        class_accuracy(classifier, self.images, self.labels)
        assert classifier.training

    def test_names_what_does_not_fit(self):
        with pytest.raises(ValueError, match=r"5 images but labels \(4,\)"):
            class_accuracy(MeanBrightness(), self.images, self.labels[:4])
        with pytest.raises(ValueError, match="B of at least 1"):
            class_accuracy(MeanBrightness(), self.images[:0], self.labels[:0])
        with pytest.raises(ValueError, match="batch_size 0"):
            class_accuracy(MeanBrightness(), self.images, self.labels, 0)


class TestClassifier:
    def test_features_are_what_the_head_reads(self):
        classifier = Classifier().eval()
        images = torch.rand(3, 1, 32, 32) * 2 - 1
        features = classifier.features(images)
        assert features.shape == (3, 128)
        assert torch.equal(classifier.head(features), classifier(images))

    def test_extracted_features_do_not_depend_on_the_batch_size(self):
        """Within 1e-5: convolutions of another batch size sum in another order."""
        classifier = Classifier().eval()
        images = torch.randint(0, 256, (5, 1, 32, 32), dtype=torch.uint8)
        torch.testing.assert_close(extract_features(classifier, images, 2), extract_features(classifier, images, 5))

    def test_names_images_of_another_size(self):
        with pytest.raises(ValueError, match=r"\(2, 1, 28, 28\).*\(B, 1, 32, 32\)"):
            Classifier()(torch.zeros(2, 1, 28, 28))

    @pytest.mark.parametrize(
        "fields", [{"widths": ()}, {"widths": (8, 0)}, {"input_size": 28}, {"num_classes": 0}, {"in_channels": 0}]
    )
    def test_config_refuses_impossible_sizes(self, fields):
        with pytest.raises(ValueError, match=str(next(iter(fields.values()))).replace("(", r"\(").replace(")", r"\)")):
            ClassifierConfig(**fields)


class TestFile:
    def test_gives_back_the_rounded_weights_frozen(self, tiny):
        classifier, path = tiny
        loaded = load_classifier(path)
        assert loaded.test_accuracy == 0.25
        assert not loaded.training
        for (name, value), other in zip(classifier.state_dict().items(), loaded.state_dict().values(), strict=True):
            assert torch.equal(value.half().float() if value.is_floating_point() else value, other), name
        assert not any(parameter.requires_grad for parameter in loaded.parameters())

    def test_card_is_the_metadata(self, tiny):
        _, path = tiny
        assert json.loads(path.with_suffix(".json").read_text()) == read_card(path)
        assert read_card(path)["seed"] == 3

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none\.safetensors do not exist; .*train_classifier\.py"):
            load_classifier(tmp_path / "none.safetensors")

    @pytest.mark.parametrize("kept", [0, 5, 200, -100])
    def test_truncated(self, tiny, kept):
        _, path = tiny
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(ValueError, match=r"cannot be read .*train_classifier\.py") as caught:
            load_classifier(path)
        assert "\n" not in str(caught.value)

    def test_tensors_that_do_not_fit_the_config(self, tiny):
        _, path = tiny
        tensors = load_file(path)
        metadata = {key: json.dumps(value) for key, value in read_card(path).items()}
        for changed, message in (
            ({**tensors, "head.weight": torch.zeros(10, 7).half()}, r"head\.weight is \(10, 7\).*asks for \(10, 6\)"),
            ({**tensors, "extra": torch.zeros(1)}, r"extra is \(1,\).*no such tensor"),
            ({k: v for k, v in tensors.items() if k != "head.bias"}, r"head\.bias is absent"),
            ({**tensors, "head.bias": torch.full((10,), torch.nan)}, "not finite"),
        ):
            save_file(changed, path, metadata)
            with pytest.raises(ValueError, match=message):
                load_classifier(path)

    @pytest.mark.parametrize("metadata", [None, {"config": "{}"}, {"config": '{"depth": 3}', "test_accuracy": "0.5"}])
    def test_without_usable_metadata(self, tiny, metadata):
        _, path = tiny
        save_file(load_file(path), path, metadata)
        with pytest.raises(ValueError, match="no usable config or test accuracy"):
            load_classifier(path)


class TestShipped:
    def test_is_small_and_says_how_good_it_is(self):
        classifier, card = load_classifier(), read_card()
        assert num_parameters(classifier) == card["num_parameters"] < 700_000
        assert WEIGHTS.stat().st_size < 1.2e6
        assert classifier.test_accuracy == card["test_accuracy"] >= 0.925
        assert card["num_test_images"] == 10_000
        assert {"seed", "epochs", "command", "data"} <= card.keys()
        assert json.loads(WEIGHTS.with_suffix(".json").read_text()) == card
        with safe_open(WEIGHTS, framework="pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118

    def test_recorded_accuracy_is_measured_again(self, test_split):
        """Within two of 10 000 images: kernels of other machines may turn a tie."""
        classifier = load_classifier()
        assert class_accuracy(classifier, *test_split) == pytest.approx(classifier.test_accuracy, abs=2e-4)

    def test_noise_costs_accuracy(self, test_split):
        classifier = load_classifier()
        images, labels = to_unit_range(test_split[0][:1000]), test_split[1][:1000]
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        ladder = [class_accuracy(classifier, images + sigma * noise, labels) for sigma in (0, 0.2, 0.4, 0.8)]
        assert ladder == sorted(ladder, reverse=True)
        assert ladder[0] > ladder[1] + 0.02
        assert ladder[-1] < 0.6


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Ten easy classes in Fashion-MNIST's files: each a bright bar at its own height."""
    folder = tmp_path_factory.mktemp("idx")
    draw = np.random.default_rng(0)
    for prefix, count in (("train", 160), ("t10k", 40)):
        labels = np.arange(count) % 10
        images = draw.integers(0, 40, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 3 : 2 * label + 6] = 255
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(COMMAND), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture(scope="module")
def command(load_command):
    return load_command("eval/train_classifier.py")


class TestCommand:
    @pytest.mark.slow
    def test_dry_run_prints_the_configuration_and_writes_nothing(self, tmp_path):
        out = tmp_path / "c.safetensors"
        result = run("--out", out, "--epochs", 3, "--dry-run")
        assert result.returncode == 0, result.stderr
        settings = json.loads(result.stdout)
        assert settings["training"]["epochs"] == 3
        assert settings["config"]["widths"] == [32, 64, 128]
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_trains_writes_and_repeats_itself(self, command, tmp_path, synthetic):
        paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
        settings = ["--data", str(synthetic), "--epochs", "1", "--batch-size", "32", "--device", "cpu"]
        result = run("--out", paths[0], *settings)
        assert result.returncode == 0, result.stderr
        assert "test accuracy" in result.stdout
        command.main(["--out", str(paths[1]), *settings])
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["a.json", "a.safetensors", "b.json", "b.safetensors"]
        first, second = map(load_file, paths)
        assert all(torch.equal(first[name], second[name]) for name in first)

        classifier, card = load_classifier(paths[0]), read_card(paths[0])
        images, labels = load_fashion_mnist("test", synthetic)
        assert class_accuracy(classifier, images, labels) == pytest.approx(classifier.test_accuracy, abs=1e-6)
        assert (card["epochs"], card["seed"], card["num_test_images"]) == (1, 0, 40)
        assert card["command"].startswith("python eval/train_classifier.py --out")

    def test_errors_name_the_remedy(self, command, tmp_path, synthetic):
        """In this process, as a start takes seconds; `run_command` turns these into one line and exit code 2."""
        existing = tmp_path / "c.safetensors"
        existing.touch()
        for arguments, message in (
            ([], "--out"),
            (["--out", str(tmp_path / "c.pt")], r"must end in \.safetensors"),
            (["--out", str(existing), "--data", str(synthetic)], "--overwrite"),
            (["--validate", "160", "--data", str(synthetic)], "none of the 160 training images"),
            (["--validate", "60", "--data", str(synthetic)], "--batch-size 128 is more than the 100"),
        ):
            with pytest.raises(ValueError, match=message):
                command.main(arguments)
        with pytest.raises(FileNotFoundError, match="get_fashion_mnist"):
            command.main(["--validate", "10", "--data", str(tmp_path)])

    @pytest.mark.parametrize(
        ("flag", "value"),
        [
            ("--momentum", "1"),
            ("--momentum", "nan"),
            ("--weight-decay", "nan"),
            ("--weight-decay", "inf"),
            ("--seed", "-1"),
            ("--seed", "1_000"),
            ("--seed", "9" * 20),
            ("--max-shift", "32"),
            ("--max-shift", "9" * 18),
        ],
    )
    def test_numbers_out_of_range(self, command, tmp_path, capsys, flag, value):
        with pytest.raises(SystemExit, match="2"):
            command.main(["--out", str(tmp_path / "c.safetensors"), flag, value, "--dry-run"])
        assert f"argument {flag}: " in capsys.readouterr().err


def test_augmentation_moves_and_mirrors_whole_images():
    """Every result is the image shifted by at most two pixels, mirrored or not, and both kinds occur."""
    image = torch.zeros(1, 1, 12, 12, dtype=torch.uint8)
    image[..., 2:10, 2:10] = torch.randint(1, 256, (8, 8), generator=torch.Generator().manual_seed(0))
    shifts = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    allowed = [source.roll(shift, (2, 3)) for source in (image, image.flip(3)) for shift in shifts]
    results = augment(image.expand(200, 1, 12, 12), 2, True, torch.Generator().manual_seed(0))
    found = [next(i for i, choice in enumerate(allowed) if torch.equal(choice[0], one)) for one in results]
    assert len(set(found)) > 40  # of 50
    plain = augment(image.expand(200, 1, 12, 12), 0, False, torch.Generator().manual_seed(0))
    assert torch.equal(plain, image.expand(200, 1, 12, 12))
