"""The text encoder on a tiny random UMT5 in the layout of the published one."""

import json
import string
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from seerkit.devices.distributed import start_world, stop_world
from seerkit.text.encoders import find_encoder
from seerkit.weights import checkpoints as weights
from wan import text
from wan.config import DIFFUSERS_REPOS, NEGATIVE_PROMPT, NEGATIVE_PROMPT_I2V
from wan.text import MAX_LENGTH, T5, TextEncoder, clean

WIDTH, LENGTH = 20, 24
PROMPTS = ["a red fox", "", "two birds and a very long tail of words " * 6]


@pytest.fixture(autouse=True)
def nowhere(without_checkpoints) -> Path:
    return without_checkpoints()


@pytest.fixture(scope="module")
def parts(need):
    """A tokenizer that normalises characters (full-width ones, for example), and an encoder with random weights."""
    tf, lib = need("transformers"), need("tokenizers")
    torch.manual_seed(0)
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁a", "red", "bird", *string.ascii_lowercase, ",", "静"]
    backend = lib.Tokenizer(lib.models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2))
    backend.normalizer = lib.normalizers.NFKC()
    backend.pre_tokenizer = lib.pre_tokenizers.Metaspace()
    backend.post_processor = lib.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokens = tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )
    t5 = tf.UMT5EncoderModel(
        tf.UMT5Config(
            vocab_size=len(pieces), d_model=WIDTH, d_kv=6, d_ff=28, num_layers=2, num_heads=3,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip
    return SimpleNamespace(t5=t5.eval().requires_grad_(False), tokens=tokens)


@pytest.fixture
def repository(parts, tmp_path) -> Path:
    """A Wan repository in diffusers' layout; the tokenizer is of the class that the published one names."""
    folder = tmp_path / "Wan"
    parts.t5.save_pretrained(folder / "text_encoder", max_shard_size="10KB")
    assert (folder / "text_encoder" / "model.safetensors.index.json").is_file()
    parts.tokens.save_pretrained(folder / "tokenizer")
    path = folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    return folder


@pytest.fixture
def encoder(repository):
    """`encoder()`: a fresh encoder of 24 tokens in float32, not loaded."""

    def make(**options) -> TextEncoder:
        return TextEncoder(repository, **({"max_length": LENGTH, "dtype": torch.float32} | options))

    return make


class TestPrompts:
    @pytest.mark.parametrize(
        ("raw", "cleaned"),
        [
            ("  a\t fox \n\n runs ", "a fox runs"),
            ("fish &amp;amp; chips", "fish & chips"),
            ("cafÃ© \u201cnoir\u201d", 'café "noir"'),
            ("红色，狐狸", "红色,狐狸"),
            ("", ""),
        ],
    )
    def test_cleaning(self, raw, cleaned, need):
        need("diffusers")
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        assert clean(raw) == cleaned == prompt_clean(raw)

    def test_negative_prompts_are_the_official_ones(self):
        words = NEGATIVE_PROMPT.split("，")
        assert (words[0], words[-1], len(words), len(NEGATIVE_PROMPT)) == ("色调艳丽", "倒着走", 28, 137)
        assert f"镜头晃动，{NEGATIVE_PROMPT}" == NEGATIVE_PROMPT_I2V


class TestEncode:
    def test_is_the_pipeline_of_diffusers(self, encoder, parts, need):
        pipeline = need("diffusers").WanPipeline(
            scheduler=None, vae=None, transformer=None, text_encoder=parts.t5, tokenizer=parts.tokens
        )
        with pytest.warns(UserWarning, match=r"the prompt 'two birds .* tokens; all beyond 24 are cut"):
            contexts = encoder().encode(PROMPTS)
        lengths = [len(parts.tokens("a red fox").input_ids), len(parts.tokens("").input_ids), LENGTH]
        assert [tuple(context.shape) for context in contexts] == [(length, WIDTH) for length in lengths]
        for prompt, context in zip(PROMPTS, contexts, strict=True):
            expected = pipeline._get_t5_prompt_embeds(prompt, max_sequence_length=LENGTH, device="cpu")
            padded = torch.nn.functional.pad(context, (0, 0, 0, LENGTH - len(context)))
            assert torch.equal(padded[None], expected)

    def test_padding_is_not_attended_to(self, encoder):
        (short,), (long,) = (encoder(max_length=length).encode(["a red fox"]) for length in (12, 24))
        torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-5)

    def test_prompts_do_not_depend_on_each_other(self, encoder):
        together = encoder().encode(PROMPTS[:2])
        for prompt, context in zip(PROMPTS, together, strict=False):
            assert torch.equal(encoder().encode([prompt])[0], context)

    def test_prompts_are_cleaned(self, encoder):
        (plain,), (untidy,) = encoder().encode(["a red fox"]), encoder().encode(["  a  red\nfox"])
        assert torch.equal(plain, untidy)

    def test_characters_are_normalised_as_in_the_file(self, encoder, parts):
        """A circled letter is the letter, which T5's class of transformers 5 would not know."""
        assert parts.tokens("ⓐ").input_ids == parts.tokens("a").input_ids
        assert torch.equal(encoder().encode(["ⓐ"])[0], encoder().encode(["a"])[0])

    def test_dtype_and_dropping(self, encoder):
        made = encoder(dtype=torch.bfloat16)
        assert not made.is_loaded
        (context,) = made.encode(PROMPTS[:1])
        assert context.dtype == torch.bfloat16
        assert made.is_loaded
        made.drop()
        assert not made.is_loaded

    def test_one_folder_for_all(self, encoder, parts, tmp_path):
        parts.t5.save_pretrained(tmp_path / "t5")
        parts.tokens.save_pretrained(tmp_path / "t5")
        (own,) = TextEncoder(tmp_path / "t5", dtype=torch.float32).encode(PROMPTS[:1])
        torch.testing.assert_close(own, encoder().encode(PROMPTS[:1])[0], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("repo", DIFFUSERS_REPOS.values())
    def test_downloads_are_found(self, repository, nowhere, repo):
        nowhere.mkdir()
        repository.rename(nowhere / repo.split("/")[1])
        (context,) = TextEncoder(max_length=LENGTH, dtype=torch.float32, download=False).encode(PROMPTS[:1])
        assert context.shape[1] == WIDTH

    def test_through_files(self, encoder, tmp_path):
        """Contexts of several lengths."""
        for _ in range(2):
            cache = encoder().encode_to_files(PROMPTS[:2], tmp_path / "prompts")
            for prompt, expected in zip(PROMPTS, encoder().encode(PROMPTS[:2]), strict=False):
                assert torch.equal(*cache.load(prompt), expected)

    def test_defaults_are_the_published_ones(self):
        assert (MAX_LENGTH, TextEncoder().max_length, TextEncoder().dtype) == (512, 512, torch.bfloat16)


class TestErrors:
    def test_missing_encoder_says_how_to_fetch_it(self, nowhere):
        with pytest.raises(weights.NotFoundError) as caught:
            find_encoder(T5)
        for part in (
            "the text encoder UMT5 (config.json, weights and tokenizer of Wan-AI/Wan2.1-T2V-1.3B-Diffusers or",
            f"{nowhere}/Wan2.1-T2V-14B-Diffusers/text_encoder",
            "`hf download Wan-AI/Wan2.1-T2V-1.3B-Diffusers --include 'text_encoder/*' --include 'tokenizer/*' "
            f"--local-dir {nowhere}/Wan2.1-T2V-1.3B-Diffusers`",
            "--t5",
            "HF_HUB_OFFLINE is set",
        ):
            assert part in str(caught.value)

    def test_given_folder_is_the_only_place(self, repository, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"looked at .*gone \(not a folder\); fetch it"):
            TextEncoder(tmp_path / "gone").encode(["a"])
        (repository / "text_encoder" / "config.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"Wan \(incomplete\)"):
            TextEncoder(repository).encode(["a"])

    def test_no_prompts(self, encoder):
        with pytest.raises(ValueError, match="no prompts to encode"):
            encoder().encode([])

    def test_importing_loads_no_library(self):
        assert not {"UMT5EncoderModel", "transformers", "ftfy"} & set(vars(text))


@pytest.mark.slow
def test_weights_may_be_shared_by_processes(repository, run_script):
    """--t5-fsdp: every process holds a part of the encoder, and its contexts are those of one process."""
    done = run_script(__file__, repository, processes=2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"equal": True, "share": 0.5}


def shared_encoder(folder: str) -> None:
    """Run by two processes: encode with shared weights and compare."""
    world = start_world("cpu")
    shared = TextEncoder(folder, max_length=LENGTH, dtype=torch.float32, world=world)
    alone = TextEncoder(folder, max_length=LENGTH, dtype=torch.float32)
    pairs = zip(shared.encode(PROMPTS), alone.encode(PROMPTS), strict=True)
    equal = all(torch.allclose(ours, theirs, rtol=0, atol=1e-6) for ours, theirs in pairs)
    held, whole = (dict(encoder.load()[0].named_parameters()) for encoder in (shared, alone))
    name = next(name for name in whole if name.endswith("wo.weight"))
    share = held[name].to_local().numel() / whole[name].numel()
    if world.is_main:
        print(json.dumps({"equal": equal, "share": share}))
    stop_world()


if __name__ == "__main__":
    shared_encoder(sys.argv[1])
