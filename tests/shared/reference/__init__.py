"""What the official code of caching methods decided and computed on tiny networks, and those networks.

    model, loop = reference.network("flux"), reference.open_loop("flux", 20)
    for run in reference.stored("teacache-flux")["runs"]: ...

An open loop gives the latents of every step, so that a wrong decision does not change what comes after it. Each file
`METHOD-NETWORK.json` names the code that it comes from; `side_by_side` runs code that is installed instead.
"""

import json
import re
import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dit
import flux
import hidream
import hunyuan_video
import wan
from cache_dic import Cache, Run
from dit import DiT, DiTConfig
from dit.diffusion import Diffusion
from flux import Flux, FluxConfig
from flux.latents import image_ids, pack, text_ids
from flux.schedule import sampling_times
from hidream import HiDream, HiDreamConfig
from hidream.schedule import unipc_sigmas, unipc_timesteps
from hunyuan_video import HunyuanVideo, HunyuanVideoConfig
from hunyuan_video.schedule import sampling_sigmas as hunyuan_sigmas
from hunyuan_video.schedule import sampling_timesteps as hunyuan_timesteps
from wan import Wan, WanConfig
from wan.schedule import sampling_sigmas as wan_sigmas
from wan.schedule import sampling_timesteps as wan_timesteps

FOLDER = Path(__file__).parent
BATCH = 2
NUM_SAMPLED = 4  # elements of an output that a file keeps

# Odd on purpose: heads, depths and widths that a transposed or swapped tensor would not fit.
CONFIGS = {
    "dit": DiTConfig(input_size=8, patch_size=2, in_channels=4, hidden_size=48, depth=4, num_heads=3, num_classes=10),
    "flux": FluxConfig(
        in_channels=16, out_channels=16, vec_in_dim=10, context_in_dim=20, hidden_size=48, num_heads=3, depth=3,
        depth_single_blocks=4, axes_dim=(4, 6, 6),
    ),
    "hunyuan_video": HunyuanVideoConfig(
        in_channels=4, out_channels=4, patch_size=(1, 2, 2), text_states_dim=20, text_states_dim_2=10, hidden_size=48,
        heads_num=3, mm_double_blocks_depth=2, mm_single_blocks_depth=3, refiner_depth=2, rope_dim_list=(4, 6, 6),
    ),
    "wan": WanConfig(
        patch_size=(1, 2, 2), text_len=9, in_dim=4, dim=48, ffn_dim=56, freq_dim=20, text_dim=10, out_dim=4,
        num_heads=3, num_layers=5,
    ),
    "hidream": HiDreamConfig(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, num_single_layers=3, attention_head_dim=16,
        num_attention_heads=3, caption_channels=(20, 14), text_emb_dim=10, axes_dims_rope=(4, 6, 6),
        max_resolution=(8, 8), llama_layers=(0, 3, 1, 4, 4),
    ),
}  # fmt: skip
CLASSES = {"dit": DiT, "flux": Flux, "hunyuan_video": HunyuanVideo, "wan": Wan, "hidream": HiDream}

# Embedders of the timestep, whose answer is to change slowly beside its mean, as in trained models.
_TIME = re.compile(r"^(time_in|time_embedding|t_embedder|guidance_in)\.")
_NORM = re.compile(r"norm\w*\.(weight|scale)$|norm\w*\.\w+_norm\.scale$|_norm\.weight$")


