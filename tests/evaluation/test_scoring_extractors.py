"""Networks behind FID and its kin: what they see, which layers are taken, which files they are; and runs of eval/score.py.

Nothing is downloaded: FID's Inception is played by random weights of its layout, which has to be said in whatever is shown.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cache_dic import UserError
from evaluation.scoring import distributions, extractors
from evaluation.scoring.distributions import (
    MEASURES,
    Features,
    frechet,
    inception_score,
    kernel_distance,
    precision,
    recall,
)
from evaluation.scoring.extractors import _features, dinov2, find_extractor, find_published, inception
from evaluation.scoring.extractors.dinov2 import load_dinov2, resized_positions
from evaluation.scoring.read import Readout, Task, check_task, read_samples, score
from evaluation.scoring.samples import open_samples
from evaluation.scoring.weights import STAND_INS
from seerkit.devices.distributed import World
from seerkit.io.media import save_mp4, save_png
from seerkit.weights.checkpoints import Published, save_tensors

ALONE = World(0, 1, torch.device("cpu"))
VARIABLES = ("FID_INCEPTION", "DINOV2_WEIGHTS", STAND_INS)


def random_images(seed: int, count: int, side: int = 32) -> np.ndarray:
    """Of large spots, so that networks tell them apart."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in small])


def write_images(folder: Path, images: np.ndarray) -> Path:
    for index, pixels in enumerate(images):
        save_png(folder / f"{index:06d}.png", pixels)
    return folder


def scored(task: Task, work: Path, *names: str) -> dict[str, dict]:
    return score(task, names, work, ALONE, quiet=True)


@pytest.fixture
def hub(tmp_path, monkeypatch, without_checkpoints) -> Path:
    """torch.hub's folder of checkpoints, empty, and no other place with weights."""
    without_checkpoints(*VARIABLES)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def run(load_command, capsys) -> Callable[..., str]:
    """What eval/score.py prints."""
    command = load_command("eval/score.py")

    def call(*argv: object) -> str:
        command.main([str(word) for word in argv])
        return capsys.readouterr().out

    return call


# --------------------------------------------------------------------------------------------------------------- files


def test_missing_weights_are_named_with_file_place_size_and_remedy(hub, tmp_path):
    images = open_samples(write_images(tmp_path / "a", random_images(0, 4)))
    task = Task(samples=images, reference=images)
    (line,) = check_task(task, ["fid", "sfid", "is", "kid", "precision", "recall"])
    assert line.startswith(
        "fid, sfid, is, kid, precision, recall need weights-inception-2015-12-05-6726825d.pth or "
        "pt_inception-2015-12-05-6726825d.pth (95.7 MB), looked for in "
    )
    assert str(tmp_path / "checkpoints") in line
    assert "torch.hub's cache" in line
    assert line.endswith("weights-inception-2015-12-05-6726825d.pth`, or name it in FID_INCEPTION")
    (line,) = check_task(task, ["fd-dinov2"])
    assert line.startswith(
        f"fd-dinov2 needs dinov2_vitl14_pretrain.pth (1.2 GB), looked for in {tmp_path / 'checkpoints'}"
    )
    assert "fetch it with `curl -L --fail --create-dirs -o " in line
    assert "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth`" in line
    with pytest.raises(UserError, match=r"fid needs weights-inception-2015-12-05-6726825d\.pth"):
        scored(task, tmp_path / "work", "fid")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("name", "file", "variable"),
    [
        ("inception", inception.FILES[1].name, "FID_INCEPTION"),
        ("dinov2", dinov2.FILES[0].name, "DINOV2_WEIGHTS"),
    ],
)
def test_a_file_is_known_by_its_contents(hub, tmp_path, monkeypatch, name, file, variable):
    """Whatever it is called; another one is taken where stand-ins are asked for, and is called one."""
    (hub / file).write_bytes(b"another")
    find = find_extractor(name).find
    with pytest.raises(
        UserError, match=rf"{file} is not what is published as .*: its sha256 begins with [0-9a-f]{{8}} inst"
    ):
        find()
    assert "fetch that" in find_extractor(name).missing()[0]
    monkeypatch.setenv(STAND_INS, "1")
    assert find().stand_in
    assert find_extractor(name).reading().facts["stand_in_weights"] is True
    monkeypatch.delenv(STAND_INS)
    monkeypatch.setenv(variable, str(tmp_path / "gone.pth"))
    with pytest.raises(FileNotFoundError, match=rf"gone\.pth .*named by {variable}"):
        find()


