import itertools
import math

import pytest
import torch

from seerkit.data.captions import (
    BACKGROUNDS,
    CAPTIONS,
    COLOURS,
    HELD_OUT,
    MAX_WORDS,
    MOTIONS,
    OBJECTS,
    PROMPTS,
    VOCABULARY,
    is_held_out,
)
from seerkit.data.moving_objects import (
    FRAME_SIZE,
    NUM_FRAMES,
    REACH,
    RESOLUTION,
    TEXT_DIM,
    MovingObjects,
    draw,
    encode,
    pooled,
    shape_distances,
)

NUM_CLIPS = 12


@pytest.fixture(scope="module")
def data() -> MovingObjects:
    return MovingObjects(seed=3)


def weight(video: torch.Tensor) -> torch.Tensor:
    """How far each pixel of red clips is from a black background, (B, T, H, W)."""
    return video[:, 0] + 1


def centres(video: torch.Tensor) -> torch.Tensor:
    """(B, T, 2) x and y of the object's centre in pixels."""
    mass, axis = weight(video), torch.arange(float(FRAME_SIZE))
    total = mass.sum(dim=(2, 3))
    return torch.stack([(mass.sum(2) * axis).sum(-1) / total, (mass.sum(3) * axis).sum(-1) / total], dim=-1)


def red_clips(data: MovingObjects, motion: str) -> torch.Tensor:
    return data.clips(range(NUM_CLIPS), [f"red circle {motion} on black"] * NUM_CLIPS)[0]


class TestCaptions:
    def test_every_combination_has_its_own(self):
        assert len(set(CAPTIONS)) == len(CAPTIONS) == len(OBJECTS) * len(COLOURS) * len(MOTIONS) * len(BACKGROUNDS)
        assert len({frozenset(caption.split()) for caption in CAPTIONS}) == len(CAPTIONS)  # in any order of words

    def test_no_word_has_two_roles(self):
        roles = [OBJECTS, COLOURS, BACKGROUNDS, {word for motion in MOTIONS for word in motion.split()}, ["on"]]
        assert sum(len(role) for role in roles) == len(set(itertools.chain(*roles))) == len(VOCABULARY) <= TEXT_DIM

    def test_a_tenth_is_held_out_the_same_in_every_process(self):
        assert len(HELD_OUT) == 241  # of 2304, by a hash that must not change: trained weights depend on it
        assert is_held_out("blue heart moving down on grey")
        assert not is_held_out("red star moving left on black")

    def test_every_word_is_seen_in_training(self):
        assert {word for caption in set(CAPTIONS) - HELD_OUT for word in caption.split()} == set(VOCABULARY)

    def test_prompts_are_seen_and_show_every_object_and_motion(self):
        assert all(prompt in CAPTIONS and not is_held_out(prompt) for prompt in PROMPTS)
        for part in (OBJECTS, MOTIONS):
            assert {word for word in part for prompt in PROMPTS if f" {word} " in prompt} == set(part)


class TestEncode:
    def test_one_hot_words_and_mask(self):
        tokens, mask = encode(["red star moving left on black", "still RING"])
        assert tokens.shape == (2, MAX_WORDS, TEXT_DIM)
        assert tokens.dtype == torch.float32
        assert mask.sum(dim=1).tolist() == [6, 2]
        words = [[VOCABULARY[i] for i in row[m].argmax(-1)] for row, m in zip(tokens, mask, strict=True)]
        assert words == [["red", "star", "moving", "left", "on", "black"], ["still", "ring"]]
        assert torch.equal(tokens.sum(-1), mask.float())

    def test_empty_caption_is_zero_with_one_position_to_attend_to(self):
        tokens, mask = encode(["", "red"])
        assert not tokens[0].any()
        assert mask[0].tolist() == [True] + [False] * (MAX_WORDS - 1)

    def test_pooled_counts_words_in_any_order(self):
        one, two, twice = pooled(encode(["red ring still", "still red ring", "red red"])[0])
        assert one.shape == (TEXT_DIM,)
        assert torch.equal(one, two)
        assert one.sum() == 3
        assert twice[VOCABULARY.index("red")] == 2

    @pytest.mark.parametrize(
        ("caption", "message"),
        [("red half moon", "'half' in 'red half moon' .* moon.*navy"), ("red " * 9, "9 words; at most 8 .*colour")],
    )
    def test_refuses(self, caption, message):
        with pytest.raises(ValueError, match=message):
            encode([caption])


