"""Text encoders on tiny random T5, Llama and CLIPs in the layouts of the published ones."""

import contextlib
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from hidream import text
from hidream.config import REPOS
from hidream.text import CLIP_G, CLIP_L, LLAMA, MAX_LENGTH, T5, TextEncoders, by_layer
from seerkit.devices.offload import Packed, resident_bytes, store_nf4
from seerkit.text.encoders import CLIP_LENGTH as USUAL_LENGTH
from seerkit.text.encoders import find_encoder

LENGTH, LAYERS = 32, 3
T5_WIDTH, LLAMA_WIDTH, POOLED_L, POOLED_G = 24, 16, 10, 14
PROMPTS = ["a red fox", "", "two birds, and a very long tail of words"]
CLIP_CLASS = "CLIPTextModelWithProjection"
FOLDERS = {CLIP_L: "text_encoder", CLIP_G: "text_encoder_2", T5: "text_encoder_3"}


@pytest.fixture(autouse=True)
def nowhere(without_checkpoints) -> Path:
    return without_checkpoints()


def make_llama(tf, lib) -> tuple[nn.Module, object]:
    """A causal model, of which the encoder is the inner one, and a tokenizer without a token for padding, as published."""
    vocab = {piece: i for i, piece in enumerate([*string.ascii_lowercase, " ", ",", "<|begin_of_text|>", "<|eot_id|>"])}
    backend = lib.Tokenizer(lib.models.WordLevel(vocab, unk_token=","))
    backend.pre_tokenizer = lib.pre_tokenizers.Split(lib.Regex("."), "isolated")
    backend.post_processor = lib.processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", vocab["<|begin_of_text|>"])]
    )
    config = tf.LlamaConfig(
        vocab_size=len(vocab), hidden_size=LLAMA_WIDTH, intermediate_size=20, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )
    return tf.LlamaForCausalLM(config), tokenizer


@pytest.fixture(scope="module")
def parts(need, tiny_clip, tiny_t5):
    """Encoders with random weights, norms included, and their tokenizers, each a pair; the CLIPs pad as the published two."""
    tf, lib = need("transformers"), need("tokenizers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = SimpleNamespace(
            clip_l=tiny_clip(CLIP_CLASS, 2 * POOLED_L, 128, projection_dim=POOLED_L),
            clip_g=tiny_clip(CLIP_CLASS, 2 * POOLED_G, 128, projection_dim=POOLED_G, pad="!"),
            t5=tiny_t5(T5_WIDTH),
            llama=make_llama(tf, lib),
        )
        for model, _ in vars(made).values():
            model.eval().requires_grad_(False)
            for name, parameter in model.named_parameters():
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(0.3 * torch.randn(parameter.shape))
    return made


@pytest.fixture
def repositories(parts, tmp_path) -> SimpleNamespace:
    """HiDream-I1 and Llama-3.1-8B-Instruct in their published folders."""
    hidream, llama = tmp_path / "HiDream", tmp_path / "Llama"
    for number, (model, tokenizer) in {"": parts.clip_l, "_2": parts.clip_g, "_3": parts.t5}.items():
        model.save_pretrained(hidream / f"text_encoder{number}")
        tokenizer.save_pretrained(hidream / f"tokenizer{number}")
    for saved in parts.llama:
        saved.save_pretrained(llama)
    return SimpleNamespace(hidream=hidream, llama=llama)


@pytest.fixture
def encoders(repositories):
    """`encoders()`: fresh encoders of 32 tokens in float32, none loaded."""

    def make(**options) -> TextEncoders:
        given = (*[repositories.hidream] * 3, repositories.llama)
        return TextEncoders(*given, **({"max_length": LENGTH, "dtype": torch.float32} | options))

    return make


def encode(encoder: TextEncoders) -> tuple[Tensor, Tensor, Tensor]:
    with pytest.warns(UserWarning, match=r"the prompt 'two birds.* has 42 tokens; all beyond 32 are cut"):
        return encoder.encode(PROMPTS)


