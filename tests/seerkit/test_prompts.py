import json

import pytest

from seerkit.prompts import make_batches, read_prompts, require


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
        ("p.txt", b" \n\n", "holds no prompt; write one a line"),
        ("p.json", b"[]", "holds no prompt"),
        ("p.txt", b"\xff\xfe", "is not UTF-8 text"),
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


def test_what_is_needed():
    require("given", "never")
    for missing in (None, "", []):
        with pytest.raises(ValueError, match="name a prompt"):
            require(missing, "name a prompt")


def test_batches_keep_the_order_and_number_the_samples():
    batches = make_batches(["a", "b", "c", "d", "e"], 2)
    assert [batch.indices for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [batch.prompts for batch in batches] == [["a", "b"], ["c", "d"], ["e"]]