def drawn(name: str, size: float = 60.0, side: int = 90) -> torch.Tensor:
    """An object in the middle of a square frame, (side, side)."""
    middle, number = torch.full((1, 1), side / 2), torch.tensor([OBJECTS.index(name)])
    return draw(number, middle, middle, torch.full((1, 1), size), side=side)[0, 0]


class TestShapes:
    @pytest.mark.parametrize(
        ("name", "area"),
        [
            ("circle", math.pi / 4),
            ("bar", 2.2 * 0.8 / 4),
            ("triangle", 1.85 / 4),
            ("cross", (2 * 2 * 0.56 - 0.56**2) / 4),
            ("ring", math.pi * (1.02**2 - 0.5**2) / 4),
        ],
    )
    def test_covers_its_area(self, name, area):
        """In squares of its size, by the formulas of plane figures."""
        assert float(drawn(name).sum()) / 60**2 == pytest.approx(area, rel=0.01)

    @pytest.mark.parametrize("name", OBJECTS)
    def test_fills_its_size_and_no_more(self, name):
        seen = drawn(name) > 0.5
        sides = sorted(int(side.sum()) for side in (seen.any(0), seen.any(1)))
        assert 48 <= sides[1] <= 66
        assert sides[0] == 24 if name == "bar" else sides[0] >= 48
        assert not seen[:8].any()
        assert not seen[-8:].any()

    def test_edges_are_one_pixel_wide(self):
        row = drawn("circle")[45]
        assert ((row > 0) & (row < 1)).sum() <= 4
        assert row[45] == 1
        assert row[:15].max() == 0

    def test_what_tells_them_apart(self):
        middle = {name: bool(drawn(name)[45, 45] > 0.5) for name in OBJECTS}
        assert [name for name, covered in middle.items() if not covered] == ["ring", "moon"]
        assert drawn("triangle")[70].sum() > 2 * drawn("triangle")[25].sum()  # on its base
        assert drawn("heart")[70].sum() < 0.5 * drawn("heart")[30].sum()  # on its tip
        assert drawn("star")[20, 40:50].max() == 1  # a point upwards
        assert drawn("moon")[:, :45].sum() > 2 * drawn("moon")[:, 45:].sum()  # open to the right

    def test_distances_are_of_a_point_to_the_outline(self):
        """Their gradient has length 1 almost everywhere."""
        spacing = 2 * REACH / RESOLUTION
        across, down = (torch.diff(shape_distances(), dim=dim) / spacing for dim in (2, 1))
        slope = torch.stack([across[:, 1:], down[:, :, 1:]]).norm(dim=0)
        assert (slope - 1).abs().flatten(1).median(dim=1).values.max() < 0.01

    def test_place_and_size_are_pixels(self):
        x, y, size = (torch.tensor([values]) for values in ([7.0, 12.5], [12.0, 9.0], [8.0, 12.0]))
        cover = draw(torch.tensor([OBJECTS.index("circle")]), x, y, size)[0]
        axis = torch.arange(float(FRAME_SIZE)) + 0.5
        mass = cover.sum(dim=(1, 2))
        torch.testing.assert_close((cover.sum(1) * axis).sum(1) / mass, x[0], atol=0.02, rtol=0)
        torch.testing.assert_close((cover.sum(2) * axis).sum(1) / mass, y[0], atol=0.02, rtol=0)
        torch.testing.assert_close(mass, math.pi * (size[0] / 2) ** 2, atol=0, rtol=0.02)


