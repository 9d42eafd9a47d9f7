import argparse
import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from seerkit.cli import Parser
from seerkit.distributed import World
from seerkit.seeds import generator
from seerkit.training import (
    Training,
    add_training_flags,
    batch_indices,
    card,
    check_training_flags,
    fit,
    guided_answers,
    learning_rate,
    read_losses,
    update_ema,
)

CPU = torch.device("cpu")
LABELS = {"error": "squared error", "size": "size of the weights"}
NUM_STEPS = 12


def flags(out: Path, *more: object) -> argparse.Namespace:
    parser = Parser("A toy.", "none")
    parser.add_argument("--model", default="toy")
    add_training_flags(parser, steps=NUM_STEPS, batch_size=8, lr=0.05)
    every = ["--log-every", 2, "--save-every", 5, "--grid-every", 6, "--lr-warmup-steps", 3]
    return parser.parse_args([str(part) for part in ("--out", out, *every, "--precision", "fp32", *more)])


def toy_losses(forward: nn.Module, step: int) -> dict[str, torch.Tensor]:
    """Of a linear model that is to find the sum of its two inputs."""
    x = torch.randn(8, 2, generator=generator(0, step))
    answer = forward(x)
    return {"error": (answer - x.sum(1, keepdim=True)).square().mean(), "size": 0.01 * answer.square().mean()}


def train(out: Path, *more: object, losses=toy_losses, world: World | None = None) -> Training:
    args = flags(out, *more)
    torch.manual_seed(0)
    training = Training.begin(nn.Linear(2, 1), args)
    settings = {"lr": args.lr}
    fit(
        training, losses, args, world or World(0, 1, CPU), labels=LABELS, settings=settings,
        save_grid=lambda path, ema: path.touch(),
    )  # fmt: skip
    return training


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "loss.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that was not interrupted."""
    out = tmp_path_factory.mktemp("whole")
    train(out)
    return out


def test_learning_rate_warms_up_and_falls_to_zero():
    args = argparse.Namespace(lr=0.5, lr_schedule="cosine", lr_warmup_steps=10, steps=110)
    rates = [learning_rate(step, args) for step in range(111)]
    assert rates[:10] == pytest.approx([0.05 * n for n in range(1, 11)])
    assert rates[60] == pytest.approx(0.25)
    assert rates[110] == pytest.approx(0)
    args.lr_schedule = "constant"
    assert [learning_rate(step, args) for step in (9, 60, 110)] == [0.5, 0.5, 0.5]


def test_batches_pass_once_over_the_data_an_epoch():
    batches = [batch_indices(step, 8, 20, seed=3) for step in range(10)]
    epochs = np.concatenate(batches).reshape(4, 20)
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    np.testing.assert_array_equal(batch_indices(7, 8, 20, seed=3), batches[7])
    assert (batch_indices(7, 8, 20, seed=4) != batches[7]).any()


