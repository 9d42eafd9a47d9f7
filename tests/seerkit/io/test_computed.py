"""What steps computed, in words and as a map."""

import numpy as np
import pytest

from seerkit.io.computed import COLOURS, coloured, draw_token_map, partly_computed, shares_of, spans, step_in_words


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([4], "4"), ([0, 1], "0–1"), ([1, 2, 3, 5, 7, 8], "1–3, 5, 7–8")]
)
def test_numbers_that_follow_each_other_stand_together(numbers, text):
    assert spans(numbers) == text


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"kind": "full", "sites": 18}, ""),
        (
            {"computed": {"attn": "nothing", "cross": ["nothing", "nothing"], "mlp": 1}},
            "mlp: 1 token; reused: attn, cross",
        ),
        ({"computed": {"mlp": ["everything", 5, 3, 4]}}, "mlp: everything in 1 block, then 3 to 5 tokens in 3 blocks"),
        ({"computed": {"mlp": ["nothing", "everything"]}}, "mlp: nothing in 1 block, then everything in 1 block"),
        ({"computed": {"single": "rest"}}, "single: all but its attention"),
        (
            {"computed": {"attn": "everything"}, "blocks": [[0, 2, "walk"], [2, 5, "residual"], [5, 6, "hidden"]]},
            "attn: everything; blocks 2–4 left out: what they last added is added; block 5 left out: the tokens after them are "
            "those of the step before",
        ),
        ({"made_of": "the other guidance branch", "computed": {"mlp": 3}}, "made of the other guidance branch"),
    ],
)
def test_a_step_in_words(entry, text):
    assert step_in_words(entry) == text


def test_steps_that_did_the_same_are_told_together():
    steps = [{"step": step, "kind": "partial", "computed": {"mlp": 3 + step % 2}} for step in range(1, 6)]
    row = {"steps": [{"step": 0, "kind": "full"}, *steps], "left_out_of": [5, 4, 2]}
    assert list(partly_computed(row)) == [
        ("steps 1, 3, 5", "mlp: 4 tokens"),
        ("steps 2, 4", "mlp: 3 tokens"),
        ("steps 2, 4–5", "the other guidance branch is left out and made of this one"),
    ]
    assert list(partly_computed({"full_steps": [0]})) == []


def test_colours_go_from_the_least_share_to_the_greatest():
    colours = coloured(np.array([0.2, 0.4, 0.8]), 0.2, 0.8)
    assert tuple(colours[0]) == COLOURS[0]
    assert tuple(colours[1]) == COLOURS[1], "a third of the way"
    assert tuple(colours[2]) == COLOURS[-1]
    assert (coloured(np.full((2, 2), 0.5), 0.5, 0.5) == COLOURS[0]).all(), "of equal shares"


def test_every_token_of_every_frame_is_a_square_of_its_colour():
    shares = np.linspace(0.1, 0.9, 2 * 3 * 4).reshape(2, 3, 4)
    tokens = {"grid": [2, 3, 4], "share": shares.reshape(-1, 4).tolist()}
    assert np.array_equal(shares_of(tokens), shares)
    sheet = np.asarray(draw_token_map(tokens, "toca"))
    for value in shares.ravel():
        rows, columns = (sheet == coloured(np.array(value), 0.1, 0.9)).all(axis=-1).nonzero()
        top, left = rows[0], columns[0]  # the scale is further below
        side = next(n for n in range(1, 999) if not (sheet[top, left + n] == sheet[top, left]).all())
        assert side > 20
        assert (sheet[top : top + side, left : left + side] == sheet[top, left]).all()


def test_a_map_of_many_frames_stays_narrow():
    tokens = {"grid": [33, 30, 52], "share": np.random.default_rng(0).random((33 * 30, 52)).tolist()}
    width, height = draw_token_map(tokens, "toca").size
    assert 300 < width < 1000
    assert height < 3000
