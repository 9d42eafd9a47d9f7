"""What goes wrong in a user's file while it decides, learns or weights: one line with the step, the file and the line."""

import json
import re

import pytest
import torch

from cache_dic import METHODS, SCHEDULES, UserError, make_cache
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
    "a count of bytes that fails": (
        {"more": "def kept_bytes(self, tokens): return {}['k']"},
        r"schedule Mine failed to say what it keeps: .*mine\.py:15: KeyError: 'k'",
    ),
    "a count of bytes that is text": (
        {"more": "def kept_bytes(self, tokens): return 'x'"},
        r"schedule Mine failed to say what it keeps: .*mine\.py:15: kept_bytes = 'x' must be an integer of at least 0",
    ),
    "a remark that is no text": (
        {"learn": "look.note(object())"},
        r"schedule Mine failed to learn from step 0: .*mine\.py:13: note = <object .*> must be text",
    ),
    "a number by a name of ours": (
        {"learn": "look.report(kind=1)"},
        "schedule 'mine' reports kind at step 0, which every step's record has already; report it by another name",
    ),
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


def test_what_a_schedule_writes_into_the_record_has_a_form_in_json(make_toy, trajectory, tmp_path):
    path = tmp_path / "mine.py"
    learn = "look.reported.update(x=float('nan'), y=output.mean(), z={1: object})"
    path.write_text(HEAD.format(decide="return look.step % 2 == 0", learn=learn, more=""))
    load_plugin(path)
    _, run = trajectory(make_toy(), make_cache("mine", engine="stack"), num_steps=4)
    first = json.loads(json.dumps(run.record(), allow_nan=False))["steps"][0]
    assert (first["x"], first["z"]) == ("nan", {"1": "<class 'object'>"})
    assert isinstance(first["y"], float)


TRAITS = {
    "text for a number": ("first_blocks = 'a'", "first_blocks of Mine = 'a' must be an integer of at least 0"),
    "less than none": ("last_blocks = -1", "last_blocks of Mine = -1 must be an integer of at least 0"),
    "text for a truth": ("by_branch = 'x'", "by_branch of Mine = 'x' must be true or false"),
    "a property that fails": ("verifies = property(lambda self: 1 // 0)", "ZeroDivisionError"),
}


@pytest.mark.parametrize(("line", "message"), TRAITS.values(), ids=TRAITS)
def test_what_a_schedule_says_of_itself_is_checked_before_a_run(tmp_path, line, message):
    path = tmp_path / "mine.py"
    path.write_text(HEAD.format(decide="return True", learn="pass", more=line))
    load_plugin(path)
    with pytest.raises(UserError, match=rf"method 'mine' cannot be made: .*mine\.py:\d+: {re.escape(message)}"):
        make_cache("mine")


FORECASTER = """from dataclasses import dataclass
from cache_dic import register

@register("mine", {registered})
@dataclass(frozen=True, kw_only=True)
class Mine:
    {more}

    def weights(self, full_steps, step):
        return [1.0]

    def bands(self, full_steps, step):
        return 1 // 0
"""
HOOKS = {
    "for_run fails": (
        "def for_run(self, n): return {}['k']",
        r"method 'mine' failed for a run of 8 steps: .*mine\.py:7: KeyError: 'k'",
    ),
    "for_run gives nothing": (
        "def for_run(self, n): pass",
        r"method 'mine' failed for a run of 8 steps: .*mine\.py:7: for_run gave None, where a class with weights",
    ),
    "labels": ("labels = 3", r"method 'mine' cannot be made: .*mine\.py:9: labels = 3 must have, by the name of a setting"),
    "engine": ("engine = 'x'", r"method 'mine' cannot be made: .*mine\.py:9: engine 'x' is unknown; choose from folded"),
    "bands": ("pass", r"Mine failed at step 2: .*mine\.py:13: ZeroDivisionError"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "message"), HOOKS.values(), ids=HOOKS)
def test_what_a_forecaster_has_beside_weights_fails_with_its_place(make_toy, trajectory, tmp_path, line, message):
    path = tmp_path / "mine.py"
    path.write_text(FORECASTER.format(registered="interval=2, warmup_steps=2", more=line))
    load_plugin(path)
    with pytest.raises(UserError, match=message):
        trajectory(make_toy(), make_cache("mine", engine="hidden"), num_steps=8)


