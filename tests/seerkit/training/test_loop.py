import argparse
import csv
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cache_dic import UserError
from seerkit.command.cli import Parser
from seerkit.devices.distributed import World
from seerkit.sampling.seeds import generator
from seerkit.training import loop
from seerkit.training.flags import add_training_flags
from seerkit.training.loop import (
    Training,
    batch_indices,
    card,
    check_samples,
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
    return parser.parse_args([str(part) for part in ("--output-dir", out, *every, "--precision", "fp32", *more)])


def toy_losses(forward: nn.Module, step: int) -> dict[str, torch.Tensor]:
    """Of a linear model that is to find the sum of its two inputs."""
    x = torch.randn(8, 2, generator=generator(0, step))
    answer = forward(x)
    return {"error": (answer - x.sum(1, keepdim=True)).square().mean(), "size": 0.01 * answer.square().mean()}


def train(out: Path, *more: object, losses=toy_losses, world: World | None = None, draw=None) -> Training:
    args = flags(out, *more)
    torch.manual_seed(0)
    training = Training.begin(nn.Linear(2, 1), args)
    settings = {"lr": args.lr}
    fit(
        training, losses, args, world or World(0, 1, CPU), labels=LABELS, settings=settings,
        save_grid=draw or (lambda path, ema: path.touch()),
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


def test_remedies_of_refusals_work(whole, tmp_path):
    with pytest.raises(FileNotFoundError, match="start without --resume"):
        train(tmp_path / "new", "--resume")
    train(tmp_path / "new", "--steps", 2)
    with pytest.raises(ValueError, match="continue it with --resume or choose another --output-dir"):
        train(tmp_path / "new")
    train(tmp_path / "new", "--resume")
    assert rows(tmp_path / "new")[-1]["step"] == str(NUM_STEPS)
    with pytest.raises(ValueError, match="ask for more"):
        train(tmp_path / "new", "--resume", "--steps", 5)
    train(tmp_path / "new", "--resume", "--steps", NUM_STEPS + 1)
    with pytest.raises(ValueError, match="--batch-size 8 cannot be shared by 3 processes"):
        train(tmp_path / "more", world=World(0, 3, CPU))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_samples_of_a_diverged_run_are_no_picture(tmp_path, value):
    samples = torch.zeros(2, 3, 4, 4)
    assert check_samples(samples, tmp_path) is samples
    samples[1, 0, 0, 0] = value
    with pytest.raises(UserError, match="the run has diverged; lower --lr and start again"):
        check_samples(samples, tmp_path)


def diverging_above(largest: float, began: int = 0):
    """What draws samples that are not finite from step `began` on, of weights that are larger."""

    def draw(path: Path, ema: nn.Module) -> None:
        found = ema.weight.detach().abs().max() > largest and int(path.stem[-7:]) >= began
        check_samples(torch.full((1,), torch.nan if found else 0.0), path.parent)
        path.touch()

    return draw


def test_diverged_samples_before_the_first_state_leave_none_and_their_remedy_works(tmp_path):
    every = ["--save-every", 1, "--grid-every", 1, "--lr-warmup-steps", 1]
    with pytest.raises(UserError, match=r"the run has diverged; lower --lr and start again$"):
        train(tmp_path, *every, "--lr", 100, draw=diverging_above(10))
    assert not (tmp_path / "state.pt").exists()
    train(tmp_path, *every, draw=diverging_above(10))
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == NUM_STEPS


def test_diverged_samples_leave_the_last_good_state_and_their_remedy_works(tmp_path):
    every = ["--save-every", 1, "--grid-every", 1, "--lr-schedule", "constant"]
    with pytest.raises(UserError, match="lower --lr and use --resume; where it diverges again, start anew in another"):
        train(tmp_path, *every, draw=diverging_above(0, began=4))
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 3
    train(tmp_path, *every, "--lr", 0.01, "--resume")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == NUM_STEPS


@pytest.mark.parametrize(
    ("part", "value"),
    [*((part, value) for part in ("model", "ema") for value in (torch.nan, torch.inf, 1e6)), ("moments", torch.nan)],
)
def test_a_state_that_is_not_whole_is_not_saved_over_a_good_one(tmp_path, monkeypatch, part, value):
    """Nor one of weights that could not be exported; and the remedy works from the good one."""
    if part == "moments":
        monkeypatch.setattr(loop.torch.optim, "AdamW", spoiling_at(10, value))
    else:
        update = loop.update_ema
        calls = iter(range(1, 100))

        def spoiling(ema: nn.Module, model: nn.Module, decay: float) -> None:
            update(ema, model, decay)
            if next(calls) == 10:
                {"model": model, "ema": ema}[part].weight.data[0, 0] = value

        monkeypatch.setattr(loop, "update_ema", spoiling)
    with pytest.raises(
        UserError, match=r"at step 10 with --lr 0.05: the run has diverged; lower --lr and use --resume"
    ):
        train(tmp_path)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 5
    monkeypatch.undo()
    train(tmp_path, "--resume", "--lr", 0.02)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == NUM_STEPS


def spoiling_at(step: int, value: float) -> type[torch.optim.Optimizer]:
    """AdamW with a moment of that value after a step."""

    class Spoiling(torch.optim.AdamW):
        def step(self) -> None:
            super().step()
            for moments in self.state.values():
                if moments["step"] == step:
                    moments["exp_avg_sq"].fill_(value)

    return Spoiling


def test_another_rate_goes_on_from_the_last_state(whole, tmp_path, caplog):
    out = shutil.copytree(whole, tmp_path / "out")
    train(out, "--resume", "--lr", 0.02, "--steps", 14)
    assert f"--lr is 0.02 from step {NUM_STEPS} on; it was 0.05" in caplog.text
    assert float(rows(out)[-1]["lr"]) < 0.02
    caplog.clear()
    train(out, "--resume", "--lr", 0.02, "--steps", 15)
    assert not caplog.records


def infinite_at(failing: int, above: float):
    """Losses that are infinite at a step, for a rate of learning that is too high."""

    def losses(forward, step, lr):
        found = toy_losses(forward, step)
        return {name: loss * (float("inf") if step == failing and lr > above else 1) for name, loss in found.items()}

    return losses


def test_a_gradient_that_is_not_finite_leaves_a_state_and_its_remedy_works(tmp_path):
    """Weights stay unspoilt, and a lower rate goes on from the last whole state."""
    losses = infinite_at(7, above=0.03)
    with pytest.raises(
        ValueError, match=r"at step 7 with --lr 0.05: the run has diverged; lower --lr and use --resume"
    ):
        train(tmp_path, losses=lambda forward, step: losses(forward, step, 0.05))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 5
    assert all(value.isfinite().all() for value in state["model"].values())
    train(tmp_path, "--resume", "--lr", 0.02, losses=lambda forward, step: losses(forward, step, 0.02))
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == NUM_STEPS


def test_a_gradient_that_is_not_finite_before_the_first_state(tmp_path):
    losses = infinite_at(2, above=0.03)
    with pytest.raises(ValueError, match=r"at step 2 with --lr 0.05: the run has diverged; lower --lr and start again"):
        train(tmp_path, losses=lambda forward, step: losses(forward, step, 0.05))
    train(tmp_path, "--lr", 0.02, losses=lambda forward, step: losses(forward, step, 0.02))
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == NUM_STEPS


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.clear(),
        lambda state: state.pop("step"),
        lambda state: state.pop("optimizer"),
        lambda state: state.pop("settings"),
        lambda state: state["settings"].pop("seed"),
        lambda state: state["settings"].pop("lr"),
        lambda state: state.update(step="5"),
        lambda state: state.update(step=None),
        lambda state: state.update(step=-1),
        lambda state: state.update(step=10**9),
        lambda state: state.update(model=[]),
        lambda state: state["model"].clear(),
        lambda state: state["model"].update(weight=torch.zeros(3, 3)),
        lambda state: state["model"].update(weight=torch.full((1, 2), torch.nan)),
        lambda state: state["model"].update(weight="text"),
        lambda state: state["model"].update(more=torch.zeros(1)),
        lambda state: state["ema"].pop("bias"),
        lambda state: state["optimizer"].clear(),
        lambda state: state["optimizer"]["adamw"].update(param_groups=[]),
        lambda state: state["optimizer"]["adamw"].update(param_groups=3),
        lambda state: state["optimizer"]["adamw"].update(state={7: {}}),
        lambda state: state["optimizer"]["adamw"].update(state=[1]),
        lambda state: state["optimizer"]["adamw"]["state"][0].pop("exp_avg"),
        lambda state: state["optimizer"]["adamw"]["state"][0].update(exp_avg=torch.zeros(9)),
        lambda state: state["optimizer"]["adamw"]["state"][0].update(exp_avg=torch.full((1, 2), torch.nan)),
        lambda state: state["optimizer"]["adamw"]["state"][0].update(step="many"),
    ],
)
def test_states_of_another_kind_are_one_line(whole, tmp_path, change):
    out = shutil.copytree(whole, tmp_path / "out")
    state = torch.load(out / "state.pt", weights_only=True)
    change(state)
    torch.save(state, out / "state.pt")
    before = (out / "state.pt").read_bytes()
    with pytest.raises(
        UserError, match=r"state\.pt (is no training state|does not fit the model)|--steps 14"
    ) as caught:
        train(out, "--resume", "--steps", 14)
    assert "\n" not in str(caught.value)
    assert (out / "state.pt").read_bytes() == before


