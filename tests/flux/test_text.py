"""Text encoders on tiny random T5 and CLIP in the layouts of the published ones, and the cache of embeddings."""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flux import text
from flux.text import CLIP, MAX_LENGTH, T5, TextEncoders
from seerkit.text.encoders import encoder_files, find_encoder

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


class TestFiles:
    @pytest.fixture
    def loaded(self, monkeypatch):
        """How often encoders were loaded, in a list."""
        counts, load = [], TextEncoders._load

        def count(self, *folders):
            counts.append(1)
            return load(self, *folders)

        monkeypatch.setattr(TextEncoders, "_load", count)
        return counts

    def test_stored_prompts_need_no_encoder(self, encoders, loaded, tmp_path):
        made, again = encoders(), encoders()
        first = made.encode_to_files(["a red fox", "", "a red fox"], tmp_path / "prompts")
        assert not made.is_loaded, "dropped after use"
        assert len(list((tmp_path / "prompts").iterdir())) == 2
        second = again.encode_to_files(["a red fox", "", "a red fox"], tmp_path / "prompts")
        assert len(loaded) == 1
        expected = encoders().encode(["a red fox", "", "a red fox"])
        for cache in (first, second):
            batch = cache.load_batch(["a red fox", "", "a red fox"])
            assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))
        encoders().encode_to_files(["", "a bird"], tmp_path / "prompts")
        assert len(loaded) == 3

    def test_bfloat16_is_kept(self, encoders, tmp_path):
        for _ in range(2):
            txt, y = encoders(dtype=torch.bfloat16).encode_to_files(PROMPTS[:1], tmp_path / "e").load(PROMPTS[0])
            assert (txt.dtype, y.dtype) == (torch.bfloat16, torch.bfloat16)

    def test_a_temporary_folder_goes_with_its_cache(self, encoders):
        cache = encoders().encode_to_files(PROMPTS[:2])
        assert len(list(cache.folder.iterdir())) == 2
        folder = cache.folder
        read = cache.load_batch
        del cache
        assert read(PROMPTS[:2])[0].shape == (2, LENGTH, WIDTH)
        del read
        assert not folder.exists()

    @pytest.mark.slow
    def test_a_temporary_folder_goes_with_a_process_that_fails(self, repository, tmp_path):
        script = (
            "import sys, torch; from flux.text import TextEncoders; from seerkit.command.cli import run_command\n"
            "def main(argv):\n"
            "    cache = TextEncoders(*argv, max_length=8).encode_to_files(['a', 'b'])\n"
            "    print(len(list(cache.folder.iterdir())), flush=True)\n"
            "    raise OSError(28, 'disk full')\n"
            "run_command(main, sys.argv[1:])"
        )
        environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
        (tmp_path / "temporary").mkdir()
        command = [sys.executable, "-c", script, repository, repository]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (2, "2"), done.stderr
        assert list((tmp_path / "temporary").iterdir()) == []

    @pytest.mark.slow
    def test_memory_does_not_grow_with_the_number_of_prompts(self, encoders, tmp_path):
        """No embedding outlives its turn."""

        def alive() -> int:
            gc.collect()
            return sum(type(item) is torch.Tensor and item.shape[-1:] == (WIDTH,) for item in gc.get_objects())

        made = encoders()
        cache, counts = made.encode_to_files(["a"], tmp_path / "e"), []
        for number in (1, 20):
            cache = made.encode_to_files([f"{i} birds" for i in range(number)], tmp_path / "e")
            counts.append(alive())
        assert counts[0] == counts[1]
        assert len(list(cache.folder.iterdir())) == 21

    def test_a_disk_that_is_too_small_is_told_after_the_first_prompt(self, encoders, tmp_path, monkeypatch):
        monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=5000))
        with pytest.raises(ValueError, match="the embeddings of 3 prompts take about"):
            encoders().encode_to_files(["a", "b", "c"], tmp_path)
        assert list(tmp_path.glob("*.safetensors")) == []

    def test_files_are_named_by_all_that_matters(self, encoders, tmp_path):
        variants = [encoders(), encoders(16), encoders(dtype=torch.bfloat16)]
        caches = [made.encode_to_files(["a", "b"], tmp_path / "e") for made in variants]
        paths = {cache.path(prompt) for cache in caches for prompt in ("a", "b")}
        assert len(paths) == 6
        assert caches[0].path("a") == encoders().encode_to_files(["a"], tmp_path / "e").path("a")

    def test_other_contents_in_the_same_folder_are_other_encoders(self, encoders, repository, parts, loaded, tmp_path):
        """And the same contents elsewhere are the same ones."""
        encoders().encode_to_files(["a"], tmp_path / "e")
        shutil.copytree(repository, tmp_path / "elsewhere")
        copied = TextEncoders(tmp_path / "elsewhere", tmp_path / "elsewhere", max_length=LENGTH, dtype=torch.float32)
        copied.encode_to_files(["a"], tmp_path / "e")
        assert len(loaded) == 1
        weights = repository / "text_encoder" / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(bytes(data))
        encoders().encode_to_files(["a"], tmp_path / "e")
        assert len(loaded) == 2
        config = repository / "tokenizer" / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"note": 1}))
        encoders().encode_to_files(["a"], tmp_path / "e")
        assert len(loaded) == 3

    def test_files_of_an_encoder_are_those_that_are_read(self, repository):
        for name in ("README.md", "tf_model.h5", "pytorch_model.bin"):
            (repository / "text_encoder_2" / name).touch()
        files = encoder_files(find_encoder(T5, repository))
        names = [path.relative_to(repository).as_posix() for path in files]
        assert names[0] == "text_encoder_2/model.safetensors"
        assert {"text_encoder_2/config.json", "tokenizer_2/tokenizer.json"} < set(names)
        assert not [name for name in names if name.endswith((".md", ".h5", ".bin"))]

    def test_an_interrupted_run_keeps_what_it_has(self, encoders, loaded, tmp_path, monkeypatch):
        encoder, whole = encoders(), TextEncoders.embed

        def fail_at_the_second(self, prompts):
            if prompts == ["b"]:
                raise RuntimeError("out of memory")
            return whole(self, prompts)

        monkeypatch.setattr(TextEncoders, "embed", fail_at_the_second)
        with pytest.raises(RuntimeError, match="out of memory"):
            encoder.encode_to_files(["a", "b"], tmp_path / "e")
        assert not encoder.is_loaded
        encoders().encode_to_files(["a"], tmp_path / "e")
        assert len(loaded) == 1

    def test_damaged_and_foreign_files_are_named_and_can_be_deleted(self, encoders, tmp_path):
        cache = encoders().encode_to_files(["a", "b"], tmp_path / "e")
        cache.path("a").write_bytes(cache.path("a").read_bytes()[:100])
        with pytest.raises(ValueError, match=rf"{cache.path('a').name} is damaged .*delete it"):
            encoders().encode_to_files(["a"], tmp_path / "e")
        cache.path("b").rename(cache.path("a"))
        with pytest.raises(
            ValueError, match=r"is not the embedding of 'a'; delete it, and the prompt is encoded again"
        ):
            encoders().encode_to_files(["a"], tmp_path / "e")
        cache.path("a").unlink()
        encoders().encode_to_files(["a"], tmp_path / "e").load("a")

    def test_no_prompts(self, encoders):
        with pytest.raises(ValueError, match="no prompts to encode"):
            encoders().encode_to_files([])
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

    def test_a_missing_shard_is_named_with_the_command_that_fetches_it(self, parts, repository, nowhere):
        folder = repository / "text_encoder_2"
        (folder / "model.safetensors").unlink()
        parts.t5.save_pretrained(folder, max_shard_size="10KB")
        shards = sorted(path.name for path in folder.glob("model-*"))
        (folder / shards[1]).unlink()
        command = "`hf download black-forest-labs/FLUX.1-dev --include 'text_encoder_2/*' --include 'tokenizer_2/*'"
        with pytest.raises(FileNotFoundError) as caught:
            find_encoder(T5, repository)
        assert f"is incomplete: {shards[1]} missing; fetch the rest with {command} --local-dir {repository}`" in str(
            caught.value
        )
        assert caught.value.named == f"{folder}, without {shards[1]}"
        nowhere.mkdir()
        repository.rename(nowhere / "FLUX.1-dev")
        with pytest.raises(FileNotFoundError, match=f"{shards[1]} missing; fetch the rest"):
            find_encoder(T5)
        folder = nowhere / "FLUX.1-dev" / "text_encoder_2"
        (folder / "model.safetensors.index.json").unlink()
        with pytest.raises(
            FileNotFoundError, match=rf"incomplete: model\.safetensors\.index\.json, {shards[1]} missing"
        ):
            find_encoder(T5)

    @pytest.mark.parametrize("content", ["", "[]", "3", '{"d_model": "wide"}', "[" * 100_000, '{"a":' * 100_000])
    @pytest.mark.parametrize("name", ["text_encoder_2/config.json", "tokenizer_2/tokenizer.json"])
    def test_json_of_another_kind_is_one_line(self, repository, name, content):
        (repository / name).write_text(content)
        with pytest.raises(ValueError, match="cannot be read by") as caught:
            TextEncoders(repository, repository).encode(["a"])
        assert "\n" not in str(caught.value)

    def test_damaged_files_are_named(self, repository):
        (repository / "text_encoder_2" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nothing")
        with pytest.raises(ValueError, match=r"text_encoder_2 cannot be read by T5EncoderModel"):
            TextEncoders(repository, repository).encode(["a"])

    def test_impossible_length(self):
        with pytest.raises(ValueError, match="max_length = 0 of text tokens must be at least 1"):
            TextEncoders(max_length=0)

    def test_importing_loads_no_library(self):
        assert not {"T5EncoderModel", "CLIPTextModel", "transformers"} & set(vars(text))
