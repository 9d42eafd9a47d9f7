"""What HiDream brings to training on emoji: the loss that keeps all experts in use, and its velocity."""

import pytest
import torch
from torch import Tensor, nn

from hidream import HiDream, hidream_config
from hidream.config import USAGE
from hidream.model import Gate
from hidream.training import BALANCE, Balance, expert_shares, velocity
from seerkit.training import emoji

CONFIG = hidream_config("hidream-debug")
EXPERTS, CHOSEN = CONFIG.num_routed_experts, CONFIG.num_activated_experts


@pytest.fixture
def model() -> HiDream:
    """With every weight random."""
    made, draw = HiDream(CONFIG), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.1, generator=draw)
    return made


def inputs() -> dict[str, Tensor]:
    """Three images of four tokens, times in [0, 1], and texts."""
    g = torch.Generator().manual_seed(1)
    shapes = {"x": (3, 3, 8, 8), "t": (3,), "txt": (3, 16, 384), "y": (3, 768)}
    return {name: torch.rand(shape, generator=g) for name, shape in shapes.items()}


def call(model: nn.Module) -> Tensor:
    given = inputs()
    return velocity(model, given["x"], given["t"], (given["txt"], given["y"]), torch.ones(3))


# ------------------------------------------------------------------------------------------------------------- balance


def loss_of(*answers: tuple[Tensor, Tensor]) -> float:
    """Over its weight, for gates that answer so."""
    balance = Balance(nn.Identity())
    balance.answers.extend(answers)
    return (balance()["balance"] / BALANCE).item()


def test_balance_is_one_where_all_experts_are_used_alike_and_grows_to_their_number_over_those_used():
    rows = torch.arange(2 * EXPERTS)
    uniform = torch.full((len(rows), EXPERTS), 1 / EXPERTS), torch.stack([rows, rows + 1], 1) % EXPERTS
    one_hot = torch.eye(EXPERTS)
    two = 0.5 * (one_hot[0] + one_hot[1]).expand(6, -1), torch.tensor([[0, 1]]).expand(6, -1)
    leaning = 0.7 * one_hot[0] + 0.3 * one_hot[1:].mean(0)
    half = leaning.expand(6, -1), torch.tensor([[0, 1], [0, 2], [0, 3]] * 2)
    assert loss_of(uniform) == pytest.approx(1)
    assert loss_of(two) == pytest.approx(EXPERTS / 2)
    assert loss_of(half) == pytest.approx(EXPERTS * (0.5 * 0.7 + 3 * 0.1 / 6))
    assert loss_of(uniform, two) == pytest.approx((1 + EXPERTS / 2) / 2), "a mean over gates"


def test_balance_moves_every_gate_and_nothing_behind_the_last(model):
    balance = Balance(model)
    call(model)
    assert len(balance.answers) == CONFIG.num_blocks
    balance()["balance"].backward()
    gates = [module for module in model.modules() if isinstance(module, Gate)]
    assert len(gates) == CONFIG.num_blocks
    assert all(gate.weight.grad.any() for gate in gates)
    assert model.final_layer.linear.weight.grad is None


def test_balance_raises_the_score_of_an_expert_that_is_not_used():
    gate, rows = Gate(CONFIG), torch.rand(50, CONFIG.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gate.weight.normal_(std=0.01, generator=torch.Generator().manual_seed(1))
        gate.weight[-1] = -0.1
    balance, optimizer = Balance(gate), torch.optim.SGD(gate.parameters(), lr=1.0)
    before, chosen = gate(rows)
    assert not (chosen == EXPERTS - 1).any()
    balance()["balance"].backward()
    optimizer.step()
    after, _ = gate(rows)
    assert (after[:, -1] > before[:, -1]).all()


def test_balance_is_of_the_calls_since_the_last(model):
    balance = Balance(model)
    found = []
    for _ in range(2):
        call(model)
        found.append(balance()["balance"])
    assert torch.equal(*found)
    assert balance.answers == []


def test_expert_shares_are_of_the_choices_of_a_batch(model):
    """An expert is chosen at most once for a token."""
    asked = []

    def losses(ema: nn.Module, step: int) -> None:
        asked.append((step, torch.is_grad_enabled()))
        call(ema)

    shares = torch.tensor(expert_shares(model, losses)["expert_shares"])
    assert asked == [(0, False)]
    assert shares.shape == (CONFIG.num_blocks, EXPERTS)
    torch.testing.assert_close(shares.sum(1), torch.ones(CONFIG.num_blocks), rtol=0, atol=5e-5 * EXPERTS)  # rounding
    assert shares.max() <= 1 / CHOSEN
    assert (shares != 1 / EXPERTS).any()


# ------------------------------------------------------------------------------------------------------------ velocity


def test_velocity_is_the_models_answer_negated_at_timesteps_of_a_thousand(model):
    """The tokens stand for T5's and for Llama's one hidden state."""
    given = inputs()
    data_minus_noise = model(given["x"], 1000 * given["t"], given["txt"], given["txt"][None], given["y"])
    assert torch.equal(call(model), -data_minus_noise)


def test_samples_are_guided_and_go_from_noise_to_the_image(load_command, monkeypatch):
    """The model's answer, constant and so exact in any number of steps, leads there at the published weight of guidance."""
    found = {}
    monkeypatch.setattr(
        emoji, "train", lambda args, config, make, velocity, sample, **more: found.update(sample=sample, **more)
    )
    load_command("TaylorSeer-HiDream/train.py").main(["--model", "hidream-debug", "--output-dir", "outputs"])
    assert (found["patch"], found["distilled"]) == (CONFIG.patch_size, False)
    given = inputs()
    image, by_text = given["x"], given["x"].flip(0)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(2))

    class Known(HiDream):
        def head(self, img, grid, modulation):
            without = image - noise - USAGE["hidream-debug"].guidance * by_text
            return torch.cat([without, without + by_text])

    texts = given["txt"], given["y"]
    none = torch.zeros_like(given["txt"]), torch.zeros_like(given["y"])
    images = found["sample"](Known(CONFIG).eval(), noise, texts, none)
    torch.testing.assert_close(images, image, rtol=0, atol=2e-3)  # the first noise level is 0.9998