def draw_weights(model: nn.Module, seed: int = 0) -> None:
    """Every weight from one generator, in the order of the names, so that no gate is small and no norm is neutral."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=draw)
        if _NORM.search(name):
            value = 1 + 0.2 * noise
        elif _TIME.search(name):
            value = noise if parameter.ndim == 1 else noise * 0.3 * parameter[0].numel() ** -0.5
        elif parameter.ndim > 1:
            value = noise * parameter[0].numel() ** -0.5
        else:
            value = 0.2 * noise
        parameter.data = value


def network(name: str) -> nn.Module:
    """Our backbone of that name, tiny, with the weights that the official code had, in float32."""
    model = CLASSES[name](CONFIGS[name])
    draw_weights(model)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Given:
    """What a sampling run of a network is given.

    timesteps (S,) as our model takes them, noise levels (S,), noise (B, C, …) as our sampler takes it; conditions: of the
    calls of a step. Where guidance makes two calls, the first has the text, the second has not.
    """

    timesteps: Tensor
    sigmas: Tensor
    noise: Tensor
    branches: tuple[dict[str, Any], ...]


def given(name: str, num_steps: int) -> Given:
    draw = torch.Generator().manual_seed(1)
    return _GIVEN[name](num_steps, lambda *shape: torch.randn(shape, generator=draw))


@dataclass(frozen=True)
class OpenLoop:
    """Inputs of every step: `Given`, and latents (S, B, …) as our model takes them."""

    timesteps: Tensor
    sigmas: Tensor
    latents: Tensor
    branches: tuple[dict[str, Any], ...]


def open_loop(name: str, num_steps: int) -> OpenLoop:
    """A path from noise to an image of noise with a wiggle, which makes changes from step to step unequal."""
    it, draw = given(name, num_steps), torch.Generator().manual_seed(2)
    image, wiggle = (torch.randn(it.noise.shape, generator=draw) for _ in range(2))
    sizes = 0.05 * (7 * torch.arange(num_steps) % 5)
    latents = torch.stack(
        [
            level * it.noise + (1 - level) * image + size * wiggle
            for level, size in zip(it.sigmas.tolist(), sizes.tolist(), strict=True)
        ]
    )
    if name == "flux":
        latents = torch.stack([pack(x, 2) for x in latents])
    if name == "hidream":  # both branches are rows of one batch
        latents = torch.cat([latents, latents], dim=1)
    return OpenLoop(it.timesteps, it.sigmas, latents, it.branches)


def _dit(num_steps: int, random: Callable[..., Tensor]) -> Given:
    timesteps = Diffusion.respaced(num_steps).timesteps.flip(0)
    return Given(timesteps, timesteps / 1000, random(BATCH, 4, 8, 8), ({"y": torch.tensor([3, 7])},))


def _flux(num_steps: int, random: Callable[..., Tensor]) -> Given:
    config, times = CONFIGS["flux"], sampling_times(num_steps, 12)
    conditions = {
        "img_ids": image_ids(BATCH, 3, 4),
        "txt": random(BATCH, 5, config.context_in_dim),
        "txt_ids": text_ids(BATCH, 5),
        "y": random(BATCH, config.vec_in_dim),
        "guidance": torch.full((BATCH,), 3.5),
    }
    return Given(times[:-1].float(), times[:-1], random(BATCH, 4, 6, 8), (conditions,))


def _hunyuan_video(num_steps: int, random: Callable[..., Tensor]) -> Given:
    config, sigmas = CONFIGS["hunyuan_video"], hunyuan_sigmas(num_steps)
    conditions = {
        "text_states": random(BATCH, 7, config.text_states_dim),
        "text_mask": torch.ones(BATCH, 7, dtype=torch.bool),
        "text_states_2": random(BATCH, config.text_states_dim_2),
        "guidance": torch.full((BATCH,), 6000.0),
    }
    return Given(hunyuan_timesteps(sigmas), sigmas[:-1], random(BATCH, 4, 2, 6, 10), (conditions,))


def _wan(num_steps: int, random: Callable[..., Tensor]) -> Given:
    config, sigmas = CONFIGS["wan"], wan_sigmas("unipc", num_steps, 5.0)
    branches = tuple({"context": random(BATCH, config.text_len, config.text_dim)} for _ in range(2))
    return Given(wan_timesteps(sigmas), sigmas[:-1], random(BATCH, 4, 3, 6, 10), branches)


def _hidream(num_steps: int, random: Callable[..., Tensor]) -> Given:
    config, rows = CONFIGS["hidream"], 2 * BATCH
    sigmas = unipc_sigmas(num_steps, 3.0, config.max_tokens)
    of_t5, of_llama = config.caption_channels
    conditions = {
        "t5": random(rows, 5, of_t5), "llama": random(5, rows, 7, of_llama), "pooled": random(rows, config.text_emb_dim)
    }  # fmt: skip
    return Given(unipc_timesteps(sigmas), sigmas[:-1], random(BATCH, 4, 6, 6), (conditions,))


_GIVEN = {"dit": _dit, "flux": _flux, "hunyuan_video": _hunyuan_video, "wan": _wan, "hidream": _hidream}


def play(name: str, loop: OpenLoop, cache: Cache) -> tuple[list[Run], list[Tensor]]:
    """Our network over an open loop under a cache: its runs and their outputs (S, B, …), by branch."""
    model, runs, sigmas = network(name), [], None if name == "dit" else loop.sigmas
    cache = replace(cache, branches=len(loop.branches))
    for conditions in loop.branches:
        follows = {"leader": runs[0]} if runs else {}
        runs.append(cache.start(model, loop.latents[0], loop.timesteps, sigmas=sigmas, **follows, **conditions))
    outputs: list[list[Tensor]] = [[] for _ in runs]
    for step, latents in enumerate(loop.latents):
        given = {model.TIME: loop.timesteps[step].expand(len(latents))}
        for rows, run, conditions in zip(outputs, runs, loop.branches, strict=True):
            rows.append(model(latents, **given, **conditions, cache=run.at(step)))
    return runs, [torch.stack(rows) for rows in outputs]


def sample(name: str, model: nn.Module, num_steps: int, cache: Cache | None = None) -> tuple[Tensor, Any]:
    """Latents of a closed loop, our sampler's, and its run or branches, for our network of that name."""
    it = given(name, num_steps)
    (first, *rest), noise = it.branches, it.noise
    if name == "dit":
        x, run = dit.Sampler(model, num_steps).run(noise, first["y"], cache=cache)
    elif name == "flux":
        x, run = flux.Sampler(model, num_steps).run(noise, first["txt"], first["y"], cache=cache)
    elif name == "hunyuan_video":
        texts = (first[key] for key in ("text_states", "text_mask", "text_states_2"))
        x, run = hunyuan_video.Sampler(model, num_steps).run(noise, *texts, cache=cache)
    elif name == "wan":
        x, run = wan.Sampler(model, num_steps).run(noise, first["context"], rest[0]["context"], cache=cache)
    else:  # the rows without the text come first
        t5, llama, pooled = first["t5"], first["llama"], first["pooled"]
        negative, asked = ((t5[i], llama[:, i], pooled[i]) for i in (slice(BATCH), slice(BATCH, None)))
        sampler = hidream.Sampler(model, num_steps, guidance_scale=5.0)
        x, run = sampler.run(noise, *asked, negative=negative, cache=cache)
    return x, run


