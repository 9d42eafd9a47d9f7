"""Operations of FLUX by the counter that the published figures were made with."""

from flux.config import FluxConfig
from flux.model import FREQUENCY_DIM
from seerkit.sampling.published import CalflopsCounter, JointBlocks


def published_counter(config: FluxConfig, rows: int, image_tokens: int, text_tokens: int) -> CalflopsCounter:
    """The published counter for a batch of `rows`; the timestep is embedded once for all of them."""
    dim, width, double, single = config.hidden_size, config.mlp_width, config.depth, config.depth_single_blocks
    image, text = rows * image_tokens, rows * text_tokens
    embedders = FREQUENCY_DIM * dim + dim**2 + rows * (config.vec_in_dim * dim + dim**2)
    if config.guidance_embed:
        embedders += rows * (FREQUENCY_DIM * dim + dim**2)
    modulation = rows * dim**2 * (12 * double + 3 * single + 2)
    ends = image * dim * (config.in_channels + config.out_channels) + text * dim * config.context_in_dim
    return CalflopsCounter(
        blocks=JointBlocks(rows, image_tokens + text_tokens, dim, width, double, single),
        conditioning=2 * (embedders + modulation + ends),
        conditioning_elements=4 * image * dim,
        projecting=frozenset({"toca"}),
    )
