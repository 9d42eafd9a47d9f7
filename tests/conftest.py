"""For all tests: one environment, no trace of one test in the next, reasons for skipping, `need` for optional packages.

And what tests of several backbones set up or check alike: places without checkpoints, tiny encoders, tables, first weights.
"""

import os

# Before torch is loaded. Workers and the processes they start would wait for each other's threads if each had one per core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import seerkit.environment  # noqa: F401, settles the rest of the environment  # isort: skip

import functools
import importlib
import importlib.util
import logging
import string
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cache_dic import METHODS, SCHEDULES
from seerkit.command.cache_flags import _plugins
from seerkit.data.emoji import STYLES
from seerkit.layers import modulation
from seerkit.text.encoders import CLIP_LENGTH
from seerkit.text.minilm import WIDTH, TextTable
from seerkit.training.emoji import SHOWN
from seerkit.weights import checkpoints as weights
from seerkit.weights.autoencoders import FLUX_CONFIG

# Programs of the environment are called by their names, as where it is active.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"

ROOT = Path(__file__).resolve().parents[1]
SLOW_TIMEOUT_S = 900
EMOJI_SIZE = 8  # pixels


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            reason = f"needs a CUDA device, and torch {torch.__version__} sees none"
            item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
    # A slow test begun last would keep the others waiting. Whole files, so that what their tests share is made once.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> None:
    """Numbers drawn without a generator depend on the fixture, or on the test, that draws them; not on what ran before."""
    torch.manual_seed(zlib.crc32(fixturedef.argname.encode()))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    torch.manual_seed(zlib.crc32(item.nodeid.encode()))


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """Undo what a test leaves in this process: the log that a command shows, methods and schedules, torch's settings."""
    logger, threads, registries = (
        logging.getLogger("cache_dic"),
        torch.get_num_threads(),
        (METHODS, SCHEDULES, _plugins),
    )
    registered = [dict(registry) for registry in registries]
    level, handlers = logger.level, list(logger.handlers)
    kernels = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    precisions = [kernel.fp32_precision for kernel in kernels]
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers
    for registry, before in zip(registries, registered, strict=True):
        registry.clear()
        registry.update(before)
    torch.set_num_threads(threads)
    for kernel, precision in zip(kernels, precisions, strict=True):
        kernel.fp32_precision = precision


@pytest.fixture
def num_graphs() -> Iterator[Callable[[], int]]:
    """`num_graphs()`: how many have been compiled in this test, whatever others have compiled; a break is an error."""
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()

    def count() -> int:
        assert not counters["graph_break"]
        return counters["stats"]["unique_graphs"]

    yield count
    torch.compiler.reset()