def test_the_published_file_is_no_stand_in(hub, monkeypatch):
    monkeypatch.setenv(STAND_INS, "1")
    (hub / "a.pth").write_bytes(b"abc")
    files = [Published("a.pth", url="https://example.org/a.pth")]
    found = find_published(files, "A_FILE", "3 B", hashlib.sha256(b"abc").hexdigest()[:8])
    assert (found.path, found.stand_in) == (hub / "a.pth", False)


# --------------------------------------------------------------------------------------------------- FID's Inception


@pytest.fixture(scope="module")
def random_inception(need, tmp_path_factory) -> Path:
    """A file of the layout of FID's Inception with random weights, which keep the size of what goes through."""
    module = need("torch_fidelity.feature_extractor_inceptionv3")

    class Unloaded(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object) -> None:
            """As made."""

    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "none.pth")
    network = Unloaded("x", ["2048"], feature_extractor_weights_path=str(folder / "none.pth"))
    draw = torch.Generator().manual_seed(0)
    for name, values in network.named_parameters():
        if values.ndim > 1:
            values.normal_(0, (2 / values[0].numel()) ** 0.5, generator=draw)
        elif name.endswith("bias"):
            values.normal_(0, 0.1, generator=draw)
    path = folder / inception.FILES[0].name
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def stand_in(random_inception, hub, monkeypatch) -> Path:
    monkeypatch.setenv("FID_INCEPTION", str(random_inception))
    monkeypatch.setenv(STAND_INS, "1")
    return random_inception


@pytest.fixture(scope="module")
def inception_reads(random_inception) -> dict[str, np.ndarray]:
    """By layer, what it makes of ten images of 40 x 56 pixels."""
    network = inception._inception(random_inception, torch.device("cpu"))
    return _features(network, [odd_images()], torch.device("cpu"))


def odd_images(count: int = 10) -> np.ndarray:
    return np.ascontiguousarray(random_images(3, count, 56)[:, :40])