@pytest.mark.parametrize("value", [3, [1, 2], {"weight": torch.zeros(2)}, torch.zeros(3), None])
def test_other_pickles_are_no_states(whole, tmp_path, value):
    torch.save(value, tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"state\.pt is no training state of this program: it lacks step, model"):
        train(tmp_path, "--resume")


@pytest.mark.parametrize("num", [1, 3, 12, 25])
def test_a_cut_last_line_of_the_log_is_dropped(whole, tmp_path, num):
    out = shutil.copytree(whole, tmp_path / "out")
    log = (out / "loss.csv").read_text()
    (out / "loss.csv").write_text(log[:-num])
    train(out, "--resume", "--steps", 14)
    assert [row["step"] for row in read_losses(out / "loss.csv")] == [2, 4, 5, 6, 8, 10, 14]


@pytest.mark.parametrize("text", [None, "", "step,err", "\ufeff"])
def test_a_log_that_is_gone_or_empty_begins_anew(whole, tmp_path, text):
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "loss.csv").unlink()
    if text is not None:
        (out / "loss.csv").write_text(text, encoding="utf-8")
    train(out, "--resume", "--steps", 14)
    assert [row["step"] for row in read_losses(out / "loss.csv")] == [14]


def test_a_log_of_another_system_is_read(whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "loss.csv").write_bytes(b"\xef\xbb\xbf" + (whole / "loss.csv").read_bytes().replace(b"\n", b"\r\n"))
    assert read_losses(out / "loss.csv") == read_losses(whole / "loss.csv")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("size", "other"),
        lambda text: text.replace(",size", ""),
        lambda text: "\n" + text,
        lambda text: text.replace("\n4,", "\nfour,"),
        lambda text: text.replace("\n4,", "\n4,4,"),
        lambda text: text.replace("\n4,", "\n\n4,"),
        lambda text: "<!DOCTYPE html>\n<html>\n",
    ],
)
def test_a_log_of_another_kind_is_one_line_and_can_be_moved_away(whole, tmp_path, damage):
    out = shutil.copytree(whole, tmp_path / "out")
    text = damage((out / "loss.csv").read_text())
    (out / "loss.csv").write_text(text)
    with pytest.raises(UserError, match=r"loss log .*; move it away, and --resume begins a new one") as caught:
        train(out, "--resume", "--steps", 14)
    assert "\n" not in str(caught.value)
    assert (out / "loss.csv").read_text() == text
    (out / "loss.csv").rename(out / "old.csv")
    train(out, "--resume", "--steps", 14)