@pytest.fixture(scope="session")
def need() -> Callable[[str], ModuleType]:
    """`need("xfuser")` imports an optional package, or skips the test and says why.

    pytest.importorskip catches ImportError alone; torchvision raises RuntimeError where its build differs from torch's,
    and xfuser NotImplementedError where torch has no accelerator.
    """

    def import_or_skip(name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except (ImportError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
            pytest.skip(f"needs {name}, which does not import here: {type(error).__name__}: {error}")

    return import_or_skip


@pytest.fixture(scope="session")
def load_command() -> Callable[[str], ModuleType]:
    """`load_command("eval/plot.py")` is that script as a module, its main to be called in this process."""

    def load(script: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"command_{Path(script).stem}", ROOT / script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def run_script() -> Callable[..., subprocess.CompletedProcess]:
    """`run_script("eval/plot.py", *argv, processes=1)` runs a script on one thread per process, several by torchrun.

    It may be a file of these tests, which then finds what they share, as under pytest.
    """
    shared = os.pathsep.join([str(ROOT / "tests/shared"), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(script: str, *argv: object, processes: int = 1) -> subprocess.CompletedProcess:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        return subprocess.run(
            [sys.executable, *(launcher if processes > 1 else []), str(ROOT / script), *map(str, argv)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": shared},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def without_checkpoints(tmp_path, monkeypatch) -> Callable[..., Path]:
    """`without_checkpoints("FLUX_DEV")`: an empty folder for downloads (returned), empty caches, and no such variable.

    Downloads fail at once.
    """

    def forget(*variables: str) -> Path:
        from huggingface_hub import constants

        monkeypatch.setattr(weights, "CHECKPOINTS", tmp_path / "checkpoints")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        for variable in variables:
            monkeypatch.delenv(variable, raising=False)
        return tmp_path / "checkpoints"

    return forget


@pytest.fixture(params=[1, 5000, 2**30], ids=str)
def check_modulation_table(request, monkeypatch) -> Callable[..., None]:
    """`check_modulation_table(model, timesteps, **given)`: rows of the table are the modulation of each of 4 steps.

    Whatever the slices, in which rows of many steps are one product. single_gates: which rows of a single block are gates.
    """
    monkeypatch.setattr(modulation, "SLICE_BYTES", request.param)

    def check(model: nn.Module, timesteps: Tensor, single_gates: tuple[int, ...] = (2,), **given: Tensor) -> None:
        same = functools.partial(torch.testing.assert_close, rtol=1e-13, atol=1e-13)  # in float64
        table = model.modulation_table(timesteps, [0, 2], [1, 2, 3], **given)
        for step, t in enumerate(timesteps):
            expected = model.modulation(model.condition(t.expand(2), **given))
            double, single = expected.blocks
            row = table.at(step)
            same(row.head, expected.head)
            if step in (0, 2):
                same(row.blocks[0], double)
                same(row.blocks[1], single)
            else:
                assert row.blocks is None
            if step > 0:
                gates = [img[:, g] for img, _ in double for g in (2, 5)]
                gates += [rows[:, g] for rows in single for g in single_gates]
                same(table.gates([step])[0], torch.stack(gates))

    return check


@pytest.fixture(scope="session")
def meta_t5_xxl(need) -> Callable[..., nn.Module]:
    """`meta_t5_xxl(num_layers)`: the encoder of T5-v1.1-XXL in bf16 on the meta device."""
    tf = need("transformers")

    def make(num_layers: int = 24) -> nn.Module:
        config = tf.T5Config(
            vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=num_layers, num_heads=64,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip
        with torch.device("meta"):
            return tf.T5EncoderModel(config).to(torch.bfloat16).eval()

    return make


@pytest.fixture(scope="session")
def tiny_clip(need) -> Callable[..., tuple[nn.Module, object]]:
    """`tiny_clip("CLIPTextModel", width)`: a model of that class with random weights, and its tokenizer over letters."""
    tf = need("transformers")
    letters = [c + end for end in ("", "</w>") for c in string.ascii_lowercase + ",!"]

    def make(
        kind: str, width: int, positions: int = CLIP_LENGTH, *, merges: Sequence[tuple[str, str]] = (),
        pad: str = "<|endoftext|>", **config: int,
    ) -> tuple[nn.Module, object]:  # fmt: skip
        symbols = [*letters, *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
        vocab = {symbol: number for number, symbol in enumerate(symbols)}
        settings = tf.CLIPTextConfig(
            vocab_size=len(vocab), hidden_size=width, intermediate_size=30, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=positions, bos_token_id=len(vocab) - 2, eos_token_id=len(vocab) - 1, **config,
        )  # fmt: skip
        tokens = tf.CLIPTokenizer(vocab=vocab, merges=list(merges), pad_token=pad, model_max_length=positions)
        return getattr(tf, kind)(settings).eval().requires_grad_(False), tokens

    return make


@pytest.fixture(scope="session")
def tiny_t5(need) -> Callable[..., tuple[nn.Module, object]]:
    """`tiny_t5(width, words)`: an encoder with random weights, and its tokenizer over letters and a few words."""
    tf = need("transformers")

    def make(width: int, words: Sequence[str] = ()) -> tuple[nn.Module, object]:
        pieces = ["<pad>", "</s>", "<unk>", "▁", *words, *string.ascii_lowercase, ","]
        config = tf.T5Config(
            vocab_size=len(pieces), d_model=width, d_kv=6, d_ff=28, num_layers=2, num_heads=3,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip
        tokens = tf.T5TokenizerFast(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)
        return tf.T5EncoderModel(config).eval().requires_grad_(False), tokens

    return make


@pytest.fixture(scope="session")
def small_vae(need) -> nn.Module:
    """FLUX's autoencoder with few channels, in diffusers, with random weights, biases and norms included."""
    config = FLUX_CONFIG | {"block_out_channels": (8, 16, 24, 24), "norm_num_groups": 4}
    made = need("diffusers").AutoencoderKL.from_config(config).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for name, parameter in made.named_parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.copy_(torch.randn(parameter.shape, generator=draw) * spread)
        if "norm" in name and name.endswith("weight"):
            parameter += 1
    return made


@pytest.fixture(scope="session")
def check_initial_weights() -> Callable[..., None]:
    """`check_initial_weights(make, call, name)`: models made by a seed predict zero, and weights follow the seed."""

    def check(make: Callable[[int], nn.Module], call: dict[str, Tensor], name: str) -> None:
        model, same, other = map(make, (0, 0, 1))
        assert model(**call).abs().max() == 0, "gates and output start at zero"
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
        assert not torch.equal(model.get_parameter(name), other.get_parameter(name))

    return check


@pytest.fixture(scope="session")
def emoji_folder(tmp_path_factory) -> Path:
    """Images of one colour per label under the file names of the real set; the number of an image is its first pixel.

    20 labels in two styles to train on and in the held-out one; two labels that are held out, being in five styles.
    """
    folder = tmp_path_factory.mktemp("emoji")
    labels = [*SHOWN, *(f"thing {i}" for i in range(12)), "unseen", "unseen too"]
    styles = list(STYLES.values())
    common = [styles.index(name) for name in ("twemoji flat", "noto", "emojione")]
    pairs = [(label, style) for label in range(20) for style in common]
    pairs += [(label, style) for label in (20, 21) for style in range(5)]
    draw = np.random.default_rng(0)
    colours = draw.integers(0, 256, (len(labels), 1, 1, 3), dtype=np.uint8)
    images = np.concatenate([colours[label].repeat(EMOJI_SIZE, 0).repeat(EMOJI_SIZE, 1)[None] for label, _ in pairs])
    images[:, 0, 0] = np.arange(len(pairs))[:, None]
    label, style = np.array(pairs, np.int32).T
    names = {"labels": np.array(labels), "styles": np.array(styles)}
    none = np.array([""] * len(labels))
    np.savez(folder / "emoji-32.npz", images=images, label=label, style=style, chars=none, groups=none, **names)
    texts, g = [*labels, *styles], torch.Generator().manual_seed(0)
    lengths = 1 + torch.arange(len(texts)) % 3
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    tokens = torch.randn(int(offsets[-1]), WIDTH, generator=g)
    TextTable(texts, tokens, offsets, torch.randn(len(texts), WIDTH, generator=g)).save(folder / "text.safetensors")
    return folder
