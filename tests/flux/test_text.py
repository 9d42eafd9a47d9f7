"""Text encoders on tiny random T5 and CLIP in the layouts of the published ones, and the cache of embeddings."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flux import text
from flux.text import CLIP, MAX_LENGTH, T5, TextEncoders, encode_cached
from seerkit.text import PromptCache, find_encoder

WIDTH, POOLED = 20, 24
PROMPTS = ["a red fox", "", "two birds, and a very long tail of words " * 6]
LENGTH = 32


@pytest.fixture(autouse=True)
def nowhere(without_checkpoints) -> Path:
    return without_checkpoints()


@pytest.fixture(scope="module")
def parts(tiny_t5, tiny_clip):
    """Tokenizers over letters and a few merges, and encoders with random weights."""
    torch.manual_seed(0)
    t5, t5_tokens = tiny_t5(WIDTH, ["▁a", "red", "bird"])
    clip, clip_tokens = tiny_clip("CLIPTextModel", POOLED, merges=[("r", "e"), ("re", "d</w>"), ("b", "i")])
    return SimpleNamespace(t5=t5, t5_tokens=t5_tokens, clip=clip, clip_tokens=clip_tokens)


@pytest.fixture
def repository(parts, tmp_path) -> Path:
    """A FLUX repository in diffusers' layout."""
    folder = tmp_path / "FLUX"
    parts.clip.save_pretrained(folder / "text_encoder")
    parts.clip_tokens.save_pretrained(folder / "tokenizer")
    parts.t5.save_pretrained(folder / "text_encoder_2")
    parts.t5_tokens.save_pretrained(folder / "tokenizer_2")
    return folder


@pytest.fixture
def encoders(repository):
    """`encoders()`: fresh encoders of 32 tokens in float32, none loaded."""

    def make(max_length: int = LENGTH, dtype: torch.dtype = torch.float32) -> TextEncoders:
        return TextEncoders(repository, repository, max_length=max_length, dtype=dtype)

    return make


def encode(encoder: TextEncoders, prompts: list[str] = PROMPTS) -> tuple[torch.Tensor, torch.Tensor]:
    with pytest.warns(UserWarning, match="has .* tokens; all beyond 32 are cut"):
        return encoder.encode(prompts)