@contextlib.contextmanager
def staging(monkeypatch) -> Iterator[list[str]]:
    """The encoders that are staged, in order; none while another one is."""
    staged, used = text.staged_on, []

    @contextlib.contextmanager
    def alone(device: torch.device, module: nn.Module, offload: bool) -> Iterator[nn.Module]:
        assert offload
        assert not any(name.endswith("…") for name in used)
        used.append(f"{type(module).__name__}…")
        with staged(device, module, offload) as model:
            yield model
        used[-1] = used[-1].removesuffix("…")

    with monkeypatch.context() as patch:
        patch.setattr(text, "staged_on", alone)
        yield used


class TestEncode:
    def test_is_the_pipeline_of_diffusers(self, encoders, parts, need):
        """Which asks Llama for its attentions, so that they are computed in another order; hence the tolerance."""
        theirs = need("diffusers").HiDreamImagePipeline(
            None, None, *parts.clip_l, *parts.clip_g, *parts.t5, *parts.llama, transformer=None
        )
        t5, llama, pooled = encode(encoders())
        assert t5.shape == (3, LENGTH, T5_WIDTH)
        assert llama.shape == (LAYERS, 3, LENGTH, LLAMA_WIDTH)
        assert pooled.shape == (3, POOLED_L + POOLED_G)
        wanted = theirs.encode_prompt(
            prompt=PROMPTS[:2],
            negative_prompt=PROMPTS[2],
            device="cpu",
            dtype=torch.float32,
            max_sequence_length=LENGTH,
        )
        for ours, expected, dim in zip((t5, llama, pooled), wanted[::2], (0, 1, 0), strict=True):
            torch.testing.assert_close(ours.narrow(dim, 0, 2), expected, rtol=1e-5, atol=1e-5)
        for ours, expected, dim in zip((t5, llama, pooled), wanted[1::2], (0, 1, 0), strict=True):
            torch.testing.assert_close(ours.narrow(dim, 2, 1), expected.narrow(dim, 0, 1), rtol=1e-5, atol=1e-5)

    def test_padding_is_masked(self, encoders):
        """What T5 and Llama make of a prompt's tokens does not depend on how far they are padded."""
        short, long = (encoders(max_length=length).encode(["a red"]) for length in (8, 16))
        torch.testing.assert_close(long[0][:, :6], short[0][:, :6], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(long[1][:, :, :6], short[1][:, :, :6], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(long[2], short[2], rtol=1e-5, atol=1e-5)

    def test_hidden_states_are_those_behind_the_layers(self, encoders, parts):
        """Without what goes into the first one; the last is what the model ends with, normalised."""
        model, tokenizer = parts.llama
        _, states, _ = encoders(max_length=12).encode(["a red fox"])
        ids = torch.tensor([tokenizer("a red fox").input_ids])
        behind = []
        hooks = [layer.register_forward_hook(lambda *call: behind.append(call[-1])) for layer in model.model.layers]
        last = model.model(input_ids=ids).last_hidden_state
        for hook in hooks:
            hook.remove()
        length = ids.shape[1]
        for ours, expected in zip(states[:, :, :length], [*behind[:-1], last], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(states[-1, :, :length], behind[-1], atol=1e-2)

    def test_prompts_do_not_depend_on_each_other(self, encoders):
        together = encode(encoders())
        for row, prompt in enumerate(PROMPTS[:2]):
            t5, llama, pooled = encoders().encode([prompt])
            assert torch.equal(t5[0], together[0][row])
            assert torch.equal(llama[:, 0], together[1][:, row])
            assert torch.equal(pooled[0], together[2][row])

    def test_dtype(self, encoders):
        made = encoders(dtype=torch.bfloat16).encode(PROMPTS[:1])
        assert {tensor.dtype for tensor in made} == {torch.bfloat16}

    def test_lengths_are_the_published_ones(self):
        assert dict.fromkeys(REPOS, 128) == MAX_LENGTH
        assert TextEncoders(max_length=128).lengths == dict.fromkeys((CLIP_L, CLIP_G, T5, LLAMA), 128)
        assert TextEncoders(max_length=300).lengths == {CLIP_L: 218, CLIP_G: 218, T5: 300, LLAMA: 300}

    def test_downloads_are_found(self, repositories, encoders, nowhere):
        expected = encoders().encode(PROMPTS[:1])
        nowhere.mkdir()
        repositories.hidream.rename(nowhere / "HiDream-I1-Fast")
        repositories.llama.rename(nowhere / "Llama-3.1-8B-Instruct")
        found = TextEncoders(max_length=LENGTH, dtype=torch.float32, download=False).encode(PROMPTS[:1])
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class TestMemory:
    def test_offloaded_encoders_take_turns_of_many_prompts(self, encoders, monkeypatch):
        expected = encoders().encode(PROMPTS[:2])
        with staging(monkeypatch) as used:
            made = by_layer(encoders(offload=True).encode_to_files(PROMPTS[:2]).load_batch(PROMPTS[:2]))
        assert used == ["T5EncoderModel", "LlamaModel", *[CLIP_CLASS] * 2], "once for both prompts"
        assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))

    @pytest.mark.parametrize(("offload", "place"), [(False, "meta"), (True, "cpu")])
    def test_where_they_wait(self, encoders, offload, place):
        """The meta device stands for an accelerator."""
        loaded = encoders(device="meta", offload=offload).load()
        assert {parameter.device.type for model, _ in loaded for parameter in model.parameters()} == {place}

    def test_dropped_after_use(self, encoders):
        made = encoders()
        found = by_layer(made.encode_to_files(PROMPTS[:2]).load_batch(PROMPTS[:2]))
        assert not made.is_loaded
        for ours, expected in zip(found, encoders().encode(PROMPTS[:2]), strict=True):
            assert torch.equal(ours, expected)
            assert ours.is_contiguous()

    @pytest.mark.parametrize("offload", [False, True])
    def test_four_bits(self, encoders, need, offload):
        """Of the blocks of T5 and Llama, 7 layers each; CLIP and embeddings stay. Products are off by some per cent."""
        need("bitsandbytes")
        encoder = encoders(nf4=True, offload=offload)
        for made, expected in zip(encoder.encode(PROMPTS[:1]), encoders().encode(PROMPTS[:1]), strict=True):
            assert (made - expected).norm() <= 0.2 * expected.norm()
        packed = [sum(isinstance(part, Packed) for part in model.modules()) for model, _ in encoder.load()]
        assert packed == [0, 0, 2 * 7, LAYERS * 7]

    def test_sizes_of_the_published_encoders(self, meta_t5_xxl, need):
        """26 GB in bf16, 9.5 with T5 and Llama in 4 bits; the largest one is what a device must hold with offload."""
        need("bitsandbytes")
        tf = need("transformers")
        t5 = meta_t5_xxl()
        with torch.device("meta"):
            llama = tf.LlamaModel(
                tf.LlamaConfig(
                    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                    num_attention_heads=32, num_key_value_heads=8,
                )
            )  # fmt: skip
            clips = [
                tf.CLIPTextModelWithProjection(
                    tf.CLIPTextConfig(
                        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                        num_attention_heads=width // 64, max_position_embeddings=218, projection_dim=width,
                    )
                )
                for width, layers in ((768, 12), (1280, 32))
            ]  # fmt: skip
        sizes = [resident_bytes(model.to(torch.bfloat16)) / 1e9 for model in (t5, llama, *clips)]
        assert sizes == pytest.approx([9.5, 15.0, 0.25, 1.39], abs=0.05)
        few = [resident_bytes(store_nf4(blocks)) / 1e9 for blocks in (t5.encoder, llama)]
        assert few == pytest.approx([2.9, 5.0], abs=0.05)


class TestCache:
    def test_stored_prompts_need_no_encoder(self, encoders, tmp_path, monkeypatch):
        first = encoders().encode_to_files(PROMPTS[:2], tmp_path / "e").load_batch(PROMPTS[:2])
        monkeypatch.setattr(TextEncoders, "_load", lambda *_: pytest.fail("encoders were loaded"))
        again = encoders().encode_to_files(PROMPTS[:2], tmp_path / "e").load_batch(PROMPTS[:2])
        assert first[1].shape == (2, LAYERS, LENGTH, LLAMA_WIDTH)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    def test_files_are_named_by_all_that_matters(self, encoders, need, tmp_path):
        need("bitsandbytes")
        variants = [{}, {"max_length": 16}, {"dtype": torch.bfloat16}, {"nf4": True}]
        caches = [encoders(**variant).encode_to_files(["a"], tmp_path / "e") for variant in variants]
        assert len({cache.path("a") for cache in caches}) == len(variants)
        assert encoders(offload=True).encode_to_files(["a"], tmp_path / "e").path("a") == caches[0].path("a")


class TestErrors:
    def test_missing_llama_says_that_access_must_be_requested(self, nowhere, repositories):
        with pytest.raises(FileNotFoundError) as caught:
            TextEncoders(*[repositories.hidream] * 3).encode(["a"])
        for part in (
            "the text encoder Llama-3.1-8B-Instruct (config.json, weights and tokenizer of meta-llama/Llama-3.1-8B-Instruct)",
            f"looked at {nowhere}/Llama-3.1-8B-Instruct",
            "download failed: meta-llama/Llama-3.1-8B-Instruct: HF_HUB_OFFLINE is set",
            f"`hf download meta-llama/Llama-3.1-8B-Instruct --include '*.json' --include '*.txt' --include spiece.model "
            f"--include 'model*.safetensors' --local-dir {nowhere}/Llama-3.1-8B-Instruct`",
            "--llama",
            "access must be requested at https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct",
            "log in with `hf auth login`",
        ):
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("encoder", FOLDERS)
    def test_missing_encoder_says_how_to_fetch_it(self, nowhere, encoder):
        folder = FOLDERS[encoder]
        with pytest.raises(FileNotFoundError) as caught:
            find_encoder(encoder)
        for repo in REPOS.values():
            place = f"{nowhere}/{repo.split('/')[1]}"
            include = f"--include '{folder}/*' --include '{folder.replace('text_encoder', 'tokenizer')}/*'"
            assert f"{place}/{folder}" in str(caught.value)
            assert f"`hf download {repo} {include} --local-dir {place}`" in str(caught.value)
        assert encoder.flag in str(caught.value)

    def test_usual_clip_has_too_few_positions(self, encoders, repositories, tiny_clip):
        model, tokenizer = tiny_clip(CLIP_CLASS, 2 * POOLED_L, USUAL_LENGTH, projection_dim=POOLED_L)
        model.save_pretrained(repositories.hidream / "text_encoder")
        tokenizer.save_pretrained(repositories.hidream / "tokenizer")
        assert len(encoders(max_length=USUAL_LENGTH).encode(["a"])) == 3
        with pytest.raises(
            ValueError,
            match=r"HiDream/text_encoder has positions for 77 tokens, prompts are padded to 128: HiDream-I1 has a CLIP-L of "
            r"its own; name that of HiDream-ai/HiDream-I1-Full with --clip-l",
        ):
            encoders(max_length=128).encode(["a"])

    def test_four_bits_without_bitsandbytes(self, monkeypatch):
        """Told before anything is loaded."""
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(ValueError, match="`pip install bitsandbytes`"):
            TextEncoders(nf4=True)

    def test_importing_loads_no_library(self):
        assert not {"transformers", "bitsandbytes"} & set(vars(text))