@pytest.mark.slow
class TestInception:
    def test_layers_are_those_of_adm(self, inception_reads, random_inception, need):
        """torch-fidelity's pool and logits without bias, and 7 channels of mixed_6/conv after its ReLU, place by place."""
        module = need("torch_fidelity.feature_extractor_inceptionv3")
        names = ["2048", "logits_unbiased", "logits"]
        theirs = module.FeatureExtractorInceptionV3("x", names, feature_extractor_weights_path=str(random_inception))
        entered: list[Tensor] = []
        theirs.Mixed_6d.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
        pool, logits, with_bias = theirs(torch.from_numpy(odd_images()).permute(0, 3, 1, 2))
        same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        same(inception_reads["pool"], pool)
        same(inception_reads["logits"], logits)
        same(inception_reads["logits"], pool @ theirs.fc.weight.T)
        assert np.abs(inception_reads["logits"] - with_bias.numpy()).max() > 0.1
        layer = theirs.Mixed_6d.branch1x1
        x = F.conv2d(entered[0], layer.conv.weight)
        mean, variance = layer.bn.running_mean[:, None, None], layer.bn.running_var[:, None, None]
        x = (x - mean) / (variance + 0.001).sqrt() * layer.bn.weight[:, None, None] + layer.bn.bias[:, None, None]
        x = x.clamp(min=0)  # (B, 192, 17, 17)
        spatial = inception_reads["spatial"].reshape(10, 17, 17, 7)
        for channel in range(7):
            same(spatial[..., channel], x[:, channel])
        assert {name: values.shape[1] for name, values in inception_reads.items()} == find_extractor("inception").layers
        assert find_extractor("inception").layers["spatial"] == 2023

    def test_images_are_resized_as_tensorflow_1_does(self, random_inception, need):
        """Corners on corners of neither kind: place i of 299 is seen at i · H / 299, without antialiasing."""
        module = need("torch_fidelity.feature_extractor_inceptionv3")
        network = module.FeatureExtractorInceptionV3("x", ["64"], feature_extractor_weights_path=str(random_inception))
        seen: list[Tensor] = []
        network.Conv2d_1a_3x3.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        images = odd_images(1)
        network(torch.from_numpy(images).permute(0, 3, 1, 2))
        rows = images[0].astype(np.float64)
        for axis in (0, 1):
            size = rows.shape[axis]
            place = np.arange(299) * size / 299
            low = np.floor(place).astype(int)
            share = (place - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
            rows = rows.take(low, axis) * (1 - share) + rows.take(np.minimum(low + 1, size - 1), axis) * share
        np.testing.assert_allclose(seen[0][0].permute(1, 2, 0), (rows - 128) / 128, atol=1e-5)

    def test_a_file_of_other_tensors_is_refused(self, hub, monkeypatch, tmp_path):
        torch.save({"fc.weight": torch.zeros(3)}, hub / inception.FILES[0].name)
        monkeypatch.setenv(STAND_INS, "1")
        images = open_samples(write_images(tmp_path / "a", random_images(0, 3)))
        with pytest.raises(UserError, match="does not hold the tensors of FID's Inception"):
            scored(Task(samples=images), tmp_path / "work", "is")

    @pytest.mark.parametrize("kind", ["folder", "npz"])
    def test_scores_are_those_of_the_features_and_say_that_weights_are_a_stand_in(
        self, stand_in, inception_reads, kind, tmp_path, run
    ):
        """By eval/score.py, whichever way samples and reference come."""
        sets = {"samples": odd_images()[:6], "reference": odd_images()[6:]}
        for name, images in sets.items():
            if kind == "folder":
                write_images(tmp_path / name, images)
            else:
                np.savez(tmp_path / f"{name}.npz", images)
        paths = {name: tmp_path / (name if kind == "folder" else f"{name}.npz") for name in sets}
        argv = [paths["samples"], "--reference", paths["reference"], "--work", tmp_path / "work"]
        argv += ["--measures", "is", "kid", "precision", "recall"]
        record = json.loads(run(*argv, "--json"))
        pool = inception_reads["pool"]
        ours, theirs = Features.of(pool[:6]), Features.of(pool[6:])
        expected = {
            "is": inception_score([inception_reads["logits"][:6]]),
            "kid": kernel_distance(ours, theirs),
            "precision": precision(ours, theirs),
            "recall": recall(ours, theirs),
        }
        for name, figure in expected.items():
            assert record["scores"][name]["value"] == pytest.approx(figure["value"], rel=1e-3), name
            assert record["scores"][name]["title"] == f"{MEASURES[name].title} (stand-in weights)"
            assert record["scores"][name]["facts"]["stand_in_weights"] is True
        assert record["scores"]["is"]["num"] == 6
        assert record["scores"]["kid"]["num_reference"] == 4
        shown = run(*argv)
        for title in ("IS", "KID", "precision", "recall"):
            assert f"{title} (stand-in weights)" in shown

    def test_a_reference_batch_gives_its_statistics_to_fid_and_sfid(
        self, stand_in, inception_reads, tmp_path, run, monkeypatch
    ):
        """And its images to precision, as in ADM's evaluator. Samples that are the reference with a shift: its square.

        Of 64 and 63 features, since distances of all take minutes.
        """
        widths = {"pool": 64, "spatial": 63, "logits": 1008}
        for name, width in widths.items():
            monkeypatch.setitem(find_extractor("inception").layers, name, width)

        def cut(*given: object) -> dict[str, np.ndarray]:
            return {name: values[:, : widths[name]] for name, values in _features(*given).items()}

        monkeypatch.setattr(extractors, "_features", cut)
        write_images(tmp_path / "samples", odd_images())
        known = {}
        for layer, ending, shift in (("pool", "", 0.25), ("spatial", "_s", 0.5)):
            rows = inception_reads[layer][:, : widths[layer]].astype(np.float64)
            known[f"mu{ending}"] = (rows.mean(axis=0) + shift).astype(np.float32)
            known[f"sigma{ending}"] = np.cov(rows, rowvar=False)
        np.savez(tmp_path / "reference.npz", arr_0=odd_images()[4:], **known)
        argv = [tmp_path / "samples", "--reference", tmp_path / "reference.npz", "--work", tmp_path / "work"]
        scores = json.loads(run(*argv, "--measures", "fid", "sfid", "precision", "--json"))["scores"]
        assert scores["fid"]["value"] == pytest.approx(64 * 0.25**2, rel=1e-4)
        assert scores["sfid"]["value"] == pytest.approx(63 * 0.5**2, rel=1e-4)
        assert scores["fid"]["title"] == "FID (stand-in weights)"
        assert scores["fid"]["reference_statistics"] == ["mu", "sigma"]
        assert scores["sfid"]["reference_statistics"] == ["mu_s", "sigma_s"]
        assert "num_reference" not in scores["fid"]
        assert scores["precision"]["num_reference"] == 6
        pool = inception_reads["pool"][:, :64]
        expected = precision(Features.of(pool), Features.of(pool[4:]))["value"]
        assert scores["precision"]["value"] == expected


# ----------------------------------------------------------------------------------------------------- reference batches


class TestReferenceBatches:
    @pytest.fixture
    def fid_of(self, hub, tmp_path, monkeypatch) -> Callable[..., dict]:
        """`fid_of(mu=…, …)`: FID against a batch with these arrays, weights being there that are not looked into."""
        (hub / inception.FILES[0].name).write_bytes(b"")
        monkeypatch.setenv(STAND_INS, "1")
        samples = open_samples(write_images(tmp_path / "samples", random_images(0, 4)))

        def fid(name: str = "fid", **arrays: np.ndarray) -> dict:
            np.savez(tmp_path / "reference.npz", arr_0=random_images(1, 4), **arrays)
            task = Task(samples=samples, reference=open_samples(tmp_path / "reference.npz"))
            return scored(task, tmp_path / "work", name)

        return fid

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            (
                {"mu": np.zeros(5), "sigma": np.eye(6)},
                r"are \(5,\) and \(6, 6\), finite; they must be a mean \(D,\) and a",
            ),
            ({"mu": np.zeros((1, 5)), "sigma": np.eye(5)}, r"are \(1, 5\) and \(5, 5\)"),
            ({"mu": np.zeros(5), "sigma": np.eye(5) * np.nan}, "not all of it finite"),
            ({"mu": np.zeros(5)}, "cannot be read: .*sigma.*; it must hold both or neither"),
            ({"sigma": np.eye(5)}, "cannot be read: .*mu"),
            ({"mu": np.array(["a", {}], dtype=object), "sigma": np.eye(2)}, "mu and sigma of .* cannot be read"),
            ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "mu and sigma of .* cannot be read"),
        ],
        ids=["sizes", "shape", "not finite", "mean alone", "covariance alone", "objects", "words"],
    )
    def test_statistics_of_another_layout_are_refused_before_anything_is_read(self, fid_of, tmp_path, arrays, message):
        with pytest.raises(UserError, match=message) as refused:
            fid_of(**arrays)
        assert "reference.npz" in str(refused.value)
        assert not list((tmp_path / "work").glob("features-*"))
        with pytest.raises(UserError, match="mu_s"):
            fid_of("sfid", **{f"{name}_s": values for name, values in arrays.items()})

    def test_damaged_statistics_are_refused(self, fid_of, tmp_path):
        batch = tmp_path / "reference.npz"
        np.savez(batch, arr_0=random_images(1, 4), mu=np.zeros(300), sigma=np.eye(300))
        content = bytearray(batch.read_bytes())
        content[-200_000:-199_000] = bytes(range(250)) * 4
        batch.write_bytes(content)
        with pytest.raises(UserError, match=r"mu and sigma of .*reference\.npz cannot be read"):
            open_samples(batch).statistics("mu", "sigma")

    def score_of_fashion(self, folder: Path, **arrays: np.ndarray) -> dict:
        """A distance of 10 rows of features of FashionCNN from statistics in a batch."""
        folder.mkdir(exist_ok=True)
        measure = distributions._measure("x", "X", "fashion", frechet, "", statistics=("mu", "sigma"))
        np.savez(folder / "reference.npz", arr_0=random_images(1, 4), **arrays)
        reference = open_samples(folder / "reference.npz")
        rows = torch.from_numpy(rows_of_fashion())
        save_tensors(folder / "0.safetensors", {"pool": rows, "frames": torch.ones(10, dtype=torch.int64)})
        readouts = (
            Readout(
                open_samples(write_images(folder / "samples", random_images(0, 10))), [folder / "0.safetensors"], {}
            ),
            Readout(reference, [], {}, reference.statistics("mu", "sigma")),
        )
        return measure.score(*readouts)

    def test_statistics_stand_for_what_would_be_read(self, tmp_path):
        rows = rows_of_fashion().astype(np.float64)
        found = self.score_of_fashion(tmp_path, mu=rows.mean(axis=0) + 0.5, sigma=np.cov(rows, rowvar=False))
        assert found["value"] == pytest.approx(0.25 * rows.shape[1], rel=1e-6)
        assert (found["reference_statistics"], found["num"]) == (["mu", "sigma"], 10)

    def test_statistics_of_other_features_are_refused(self, tmp_path):
        width = rows_of_fashion().shape[1]
        with pytest.raises(
            UserError, match=rf"mu of .*reference\.npz is of 5 features, and there are {width} in the layer pool"
        ):
            self.score_of_fashion(tmp_path, mu=np.zeros(5), sigma=np.eye(5))
        with pytest.raises(
            UserError, match=r"of .*reference\.npz are no mean and covariance: .*not positive semi-definite"
        ):
            self.score_of_fashion(tmp_path / "other", mu=np.zeros(width), sigma=-np.eye(width))