@pytest.mark.parametrize("num_guided", [0, 2])
def test_answers_of_a_model_that_guides_itself_are_its_conditional_ones(num_guided):
    """For any weight in the guided rows, and with the gradient of the answers with text alone."""
    conditional, unconditional = torch.randn(2, 5, 3, generator=generator(0)).unbind()
    weight = torch.tensor([1.5, 4.0, 1.0, 1.0, 1.0]) if num_guided else torch.ones(5)
    learnt, guided = conditional.clone().requires_grad_(), slice(num_guided)

    def velocity(rows: slice, text: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        without = unconditional[rows]
        return torch.where(text[:, None], without + weight[:, None] * (learnt[rows] - without), without)

    text, none = torch.ones(5, dtype=torch.bool), torch.zeros(num_guided, dtype=torch.bool)
    answers = guided_answers(velocity, text, none, weight, guided)
    torch.testing.assert_close(answers, conditional)
    answers.sum().backward()
    torch.testing.assert_close(learnt.grad, torch.ones(5, 3))


def test_unguided_answer_is_held_fixed():
    """It is a call with weight 1 for the guided rows, so a model of one parameter learns by its answer with text alone."""
    parameter, asked = torch.tensor(3.0, requires_grad=True), []

    def velocity(rows: slice, text: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        asked.append((rows, weight.tolist()))
        return parameter * text[:, None]

    weight = torch.tensor([4.0, 1.0])
    answers = guided_answers(velocity, torch.tensor([2.0, 2.0]), torch.tensor([1.0]), weight, slice(1))
    assert answers.tolist() == [[2 * 3 / 4 + 3 / 4 * 3], [6]]
    answers[0].backward()
    assert parameter.grad == 2 / 4
    assert asked == [(slice(None), [4, 1]), (slice(1), [1])]


def test_averaged_weights_move_by_the_rest_of_the_decay():
    ema, model = nn.Linear(2, 1), nn.Linear(2, 1)
    before = ema.weight.detach().clone()
    update_ema(ema, model, 0.75)
    torch.testing.assert_close(ema.weight.detach(), 0.75 * before + 0.25 * model.weight.detach())


def test_first_averages_follow_the_model_closely(tmp_path):
    """After step 1 the decay is 2/11, not 0.999: the weights drawn at the beginning do not stay in the average."""
    torch.manual_seed(0)
    began = nn.Linear(2, 1).weight.detach()
    training = train(tmp_path, "--steps", 1)
    expected = 2 / 11 * began + 9 / 11 * training.model.weight.detach()
    torch.testing.assert_close(training.ema.weight.detach(), expected)


def test_run_learns_and_leaves_its_files(whole):
    found = read_losses(whole / "loss.csv")
    assert [row["step"] for row in found] == [2, 4, 5, 6, 8, 10, 12]
    assert list(found[0]) == ["step", "error", "size", "lr", "seconds"]
    assert found[-1]["error"] < 0.8 * found[0]["error"]
    names = {path.name for path in whole.iterdir()} - {"loss.png"}  # which needs matplotlib
    assert names == {"state.pt", "settings.json", "loss.csv", "samples-0000006.png", "samples-0000012.png"}


def test_loss_rows_are_means_since_the_row_before(whole, tmp_path):
    train(tmp_path / "each", "--log-every", 1)
    each = {row["step"]: row for row in read_losses(tmp_path / "each" / "loss.csv")}
    last = 0
    for row in read_losses(whole / "loss.csv"):
        since = range(last + 1, int(row["step"]) + 1)
        for name in LABELS:
            assert row[name] == pytest.approx(np.mean([each[step][name] for step in since]), abs=2e-6)
        last = since[-1]


def test_resumed_run_equals_an_uninterrupted_one(whole, tmp_path):
    out = tmp_path / "resumed"

    def interrupted(forward, step):
        if step == 9:
            raise KeyboardInterrupt
        return toy_losses(forward, step)

    with pytest.raises(KeyboardInterrupt):
        train(out, losses=interrupted)
    assert rows(out)[-1]["step"] == "8"  # after the checkpoint of step 5: done again
    training = train(out, "--resume")
    assert rows(out) == rows(whole)
    expected = torch.load(whole / "state.pt", weights_only=True)
    for part, module in (("model", training.model), ("ema", training.ema)):
        assert all(torch.equal(value, expected[part][name]) for name, value in module.state_dict().items())


def test_seconds_go_on_over_sittings(whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    header, *lines = (out / "loss.csv").read_text().splitlines()
    long = [line.rsplit(",", 1)[0] + ",1000.0" for line in lines]
    (out / "loss.csv").write_text("\n".join([header, *long, ""]))
    train(out, "--resume", "--steps", 14)
    assert [row["seconds"] >= 1000 for row in read_losses(out / "loss.csv")] == [True] * (len(lines) + 1)


def test_card_has_the_facts_of_the_run(whole):
    args = flags(whole)
    facts = card(nn.Linear(2, 1), args, tuple(LABELS))
    assert (facts["num_parameters"], facts["images_seen"]) == (3, NUM_STEPS * 8)
    assert facts["training"]["lr"] == 0.05
    assert "out" not in facts["training"]  # no path of this machine
    found = read_losses(whole / "loss.csv")
    assert facts["final_loss"] == {name: pytest.approx(np.mean([row[name] for row in found])) for name in LABELS}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--lr", 0.02], "--lr 0.02 differs from 0.05"),
        (["--batch-size", 4], "--batch-size 4 differs from 8"),
        (["--ema-decay", 0.9], "--ema-decay 0.9 differs from 0.999"),
        (["--lr-warmup-steps", 6], "--lr-warmup-steps 6 differs from 3"),
        (["--lr-schedule", "constant"], "--lr-schedule constant differs from cosine"),
        (["--seed", 1], "--seed 1 differs from 0"),
        (["--model", "other"], "--model other differs from toy"),
        (["--steps", 10], f"--steps 10 is less than the {NUM_STEPS}"),
    ],
)
def test_resume_with_other_settings_is_refused(whole, changed, said):
    with pytest.raises(ValueError, match=said):
        train(whole, "--resume", *changed)


def test_refusals_name_the_remedy(whole, tmp_path):
    with pytest.raises(FileNotFoundError, match="start without --resume"):
        train(tmp_path / "new", "--resume")
    with pytest.raises(ValueError, match="continue it with --resume"):
        train(whole)
    with pytest.raises(ValueError, match="--batch-size 8 cannot be shared by 3 processes"):
        train(tmp_path / "new", world=World(0, 3, CPU))
    with pytest.raises(ValueError, match=r"--ema-decay 1.0 must lie in \[0, 1\)"):
        check_training_flags(flags(tmp_path, "--ema-decay", 1))


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_spoils_the_weights(tmp_path):
    def losses(forward, step):
        found = toy_losses(forward, step)
        return {name: loss * (float("inf") if step == 7 else 1) for name, loss in found.items()}

    with pytest.raises(ValueError, match=r"at step 7; lower --lr 0.05 and use --resume"):
        train(tmp_path, losses=losses)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 5