class TestClips:
    def test_shape_range_and_background(self, data):
        video, captions = data.batch(0, 16)
        assert video.shape == (16, 3, NUM_FRAMES, FRAME_SIZE, FRAME_SIZE)
        assert video.dtype == torch.float32
        assert video.abs().max() <= 1
        for clip, caption in zip(video, captions, strict=True):
            plain = torch.tensor(BACKGROUNDS[caption.split()[-1]]) / 127.5 - 1
            is_plain = (clip - plain[:, None, None, None]).abs().amax(0) < 1e-5  # (T, H, W)
            assert 0.3 < is_plain.float().mean() < 0.98

    def test_clip_is_a_function_of_seed_and_index(self, data):
        video, captions = data.batch(2, 4)
        alone, caption = data.clips([9])
        assert torch.allclose(alone[0], video[1], atol=1e-6)  # sums of a product may be taken in another order
        assert caption == captions[1:2]
        other = MovingObjects(seed=4).batch(2, 4)
        assert other[1] != captions

    def test_training_draws_all_but_the_held_out(self, data):
        captions = [caption for step in range(12) for caption in data.batch(step, 64)[1]]
        assert not HELD_OUT & set(captions)
        assert len(set(captions)) > 550  # of 768 draws from 2070
        assert {caption.split()[1] for caption in captions} == set(OBJECTS)

    def test_held_out_captions_can_be_drawn_on_demand(self, data):
        caption = sorted(HELD_OUT)[0]
        assert data.clips([0], [caption])[1] == [caption]

    @pytest.mark.parametrize("colour", COLOURS)
    def test_colour(self, data, colour):
        video, _ = data.clips([0], [f"{colour} circle still on black"])
        brightest = video[0, :, 0].flatten(1)[:, weight(video)[0, 0].argmax()]
        assert torch.allclose((brightest + 1) * 127.5, torch.tensor(COLOURS[colour]).float(), atol=6)

    @pytest.mark.parametrize(
        ("motion", "axis", "sign"),
        [("moving left", 0, -1), ("moving right", 0, 1), ("moving up", 1, -1), ("moving down", 1, 1)],
    )
    def test_moves_straight_at_constant_speed(self, data, motion, axis, sign):
        steps = centres(red_clips(data, motion)).diff(dim=1)  # (B, T - 1, 2), within what sampling makes of hard edges
        along = sign * steps[..., axis]
        assert (along > 0.3).all()
        assert ((along - along.mean(dim=1, keepdim=True)).abs() < 0.15).all()
        assert (steps[..., 1 - axis].abs() < 0.15).all()

    def test_still(self, data):
        video = red_clips(data, "still")
        assert torch.equal(video, video[:, :, :1].expand_as(video))
        assert centres(video)[:, 0].std(dim=0).min() > 0.5  # but not all in one place

    @pytest.mark.parametrize(("motion", "sign"), [("growing", 1), ("shrinking", -1)])
    def test_changes_size(self, data, motion, sign):
        video = red_clips(data, motion)
        mass = weight(video).sum(dim=(2, 3))
        assert (sign * mass.diff(dim=1) > 0).all()
        ratio = (mass[:, -1] / mass[:, 0]) ** sign
        assert (ratio > 2).all()
        assert (centres(video).diff(dim=1).abs() < 0.3).all()

    def test_bounces(self, data):
        """Two jumps, so at least three turning points, while x keeps still."""
        middle = centres(red_clips(data, "bouncing"))
        assert (middle[..., 0].diff(dim=1).abs() < 0.1).all()
        y = middle[..., 1]
        assert (y.amax(1) - y.amin(1) > 5).all()
        turns = (y.diff(dim=1).sign().diff(dim=1) != 0).sum(1)
        assert (turns >= 3).all()

    def test_refuses_a_caption_that_cannot_be_drawn(self, data):
        with pytest.raises(ValueError, match="'red ring' cannot be drawn; write"):
            data.clips([0], ["red ring"])
        with pytest.raises(ValueError, match="1 captions for 2 clips"):
            data.clips([0, 1], PROMPTS[:1])
