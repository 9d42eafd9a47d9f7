"""The tracker of moving objects, on clips made by hand whose motion is known."""

import numpy as np
import pytest
import torch

from evaluation.tracking import FACTS, asked, follow, held_out_captions, motion_of, rates, told
from seerkit.data.captions import BACKGROUNDS, CAPTIONS, COLOURS, HELD_OUT, MOTIONS, OBJECTS
from seerkit.data.moving_objects import MovingObjects, draw
from seerkit.io.media import video_to_uint8

SIDE, FRAMES = 24, 8
TIME = np.linspace(0, 1, FRAMES)
STAY = np.full(FRAMES, 12.0)
SIZE = np.full(FRAMES, 8.0)
NAVY, RED = BACKGROUNDS["navy"], COLOURS["red"]


def boxes(x, y, size, colour=RED, background=NAVY) -> np.ndarray:
    """Squares with their centre at x, y, whole pixels without a soft edge, (T, H, W, 3) uint8."""
    frames = np.full((len(x), SIDE, SIDE, 3), background, dtype=np.uint8)
    for frame, *place, edge in zip(frames, x, y, size, strict=True):
        (left, top), edge = (round(v - edge / 2) for v in place), round(edge)
        frame[top : top + edge, left : left + edge] = colour
    return frames


JUMPS = 16 - 12 * np.array([0, 0.8, 1, 0.5, 0.5, 1, 0.8, 0])
KNOWN = {
    "moving left": (17 - 10 * TIME, STAY, SIZE),
    "moving right": (7 + 10 * TIME, STAY, SIZE),
    "moving up": (STAY, 17 - 10 * TIME, SIZE),
    "moving down": (STAY, 7 + 10 * TIME, SIZE),
    "growing": (STAY, STAY, 6 + 10 * TIME),
    "shrinking": (STAY, STAY, 16 - 10 * TIME),
    "bouncing": (STAY, JUMPS, SIZE),
    "still": (STAY, STAY, SIZE),
}
NEITHER = {
    "diagonal": (7 + 9 * TIME, 7 + 9 * TIME, SIZE),
    "too short a way": (11 + 3 * TIME, STAY, SIZE),
    "to and fro": (7 + 10 * np.abs(2 * TIME - 1), STAY, SIZE),
    "sideways jumps": (JUMPS, STAY, SIZE),
    "grows while it moves": (7 + 10 * TIME, STAY, 5 + 6 * TIME),
    "grows and shrinks again": (STAY, STAY, 6 + 8 * np.sin(np.pi * TIME)),
    "one jump and back": (STAY, 18 - 12 * np.sin(np.pi * TIME), SIZE),
}


class TestFollow:
    def test_place_and_extent_are_those_of_the_box(self):
        track = follow(boxes(8 + np.arange(FRAMES), STAY, SIZE))
        np.testing.assert_allclose(track.x, 8 + np.arange(FRAMES))
        np.testing.assert_allclose(track.y, 12)
        np.testing.assert_allclose(track.extent, 8)
        assert track.object_rgb.tolist() == list(RED)
        assert track.background_rgb.tolist() == list(NAVY)

    def test_half_covered_pixels_count_half(self):
        frames = boxes(STAY, STAY, SIZE)
        frames[:, 8:16, 16] = (np.array(RED) + np.array(NAVY)) / 2  # the box reaches half a pixel further to the right
        track = follow(frames)
        np.testing.assert_allclose(track.extent, np.sqrt(8 * 8.5), rtol=0.01)
        np.testing.assert_allclose(track.x, 12.25, atol=0.02)

    def test_noise_on_the_background_is_not_followed(self):
        clean = boxes(*KNOWN["moving left"])
        noise = np.random.default_rng(0).normal(0, 8, clean.shape)
        noisy = np.clip(clean + noise, 0, 255).astype(np.uint8)
        np.testing.assert_allclose(follow(noisy).x, follow(clean).x, atol=0.3)

    @pytest.mark.parametrize("what", ["nothing", "too faint", "gone in one frame"])
    def test_no_object(self, what):
        frames = boxes(STAY, STAY, SIZE, colour=np.add(NAVY, 20) if what == "too faint" else RED)
        frames[3 if what == "gone in one frame" else slice(None), 8:16, 8:16] = (
            frames[0, 8, 8] if what == "too faint" else NAVY
        )
        assert follow(frames) is None
        assert told(frames) == dict.fromkeys(FACTS)


