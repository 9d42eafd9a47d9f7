"""VBench's scores: the official total, the videos that must be there, and answers that are whole or refused."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cache_dic import UserError
from evaluation import legacy, vbench_scores
from evaluation.legacy import LegacyError, MissingFilesError, legacy_python
from evaluation.metrics import mean_interval
from evaluation.vbench_dimensions import DIMENSIONS, check_missing, missing, summary, total_score
from evaluation.vbench_scores import check_videos, codecs, expected, read_full_info, score_dimension, score_videos
from seerkit.data.captions import HELD_OUT, word_indices
from seerkit.io.media import save_mp4

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "eval" / "vbench_embedded.json"
FLICKERING = "temporal_flickering"

# ------------------------------------------------------------------------------------------------------------- the total

PUBLISHED = {  # percent; dynamic_degree times its weight
    "subject_consistency": (95.21, 95.03, 94.72, 93.84),
    "background_consistency": (95.52, 95.19, 94.81, 94.10),
    "temporal_flickering": (97.87, 97.44, 96.98, 96.03),
    "motion_smoothness": (97.02, 96.78, 96.43, 95.40),
    "overall_consistency": (73.30, 72.97, 72.58, 72.36),
    "human_action": (90.40, 91.80, 91.00, 89.20),
    "aesthetic_quality": (61.12, 60.86, 60.62, 60.82),
    "imaging_quality": (64.47, 64.58, 64.14, 64.35),
    "color": (88.32, 86.43, 87.94, 87.40),
    "multiple_objects": (69.79, 68.26, 66.87, 64.45),
    "spatial_relationship": (53.85, 56.58, 56.01, 56.68),
    "scene": (47.79, 47.88, 45.99, 45.56),
    "appearance_style": (69.43, 69.85, 70.27, 70.98),
    "temporal_style": (66.98, 66.59, 66.54, 66.29),
    "object_class": (81.31, 83.53, 79.57, 79.79),
    "dynamic_degree": (30.14, 31.39, 30.14, 27.91),
}
"""HunyuanVideo uncached, intervals 3, 5, 6 (kalinplus/TaylorSeer, TaylorSeers-HunyuanVideo/docs/evaluation_results.md)."""
TOTALS = {
    "quality": (83.28, 83.27, 82.74, 81.92),
    "semantic": (71.24, 71.54, 70.75, 70.30),
    "total": (80.87, 80.93, 80.35, 79.59),
}


def raw_scores(column: int) -> dict[str, float]:
    """Raw scores that are published as these percentages."""
    raw = {}
    for name, percents in PUBLISHED.items():
        one = DIMENSIONS[name]
        raw[name] = one.low + percents[column] / 100 / one.weight * (one.high - one.low)
    return raw


@pytest.mark.parametrize("column", range(4))
def test_totals_are_those_of_an_independent_run(column):
    found = summary(raw_scores(column))
    for name, percents in TOTALS.items():
        assert found[name] == pytest.approx(percents[column], abs=0.01)
    assert total_score(raw_scores(column)) == found["total"]


def test_scores_are_normalised_as_officially_and_not_clipped():
    flickering = DIMENSIONS[FLICKERING]
    assert flickering.normalised(0.6293) == 0
    assert flickering.normalised(1.0) == 1
    assert flickering.normalised(0.98) == pytest.approx(0.946048, abs=1e-6)
    assert DIMENSIONS["motion_smoothness"].normalised(1.0) > 1
    assert DIMENSIONS["scene"].normalised(0.4111) == pytest.approx(0.5)


def test_a_missing_dimension_gives_no_total():
    raw = raw_scores(0)
    del raw["color"]
    found = summary(raw)
    assert found["quality"] == pytest.approx(83.28, abs=0.01)
    assert found["semantic"] is None
    assert found["total"] is None
    with pytest.raises(UserError, match=r"needs all 16 dimensions, and there is none of color$"):
        total_score(raw)


# ----------------------------------------------------------------------------------------------------------- what is there


def place(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_a_dimension_whose_weights_are_missing_names_file_place_and_size(stubbed, tmp_path):
    weights = tmp_path / "weights"
    (line,) = missing("dynamic_degree")
    assert line.startswith(f"{weights}/raft_model/models/raft-things.pth (about 21 MB), from https://")
    place(weights, "raft_model/models/raft-things.pth")
    assert missing("dynamic_degree") == []
    assert missing(FLICKERING) == []
    packages, *files = missing("object_class")
    assert packages.startswith("detectron2 in the legacy environment")
    assert [Path(one.split()[0]).name for one in files] == ["grit_b_densecap_objectdet.pth", "vocab.txt"]
    place(weights, "bert-base-uncased/vocab.txt", "bert-base-uncased/model.safetensors")
    (line,) = missing("scene")
    assert "tag2text_swin_14m.pth (about 4.5 GB)" in line
    with pytest.raises(UserError, match="dimension 'flicker' is unknown; choose from subject_consistency"):
        missing("flicker")


def test_what_several_dimensions_lack_is_told_once_with_what_can_be_scored(stubbed, tmp_path):
    with pytest.raises(MissingFilesError) as caught:
        check_missing([FLICKERING, "background_consistency", "appearance_style", "imaging_quality"])
    head, clip, musiq, hint = str(caught.value).splitlines()
    assert head == "VBench needs what is not here:"
    assert clip.startswith(
        f"  background_consistency, appearance_style: {tmp_path}/weights/clip_model/ViT-B-32.pt (about 0.35"
    )
    assert musiq.startswith("  imaging_quality: ")
    assert hint == f"Without them these can be scored: --dimensions {FLICKERING}"


def test_without_the_environment_its_command_is_named(no_legacy):
    (line,) = missing(FLICKERING)
    assert "bash scripts/setup_legacy_eval.sh" in line
    with pytest.raises(MissingFilesError, match="temporal_flickering: VBench and ImageReward run in an environment"):
        check_missing([FLICKERING])


# ----------------------------------------------------------------------------------------------------------------- videos

FOX, OWL = "a fox", "In a still frame, an owl. 3.5D"
ENTRIES = [
    {"prompt_en": FOX, "dimension": [FLICKERING]},
    {"prompt_en": "a cat", "dimension": ["color"], "auxiliary_info": {"color": "red"}},
    {"prompt_en": OWL, "dimension": [FLICKERING, "color"]},
]


def frames(seed: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """Videos of the prompts for flickering, two each, between other files."""
    folder = tmp_path_factory.mktemp("made") / "videos"
    for number, stem in enumerate((FOX, OWL)):
        for index in range(2):
            save_mp4(folder / f"{stem}-{index}.mp4", frames(2 * number + index), 8)
    (folder / "a fox-0.gif").write_bytes(b"GIF89a")
    (folder / "settings.json").write_text("{}")
    return folder


@pytest.fixture
def videos(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "videos")
    return tmp_path / "videos"


def test_the_videos_of_a_dimension_are_listed_in_its_order(videos):
    found = expected(ENTRIES, FLICKERING, videos)
    assert [video.name for video in found.videos] == [f"{p}-{n}.mp4" for p in (FOX, OWL) for n in (0, 1)]
    assert found.samples_per_prompt == 2
    assert len(expected(ENTRIES, FLICKERING, videos, 1).videos) == 2
    twice = expected([*ENTRIES, ENTRIES[0]], FLICKERING, videos)
    assert len(twice.videos) == 6
    assert len(twice.files) == 4


def test_a_video_that_is_not_there_is_named(videos):
    with pytest.raises(UserError, match=r"lacks 2 of the 6 videos of temporal_flickering: a fox-2\.mp4, In a still"):
        expected(ENTRIES, FLICKERING, videos, 3)
    (videos / f"{OWL}-1.mp4").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of the 4 .*: In a still frame, an owl\. 3\.5D-1\.mp4; make them"):
        expected(ENTRIES, FLICKERING, videos)
    with pytest.raises(UserError, match=r"lacks 1 of the 2 videos of color: a cat-0\.mp4"):
        expected(ENTRIES, "color", videos)
    with pytest.raises(UserError, match="no prompt of the list is for scene"):
        expected(ENTRIES, "scene", videos)
    with pytest.raises(UserError, match="lacks 2 of the 2 videos"):
        expected(ENTRIES, FLICKERING, videos / "missing")


def test_at_most_five_of_a_prompt_are_looked_at(tmp_path):
    for index in range(25):
        place(tmp_path, f"{FOX}-{index}.mp4")
    assert len(expected(ENTRIES[:1], FLICKERING, tmp_path).videos) == 5


def test_videos_called_by_a_name_go_by_their_prompt_in_vbench(videos):
    entries = [{"prompt_en": "the animal", "name": FOX, "dimension": [FLICKERING]}]
    first = expected(entries, FLICKERING, videos).videos[0]
    assert (first.name, first.path) == ("the animal-0.mp4", videos / "a fox-0.mp4")
    with pytest.raises(UserError, match="'a/b' has a slash"):
        expected([{"prompt_en": "a/b", "name": FOX, "dimension": [FLICKERING]}], FLICKERING, videos)


def test_videos_that_cannot_be_read_to_their_end_are_named(videos):
    whole, cut, short = (videos / f"a fox-{name}.mp4" for name in ("0", "1", "short"))
    cut.write_bytes(cut.read_bytes()[:-200])
    save_mp4(short, frames(9, count=1), 8)
    check_videos([whole])
    with pytest.raises(UserError, match=r"a fox-1\.mp4 cannot be read.*, video .*a fox-short\.mp4 has one frame"):
        check_videos([whole, cut, short])


def test_the_rate_factor_is_read_from_the_videos(tmp_path):
    for quality in (5, 8, "lossless"):
        save_mp4(tmp_path / f"{quality}.mp4", frames(0), 8, quality=quality)
    told = codecs([tmp_path / "5.mp4", tmp_path / "8.mp4", tmp_path / "5.mp4"])
    assert [one.split()[-1] for one in told] == ["crf=10.0", "crf=25.0"]
    assert codecs([tmp_path / "lossless.mp4"])[0].endswith("qp=0")
    place(tmp_path, "other.mp4")
    assert codecs([tmp_path / "other.mp4"]) == ["unknown"]


def test_the_list_of_the_embedded_models_is_of_captions_they_know():
    entries = read_full_info(EMBEDDED)
    for entry in entries:
        word_indices(entry["prompt_en"])
        assert entry["prompt_en"] not in HELD_OUT
        assert {*entry["dimension"]} <= DIMENSIONS.keys()
        assert (FLICKERING in entry["dimension"]) == (" still on " in entry["prompt_en"])
    assert sum(FLICKERING in entry["dimension"] for entry in entries) == 8


# ---------------------------------------------------------------------------------------------------------------- scoring


def score(videos: Path, work: Path, dimension: str = FLICKERING, entries=ENTRIES, **more):
    return score_dimension(dimension, expected(entries, dimension, videos), work, **more)


def test_a_dimension_is_scored_on_its_videos_alone_and_kept(stubbed, videos, tmp_path):
    work = tmp_path / "work"
    result = score(videos, work)
    sizes = {path.name: path.stat().st_size / 1e6 for path in videos.glob("*.mp4")}
    assert dict(result["values"]) == sizes
    assert result["raw"] == pytest.approx(statistics.fmean(sizes.values()))
    assert result["normalised_percent"] == pytest.approx(100 * (result["raw"] - 0.6293) / 0.3707)
    assert (result["num_videos"], result["samples_per_prompt"], result["device"]) == (4, 2, "cpu")
    assert [one.split()[-1] for one in result["codecs"]] == ["crf=25.0"]
    (call,) = stubbed.done
    assert call["videos"] == sorted(sizes), "and neither .gif nor .json"
    assert call["cache"] == str(tmp_path / "weights")
    assert sorted(path.name for path in work.iterdir()) == [f"{FLICKERING}.json", f"{FLICKERING}.log"]
    assert score(videos, work) == result
    assert len(stubbed.done) == 1, "kept"
    assert score(videos, work, resume=False)["raw"] == result["raw"]
    assert len(stubbed.done) == 2


@pytest.mark.slow
def test_what_was_scored_of_other_videos_prompts_weights_or_versions_is_not_kept(
    stubbed, videos, tmp_path, monkeypatch
):
    weights = tmp_path / "weights"
    place(weights, "raft_model/models/raft-things.pth")
    entries = [{**entry, "dimension": ["dynamic_degree"]} for entry in ENTRIES[::2]]

    def again() -> int:
        score(videos, tmp_path / "work", "dynamic_degree", entries)
        return len(stubbed.done)

    assert (again(), again()) == (1, 1)
    save_mp4(videos / f"{FOX}-0.mp4", frames(7), 8)
    assert (again(), again()) == (2, 2)
    (weights / "raft_model/models/raft-things.pth").write_bytes(b"others")
    assert (again(), again()) == (3, 3)
    entries[0]["auxiliary_info"] = {}
    assert (again(), again()) == (4, 4)
    facts = legacy.legacy_facts()
    monkeypatch.setattr(vbench_scores, "legacy_facts", lambda: {**facts, "versions": {"vbench": "0.2"}})
    assert (again(), again()) == (5, 5)
    (tmp_path / "work" / "dynamic_degree.json").write_text('{"claim": 3}')
    assert again() == 6


def test_the_interval_is_over_prompts(stubbed, videos, tmp_path):
    result = score(videos, tmp_path / "work")
    values = dict(result["values"])
    means = [statistics.fmean(values[f"{prompt}-{n}.mp4"] for n in (0, 1)) for prompt in (FOX, OWL)]
    found = mean_interval(means)
    assert result["interval_percent"] == pytest.approx([100 * (found[k] - 0.6293) / 0.3707 for k in ("low", "high")])
    assert score(videos, tmp_path / "work", entries=ENTRIES[:1])["interval_percent"] is None


@pytest.mark.parametrize(
    ("mode", "error", "message"),
    [
        (
            "skip",
            UserError,
            r"VBench answered 3 values of temporal_flickering for 4 videos, none of In a still.*-1\.mp4",
        ),
        ("nan", UserError, r"temporal_flickering is not finite: In a still frame, an owl\. 3\.5D-1\.mp4"),
        ("crash", LegacyError, r"ended by itself \(exit status 3\)"),
        ("pickle", LegacyError, "where you trust its source, set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"),
        ("weights", LegacyError, "WeightsError: the weights lack 2 of the 3 tensors of the model: b, c"),
    ],
)
def test_an_answer_that_is_not_whole_is_no_score(stubbed, videos, tmp_path, monkeypatch, mode, error, message):
    monkeypatch.setenv("STUB_VBENCH", mode)
    with pytest.raises(error, match=message):
        score(videos, tmp_path / "work")
    assert [path.name for path in (tmp_path / "work").iterdir()] == [f"{FLICKERING}.log"]
    monkeypatch.delenv("STUB_VBENCH")
    assert score(videos, tmp_path / "work")["num_videos"] == 4


def test_color_has_no_value_where_no_object_is_found(stubbed, videos, tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_VBENCH", "skip color")
    monkeypatch.setattr(vbench_scores, "check_missing", lambda _: None)
    result = score(videos, tmp_path / "work", "color", [ENTRIES[2]])
    assert (result["num_videos"], result["num_values"]) == (2, 1)


def test_unreadable_videos_are_told_before_vbench_starts(stubbed, videos, tmp_path):
    path = videos / f"{OWL}-0.mp4"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"an owl\. 3\.5D-0\.mp4 cannot be read to its end.*nothing is scored"):
        score(videos, tmp_path / "work")
    assert stubbed.done == []


def test_dino_is_found_by_torch_hub_where_vbench_keeps_it(stubbed, videos, tmp_path):
    weights = tmp_path / "weights" / "dino_model"
    place(weights, "facebookresearch_dino_main/hubconf.py", "dino_vitbase16_pretrain.pth")
    entries = [{"prompt_en": FOX, "dimension": ["subject_consistency"]}]
    score(videos, tmp_path / "work", "subject_consistency", entries)
    (call,) = stubbed.done
    assert call["hub"] == [str(weights / "dino_vitbase16_pretrain.pth")]
    assert call["cwd"] == str(weights.parent), "where bert-base-uncased is looked for"


def test_a_dimension_that_fails_leaves_the_others(stubbed, videos, tmp_path, monkeypatch):
    place(tmp_path / "weights", "raft_model/models/raft-things.pth")
    entries = [{**entry, "dimension": [FLICKERING, "dynamic_degree"]} for entry in ENTRIES[::2]]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    once = vbench_scores._run

    def run(dimension, *given):
        if dimension == FLICKERING:
            raise LegacyError("the disk was full")
        return once(dimension, *given)

    monkeypatch.setattr(vbench_scores, "_run", run)
    names = [FLICKERING, "dynamic_degree"]
    found = score_videos(videos, tmp_path / "list.json", names, tmp_path / "work")
    assert found["errors"] == {FLICKERING: "the disk was full"}
    assert [*found["dimensions"]] == ["dynamic_degree"]
    assert found["total"] is None


# ---------------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def command(load_command):
    return load_command("eval/vbench.py").main


def test_the_command_writes_a_record(stubbed, videos, tmp_path, command, capsys):
    (tmp_path / "list.json").write_text(json.dumps(ENTRIES))
    flags = [str(videos), "--full-info", str(tmp_path / "list.json"), "--dimensions", "able", "--out"]
    command([*flags, str(tmp_path / "out.json")])
    out, err = capsys.readouterr()
    record = json.loads((tmp_path / "out.json").read_text())
    scored = record["dimensions"][FLICKERING]
    assert (scored["num_videos"], record["total"], record["errors"]) == (4, None, {})
    assert "static filter" in record["notes"][FLICKERING]
    assert record["command_line"].startswith("python eval/vbench.py ")
    assert f"{FLICKERING}  {scored['raw']:.4f}" in out
    assert err.startswith(f"{FLICKERING}: ")
    assert (tmp_path / "out.vbench" / f"{FLICKERING}.json").is_file()


def test_a_plan_says_what_can_run_and_what_is_missing(stubbed, videos, tmp_path, command, capsys):
    (tmp_path / "list.json").write_text(json.dumps(ENTRIES))
    flags = [
        str(videos),
        "--full-info",
        str(tmp_path / "list.json"),
        "--out",
        str(tmp_path / "new" / "out.json"),
        "--dry-run",
    ]
    command(flags)
    plan = json.loads(capsys.readouterr().out)["dimensions"]
    assert [*plan] == [*DIMENSIONS]
    assert plan[FLICKERING] == {"can_run": True, "num_videos": 4, "missing": []}
    assert plan["scene"]["can_run"] is False
    assert "no prompt of the list is for scene" in plan["scene"]["missing"][-1]
    assert not (tmp_path / "new").exists()
    assert stubbed.done == []


def test_what_is_missing_stops_the_command_before_anything_runs(stubbed, videos, tmp_path, command):
    (tmp_path / "list.json").write_text(json.dumps([{"prompt_en": FOX, "dimension": [FLICKERING, "dynamic_degree"]}]))
    flags = [str(videos), "--full-info", str(tmp_path / "list.json"), "--out", str(tmp_path / "out.json")]
    with pytest.raises(MissingFilesError, match=r"dynamic_degree: .*raft-things\.pth \(about 21 MB\)"):
        command([*flags, "--dimensions", FLICKERING, "dynamic_degree"])
    assert stubbed.done == []
    with pytest.raises(UserError, match="dimension 'flicker' is unknown"):
        command([*flags, "--dimensions", "flicker"])


def test_a_failed_dimension_is_an_error_at_the_end(stubbed, videos, tmp_path, command, monkeypatch):
    monkeypatch.setenv("STUB_VBENCH", "nan")
    (tmp_path / "list.json").write_text(json.dumps(ENTRIES))
    flags = [str(videos), "--full-info", str(tmp_path / "list.json"), "--out", str(tmp_path / "out.json")]
    with pytest.raises(
        UserError, match=r"1 of 1 dimensions failed, the others are there: temporal_flickering: .* not finite"
    ):
        command([*flags, "--dimensions", FLICKERING])
    assert FLICKERING in json.loads((tmp_path / "out.json").read_text())["errors"]


def test_without_the_environment_the_command_names_the_one_that_makes_it(no_legacy, videos, tmp_path, command):
    for more in ((), ("--dry-run",), ("--full-info", str(EMBEDDED))):
        with pytest.raises((UserError, MissingFilesError), match=r"bash scripts/setup_legacy_eval\.sh"):
            command([str(videos), "--out", str(tmp_path / "out.json"), "--dimensions", FLICKERING, *more])


# ------------------------------------------------------------------------------------------------------------ the real one


@pytest.fixture(scope="session")
def real_legacy() -> Path:
    try:
        return legacy_python()
    except UserError as error:
        pytest.skip(f"needs the legacy environment: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["run_wan.sh", "run_hunyuan.sh"])
def test_temporal_flickering_end_to_end_on_videos_of_the_embedded_models(real_legacy, script, tmp_path, run_script):
    """From the script that samples to VBench's own score, which is 1 less the mean absolute difference of neighbours."""
    import cv2

    stills = [entry for entry in read_full_info(EMBEDDED) if FLICKERING in entry["dimension"]][:2]
    (tmp_path / "list.json").write_text(json.dumps(stills))
    flags = ["--interval", "2", "--num-steps", "4", "--vbench", "--prompt-file", tmp_path / "list.json"]
    made = subprocess.run(
        ["bash", ROOT / "scripts" / script, *flags, "--output-dir", tmp_path / "out"],
        env={**os.environ, "VIRTUAL_ENV": sys.prefix}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-2000:]
    (label,) = (path.name for path in (tmp_path / "out" / "state").iterdir())
    done = run_script(
        "eval/vbench.py",
        *(tmp_path / "out" / label, "--full-info", tmp_path / "list.json", "--dimensions", FLICKERING),
        *("--out", tmp_path / "scores.json"),
    )
    assert done.returncode == 0, done.stderr
    scored = json.loads((tmp_path / "scores.json").read_text())["dimensions"][FLICKERING]
    own = []
    for entry in stills:
        capture = cv2.VideoCapture(str(tmp_path / "out" / label / f"{entry['prompt_en']}-0.mp4"))
        pixels = []
        while (read := capture.read())[0]:
            pixels.append(read[1].astype(np.float64))
        own.append(1 - np.abs(np.diff(np.stack(pixels), axis=0)).mean() / 255)
    assert scored["num_videos"] == 2
    assert scored["raw"] == pytest.approx(np.mean(own), abs=1e-3), (
        "decoders of two versions of OpenCV may differ a little"
    )
    assert 0.8 < scored["raw"] < 1
