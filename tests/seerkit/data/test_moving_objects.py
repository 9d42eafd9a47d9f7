import itertools

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
from seerkit.data.moving_objects import NUM_FRAMES, TEXT_DIM, MovingObjects, encode, pooled

NUM_CLIPS = 12


@pytest.fixture(scope="module")
def data() -> MovingObjects:
    """Two images of each object: a bright rectangle of 20 x 8 pixels that leans to no side, brighter in its upper half."""
    images = torch.zeros(2 * len(OBJECTS), 1, 32, 32, dtype=torch.uint8)
    images[:, :, 6:16, 12:20], images[:, :, 16:26, 12:20] = 255, 180
    return MovingObjects(images, torch.arange(len(images)) % len(OBJECTS), seed=3)


def weight(video: torch.Tensor) -> torch.Tensor:
    """How far each pixel of red clips is from a black background, (B, T, H, W)."""
    return video[:, 0] + 1


def centres(video: torch.Tensor) -> torch.Tensor:
    """(B, T, 2) x and y of the object's centre in pixels."""
    mass, axis = weight(video), torch.arange(32.0)
    total = mass.sum(dim=(2, 3))
    return torch.stack([(mass.sum(2) * axis).sum(-1) / total, (mass.sum(3) * axis).sum(-1) / total], dim=-1)


def red_clips(data: MovingObjects, motion: str) -> torch.Tensor:
    return data.clips(range(NUM_CLIPS), [f"red dress {motion} on black"] * NUM_CLIPS)[0]


class TestCaptions:
    def test_every_combination_has_its_own(self):
        assert len(set(CAPTIONS)) == len(CAPTIONS) == len(OBJECTS) * len(COLOURS) * len(MOTIONS) * len(BACKGROUNDS)
        assert len({frozenset(caption.split()) for caption in CAPTIONS}) == len(CAPTIONS)  # in any order of words

    def test_no_word_has_two_roles(self):
        roles = [OBJECTS, COLOURS, BACKGROUNDS, {word for motion in MOTIONS for word in motion.split()}, ["on"]]
        assert sum(len(role) for role in roles) == len(set(itertools.chain(*roles))) == len(VOCABULARY) <= TEXT_DIM

    def test_a_tenth_is_held_out_the_same_in_every_process(self):
        assert len(HELD_OUT) == 330  # of 3240, by a hash that must not change: trained weights depend on it
        assert is_held_out("green boot growing on grey")
        assert not is_held_out("red sneaker moving left on black")

    def test_every_word_is_seen_in_training(self):
        assert {word for caption in set(CAPTIONS) - HELD_OUT for word in caption.split()} == set(VOCABULARY)

    def test_prompts_are_seen_and_show_every_motion(self):
        assert all(prompt in CAPTIONS and not is_held_out(prompt) for prompt in PROMPTS)
        assert {motion for motion in MOTIONS for prompt in PROMPTS if f" {motion} " in prompt} == set(MOTIONS) - {
            "still"
        }


class TestEncode:
    def test_one_hot_words_and_mask(self):
        tokens, mask = encode(["red sneaker moving left on black", "still BAG"])
        assert tokens.shape == (2, MAX_WORDS, TEXT_DIM)
        assert tokens.dtype == torch.float32
        assert mask.sum(dim=1).tolist() == [6, 2]
        words = [[VOCABULARY[i] for i in row[m].argmax(-1)] for row, m in zip(tokens, mask, strict=True)]
        assert words == [["red", "sneaker", "moving", "left", "on", "black"], ["still", "bag"]]
        assert torch.equal(tokens.sum(-1), mask.float())

    def test_empty_caption_is_zero_with_one_position_to_attend_to(self):
        tokens, mask = encode(["", "red"])
        assert not tokens[0].any()
        assert mask[0].tolist() == [True] + [False] * (MAX_WORDS - 1)

    def test_pooled_counts_words_in_any_order(self):
        one, two, twice = pooled(encode(["red bag still", "still red bag", "red red"])[0])
        assert one.shape == (TEXT_DIM,)
        assert torch.equal(one, two)
        assert one.sum() == 3
        assert twice[VOCABULARY.index("red")] == 2

    @pytest.mark.parametrize(
        ("caption", "message"),
        [("red ankle boot", "'ankle' in 'red ankle boot' .* boot.*navy"), ("red " * 9, "9 words; at most 8 .*colour")],
    )
    def test_refuses(self, caption, message):
        with pytest.raises(ValueError, match=message):
            encode([caption])


