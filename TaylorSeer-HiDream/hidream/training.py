"""What train.py does: the velocity and the samples of HiDream in a run on emoji, and the loss that keeps all experts in use."""

from argparse import Namespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hidream import HiDream, hidream_config, sample
from hidream.config import USAGE
from hidream.model import Gate
from seerkit.training import emoji
from seerkit.training.emoji import EmojiLoss, Texts

BALANCE = 0.01  # weight of the experts' loss (HiDream-I1 moe.py, aux_loss_alpha)


class Balance:
    """What the gates of a model answered since the last call."""

    def __init__(self, model: HiDream) -> None:
        self.answers: list[tuple[Tensor, Tensor]] = []
        for gate in model.modules():
            if isinstance(gate, Gate):
                gate.register_forward_hook(lambda gate, inputs, answer: self.answers.append(answer))

    def shares(self) -> Tensor:
        """Of the choices of all processes, by gate and expert (gates, E)."""
        chosen = (F.one_hot(chosen, scores.shape[1]) for scores, chosen in self.answers)  # (T, k, E) each
        shares = torch.stack([choices.float().mean((0, 1)) for choices in chosen])
        if dist.is_initialized():
            dist.all_reduce(shares)
            shares /= dist.get_world_size()
        return shares

    def __call__(self) -> dict[str, Tensor]:
        """The loss, a mean over gates; its mean over processes is that of the whole batch."""
        shares, scores = self.shares(), torch.stack([scores.float().mean(0) for scores, _ in self.answers])
        self.answers.clear()
        return {"balance": BALANCE * (scores.shape[1] * scores * shares).sum(1).mean()}


def velocity(forward: nn.Module, x: Tensor, t: Tensor, texts: Texts, weight: Tensor) -> Tensor:
    txt, y = texts
    return -forward(x, 1000 * t, txt, txt.unsqueeze(0), y)


@torch.no_grad()
def expert_shares(ema: nn.Module, losses: EmojiLoss) -> dict[str, Any]:
    """Each expert's share of a training batch's choices, by gate: what shows that all are in use."""
    watched = Balance(ema)
    losses(ema, 0)
    return {"expert_shares": [[round(share, 4) for share in row] for row in watched.shares().tolist()]}


def train(args: Namespace) -> None:
    """Train as the flags of train.py say, or with --dry-run show what would be."""
    config, usage = hidream_config(args.model), USAGE[args.model]

    def make() -> HiDream:
        return HiDream(config, attention=args.attention).initialize(args.seed)

    def draw(ema: nn.Module, noise: Tensor, texts: Texts, none: Texts) -> Tensor:
        (txt, y), (no_txt, no_y) = texts, none
        negative = no_txt, no_txt.unsqueeze(0), no_y
        settings = {"solver": usage.solver, "shift": usage.shift, "guidance_scale": usage.guidance}
        return sample(ema, noise, txt, txt.unsqueeze(0), y, usage.num_steps, negative=negative, **settings)

    emoji.train(
        args, config, make, velocity, draw,
        patch=config.patch_size, distilled=False, watch=Balance, facts=expert_shares,
    )  # fmt: skip