def rows_of_fashion() -> np.ndarray:
    width = find_extractor("fashion").layers["pool"]
    return np.random.default_rng(0).standard_normal((10, width)).astype(np.float32)


# -------------------------------------------------------------------------------------------------------------- DINOv2


class Seen(nn.Module):
    """A network that gives back what it is given, and has positions as DINOv2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + 16 * 16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.75, torch's."""
    a, t = -0.75, np.abs(distance)
    near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


class TestDinov2:
    @pytest.mark.slow
    def test_images_are_seen_as_dgm_eval_shows_them(self, tmp_path, monkeypatch, need):
        """torchvision's Resize of a Pillow image to 224 x 224, bicubic, whatever its proportions; ImageNet's mean."""
        transforms = need("torchvision.transforms")
        timm = need("timm")
        monkeypatch.setattr(timm, "create_model", lambda *_, **__: Seen())
        torch.save({"pos_embed": torch.zeros(1, 1 + 37 * 37, 8), "mask_token": torch.zeros(1, 8)}, tmp_path / "a.pth")
        network = load_dinov2(tmp_path / "a.pth", torch.device("cpu"), "x")
        bicubic = transforms.InterpolationMode.BICUBIC
        shown = transforms.Compose(
            [
                transforms.Resize((224, 224), bicubic),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )
        for images in (random_images(0, 2, 300)[:, :250], random_images(1, 1, 32)):
            found = network(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2))["token"]
            expected = torch.stack([shown(Image.fromarray(image)) for image in images]).flatten(1)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    def test_positions_are_sampled_as_the_published_network_does(self):
        """From 37 x 37 to 16 x 16 at (i + 1/2) 37 / 16.1 - 1/2, edges repeated; the class token keeps its own."""
        draw = np.random.default_rng(0)
        grid, token = draw.standard_normal((37, 37, 5)), draw.standard_normal((1, 1, 5))
        given = torch.from_numpy(np.concatenate([token, grid.reshape(1, -1, 5)], axis=1)).float()
        found = resized_positions(given, 16)
        places = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
        taken = np.floor(places)[:, None] + np.arange(-1, 3)  # (16, 4)
        weights = np.zeros((16, 37))
        for column in range(4):
            np.add.at(
                weights,
                (np.arange(16), np.clip(taken[:, column], 0, 36).astype(int)),
                cubic(places - taken[:, column]),
            )
        expected = np.einsum("ia,jb,abd->ijd", weights, weights, grid).reshape(1, 256, 5)
        np.testing.assert_allclose(found[:, :1], token, rtol=1e-6)
        np.testing.assert_allclose(found[:, 1:], expected, atol=1e-5)
        assert resized_positions(given, 37) is given

    @pytest.mark.slow
    def test_other_tensors_are_refused(self, tmp_path):
        for name, state in (("a", {"x": torch.zeros(3)}), ("b", {"pos_embed": torch.zeros(1, 1 + 35, 8)})):
            torch.save(state, tmp_path / f"{name}.pth")
            with pytest.raises(UserError, match=rf"{name}\.pth does not hold the tensors of DINOv2"):
                load_dinov2(tmp_path / f"{name}.pth", torch.device("cpu"), dinov2.NAME)

    @pytest.mark.slow
    def test_features_are_the_class_token_after_the_norm(self, tmp_path, need):
        """On ViT-S/14 with random weights, which is of the same family."""
        timm = need("timm")
        torch.manual_seed(0)
        whole = (
            timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0).eval().requires_grad_(False)
        )
        for name, values in whole.named_parameters():
            if name.endswith("gamma"):  # begins near zero, which would leave the class token as it is
                values.fill_(1)
        torch.save(whole.state_dict() | {"mask_token": torch.zeros(1, 384)}, tmp_path / "s.pth")
        network = load_dinov2(tmp_path / "s.pth", torch.device("cpu"), "vit_small_patch14_dinov2")
        images = random_images(0, 2, 224)
        found = network(torch.from_numpy(images).permute(0, 3, 1, 2))["token"]
        small = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=224).eval()
        state = whole.state_dict()
        state["pos_embed"] = resized_positions(state["pos_embed"], 16)
        small.load_state_dict(state)
        x = (images / 255.0 - np.array(dinov2.MEAN)) / np.array(dinov2.DEVIATION)
        with torch.inference_mode():
            tokens = small.forward_features(torch.from_numpy(x).float().permute(0, 3, 1, 2))
        assert tokens.shape == (2, 1 + 16 * 16, 384)
        torch.testing.assert_close(found, tokens[:, 0], rtol=1e-3, atol=1e-4)
        assert (found[0] - found[1]).abs().max() > 1e-2

    def test_the_measure_is_of_the_large_network(self):
        assert dinov2.NAME == "vit_large_patch14_dinov2"
        assert find_extractor("dinov2").layers == {"token": 1024}


