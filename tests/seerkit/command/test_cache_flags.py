"""Flags of caches: what is asked for in vain or twice is refused, and a file of one's own methods may fail in any way."""

import json
import re
import sys

import pytest

from cache_dic import METHODS, PRESETS, SCHEDULES, Preset, UserError, accepted_settings, make_cache
from seerkit.command import cache_flags
from seerkit.command.cache_flags import add_cache_flags, caches_from_flags, for_compiling, load_plugin
from seerkit.command.cli import Parser

USUAL = Preset(interval=4, max_order=4, warmup_steps=2, orders={3: 3}, compare_intervals=(3, 5))


@pytest.fixture(autouse=True)
def _preset(monkeypatch):
    monkeypatch.setitem(PRESETS, "usual", USUAL)


def caches(*flags, num_steps=50, preset="usual"):
    parser = Parser("Sample.", "sample.py", prog="sample.py")
    add_cache_flags(parser, preset)
    args = parser.parse_args([*map(str, flags)])
    return caches_from_flags(args, preset, num_steps=num_steps)


@pytest.mark.parametrize(
    ("flags", "labels"),
    [
        ("", ["taylorseer-N4-W2-O4"]),
        ("--interval 3", ["taylorseer-N3-W2-O3"]),
        ("--interval 3 5", ["taylorseer-N3-W2-O3", "taylorseer-N5-W2-O4"]),
        ("--interval 3 --interval 5", ["taylorseer-N3-W2-O3", "taylorseer-N5-W2-O4"]),
        ("--set interval=3", ["taylorseer-N3-W2-O3"]),
        ("--set max_order=1 --set warmup_steps=3", ["taylorseer-N4-W3-O1"]),
        ("--schedule diffusers", ["taylorseer-diffusers-N4-W2-O4"]),
        ("--schedule fora --method fora", ["fora-fora-N4"]),
        ("--full-steps 0,1,5", ["taylorseer-full_steps=0,1,5-O4-W2"]),
        ("--schedule explicit --full-steps 0,1,5", ["taylorseer-full_steps=0,1,5-O4-W2"]),
        ("--method taylorseer fora --max-order 1", ["taylorseer-N4-W2-O1", "fora-N4-W2"]),
        ("--method uncached", ["uncached"]),
        ("--method taylorseer uncached --interval 3", ["taylorseer-N3-W2-O3", "uncached"]),
        ("--compare --interval 3", ["uncached", "taylorseer-N3-W2-O3", "fora-N3-W2"]),
        ("--compare --method fora", ["uncached", "fora-N3-W2", "fora-N5-W2"]),
        ("--compare --full-steps 0,1", ["uncached", "taylorseer-full_steps=0,1-O4-W2", "fora-full_steps=0,1"]),
    ],
)
def test_caches_by_label(flags, labels):
    assert list(caches(*flags.split())) == labels


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--set max_order=abc", "max_order = 'abc' must be an integer"),
        ("--set max_order=1.5", "max_order = 1.5 must be an integer"),
        ("--set max_order=nan", "max_order = nan must be an integer"),
        ("--set max_order=", "max_order = '' must be an integer"),
        ("--set max_order=1_0", "max_order = '1_0' must be an integer"),
        ("--set max_order=true", "max_order = True must be an integer"),
        ("--set max_order=99999999999999999999", "max_order = 99999999999999999999 must be at most"),
        ("--set max_order=" + "9" * 5000, "max_order = inf must be an integer"),
        ("--set interval=abc", "interval = 'abc' must be an integer"),
        ("--set interval=0", "interval = 0 must be an integer of at least 1"),
        ("--set warmup_steps=2.5", "warmup_steps = 2.5 must be an integer"),
        ("--set warmup_steps=51", "warmup_steps = 51 must lie between 1 and the number of steps, 50"),
        ("--set full_steps=0,1", "--set full_steps=0,1 is no list; give --full-steps"),
        ("--set interval=3 --interval 3", "interval is given by --set interval=3 and by --interval too"),
        ("--set max_order=3 --max-order 3", "max_order is given by --set max_order=3 and by --max-order too"),
        ("--set max_order=3 --set max_order=2", "max_order is given by --set max_order=2 and by --set too"),
        ("--set maxorder=3", "maxorder = 3 has no effect with taylorseer; .*; did you mean 'max_order'"),
        ("--set ../../x=3", r"\.\./\.\./x = 3 has no effect"),
        ("--method fora --max-order 2", "max_order = 2 has no effect with fora"),
        ("--method fora --schedule fora --warmup-steps 3", "warmup_steps = 3 has no effect with fora"),
        ("--method taylorseer taylorseer", "--method names taylorseer 2 times"),
        ("--method fora --method fora", "--method names fora 2 times"),
        ("--interval 3 5 3", "--interval names 3 2 times"),
        ("--interval 10001", "interval = 10001 must be at most 10000"),
        ("--max-order 1000", "max_order = 1000 must be at most 20"),
        ("--warmup-steps 51", "warmup_steps = 51 must lie between 1 and the number of steps, 50"),
        ("--full-steps 0,1 --interval 3", "interval and --full-steps exclude each other"),
        ("--full-steps 0,1 --warmup-steps 2", "warmup_steps and --full-steps exclude each other"),
        ("--full-steps 0,1 --set interval=3", "interval and --full-steps exclude each other"),
        ("--full-steps 0,1 --schedule taylorseer", "leave out --schedule taylorseer"),
        ("--full-steps 0,99", "full_steps ends with 99, but the run has steps 0 … 49"),
        ("--full-steps 1,2", "begin with 0"),
        ("--schedule explicit", "--schedule explicit needs --full-steps"),
        ("--method uncached --interval 5", "interval without effect: --method uncached computes every step"),
        ("--method uncached --max-order 5", "max_order without effect"),
        ("--method uncached --warmup-steps 5", "warmup_steps without effect"),
        ("--method uncached --full-steps 0,1", "full_steps without effect"),
        ("--method uncached --set x=1", "x without effect"),
        ("--method uncached --schedule fora", "--schedule without effect"),
        ("--method uncached --engine stack", "--engine without effect"),
        ("--method uncached --telemetry", "--telemetry without effect"),
        ("--method uncached --memory-limit-gib 1", "--memory-limit-gib without effect"),
        ("--method uncached --compare", "--compare without effect"),
        ("--engine stack --accumulator-dtype float64", "--accumulator-dtype has no effect with --engine stack"),
        ("--method taylor", "method 'taylor' is unknown; .*; did you mean 'taylorseer'"),
        ("--method ../x", "method '../x' is unknown"),
    ],
)
def test_what_cannot_work_or_has_no_effect_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        caches(*flags.split())