class TestEncode:
    def test_is_the_pipeline_of_diffusers(self, encoders, parts, need):
        pipeline = need("diffusers").FluxPipeline(
            scheduler=None, vae=None, transformer=None, text_encoder=parts.clip, tokenizer=parts.clip_tokens,
            text_encoder_2=parts.t5, tokenizer_2=parts.t5_tokens,
        )  # fmt: skip
        txt, y = encode(encoders())
        assert txt.shape == (3, LENGTH, WIDTH)
        assert y.shape == (3, POOLED)
        for row, prompt in enumerate(PROMPTS):
            expected, pooled, _ = pipeline.encode_prompt(prompt=prompt, max_sequence_length=LENGTH, device="cpu")
            assert torch.equal(txt[row : row + 1], expected)
            assert torch.equal(y[row : row + 1], pooled)
        expected, pooled, _ = pipeline.encode_prompt(prompt=PROMPTS, max_sequence_length=LENGTH, device="cpu")
        torch.testing.assert_close(txt, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(y, pooled, rtol=1e-5, atol=1e-5)

    def test_padding_is_attended_to(self, encoders, parts):
        """The official code gives T5 no mask, so that the tokens of a prompt depend on how far it is padded."""
        short, _ = encoders(8).encode(["a red"])
        long, _ = encoders(16).encode(["a red"])
        assert not torch.allclose(short[0, :2], long[0, :2], atol=1e-3)
        ids = parts.t5_tokens("a red").input_ids
        ids += [parts.t5_tokens.pad_token_id] * (16 - len(ids))
        assert torch.equal(long, parts.t5(torch.tensor([ids])).last_hidden_state)

    def test_prompts_do_not_depend_on_each_other(self, encoders):
        together, pooled = encode(encoders())
        for row, prompt in enumerate(PROMPTS[:2]):
            alone, y = encoders().encode([prompt])
            assert torch.equal(alone[0], together[row])
            assert torch.equal(y[0], pooled[row])

    def test_dtype(self, encoders):
        txt, y = encoders(dtype=torch.bfloat16).encode(PROMPTS[:1])
        assert (txt.dtype, y.dtype) == (torch.bfloat16, torch.bfloat16)

    def test_loaded_at_the_first_prompt_and_dropped(self, encoders):
        encoder = encoders()
        assert not encoder.is_loaded
        first, _ = encoder.encode(PROMPTS[:1])
        assert encoder.is_loaded
        encoder.drop()
        assert not encoder.is_loaded
        again, _ = encoder.encode(PROMPTS[:1])
        assert torch.equal(first, again)

    def test_folders_of_their_own(self, parts, encoders, tmp_path, need):
        """As google/t5-v1_1-xxl and openai/clip-vit-large-patch14 are: all in one folder, CLIP with its image tower."""
        tf = need("transformers")
        clip = tf.CLIPModel(
            tf.CLIPConfig(
                text_config=parts.clip.config.to_dict(),
                vision_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
                projection_dim=8,
            )
        )  # fmt: skip
        missing = clip.text_model.load_state_dict(
            {name.removeprefix("text_model."): tensor for name, tensor in parts.clip.state_dict().items()}
        )
        assert not missing.missing_keys
        clip.save_pretrained(tmp_path / "clip")
        parts.clip_tokens.save_pretrained(tmp_path / "clip")
        parts.t5.save_pretrained(tmp_path / "t5")
        parts.t5_tokens.save_pretrained(tmp_path / "t5")
        own = TextEncoders(tmp_path / "t5", tmp_path / "clip", max_length=LENGTH, dtype=torch.float32)
        for ours, expected in zip(own.encode(PROMPTS[:2]), encoders().encode(PROMPTS[:2]), strict=True):
            assert torch.equal(ours, expected)

    @pytest.mark.parametrize("name", ["FLUX.1-dev", "FLUX.1-schnell"])
    def test_downloads_are_found(self, repository, encoders, nowhere, name):
        expected = encoders().encode(PROMPTS[:1])
        nowhere.mkdir()
        repository.rename(nowhere / name)
        found = TextEncoders(max_length=LENGTH, dtype=torch.float32, download=False).encode(PROMPTS[:1])
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    def test_lengths_are_the_published_ones(self):
        assert MAX_LENGTH == {"flux-dev": 512, "flux-schnell": 256}


class TestCache:
    @pytest.fixture
    def counted(self, encoders):
        """A maker of encoders, and the list of those that it made."""
        made = []

        def make() -> TextEncoders:
            made.append(encoders())
            return made[-1]

        return make, made

    def cache(self, encoder: TextEncoders, folder: Path) -> PromptCache:
        return encoder.cache(folder)

    def test_stored_prompts_need_no_encoder(self, counted, encoders, tmp_path):
        make, made = counted
        cache = self.cache(encoders(), tmp_path / "prompts")
        first = encode_cached(["a red fox", "", "a red fox"], make, cache)
        assert len(made) == 1
        assert not made[0].is_loaded, "dropped after use"
        assert len(list((tmp_path / "prompts").iterdir())) == 2
        again = encode_cached(["a red fox", "", "a red fox"], make, cache)
        assert len(made) == 1
        expected = encoders().encode(["a red fox", "", "a red fox"])
        for a, b, c in zip(first, again, expected, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)
        encode_cached(["", "a bird"], make, cache)
        assert len(made) == 2

    def test_bfloat16_is_kept(self, encoders, tmp_path):
        cache = self.cache(encoders(dtype=torch.bfloat16), tmp_path)
        for _ in range(2):
            txt, y = encode_cached(PROMPTS[:1], lambda: encoders(dtype=torch.bfloat16), cache)
            assert (txt.dtype, y.dtype) == (torch.bfloat16, torch.bfloat16)

    def test_without_a_cache(self, counted):
        make, made = counted
        txt, _ = encode_cached(PROMPTS[:2], make)
        assert txt.shape == (2, LENGTH, WIDTH)
        assert not made[0].is_loaded

    def test_files_are_named_by_all_that_matters(self, encoders, tmp_path):
        names = encoders().names
        caches = [
            PromptCache(tmp_path, parts=("txt", "y"), encoders=names, max_length=32),
            PromptCache(tmp_path, parts=("txt", "y"), encoders=names, max_length=16),
            PromptCache(tmp_path, parts=("txt", "y"), encoders=encoders(dtype=torch.bfloat16).names, max_length=32),
            PromptCache(tmp_path, parts=("txt", "y"), encoders=TextEncoders().names, max_length=32),
        ]
        paths = {cache.path(prompt) for cache in caches for prompt in ("a", "b")}
        assert len(paths) == 8
        assert caches[0].path("a") == PromptCache(tmp_path, parts=("txt", "y"), encoders=names, max_length=32).path("a")

    def test_an_interrupted_run_keeps_what_it_has(self, encoders, tmp_path, monkeypatch):
        encoder = encoders()
        cache, whole = self.cache(encoder, tmp_path), TextEncoders.embed

        def fail_at_the_second(self, prompts):
            if prompts == ["b"]:
                raise RuntimeError("out of memory")
            return whole(self, prompts)

        monkeypatch.setattr(TextEncoders, "embed", fail_at_the_second)
        with pytest.raises(RuntimeError, match="out of memory"):
            encode_cached(["a", "b"], lambda: encoder, cache)
        assert "a" in cache
        assert "b" not in cache
        assert not encoder.is_loaded

    def test_damaged_and_foreign_files_are_named(self, encoders, tmp_path):
        cache = self.cache(encoders(), tmp_path)
        encode_cached(["a", "b"], encoders, cache)
        cache.path("a").write_bytes(cache.path("a").read_bytes()[:100])
        with pytest.raises(ValueError, match=rf"{cache.path('a').name} is damaged .*delete it"):
            encode_cached(["a"], encoders, cache)
        cache.path("b").rename(cache.path("a"))
        with pytest.raises(ValueError, match=r"is not the embedding of 'a'; delete it"):
            encode_cached(["a"], encoders, cache)

    def test_other_encoders_do_not_fill_a_cache(self, encoders, tmp_path):
        cache = self.cache(encoders(), tmp_path)
        with pytest.raises(ValueError, match=r"of 16 tokens do not fit a cache of .* and 32"):
            encode_cached(["a"], lambda: encoders(16), cache)

    def test_no_prompts(self, encoders):
        with pytest.raises(ValueError, match="no prompts to encode"):
            encode_cached([], encoders)
        with pytest.raises(ValueError, match="no prompts to encode"):
            encoders().encode([])


class TestErrors:
    @pytest.mark.parametrize(
        ("encoder", "own", "folders"),
        [
            (T5, "google/t5-v1_1-xxl", "--include 'text_encoder_2/*' --include 'tokenizer_2/*'"),
            (CLIP, "openai/clip-vit-large-patch14", "--include 'text_encoder/*' --include 'tokenizer/*'"),
        ],
    )
    def test_missing_encoder_says_how_to_fetch_it(self, nowhere, encoder, own, folders):
        with pytest.raises(FileNotFoundError) as caught:
            find_encoder(encoder)
        message = str(caught.value)
        for part in (
            f"the {encoder.name} (config.json, weights and tokenizer of black-forest-labs/FLUX.1-dev or",
            f"{nowhere}/FLUX.1-dev/text_encoder",
            f"{nowhere}/{own.split('/')[1]}",
            f"`hf download black-forest-labs/FLUX.1-dev {folders} --local-dir {nowhere}/FLUX.1-dev`",
            f"`hf download {own} --include '*.json'",
            encoder.flag,
            "log in with `hf auth login`",
            f"{own}: HF_HUB_OFFLINE is set",
        ):
            assert part in message, message
        assert "\n" not in message

    def test_given_folder_is_the_only_place(self, repository, nowhere, tmp_path):
        nowhere.mkdir()
        (nowhere / "FLUX.1-dev").symlink_to(repository)
        assert find_encoder(T5) == (nowhere / "FLUX.1-dev/text_encoder_2", nowhere / "FLUX.1-dev/tokenizer_2")
        with pytest.raises(FileNotFoundError, match=r"looked at .*gone \(not a folder\); fetch it"):
            find_encoder(T5, tmp_path / "gone")
        (repository / "text_encoder_2" / "model.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"FLUX \(incomplete\)"):
            find_encoder(T5, repository)

    def test_damaged_files_are_named(self, repository):
        (repository / "text_encoder_2" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nothing")
        with pytest.raises(ValueError, match=r"text_encoder_2 cannot be read by T5EncoderModel"):
            TextEncoders(repository, repository).encode(["a"])

    def test_impossible_length(self):
        with pytest.raises(ValueError, match="max_length = 0 of text tokens must be at least 1"):
            TextEncoders(max_length=0)

    def test_importing_loads_no_library(self):
        assert not {"T5EncoderModel", "CLIPTextModel", "transformers"} & set(vars(text))
