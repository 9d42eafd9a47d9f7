"""The samples that LoopSeer is judged on: prompts and noise that no calibration draws."""

import argparse
import itertools
import random
from collections.abc import Iterable, Sequence

from cache_dic import UserError
from evaluation.backbones import PACKAGES
from evaluation.beyond.calibrations import Calibration
from evaluation.calibration import SHOWN_SEED, family_of, noise_seed, same_prompt, shown_prompts

SEED_KEY = 0xB3701D
"""Of `derive_seed`, from --seed to that of the noise: neither a calibration's (`evaluation.calibration.SEED_KEY`) nor shown."""
HELD_OUT, UNUSUAL = "held out", "unusual"
KINDS = {
    HELD_OUT: {
        "emoji": "labels that no model and no calibration saw, in the styles that models were trained on",
        "objects": "captions that no model and no calibration saw",
        "dit": "every class in turn, of other noise than a calibration's",
    },
    UNUSUAL: {
        "emoji": "the same labels in a style that no model was trained on",
        "objects": "captions that models were trained on and no calibration saw",
    },
}
"""What prompts of a kind are, by what a model draws."""


def drawn_by(model: str) -> str:
    """What a model draws, a key of KINDS's values."""
    package = PACKAGES[model]
    return {"dit": "dit", "flux": "emoji", "hidream": "emoji"}.get(package, "objects")


def pool(args: argparse.Namespace, kind: str = HELD_OUT) -> list[str]:
    """All prompts of a kind; of DiT names of its classes. UserError where a model has no prompts of the kind."""
    if family_of(args.model).published(args.model):
        raise UserError(f"{args.model} needs --prompt-file FILE with one prompt per line, none of a calibration's")
    drawn = drawn_by(args.model)
    if drawn not in KINDS[kind]:
        raise UserError(f"{args.model} has no {kind} prompts, only its classes")
    if drawn == "dit":
        return shown_prompts(args.model, args)
    if drawn == "emoji":
        from seerkit.data.emoji import FOLDER, HELD_OUT_STYLE, STYLES
        from seerkit.text.minilm import split_prompt
        from seerkit.text.prompts import read_prompts

        labels = dict.fromkeys(split_prompt(one)[0] for one in read_prompts(FOLDER / "prompts-held-out.txt"))
        styles = [phrase for name, phrase in STYLES.items() if (name == HELD_OUT_STYLE) == (kind == UNUSUAL)]
        return [f"{label}, {style}" for label in labels for style in styles]
    from seerkit.data.captions import CAPTIONS, PROMPTS
    from seerkit.data.captions import HELD_OUT as UNSEEN

    return [caption for caption in CAPTIONS if caption in UNSEEN] if kind == HELD_OUT else list(PROMPTS)


def drawn(args: argparse.Namespace, count: int, seed: int, kind: str = HELD_OUT) -> list[str]:
    """So many prompts of a kind drawn by `seed`, each once before any comes again; classes of DiT in their order."""
    prompts = pool(args, kind)
    if drawn_by(args.model) != "dit":
        random.Random(f"{seed} {kind}").shuffle(prompts)
    return repeated(prompts, count)


def repeated(prompts: Sequence[str], count: int) -> list[str]:
    """So many prompts, which begin anew where there are fewer."""
    return list(itertools.islice(itertools.cycle(prompts), count))


def sample_seed(seed: int) -> int:
    """The --seed of the noise of the samples that are judged, of the command's own --seed."""
    from seerkit.sampling.seeds import derive_seed

    derived = derive_seed(seed, SEED_KEY)
    assert derived not in (SHOWN_SEED, noise_seed(seed)), "one in 2^63"
    return derived


def check_unseen(model: str, prompts: Iterable[str], calibrations: Iterable[Calibration]) -> None:
    """UserError for a prompt that a calibration was made with, or for one that no encoder tells from it; but for classes, of
    which all serve for both."""
    if drawn_by(model) == "dit":
        return
    asked = {same_prompt(prompt) for prompt in prompts}
    for one in calibrations:
        both = sorted(prompt for prompt in one.seen if same_prompt(prompt) in asked)
        if both:
            raise UserError(
                f"calibration {one.path.name} was made with {both[0]!r}, which it would be judged on; calibrate on others"
            )
