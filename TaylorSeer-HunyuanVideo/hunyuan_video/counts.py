"""Operations of HunyuanVideo by the counter that the published figures were made with."""

import math

from hunyuan_video.config import HunyuanVideoConfig
from hunyuan_video.model import FREQUENCY_DIM, REFINER_MLP_RATIO
from seerkit.sampling.published import CalflopsCounter, JointBlocks


def published_counter(config: HunyuanVideoConfig, rows: int, video_tokens: int, text_tokens: int) -> CalflopsCounter:
    """The published counter for a batch of `rows`; the timestep is embedded once for all of them, in the refiner in each.

    The attention of the token refiner is fused in the released code, which leaves it uncounted.
    """
    dim, refiners = config.hidden_size, config.refiner_depth
    double, single = config.mm_double_blocks_depth, config.mm_single_blocks_depth
    video, text = rows * video_tokens, rows * text_tokens
    timestep = FREQUENCY_DIM * dim + dim**2
    embedders = (1 + rows) * timestep + rows * (config.text_states_dim_2 * dim + dim**2)
    if config.guidance_embed:
        embedders += rows * timestep
    modulation = rows * dim**2 * (12 * double + 3 * single + 2)
    patch = math.prod(config.patch_size)
    ends = video * dim * patch * (config.in_channels + config.out_channels)
    refiner = text * dim * config.text_states_dim + rows * (config.text_states_dim * dim + dim**2)
    refiner += refiners * dim**2 * (text * (4 + 2 * REFINER_MLP_RATIO) + rows * 2)
    return CalflopsCounter(
        blocks=JointBlocks(rows, video_tokens + text_tokens, dim, config.mlp_width, double, single),
        conditioning=2 * (embedders + modulation + ends + refiner),
        conditioning_elements=4 * video * dim + refiners * text * dim * (2 * 5 + REFINER_MLP_RATIO),
        unseen=refiners * 4 * rows * text_tokens**2 * dim,
        splits_first_layer=False,
    )