@pytest.mark.parametrize(
    ("registered", "message"),
    [
        ("presets=3", "presets = 3 of method 'mine' must be lists of settings by model or backbone, such as"),
        ("presets={'flux': [3]}", r"presets = \{'flux': \[3\]\} of method 'mine' must be lists of settings"),
        ("presets={'flux': {'interval': 3}}", "must be lists of settings"),
        ("undefined=3", "undefined = 3 of method 'mine' must be reasons by model or backbone"),
        ("undefined={'flux': 3}", "must be reasons by model or backbone"),
    ],
)
def test_what_a_method_is_registered_with_is_checked(tmp_path, registered, message):
    path = tmp_path / "mine.py"
    path.write_text(FORECASTER.format(registered=registered, more="pass"))
    with pytest.raises(UserError, match=rf"--plugin: .*mine\.py:4: .*{message}"):
        load_plugin(path)


# --------------------------------------------------------------------------------------------------------------- claims

DECIDER = HEAD.format(decide="return look.step % 2 == 0", learn="pass", more="")
FIXED = FORECASTER.format(registered="interval=2, warmup_steps=2", more="pass").split("    def bands")[0]
PART = DECIDER.replace("Decider", "Partial") + "def work(self, call): return 'nothing'\n"
LATER = "[1.0] if len(full_steps) != 3 else [0.5]"  # rows that no sample of the weights holds


@pytest.mark.parametrize(
    ("text", "old", "new", "settings"),
    [
        (DECIDER, "% 2", "% 3", {}),
        (PART, "'nothing'", "'everything'", {}),
        (FIXED, "[1.0]", LATER, {"schedule": "easycache", "threshold": 0.1}),
        (FIXED + "    def bands(self, f, s): return [1], [1]\n", "[1], [1]", "[1], [2]", {"engine": "hidden"}),
    ],
    ids=["decide", "work", "weights of an open plan", "bands"],
)
def test_code_that_answers_while_sampling_is_claimed(tmp_path, text, old, new, settings):
    path, claims = tmp_path / "mine.py", []
    for version in (text, text.replace(old, new), text):
        path.write_text(version)
        load_plugin(path)
        claims.append(make_cache("mine", **settings).plan(12).claim())
    assert claims[0] == claims[2] != claims[1]
    there, here = (claim.pop("code")["Mine"] for claim in claims[:2])
    assert (claims[0], len(there)) == (claims[1], len(here)), "nothing else tells the two apart"

    del METHODS["mine"]
    SCHEDULES.pop("mine", None)
    load_plugin(path.rename(tmp_path / "renamed.py"))
    assert make_cache("mine", **settings).plan(12).claim() == claims[2], "another name of the file makes none"


def test_code_of_bases_from_another_file_is_claimed(tmp_path):
    base, mine = tmp_path / "base.py", tmp_path / "mine.py"
    mine.write_text(
        DECIDER.replace("(Decider)", "(SCHEDULES['base'])").replace("import Decider", "import SCHEDULES, Decider")
    )
    claims = []
    for version in (DECIDER, DECIDER + "    first_blocks = 1\n"):
        base.write_text(version.replace('"mine"', '"base"'))
        load_plugin(base)
        load_plugin(mine)
        claims.append(make_cache("mine").plan(12).claim())
    assert claims[0] != claims[1]


def test_a_plan_that_is_known_claims_no_code(tmp_path):
    path, claims = tmp_path / "mine.py", []
    for version in (FIXED, FIXED + "# a remark\n", FIXED.replace("[1.0]", "[0.5]")):
        path.write_text(version)
        load_plugin(path)
        claims.append(make_cache("mine").plan(12).claim())
    assert claims[0] == claims[1] != claims[2]
    assert "code" not in claims[0]


@pytest.mark.parametrize("method", ["easycache", "toca", "freqca"])
def test_methods_of_ours_claim_no_code(method):
    assert "code" not in make_cache(method, preset="flux").plan(12).claim()