@pytest.mark.parametrize(
    "flags",
    [
        ["--set", "="], ["--set", "=5"], ["--set", "max_order"], ["--set", ""], ["--full-steps", ""], ["--full-steps", "0,1,"],
        ["--full-steps", "0,1.5"], ["--full-steps", "0;1"], ["--full-steps", "0,1_0"], ["--full-steps", "0,٣"],
        ["--interval", "9" * 20], ["--interval", " 3"], ["--max-order", "9" * 20], ["--max-order", "nan"],
        ["--warmup-steps", "1e3"], ["--memory-limit-gib", "1e308"], ["--memory-limit-gib", "nan"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_no_value_is_refused_by_the_parser(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        caches(*flags)
    assert caught.value.code == 2
    assert re.fullmatch(r"sample.py: error: argument --[^\n]* \(see --help\)\n", capsys.readouterr().err)


@pytest.mark.parametrize("num_steps", [10**6, 10**20])
@pytest.mark.parametrize("flags", ["", "--method uncached", "--compare", "--full-steps 0"])
def test_more_steps_than_a_plan_has_are_refused(flags, num_steps):
    with pytest.raises(UserError, match=f"num_steps = {num_steps} must be at most 10000"):
        caches(*flags.split(), num_steps=num_steps)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_default_warm_up_is_capped_and_a_given_one_is_not(num_steps):
    (cache,) = caches(num_steps=num_steps, preset="flux").values()
    assert cache.plan(num_steps).full_steps == tuple(range(num_steps))
    with pytest.raises(UserError, match="must lie between 1 and the number of steps"):
        caches("--warmup-steps", num_steps + 1, num_steps=num_steps, preset="flux")


def test_help_tells_the_default_warm_up(capsys):
    with pytest.raises(SystemExit):
        caches("--help")
    assert "(default: the method's own, else 2, or as" in " ".join(capsys.readouterr().out.split())


# ---------------------------------------------------------------------------------------------------------------- plugins


DAMPED = """
from __future__ import annotations
from dataclasses import dataclass
from cache_dic import register

@register("damped", interval=4, warmup_steps=2)
@dataclass(frozen=True, kw_only=True)
class Damped:
    damping: float = 0.5
    mode: str = "linear"
    sharp: bool = False
    kind = None

    def weights(self, full_steps, step):
        return [1.0 if len(full_steps) < 2 else self.damping]
"""


@pytest.fixture
def plugin(tmp_path):
    """`plugin(text)` -> the path of a file with it."""

    def write(text: str | bytes, name: str = "mine.py"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize("name", ["mine.py", "json.py", "torch.py", "my method.py", "dataclasses.py"])
def test_a_file_with_annotations_as_text(plugin, name):
    """Dataclasses look their module up; the file's name shadows no library."""
    made = caches("--plugin", plugin(DAMPED, name), "--method", "damped", "--set", "damping=1")
    assert list(made) == ["damped-N4-W2-damping=1-mode=linear-sharp=False"]
    assert json is sys.modules["json"]
    assert json.loads("1") == 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("mode=5", "5"),
        ("mode=true", "true"),
        ("mode=a=b", "a=b"),
        ("sharp=true", True),
        ("sharp=False", False),
        ("damping=2", 2),
    ],
)
def test_settings_are_read_by_the_type_of_their_field(plugin, setting, value):
    (cache,) = caches("--plugin", plugin(DAMPED), "--method", "damped", "--set", setting).values()
    found = getattr(cache.forecaster, setting.partition("=")[0])
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("damping=x", "damping = 'x' must be a finite number"),
        ("damping=", "damping = '' must be a finite number"),
        ("damping=nan", "damping = nan must be a finite number"),
        ("damping=1e30", r"weight of full step 5 for step 6, .*mine\.py:14\)"),
        ("sharp=1", "sharp = 1 must be true or false"),
        ("dampnig=1", "did you mean 'damping'"),
    ],
)
def test_settings_of_a_wrong_type_are_named(plugin, setting, message):
    with pytest.raises(UserError, match=message.replace("full step 5 for step 6", r"full step \d for step \d")):
        caches("--plugin", plugin(DAMPED), "--method", "damped", "--set", setting)


@pytest.mark.parametrize(
    ("registered", "flags", "intervals"),
    [
        ("interval=7, ", "", [7]),
        ("interval=7, ", "--compare", [7]),
        ("interval=7, ", "--compare --interval 2 3", [2, 3]),
        ("interval=7, ", "--compare --set interval=6", [6]),
        ("", "", [4]),
        ("", "--compare", [3, 5]),
    ],
)
def test_a_plugin_is_sampled_at_the_interval_that_it_registers(plugin, registered, flags, intervals):
    """Methods of ours beside it, and those that register none, at the usual ones."""
    path = plugin(DAMPED.replace("interval=4, ", registered))
    made = caches("--plugin", path, "--method", "damped", "fora", *flags.split())
    found = [cache.schedule_settings["interval"] for cache in made.values() if cache.method == "damped"]
    assert found == intervals
    ours = [cache.schedule_settings["interval"] for cache in made.values() if cache.method == "fora"]
    assert ours == ([4] if not flags else [3, 5] if flags == "--compare" else intervals)


def test_help_tells_the_intervals_of_a_comparison(capsys):
    with pytest.raises(SystemExit):
        caches("--help")
    told = " ".join(capsys.readouterr().out.split())
    assert "unless --method is given, FORA, at intervals 3 5 unless --interval" in told


def test_a_file_given_twice_or_loaded_again_is_run_anew(plugin):
    path = plugin(DAMPED)
    caches("--plugin", path, "--plugin", path, "--method", "damped")
    (before,) = caches("--plugin", path, "--method", "damped").values()
    plugin(DAMPED.replace("self.damping]", "self.mode and 0.3]"))
    (after,) = caches("--plugin", path, "--method", "damped").values()
    assert before.label == after.label
    assert before.plan(9).claim() != after.plan(9).claim(), "other weights make another claim"
    renamed = path.rename(path.with_name("renamed.py"))
    del METHODS["damped"]
    (again,) = caches("--plugin", renamed, "--method", "damped").values()
    assert again.plan(9).claim() == after.plan(9).claim(), "another name of the file makes none"


def test_a_file_that_was_edited_within_a_second_is_read(plugin):
    """Bytecode is kept by time and size."""
    for weight in ("0.25", "0.75"):
        path = plugin(DAMPED.replace("self.damping]", f"{weight}]"))
        (cache,) = caches("--plugin", path, "--method", "damped").values()
        assert cache.plan(8).max_weight == float(weight)
    assert [file.name for file in path.parent.iterdir()] == ["mine.py"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_any_editor(plugin, encoding):
    path = plugin(DAMPED.replace("\n", "\r\n").encode(encoding))
    (cache,) = caches("--plugin", path, "--method", "damped").values()
    assert cache.plan(9).max_weight > 0


def test_several_files(plugin):
    second = DAMPED.replace("damped", "other")
    flags = ["--plugin", plugin(DAMPED), "--plugin", plugin(second, "second.py"), "--method", "damped", "other"]
    assert [cache.method for cache in caches(*flags).values()] == ["damped", "other"]


@pytest.mark.parametrize("more", [[], ["--method", "taylorseer"], ["--compare"], ["--method", "dampd"]])
def test_a_file_that_no_method_is_asked_of_is_refused(plugin, more):
    with pytest.raises(UserError, match=r"--plugin .*mine\.py has no effect without --method damped"):
        caches("--plugin", plugin(DAMPED), *more)


HEAD = "from dataclasses import dataclass\nfrom cache_dic import register\n"
BODY = "\n@dataclass(frozen=True)\nclass A:\n    def weights(self, full_steps, step):\n        return [1.0]\n"
FAILS = {
    "exception": ("x = 1\n1 / 0\n", r"mine\.py:2: ZeroDivisionError: division by zero"),
    "deep": ("def f():\n    raise KeyError('k')\nf()\n", r"mine\.py:2: KeyError: 'k'"),
    "library": ("import json\n\njson.loads('{')\n", r"mine\.py:3: JSONDecodeError"),
    "exit": ("import sys\nsys.exit()\n", r"mine\.py:2: SystemExit"),
    "exit 0": ("raise SystemExit(0)", r"mine\.py:1: SystemExit: 0"),
    "syntax": ("x = 1\ndef f(:\n", r"mine\.py:2: SyntaxError"),
    "indent": ("x = 1\n  y = 2\n", r"mine\.py:2: IndentationError"),
    "no UTF-8": (b"x = 1\ny = '\xff'\n", r"mine\.py is not UTF-8 text"),
    "zeros": (b"\0\0", r"mine\.py.*(SyntaxError|ValueError).*null bytes"),
    "missing import": ("import not_there_at_all\n", r"mine\.py:1: ModuleNotFoundError"),
    "relative import": ("from . import x\n", r"mine\.py:1: ImportError"),
    "recursion": ("def f():\n    f()\nf()\n", r"mine\.py:2: RecursionError"),
    "nothing": ("", r"mine\.py: registered no method"),
    "built-in": (HEAD + '@register("fora")' + BODY, r"mine\.py:3: a method called 'fora' is registered already"),
    "twice": (HEAD + ('@register("a")' + BODY) * 2, r"mine\.py:8: a method called 'a' is registered already"),
    "path": (HEAD + '@register("../a")' + BODY, r"mine\.py:3: a method's name .*; '\.\./a' is not"),
    "no dataclass": (HEAD + '@register("a")\nclass A:\n    pass\n', r"mine\.py:\d: method 'a' is no dataclass"),
    "wrong order": (
        HEAD + '@dataclass\n@register("a")\nclass A:\n    def weights(self, f, s): return [1]\n',
        r"mine\.py:\d: method 'a' is no dataclass; write @dataclass\(…\) between",
    ),
    "no weights": (HEAD + '@register("a")\n@dataclass\nclass A:\n    x: int = 1\n', "class A has no weights"),
    "schedule": (HEAD + '@register("a", schedule="b")' + BODY, r"mine\.py:3: schedule 'b' is unknown"),
    "default": (
        HEAD + '@register("a", x=3)' + BODY,
        r"mine\.py:3: schedule 'taylorseer' of method 'a' has no setting x",
    ),
}


@pytest.mark.parametrize(("text", "message"), FAILS.values(), ids=FAILS)
def test_a_file_that_fails_is_told_with_its_line(plugin, text, message):
    path, before = plugin(text), dict(METHODS)
    with pytest.raises(UserError, match=message) as error:
        load_plugin(path)
    assert str(error.value).startswith(f"--plugin: {path}")
    assert before == METHODS, "nothing of it stays"


def test_a_file_that_fails_half_way_leaves_no_method_and_can_be_mended(plugin):
    load_plugin(plugin(DAMPED))
    with pytest.raises(UserError, match="ZeroDivisionError"):
        load_plugin(plugin(DAMPED.replace("damped", "other") + "\n1 / 0\n"))
    assert "damped" in METHODS
    assert "other" not in METHODS
    load_plugin(plugin(DAMPED.replace("damped", "other")))
    assert "other" in METHODS
    assert "damped" not in METHODS


def test_an_interruption_passes(plugin):
    with pytest.raises(KeyboardInterrupt):
        load_plugin(plugin("raise KeyboardInterrupt"))


WEIGHTS = {
    "none": ("pass", r"A of method 'a' gave None for step 2"),
    "text": ("return '1'", r"gave '1' for step 2"),
    "generator": ("yield 1.0", "gave <generator"),
    "nan": ("return [float('nan')]", "gave nan as the weight of full step 1 for step 2"),
    "huge": ("return [1e300]", r"gave 1e\+300 as the weight"),
    "error": ("return [1 / (step - 4)]", r"failed at step 4: .*mine\.py:7: ZeroDivisionError"),
    "exit": ("exit(0)", r"failed at step 2: .*mine\.py:7: SystemExit"),
}


@pytest.mark.parametrize(("body", "message"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_fail_are_told_with_file_and_line(plugin, body, message):
    path = plugin(HEAD + '@register("a", interval=4)' + BODY.replace("return [1.0]", body))
    with pytest.raises(UserError, match=message) as error:
        caches("--plugin", path, "--method", "a")
    assert re.search(r"mine\.py:[67]", str(error.value))


def test_a_field_that_is_refused_by_the_file_itself(plugin):
    check = "    x: float = 1.0\n    def __post_init__(self):\n        raise ValueError('x is too large')\n"
    path = plugin(HEAD + '@register("a", interval=4)' + BODY.replace("class A:\n", "class A:\n" + check))
    with pytest.raises(UserError, match=r"method 'a' cannot be made: .*mine\.py:8: ValueError: x is too large"):
        caches("--plugin", path, "--method", "a")


@pytest.mark.parametrize("name", ["nowhere.py", ".", "mine.txt", "mine", "mine.json"])
def test_what_is_no_python_file_is_refused(plugin, tmp_path, name):
    plugin(DAMPED, "mine.txt"), plugin(DAMPED, "mine"), plugin("{}", "mine.json")
    with pytest.raises(UserError, match=r"is not a file that ends in \.py"):
        load_plugin(tmp_path / name)


def test_a_cut_taylor_of_ones_own(plugin):
    """A subclass of a method of ours, with a default of its own."""
    text = (
        HEAD
        + "from cache_dic.forecast import Taylor\n@register('second', interval=3)\n@dataclass(frozen=True, kw_only=True)\n"
    )
    path = plugin(text + "class Second(Taylor):\n    max_order: int = 2\n")
    load_plugin(path)
    assert accepted_settings("second") == {"interval", "warmup_steps", "max_order"}
    assert list(caches("--plugin", path, "--method", "second", "--max-order", "2")) == ["second-N3-W2-O2"]


# ---------------------------------------------------------------------------------------------------- published rows, schedules


def test_a_comparison_shows_every_published_row_and_a_run_the_first():
    rows = METHODS["hicache"].presets["flux"]
    compared = caches("--compare", "--method", "hicache", preset="flux")
    assert [cache.forecaster.contraction for cache in list(compared.values())[1:]] == [r["contraction"] for r in rows]
    (alone,) = caches("--method", "hicache", preset="flux").values()
    assert (alone.schedule_settings["interval"], alone.forecaster.contraction) == (6, 0.5)
    (asked,) = caches("--method", "hicache", "--interval", "3", preset="flux").values()
    assert (asked.schedule_settings["interval"], asked.forecaster.max_order) == (3, 1)


def test_published_rows_are_not_mixed_with_other_settings_of_a_backbone():
    """FLUX's TaylorSeer warms up for 3 steps, Spectrum for 5."""
    (cache,) = caches("--method", "spectrum", preset="flux").values()
    assert cache.schedule_settings == {"warmup_steps": 5, "window": 2, "alpha": 0.75}
    assert cache.plan(50).full_steps[:6] == (0, 1, 2, 3, 4, 6)


def test_missing_settings_are_named_with_the_models_that_have_them():
    message = r"schedule 'magcache' of method 'magcache' needs table, which it has for flux-dev, .* and not for dit"
    with pytest.raises(UserError, match=message):
        caches("--method", "magcache", preset="dit")


def test_an_accumulator_dtype_where_nothing_is_summed_is_refused():
    with pytest.raises(UserError, match=r"--accumulator-dtype has no effect with spectrum-.*, which sum nothing"):
        caches("--method", "spectrum", "--accumulator-dtype", "float32", preset="flux")


STEADY = """
from dataclasses import dataclass, field
from cache_dic import Decider, register

@register("steady", engine="stack", threshold=0.3)
@dataclass(kw_only=True)
class Steady(Decider):
    threshold: float = 0.1
    kind: str = "mean"
    max_consecutive: int | None = 3
    seen: int = field(init=False, default=0)

    def decide(self, look):
        return look.since > 2
"""


def test_a_schedule_of_a_file_serves_its_own_method_and_others(plugin):
    path = plugin(STEADY)
    (own,) = caches("--plugin", path, "--method", "steady").values()
    assert (own.schedule, own.engine, own.schedule_settings["threshold"]) == ("steady", "stack", 0.3)
    flags = ["--plugin", path, "--schedule", "steady", "--set", "kind=5", "--max-order", "1"]
    (other,) = caches(*flags).values()
    assert (other.method, other.schedule, other.engine) == ("taylorseer", "steady", "folded")
    assert (other.schedule_settings["kind"], other.forecaster.max_order) == ("5", 1)
    assert other.label == "taylorseer-steady-kind==5-O1-W2"
    assert other.plan(20).least_full == 5, "at most three forecasts in a row"


def test_a_schedule_is_forgotten_with_its_file(plugin):
    for text in (STEADY, STEADY.replace("> 2", "> 1"), STEADY):
        load_plugin(plugin(text))
    with pytest.raises(UserError, match="ZeroDivisionError"):
        load_plugin(plugin(STEADY + "\n1 / 0\n"))
    assert "steady" in SCHEDULES
    load_plugin(plugin(STEADY.replace("steady", "calm")))
    assert "steady" not in SCHEDULES
    assert "calm" in SCHEDULES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("int | None = 3", "int | None = -1"), r"horizon of schedule 'steady' = -1 must be an integer of at least 0"),
        (("def decide(", "def decides("), r"class Steady has no decide\(self, look\)"),
        (('"steady", ', '"fora", '), "a method called 'fora' is registered already"),
        (('"steady", ', '"explicit", '), "a schedule called 'explicit' is registered already"),
        ((", threshold=0.3", ", treshold=0.3"), "schedule 'steady' of method 'steady' has no setting treshold"),
    ],
)
def test_schedules_that_cannot_be(plugin, change, message):
    flags = ["--plugin", plugin(STEADY.replace(*change)), "--method", "steady"]
    with pytest.raises(UserError, match=message):
        caches(*flags)


def test_an_unknown_schedule_is_named():
    with pytest.raises(UserError, match=r"schedule 'diffusrs' is unknown; .* did you mean 'diffusers'"):
        caches("--schedule", "diffusrs")


def test_compiling_has_no_effect_on_methods_that_compute_parts_which_is_said_once(capsys):
    cache_flags._tell_uncompiled.cache_clear()
    asked = {f"toca{n}": make_cache("toca", interval=n) for n in (3, 4)} | {"fora": make_cache("fora", interval=3)}
    assert all(cache.engine_settings.static_shapes for cache in for_compiling(asked).values())
    assert capsys.readouterr().err == (
        "warning: --compile has no effect on toca: its steps differ in what they compute, and each would be a graph of its "
        "own; they run as they are\n"
    )


def test_the_interval_that_a_class_of_ones_own_says_stands(tmp_path):
    """Against that of the backbone, as one that it is registered with does."""
    body = "    interval: int = 7\n\n    def decide(self, look):\n        return look.step % self.interval == 0\n"
    head = "from dataclasses import dataclass\nfrom cache_dic import Partial, register\n\n"
    (tmp_path / "own.py").write_text(f'{head}@register("own")\n@dataclass(kw_only=True)\nclass Own(Partial):\n{body}')
    (cache,) = caches("--plugin", str(tmp_path / "own.py"), "--method", "own").values()
    assert cache.schedule_settings["interval"] == 7