# ---------------------------------------------------------------------------------------------------- shipped networks


def test_distances_are_named_after_their_network():
    """FID, sFID and KID are of the Inception of their authors alone."""
    of_inception = {
        "fid": "FID",
        "sfid": "sFID",
        "kid": "KID",
        "is": "IS",
        "precision": "precision",
        "recall": "recall",
    }
    for name, measure in MEASURES.items():
        if name in of_inception:
            assert measure.title == of_inception[name]
            continue
        network = find_extractor(name.partition("-")[2]).title
        assert measure.title in {f"{figure}-{network}" for figure in ("FD", "KD", "precision", "recall")}
        assert network in measure.meaning
    assert {measure.best for name, measure in MEASURES.items() if name.startswith(("precision", "recall", "is"))} == {1}
    assert {MEASURES[name].best for name in ("fid", "sfid", "kid", "fd-dinov2", "fd-lite0")} == {-1}


def test_features_of_an_image_are_its_own_in_any_company(monkeypatch):
    """Whatever images, also of other sizes, are seen with it; the order is kept."""
    extractor = find_extractor("squeezenet")
    network = extractor.load(extractor.find().path, torch.device("cpu"))
    small, large = random_images(0, 4), random_images(1, 3, 40)
    sets = [small[:1], small[1:2], large[:1], small[2:], large[1:]]
    alone = [_features(network, [one[None]], torch.device("cpu"))["pool"][0] for frames in sets for one in frames]
    for batch in (1, 2, 50):
        monkeypatch.setattr(extractors, "BATCH", batch)
        together = _features(network, sets, torch.device("cpu"))["pool"]
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    assert together.shape == (7, extractor.layers["pool"])
    assert together.dtype == np.float32
    np.testing.assert_allclose(extractor.features(small), [alone[i] for i in (0, 1, 3, 4)], rtol=1e-4, atol=1e-4)


