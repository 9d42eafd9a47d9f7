"""What samples were made with is compared before any is taken over, and what cannot matter is not."""

import json
import shutil
from pathlib import Path

import pytest

from cache_dic import UserError
from seerkit.io.claims import claim_samples, claimed_labels, differences, renew_claim, state_folder

CLAIM = {"seed": 0, "prompts": ["a", "b"], "contents": {"transformer": "1a"}, "cache": {"plan": {"full_steps": "0 1"}}}


def claim(out: Path, claims, *, having=(), alone=False):
    claim_samples(out, claims, has_samples=lambda label: label in having, alone=alone)


def claimed(out: Path, label: str):
    return json.loads((state_folder(out, label) / "claim.json").read_text())


def test_a_claim_is_written_and_met_again(tmp_path):
    claim(tmp_path, {"x": CLAIM})
    assert claimed(tmp_path, "x") == CLAIM
    claim(tmp_path, {"x": CLAIM}, having=["x"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"prompts": ["a", "c", "d"]}, "prompt 1 is 'b' there and 'c' here"),
        ({"contents": {"transformer": "2b"}}, "contents.transformer is '1a' there and '2b' here"),
        ({"cache": {"plan": {"full_steps": "0 2"}}}, "cache.plan.full_steps is '0 1' there and '0 2' here"),
        ({"steps": 5}, "steps is not set there and 5 here"),
    ],
)
def test_what_differs_is_named_and_nothing_is_changed(tmp_path, change, message):
    claim(tmp_path, {"x": CLAIM})
    with pytest.raises(UserError) as refused:
        claim(tmp_path, {"x": CLAIM | change}, having=["x"])
    assert (
        str(refused.value)
        == f"{tmp_path / 'x'} holds samples of other settings: {message}; choose another --output-dir"
    )
    assert claimed(tmp_path, "x") == CLAIM


def test_what_is_set_there_alone_differs_too(tmp_path):
    """A setting that is left out where it is off."""
    claim(tmp_path, {"x": CLAIM | {"compile": True}})
    for label, settings in (("x", CLAIM), ("y", CLAIM | {"cache": {}})):
        with pytest.raises(UserError, match="compile is true there and not set here"):
            claim(tmp_path, {label: settings}, having=["x"])
    claim(tmp_path, {"y": CLAIM}, having=["x"], alone=True)


def test_without_samples_a_claim_binds_nobody(tmp_path):
    claim(tmp_path, {"x": CLAIM})
    claim(tmp_path, {"x": CLAIM | {"seed": 1}})
    assert claimed(tmp_path, "x")["seed"] == 1


def test_caches_of_one_folder_share_all_but_their_plans(tmp_path):
    claim(tmp_path, {"x": CLAIM})
    other = CLAIM | {"cache": {"plan": {"full_steps": "0 2"}}}
    claim(tmp_path, {"y": other}, having=["x"])
    with pytest.raises(UserError, match="seed is 0 there and 1 here"):
        claim(tmp_path, {"z": other | {"seed": 1}}, having=["x", "y"])
    claim(tmp_path, {"z": other | {"seed": 1}}, having=["x", "y"], alone=True)


def test_a_list_of_prompts_may_grow_and_is_not_shortened(tmp_path):
    claim(tmp_path, {"x": CLAIM})
    for prompts, kept in ((["a", "b", "c"], ["a", "b", "c"]), (["a"], ["a", "b", "c"])):
        claim(tmp_path, {"x": CLAIM | {"prompts": prompts}}, having=["x"])
        assert claimed(tmp_path, "x")["prompts"] == kept


def test_a_claim_removed_meanwhile_is_written_again_as_it_was(tmp_path):
    """With prompts of an earlier, longer list, whose samples may still be there."""
    claim(tmp_path, {"x": CLAIM})
    shorter = CLAIM | {"prompts": ["a"]}
    written = claim_samples(tmp_path, {"x": shorter}, has_samples=lambda _: True)["x"]
    assert written == CLAIM
    renew_claim(tmp_path, "x", shorter)
    assert claimed(tmp_path, "x") == CLAIM, "one that is there stands"
    shutil.rmtree(tmp_path / "state")
    assert claimed_labels(tmp_path) == []
    renew_claim(tmp_path, "x", written)
    assert claimed(tmp_path, "x") == CLAIM
    assert claimed_labels(tmp_path) == ["x"]


@pytest.mark.parametrize("text", ["{", "[]", "", "\0"])
def test_samples_without_a_usable_claim_are_left_alone(tmp_path, text):
    with pytest.raises(UserError, match="nothing says how they were made; choose another --output-dir"):
        claim(tmp_path, {"x": CLAIM}, having=["x"])
    path = state_folder(tmp_path, "x") / "claim.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError, match=r"claim\.json"):
        claim(tmp_path, {"x": CLAIM}, having=["x"])


def test_a_refusal_is_short_however_much_differs():
    ours, theirs = ({f"key {i}": letter * 5000 for i in range(50)} for letter in "ab")
    assert max(map(len, differences(theirs, ours))) < 200
    assert differences({"prompts": ["x"] * 10**5}, {"prompts": ["y"] * 10**5}) == ["prompt 0 is 'x' there and 'y' here"]