class TestMotion:
    @pytest.mark.parametrize("motion", MOTIONS)
    def test_known(self, motion):
        assert motion_of(follow(boxes(*KNOWN[motion]))) == motion

    @pytest.mark.parametrize("name", NEITHER)
    def test_what_is_none_of_the_motions(self, name):
        assert motion_of(follow(boxes(*NEITHER[name]))) is None

    @pytest.mark.parametrize("motion", MOTIONS)
    def test_backwards(self, motion):
        swapped = {"moving left": "moving right", "moving up": "moving down", "growing": "shrinking"}
        swapped |= {after: before for before, after in swapped.items()}
        assert motion_of(follow(boxes(*KNOWN[motion])[::-1])) == swapped.get(motion, motion)


class TestWhatIsTold:
    @pytest.mark.parametrize("name", OBJECTS)
    def test_objects_at_any_place_and_size(self, name):
        number = torch.tensor([OBJECTS.index(name)])
        for x, y, size in ((8.3, 15.1, 9.5), (12.0, 12.0, 15.0), (16.2, 9.7, 7.5)):
            cover = draw(number, *(torch.full((1, FRAMES), value) for value in (x, y, size)))[0].numpy()[..., None]
            frames = np.array(NAVY) + cover * (np.array(RED) - np.array(NAVY))
            assert told(frames.round().astype(np.uint8))["object"] == name

    @pytest.mark.parametrize("colour", COLOURS)
    @pytest.mark.parametrize("background", BACKGROUNDS)
    def test_colours(self, colour, background):
        facts = told(boxes(STAY, STAY, SIZE, COLOURS[colour], BACKGROUNDS[background]))
        del facts["object"]  # a box is none of OBJECTS
        assert facts == {"colour": colour, "motion": "still", "background": background}

    def test_captions_are_taken_apart(self):
        assert asked("red star moving left on black") == {
            "object": "star", "colour": "red", "motion": "moving left", "background": "black",
        }  # fmt: skip
        assert asked("blue ring still on grey")["motion"] == "still"

    def test_real_clips_show_what_their_captions_ask_for(self):
        """The measure's ceiling, on every tenth caption."""
        captions = CAPTIONS[::10]
        clips = video_to_uint8(MovingObjects(7).clips(range(len(captions)), captions)[0])
        wrong = [caption for clip, caption in zip(clips, captions, strict=True) if told(clip) != asked(caption)]
        assert wrong == []


class TestRates:
    def test_counts_by_motion_and_of_all(self):
        captions = ["red star still on black", "red star still on black", "blue ring moving up on grey"]
        shown = [asked(caption) for caption in captions]
        shown[1] = {**shown[1], "object": "moon", "motion": "moving up"}
        rows = {row["motion"]: row for row in rates(shown, captions)}
        assert {motion: row["num"] for motion, row in rows.items()} == {"still": 2, "moving up": 1, None: 3}
        assert [rows[motion]["right_motion"] for motion in ("still", "moving up", None)] == [1, 1, 2]
        assert [rows["still"][f"right_{fact}"] for fact in FACTS] == [1, 2, 1, 2]
        assert [rows[motion]["right_everything"] for motion in ("still", "moving up", None)] == [1, 1, 2]
        # Others than a caption's own clip: none of two is still for the first, one for the second, one of two moves up.
        assert rows["still"]["chance"] == pytest.approx((0 + 0.5) / 2)
        assert rows["moving up"]["chance"] == pytest.approx(0.5)

    def test_held_out_captions_of_every_motion(self):
        captions = held_out_captions(10, 0)
        assert len(set(captions)) == 10 * len(MOTIONS)
        assert set(captions) <= HELD_OUT
        assert [asked(caption)["motion"] for caption in captions[::10]] == list(MOTIONS)
        assert held_out_captions(10, 1) != captions
        with pytest.raises(ValueError, match=r"are held out, and 1000 are asked for; ask for fewer"):
            held_out_captions(1000, 0)