class TestClips:
    def test_shape_range_and_background(self, data):
        video, captions = data.batch(0, 16)
        assert video.shape == (16, 3, NUM_FRAMES, 32, 32)
        assert video.dtype == torch.float32
        assert video.abs().max() <= 1
        for clip, caption in zip(video, captions, strict=True):
            plain = torch.tensor(BACKGROUNDS[caption.split()[-1]]) / 127.5 - 1
            is_plain = (clip - plain[:, None, None, None]).abs().amax(0) < 1e-5  # (T, H, W)
            assert 0.4 < is_plain.float().mean() < 0.98

    def test_clip_is_a_function_of_seed_and_index(self, data):
        video, captions = data.batch(2, 4)
        alone, caption = data.clips([9])
        assert torch.allclose(alone[0], video[1], atol=1e-6)  # sums of a product may be taken in another order
        assert caption == captions[1:2]
        other = MovingObjects(data.images, torch.arange(20) % 10, seed=4).batch(2, 4)
        assert other[1] != captions

    def test_training_draws_all_but_the_held_out(self, data):
        captions = [caption for step in range(12) for caption in data.batch(step, 64)[1]]
        assert not HELD_OUT & set(captions)
        assert len(set(captions)) > 600  # of 768 draws from 2910
        assert {caption.split()[1] for caption in captions} == set(OBJECTS)

    def test_held_out_captions_can_be_drawn_on_demand(self, data):
        caption = sorted(HELD_OUT)[0]
        assert data.clips([0], [caption])[1] == [caption]

    def test_object_is_of_the_captions_class(self):
        """Object k is a bar k + 4 pixels high; its drawn area tells the classes apart."""
        images = torch.zeros(10, 1, 32, 32, dtype=torch.uint8)
        for k in range(10):
            images[k, :, 10 : 14 + k, 2:30] = 255
        order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
        data = MovingObjects(images[order], order)
        video, _ = data.clips([0] * 10, [f"red {name} still on black" for name in OBJECTS])
        areas = weight(video).sum(dim=(1, 2, 3))
        assert (areas.diff() > 0).all()

    @pytest.mark.parametrize("colour", COLOURS)
    def test_colour(self, data, colour):
        video, _ = data.clips([0], [f"{colour} coat still on black"])
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

    def test_spins_about_its_centre_both_ways(self, data):
        """The brighter half, upmost at first, turns steadily: its moment is an arrow that points to it."""
        video = red_clips(data, "spinning")
        middle = centres(video)
        assert (middle[:, 1:] - middle[:, :1]).norm(dim=-1).max() < 2.5
        bright = centres((weight(video).clamp(min=1.45) - 2.45)[:, None])  # the upper half alone
        arrow = torch.view_as_complex((bright - middle).contiguous())
        turn = (arrow[:, 1:] / arrow[:, :-1]).angle()  # (B, T - 1)
        assert (turn.sign() == turn[:, :1].sign()).all()
        assert set(turn[:, 0].sign().tolist()) == {-1.0, 1.0}
        total = turn.sum(1).abs() / (2 * torch.pi)
        assert (total > 0.5).all()
        assert (total < 1.1).all()

    def test_bounces(self, data):
        """Two jumps, so at least three turning points, while x keeps still."""
        middle = centres(red_clips(data, "bouncing"))
        assert (middle[..., 0].diff(dim=1).abs() < 0.1).all()
        y = middle[..., 1]
        assert (y.amax(1) - y.amin(1) > 5).all()
        turns = (y.diff(dim=1).sign().diff(dim=1) != 0).sum(1)
        assert (turns >= 3).all()

    def test_refuses_a_caption_that_cannot_be_drawn(self, data):
        with pytest.raises(ValueError, match="'red bag' cannot be drawn; write"):
            data.clips([0], ["red bag"])
        with pytest.raises(ValueError, match="1 captions for 2 clips"):
            data.clips([0, 1], PROMPTS[:1])

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (torch.zeros(10, 1, 28, 28, dtype=torch.uint8), torch.arange(10), "28, 28"),
            (torch.zeros(10, 1, 32, 32), torch.arange(10), "float32"),
            (torch.zeros(10, 1, 32, 32, dtype=torch.uint8), torch.arange(10) % 9, "all of 0..9 must occur"),
            (torch.zeros(11, 1, 32, 32, dtype=torch.uint8), torch.arange(11), "no others"),
        ],
    )
    def test_refuses_other_data(self, images, labels, message):
        with pytest.raises(ValueError, match=message):
            MovingObjects(images, labels)