def sampled(output: Tensor) -> list[float]:
    """A few elements, evenly spread over all."""
    flat = output.detach().flatten()
    return flat[torch.linspace(0, len(flat) - 1, NUM_SAMPLED).long()].tolist()


def chosen(rows: Tensor) -> str:
    """Tokens (B, rows) in ascending order, a letter each, in base 36, a word for each sample."""
    digits = string.digits + string.ascii_lowercase
    return " ".join("".join(digits[token] for token in sorted(row)) for row in rows.tolist())


def stored(name: str) -> dict[str, Any]:
    """The contents of `name`.json.

    method by our name, network, source and file of the code, what of it was changed, tolerance, runs. A run has num_steps,
    settings by our names, loop (open or closed), margin (the least relative distance of a number to its threshold) and
    branches, each with full_steps; signal, the number that the code computed at a step, and accumulated, what it compared with
    its threshold, both null where it computed none; of an open loop outputs, `sampled` from those of every step. A closed loop
    has latents, sampled from the last. Of methods that choose tokens: kinds of step, of block 0 and the others where they
    differ, and by step and site what was `chosen`. tolerance: of float32, relative for signals, null where they are no more
    than rounding in places; of outputs and latents as `Compared` has it.
    """
    return json.loads((FOLDER / f"{name}.json").read_text())


def files(method: str) -> list[tuple[str, int]]:
    """(name of a file, number of a run) of everything that is stored of a method, for `pytest.mark.parametrize`."""
    names = sorted(path.stem for path in FOLDER.glob(f"{method}-*.json"))
    return [(name, number) for name in names for number in range(len(stored(name)["runs"]))]


@dataclass(frozen=True)
class Compared:
    """Full steps of ours and of theirs by branch, and the largest difference of what is stored of outputs or latents.

    Where the largest of those is above 1, as latents of an untrained network may be, the difference is a part of it.
    """

    ours: list[list[int]]
    theirs: list[list[int]]
    difference: float


def compare(file: str, number: int, cache: Cache) -> Compared:
    """A stored run beside ours under a cache, which is usually `make_cache(method, **settings)` of that run."""
    name, run = stored(file)["network"], stored(file)["runs"][number]
    theirs = [branch["full_steps"] for branch in run["branches"]]
    if run["loop"] == "open":
        runs, outputs = play(name, open_loop(name, run["num_steps"]), cache)
        ours = torch.tensor([[sampled(output) for output in rows] for rows in outputs])
        expected = torch.tensor([branch["outputs"] for branch in run["branches"]])
    else:
        latents, result = sample(name, network(name), run["num_steps"], cache)
        runs = getattr(result, "runs", [result])
        ours, expected = torch.tensor(sampled(latents)), torch.tensor(run["latents"])
    difference = (ours - expected).abs().max() / expected.abs().max().clamp_min(1)
    return Compared([run.record()["full_steps"] for run in runs], theirs, difference.item())
