"""What goes wrong in a user's file while it decides, learns or weights: one line with the step, the file and the line."""

import pytest
import torch

from cache_dic import UserError, make_cache
from seerkit.command.cache_flags import load_plugin

HEAD = """from dataclasses import dataclass, field
from cache_dic import Decider, register

@register("mine")
@dataclass(kw_only=True)
class Mine(Decider):
    steps: list = field(init=False, default_factory=list)

    def decide(self, look):
        {decide}

    def learn(self, look, output):
        {learn}

    {more}
"""
FAILS = {
    "an error": ({"decide": "return look.nothing"}, r"schedule Mine failed at step 0: .*mine\.py:10: AttributeError"),
    "a later error": (
        {"decide": "return 1 // (look.step - 3) > 5"},
        r"schedule Mine failed at step 3: .*mine\.py:10: ZeroDivisionError",
    ),
    "an exit": ({"decide": "raise SystemExit(0)"}, r"schedule Mine failed at step 0: .*mine\.py:10: SystemExit"),
    "no answer": ({"decide": "pass"}, r"schedule Mine decided None at step 0, where True, .*mine\.py:9\)"),
    "a number": ({"decide": "return 0.3"}, r"schedule Mine decided 0.3 at step 0, where True, .*mine\.py:9\)"),
    "while learning": (
        {"learn": "self.steps.remove(output)"},
        r"schedule Mine failed to learn from step 0: .*mine\.py:13: ValueError",
    ),
    "an unknown signal": (
        {"decide": "return look.time_signal('noon')"},
        r"schedule Mine failed at step 0: .*mine\.py:10: Toy has no signal 'noon' of the time; it has time_embedding",
    ),
    "too long a row": (
        {"decide": "return False", "more": "max_consecutive = 2"},
        r"schedule Mine wants a forecast at step 3, 3 steps after the last full one; its horizon is 2",
    ),
    "weights that are none": (
        {"decide": "return look.step < 4", "more": "def weights(self, full_steps, step): return [step * float('nan')]"},
        r"Mine of method 'mine' gave nan as the weight of full step \d+ for step \d+, .*mine\.py:\d+",
    ),
    "weights of the wrong number": (
        {"decide": "return look.step < 4", "more": "def weights(self, full_steps, step): return [1.0] * 50"},
        r"Mine of method 'mine' gave 50 weights for step 1 after full steps \(0\); between 1 and 1 are possible.*mine\.py",
    ),
    "weights that explode": (
        {
            "decide": "return look.step < 4",
            "more": "def weights(self, full_steps, step): return [4.0 ** max(0, step - 5)**2 if len(full_steps) == 4 else 1.0]",
        },
        r"gave 4294967296\.0 as the weight of full step 3 for step 9, where a number within ±16777216 is wanted",
    ),
    "weights that reach further back later": (
        {
            "decide": "return look.step < 6",
            "more": "def weights(self, full_steps, step): return [1.0] * (3 if len(full_steps) == 6 and step == 6 else 1)",
        },
        r"Mine reaches further back than 1 full steps at step 6",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "message"), FAILS.values(), ids=FAILS)
def test_errors_name_the_step_the_file_and_the_line(make_toy, trajectory, tmp_path, parts, message):
    path = tmp_path / "mine.py"
    path.write_text(HEAD.format(**{"decide": "return True", "learn": "pass", "more": ""} | parts))
    load_plugin(path)
    with pytest.raises(UserError, match=message) as error:
        trajectory(make_toy(), make_cache("mine", engine="stack"), num_steps=12)
    assert "\n" not in str(error.value)


def test_a_run_whose_schedule_failed_is_over(make_toy, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(HEAD.format(decide="return 1 // look.step > 5", learn="pass", more=""))
    load_plugin(path)
    model, x, timesteps = make_toy(), torch.randn(1, 3, 6, dtype=torch.float64), torch.linspace(1, 0.1, 4)
    run = make_cache("mine", engine="stack").start(model, x, timesteps, y=torch.tensor([0]))
    with pytest.raises(UserError, match="ZeroDivisionError"):
        model(x, timesteps[0], torch.tensor([0]), cache=run.at(0))
    with pytest.raises(ValueError, match="a step of this run failed; start a new run"):
        run.at(0)
