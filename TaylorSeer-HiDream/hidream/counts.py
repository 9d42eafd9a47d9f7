"""Operations of HiDream by closed formula: a check of the counter, where no published count could be one."""

from dataclasses import dataclass

from hidream.config import FREQUENCY_DIM, HiDreamConfig


@dataclass(frozen=True)
class HiDreamOperations:
    """Products of a step, 2 per multiply-add, of a batch of rows; the first three are of all blocks in a full step."""

    projections: int  # q, k, v, output
    attention: int  # QKᵀ and the weighted sum of v
    feed_forward: int  # the text's, the shared experts, the gates that choose, the experts of every token's choice
    conditioning: int  # embedding of latents, texts, time and pooled text, every modulation, output layer
    forecast: int  # of a forecast step: embedding of latents and time, gates of the sites, output layer
    dropped: int  # what the official code adds to a full step: all but keys and values of Llama's tokens in every block

    @property
    def steps(self) -> tuple[int, int]:
        """Operations of a full and of a forecast step."""
        return self.projections + self.attention + self.feed_forward + self.conditioning, self.forecast


def hidream_operations(
    config: HiDreamConfig, rows: int, tokens: int, text_tokens: int, padding: int = 0
) -> HiDreamOperations:
    """Of a batch of `rows` with `tokens` of an image each, and `padding` where it is not square.

    text_tokens: of T5, and as many of Llama; both are in the text stream, and Llama's are appended to each block anew.
    """
    dim, double, single = config.hidden_size, config.num_layers, config.num_single_layers
    image, stream = tokens + padding, 2 * text_tokens
    queries, keys, blocks = image + stream, image + stream + text_tokens, double + single
    swiglu = 3 * dim * config.expert_width  # of a token, as the next
    experts = dim * (3 * config.shared_width + config.num_routed_experts) + config.num_activated_experts * swiglu
    time, pooled = FREQUENCY_DIM * dim + dim**2, rows * (config.text_emb_dim * dim + dim**2)
    t5, llama = config.caption_channels
    ends = rows * tokens * dim * config.patch_size**2 * (config.in_channels + config.out_channels)
    texts = rows * text_tokens * dim * (t5 + blocks * llama)
    head = 2 * rows * dim**2  # shift and scale
    gates = rows * dim**2 * 2 * blocks  # of the image's two sites in a block
    modulation = rows * dim**2 * (12 * double + 6 * single)
    appended = 2 * blocks * dim**2 + double * swiglu + single * experts  # of one of Llama's tokens
    return HiDreamOperations(
        projections=2 * rows * blocks * 2 * dim**2 * (queries + keys),
        attention=4 * rows * blocks * queries * keys * dim,
        feed_forward=2 * rows * (double * (image * experts + stream * swiglu) + single * queries * experts),
        conditioning=2 * (ends + texts + time + pooled + modulation + head),
        forecast=2 * (ends + time + gates + head),
        dropped=rows * text_tokens * (2 * appended + 4 * blocks * keys * dim),
    )