def test_networks_have_the_widths_that_they_name():
    coloured = random_images(0, 1)
    for name, images in (("lite0", coloured), ("fashion", coloured[..., :1].repeat(3, axis=3))):
        assert find_extractor(name).features(images).shape == (1, find_extractor(name).layers["pool"])
    with pytest.raises(UserError, match="knows grey images of 32 x 32 pixels alone, and some are 32 x 32 or coloured"):
        find_extractor("fashion").features(coloured)


@pytest.mark.slow
def test_scores_are_torch_fidelitys_of_the_same_network(tmp_path, need):
    """By its own reading of the folders, with the shipped SqueezeNet registered as an extractor."""
    fidelity = need("torch_fidelity")
    base = need("torch_fidelity.feature_extractor_base").FeatureExtractorBase
    extractor = find_extractor("squeezenet")
    network = extractor.load(extractor.find().path, torch.device("cpu"))

    class Registered(base):
        def __init__(self, name: str, features_list: list[str], **_: object) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return ("pool",)

        @staticmethod
        def get_default_feature_layer_for_metric(_: str) -> str:
            return "pool"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (network(x)["pool"],)

    fidelity.register_feature_extractor("squeezenet-here", Registered)
    folders = [
        write_images(tmp_path / name, random_images(i, 60 + 10 * i)) for i, name in enumerate(("ours", "theirs"))
    ]
    theirs = fidelity.calculate_metrics(
        input1=str(folders[0]), input2=str(folders[1]), fid=True, kid=True, prc=True, kid_subset_size=30,
        feature_extractor="squeezenet-here", cuda=False, verbose=False, save_cpu_ram=True, cache=False,
    )  # fmt: skip
    task = Task(samples=open_samples(folders[0]), reference=open_samples(folders[1]))
    names = ("fd-squeezenet", "kid-squeezenet", "precision-squeezenet", "recall-squeezenet")
    ours = scored(task, tmp_path / "work", *names)
    assert ours["fd-squeezenet"]["value"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    subsets = ours["kid-squeezenet"]["subsets"]
    assert subsets["mean"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert subsets["std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-2)
    assert ours["precision-squeezenet"]["value"] == pytest.approx(theirs["precision"], abs=0.02)
    assert ours["recall-squeezenet"]["value"] == pytest.approx(theirs["recall"], abs=0.02)


def test_frames_of_videos_are_what_is_compared(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        for index in range(2):
            frames = random_images(10 * seed + index, 3 + index % 2)
            save_mp4(tmp_path / name / f"{index}.mp4", frames, 8, quality="lossless")
    task = Task(samples=open_samples(tmp_path / "a"), reference=open_samples(tmp_path / "b"))
    found = scored(task, tmp_path / "work", "precision-squeezenet")["precision-squeezenet"]
    assert found["title"] == "precision-SqueezeNet (of frames)"
    assert (found["num"], found["num_reference"]) == (2, 2)
    read = read_samples(find_extractor("squeezenet").reading(), task, tmp_path / "work", ALONE, quiet=True)
    assert read.whole("frames").tolist() == [3, 4]
    assert read.whole("pool").shape[0] == 7
