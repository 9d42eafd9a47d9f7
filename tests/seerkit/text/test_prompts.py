import json

import pytest

from cache_dic import UserError
from seerkit.text.prompts import (
    Listed,
    chosen_prompts,
    cycled,
    make_batches,
    read_list,
    read_prompts,
    repeated,
    require,
)


def test_a_text_file_has_one_prompt_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n  a cat \r\n\n{'prompt_en': 1}\nun café\n", encoding="utf-8")
    assert read_prompts(path) == ["a cat", "{'prompt_en': 1}", "un café"]


def test_a_json_file_is_vbenchs_list(tmp_path):
    path = tmp_path / "VBench_full_info.json"
    entries = [{"prompt_en": " a cat ", "dimension": ["color"]}, {"prompt_en": "a dog, two\nlines"}, {"prompt_en": ""}]
    path.write_text(json.dumps(entries))
    assert read_prompts(path) == ["a cat", "a dog, two\nlines"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b" \n\n", "holds no prompt; write one per line"),
        ("p.json", b"[]", "holds no prompt"),
        ("p.txt", b"caf\xe9\n", "is not UTF-8 text"),
        ("p.txt", b"\xff\xfea", "is not UTF-8 text"),
        ("p.txt", "a cat\n".encode("utf-16-le"), "holds a zero byte in line 1"),
        ("p.txt", b"a cat\n\0\n", "holds a zero byte in line 2"),
        ("p.json", b'[{"prompt_en": "a\\u0000b"}]', "holds a zero byte in entry 0"),
        ("p.json", rb'[{"prompt_en": "a \ud83d cat"}]', r"holds '\ud83d' in entry 0, half of a character"),
        ("P.JSON", b"[" * 100_000, "is nested too deeply"),
        ("p.json", b"1" * 5000, "is not JSON"),
        ("p.json", b'[{"prompt_en": "a", "dimension": [1]}]', 'has no list of texts as "dimension" in entry 0'),
        ("p.json", b'[{"prompt_en": "a", "name": 1}]', 'has no text as "name" in entry 0'),
        ("p.json", b"a cat", "is not JSON"),
        ("p.json", b'{"prompt_en": "a cat"}', "holds no list"),
        ("p.json", b'["a cat"]', 'has no text "prompt_en" in entry 0'),
        ("p.json", b'[{"prompt_en": "a cat"}, {"prompt": "a dog"}]', 'has no text "prompt_en" in entry 1'),
        ("p.json", b'[{"prompt_en": 3}]', 'has no text "prompt_en" in entry 0'),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"prompt file {path} {message}")


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(ValueError, match=f"prompt file {path} cannot be read"):
            read_prompts(path)


ANY_EDITOR = {
    "windows": "\ufeffa cat\r\nun café\r\n".encode(),
    "notepad": "a cat\r\nun café\r\n".encode("utf-16"),
    "big-endian": b"\xfe\xff" + "a cat\nun café".encode("utf-16-be"),
    "old Mac": "a cat\run café\r".encode(),
    "put together": "\ufeffa cat\n\ufeffun café\n".encode(),
}


@pytest.mark.parametrize("content", ANY_EDITOR.values(), ids=ANY_EDITOR)
def test_text_files_of_any_editor(tmp_path, content):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    assert read_prompts(path) == ["a cat", "un café"]


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\f", "\v", "\x1c"])
def test_only_line_ends_end_a_line(tmp_path, inside):
    path = tmp_path / "prompts.txt"
    path.write_bytes(f"a{inside}cat\nb\n".encode())
    assert read_prompts(path) == [f"a{inside}cat", "b"]


def test_a_line_may_stand_twice_and_is_a_prompt_whatever_it_begins_with(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n# one\na cat\n", encoding="utf-8")
    assert read_prompts(path) == ["a cat", "# one", "a cat"]


def test_an_entry_may_have_a_name_and_dimensions(tmp_path):
    path = tmp_path / "list.JSON"
    entries = [
        {"prompt_en": "long", "name": " short ", "dimension": ["color"]},
        {"prompt_en": "b", "dimension": "scene"},
    ]
    path.write_bytes(json.dumps(entries).encode("utf-16"))
    assert read_list(path) == [Listed("long", "short", ("color",)), Listed("b", None, ("scene",))]


def test_prompts_of_the_command_line_are_utf8_whatever_the_locale():
    def chosen(prompt: str) -> list[str]:
        return chosen_prompts([prompt], None, model="a model", default=None)

    typed = "café".encode().decode("ascii", "surrogateescape")  # what argv holds in the C locale
    assert chosen(typed) == ["café"]
    for bad in ("caf\udce9", "a \ud83d"):
        with pytest.raises(ValueError, match="is not UTF-8 text; write it into a file"):
            chosen(bad)


def test_what_is_needed():
    require("given", "never")
    for missing in (None, "", []):
        with pytest.raises(ValueError, match="name a prompt"):
            require(missing, "name a prompt")


def test_absurd_numbers_of_samples_are_refused_before_they_are_listed():
    for make in (repeated, cycled):
        with pytest.raises(UserError, match="2000000000 samples are too many for one run; at most 1000000"):
            make(["a", "b"], 10**9)


def test_prompts_are_repeated_in_place_or_all_again_and_again():
    assert repeated(["a", "b"], 3) == ["a", "a", "a", "b", "b", "b"]
    assert cycled(["a", "b"], 3) == ["a", "b", "a", "b", "a", "b"]


def test_batches_keep_the_order_and_number_the_samples():
    batches = make_batches(["a", "b", "c", "d", "e"], 2)
    assert [batch.indices for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [batch.prompts for batch in batches] == [["a", "b"], ["c", "d"], ["e"]]