def test_a_folder_removed_meanwhile_is_one_line(tmp_path):
    def losses(forward, step):
        if step == 3:
            shutil.rmtree(tmp_path / "out")
        return toy_losses(forward, step)

    with pytest.raises(UserError, match=r"loss\.csv was removed during the run; start again"):
        train(tmp_path / "out", losses=losses)
    train(tmp_path / "out")


def test_a_loss_log_removed_beside_a_state_is_one_line_and_its_remedy_works(tmp_path):
    def losses(forward, step):
        if step == 7:
            (tmp_path / "loss.csv").unlink()
        return toy_losses(forward, step)

    with pytest.raises(UserError, match=r"loss\.csv was removed during the run; use --resume"):
        train(tmp_path, losses=losses)
    train(tmp_path, "--resume")
    assert [row["step"] for row in rows(tmp_path)] == ["6", "8", "10", "12"]


def test_a_disk_that_fills_up_keeps_the_state_before(tmp_path):
    """An error of the system, which commands show in a line, and a run that goes on when there is space."""

    class Large(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 1)
            self.ballast = nn.Parameter(torch.zeros(10_000))

    def run(*more: object, limit: int | None) -> None:
        args = flags(tmp_path, *more)
        training = Training.begin(Large(), args)

        def losses(forward, step):
            if step == 7 and limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            return toy_losses(forward, step)

        fit(training, losses, args, World(0, 1, CPU), labels=LABELS, settings={}, save_grid=lambda *_: None)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="File too large"):
            run(limit=20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 5
    assert not list(tmp_path.glob(".*partial*"))
    run("--resume", limit=None)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == NUM_STEPS
