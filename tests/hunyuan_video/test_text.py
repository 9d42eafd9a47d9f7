"""Text encoders on tiny random LLaMA, LLaVA and CLIP in the layouts of the published ones."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hunyuan_video import text
from hunyuan_video.text import CLIP, CROP_START, LLM, MAX_LENGTH, TEMPLATE, TextEncoders
from seerkit.text.encoders import find_encoder
from seerkit.weights import checkpoints as weights

WIDTH, POOLED, LENGTH = 16, 24, 24
PROMPTS = ["a red fox", "", "two birds and a long tail of words " * 6]
# How LLaMA 3 splits a text before it looks for tokens (meta-llama/llama3 tokenizer.py).
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<pad>", "<unk>")


@pytest.fixture(autouse=True)
def nowhere(without_checkpoints) -> Path:
    return without_checkpoints()


def llama_tokenizer(need):
    """LLaMA 3's splitting, and a token for each piece: the published one has tokens for common words."""
    lib = need("tokenizers")
    splitting = lib.pre_tokenizers.Sequence(
        [
            lib.pre_tokenizers.Split(lib.Regex(SPLIT), "isolated"),
            lib.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    pieces = dict.fromkeys(SPECIAL)
    for part in [*TEMPLATE.replace("<|", "|>").split("|>"), *PROMPTS]:
        pieces |= dict.fromkeys(piece for piece, _ in splitting.pre_tokenize_str(part))
    vocab = {piece: number for number, piece in enumerate(pieces)}
    made = lib.Tokenizer(lib.models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = splitting
    made.add_special_tokens(list(SPECIAL))
    made.post_processor = lib.processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", vocab["<|begin_of_text|>"])]
    )
    return made


@pytest.fixture(scope="module")
def parts(need, tiny_clip):
    """Tokenizers, and encoders with random weights."""
    tf = need("transformers")
    torch.manual_seed(0)
    backend = llama_tokenizer(need)
    llm_tokens = tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", pad_token="<pad>", unk_token="<unk>"
    )
    llm = tf.LlamaModel(
        tf.LlamaConfig(
            vocab_size=backend.get_vocab_size(), hidden_size=WIDTH, intermediate_size=20, num_hidden_layers=5,
            num_attention_heads=4, num_key_value_heads=2,
        )
    ).eval().requires_grad_(False)  # fmt: skip
    clip, clip_tokens = tiny_clip("CLIPTextModel", POOLED)
    return SimpleNamespace(llm=llm, llm_tokens=llm_tokens, clip=clip, clip_tokens=clip_tokens)


@pytest.fixture
def repository(parts, tmp_path) -> Path:
    """hunyuanvideo-community/HunyuanVideo's folders."""
    folder = tmp_path / "HunyuanVideo"
    parts.llm.save_pretrained(folder / "text_encoder")
    parts.llm_tokens.save_pretrained(folder / "tokenizer")
    parts.clip.save_pretrained(folder / "text_encoder_2")
    parts.clip_tokens.save_pretrained(folder / "tokenizer_2")
    return folder


@pytest.fixture
def encoders(repository):
    """`encoders()`: fresh encoders of 24 tokens in float32, none loaded."""

    def make(**options) -> TextEncoders:
        return TextEncoders(repository, repository, **({"max_length": LENGTH, "dtype": torch.float32} | options))

    return make


class TestTemplate:
    def test_is_that_of_diffusers(self, need):
        need("diffusers")
        from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

        assert {"template": TEMPLATE, "crop_start": CROP_START} == DEFAULT_PROMPT_TEMPLATE

    def test_has_as_many_tokens_as_are_cut(self, parts):
        """Every word of it is one token, as in the published tokenizer."""
        before = parts.llm_tokens(TEMPLATE.partition("{}")[0]).input_ids
        assert len(before) == CROP_START
        whole = parts.llm_tokens.convert_ids_to_tokens(parts.llm_tokens(TEMPLATE.format("a red fox")).input_ids)
        assert whole[CROP_START:] == ["a", "Ġred", "Ġfox", "<|eot_id|>"]
        assert "<unk>" not in whole


class TestEncode:
    def test_is_the_pipeline_of_diffusers(self, encoders, parts, need):
        pipeline = need("diffusers").HunyuanVideoPipeline(
            scheduler=None, vae=None, transformer=None, text_encoder=parts.llm, tokenizer=parts.llm_tokens,
            text_encoder_2=parts.clip, tokenizer_2=parts.clip_tokens,
        )  # fmt: skip
        with pytest.warns(UserWarning, match=r"the prompt 'two birds .* has 50 tokens; all beyond 24 are cut"):
            text_states, text_mask, text_states_2 = encoders().encode(PROMPTS)
        assert text_states.shape == (3, LENGTH, WIDTH)
        assert text_mask.dtype == torch.bool
        assert text_mask.sum(dim=1).tolist() == [4, 1, LENGTH], "a prompt, and the end of its turn"
        assert text_states_2.shape == (3, POOLED)
        for row, prompt in enumerate(PROMPTS):
            states, pooled, mask = pipeline.encode_prompt(prompt, max_sequence_length=LENGTH, device="cpu")
            assert torch.equal(text_states[row : row + 1], states)
            assert torch.equal(text_mask[row : row + 1], mask.bool())
            assert torch.equal(text_states_2[row : row + 1], pooled)
        states, pooled, _ = pipeline.encode_prompt(PROMPTS, max_sequence_length=LENGTH, device="cpu")
        torch.testing.assert_close(text_states[text_mask], states[text_mask], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(text_states_2, pooled, rtol=1e-5, atol=1e-5)

    def test_states_are_those_after_the_third_last_layer(self, encoders, parts):
        """No norm is applied to them; the instruction before the prompt is attended to."""
        seen = []
        handle = parts.llm.layers[-3].register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            parts.llm(**parts.llm_tokens(TEMPLATE.format("a red fox"), return_tensors="pt"))
        finally:
            handle.remove()
        expected = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        text_states, text_mask, _ = encoders().encode(["a red fox"])
        torch.testing.assert_close(text_states[text_mask], expected.view(-1, WIDTH)[CROP_START:], rtol=1e-5, atol=1e-6)

    def test_prompts_do_not_depend_on_each_other(self, encoders):
        together = encoders().encode(PROMPTS[:2])
        for row, prompt in enumerate(PROMPTS[:2]):
            assert all(torch.equal(a[0], b[row]) for a, b in zip(encoders().encode([prompt]), together, strict=True))

    def test_dtype(self, encoders):
        states, mask, pooled = encoders(dtype=torch.bfloat16).encode(PROMPTS[:1])
        assert (states.dtype, mask.dtype, pooled.dtype) == (torch.bfloat16, torch.bool, torch.bfloat16)

    @pytest.mark.parametrize("layout", ["preprocessed", "llava", "old names"])
    def test_other_layouts(self, encoders, repository, parts, tmp_path, need, layout):
        """The language model alone with its head, as hyvideo's preprocessing leaves it, and all of LLaVA."""
        tf = need("transformers")
        folder = tmp_path / "llm"
        if layout == "preprocessed":
            model = tf.LlamaForCausalLM(parts.llm.config)
            model.model.load_state_dict(parts.llm.state_dict())
            model.save_pretrained(folder)
        else:
            vision = tf.CLIPVisionConfig(
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=28,
                patch_size=14,
            )
            config = tf.LlavaConfig(vision_config=vision, text_config=parts.llm.config, vision_feature_layer=-1)
            model = tf.LlavaForConditionalGeneration(config)
            model.model.language_model.load_state_dict(parts.llm.state_dict())
            model.save_pretrained(folder, max_shard_size="10KB")
            assert len(list(folder.glob("model-*.safetensors"))) > 1
            if layout == "old names":
                self.rename(folder)
        parts.llm_tokens.save_pretrained(folder)
        expected = encoders().encode(PROMPTS[:2])
        found = TextEncoders(folder, repository, max_length=LENGTH, dtype=torch.float32).encode(PROMPTS[:2])
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    @staticmethod
    def rename(folder: Path) -> None:
        """The names of xtuner's repository, in one file: language_model.model.layers.0…, vision_tower.…"""
        state = weights.read_state(folder / "model.safetensors.index.json")
        for path in folder.glob("model*"):
            path.unlink()
        old = {
            name.replace("model.language_model.", "language_model.model.")
            .replace("model.vision_tower.", "vision_tower.vision_model.")
            .replace("vision_model.vision_model.", "vision_model.")
            .replace("model.multi_modal", "multi_modal")
            .replace("lm_head", "language_model.lm_head")
            if name.startswith(("model.", "lm_head"))
            else name: tensor
            for name, tensor in state.items()
        }
        assert "language_model.model.layers.0.mlp.up_proj.weight" in old
        weights.export_safetensors(folder / "model.safetensors", old, metadata={"format": "pt"})

    @pytest.mark.parametrize("named", ["LlamaTokenizerFast", "LlamaTokenizer"])
    def test_tokens_are_those_of_the_file(self, encoders, repository, named):
        """Whatever class the repository names: LLaMA 2's would split words in another way."""
        expected = encoders().encode(PROMPTS[:1])
        path = repository / "tokenizer" / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": named, "padding_side": "left"}))
        assert all(torch.equal(a, b) for a, b in zip(encoders().encode(PROMPTS[:1]), expected, strict=True))

    def test_through_files(self, encoders, tmp_path):
        expected = encoders().encode(PROMPTS[:2])
        for _ in range(2):
            batch = encoders().encode_to_files(PROMPTS[:2], tmp_path / "prompts").load_batch(PROMPTS[:2])
            for a, b in zip(batch, expected, strict=True):
                assert torch.equal(a, b)
                assert a.dtype == b.dtype

    def test_defaults_are_the_published_ones(self):
        encoder = TextEncoders()
        assert (MAX_LENGTH, encoder.max_length, encoder.dtype) == (256, 256, torch.float16)


class TestErrors:
    @pytest.mark.parametrize(
        ("encoder", "own", "folders"),
        [
            (LLM, "xtuner/llava-llama-3-8b-v1_1-transformers", "--include 'text_encoder/*' --include 'tokenizer/*'"),
            (CLIP, "openai/clip-vit-large-patch14", "--include 'text_encoder_2/*' --include 'tokenizer_2/*'"),
        ],
    )
    def test_missing_encoder_says_how_to_fetch_it(self, nowhere, encoder, own, folders):
        with pytest.raises(weights.NotFoundError) as caught:
            find_encoder(encoder)
        for part in (
            f"the {encoder.name} (config.json, weights and tokenizer of hunyuanvideo-community/HunyuanVideo or {own})",
            f"{nowhere}/HunyuanVideo/text_encoder",
            f"`hf download hunyuanvideo-community/HunyuanVideo {folders} --local-dir {nowhere}/HunyuanVideo`",
            f"`hf download {own} --include '*.json'",
            encoder.flag,
            "HF_HUB_OFFLINE is set",
        ):
            assert part in str(caught.value)

    def test_damaged_files_are_named(self, repository):
        (repository / "text_encoder" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nothing")
        with pytest.raises(ValueError, match=r"text_encoder cannot be read by AutoModel"):
            TextEncoders(repository, repository).encode(["a"])

    def test_importing_loads_no_library(self):
        assert not {"AutoModel", "CLIPTextModel", "transformers"} & set(vars(text))
