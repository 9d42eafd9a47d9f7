"""The process of the legacy environment: whole answers or an error, whatever its libraries do."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache_dic import UserError
from evaluation import legacy
from evaluation.legacy import LegacyError, LegacyWorker, Needed, legacy_facts, legacy_python, missing_lines

ROOT = Path(__file__).parents[2]
ANY = {}


def ask_vbench(worker: LegacyWorker, tmp_path: Path, limit_s: float = 60):
    (tmp_path / "videos").mkdir(exist_ok=True)
    (tmp_path / "videos" / "a fox-0.mp4").write_bytes(bytes(500_000))
    (tmp_path / "list.json").write_text('[{"prompt_en": "a fox", "dimension": ["temporal_flickering"]}]')
    arguments = {"full_info": str(tmp_path / "list.json"), "videos": str(tmp_path / "videos"), "out": str(tmp_path)}
    return worker.ask("vbench", ANY, limit_s=limit_s, dimension="temporal_flickering", device="auto", **arguments)


def test_an_environment_that_is_missing_or_was_not_finished_is_named_with_its_command(no_legacy):
    with pytest.raises(UserError, match=r"make it .* with `bash scripts/setup_legacy_eval.sh`"):
        legacy_python()
    (no_legacy / "bin").mkdir(parents=True)
    (no_legacy / "bin" / "python").touch()
    with pytest.raises(UserError, match=r"not installed in .*legacy-eval/.venv"):
        legacy_python()
    (no_legacy / legacy.STAMP).touch()
    assert legacy_python() == no_legacy / "bin" / "python"


def test_another_python_can_be_named(monkeypatch):
    monkeypatch.setenv(legacy.VARIABLE, sys.executable)
    assert legacy_python() == Path(sys.executable)
    monkeypatch.setenv(legacy.VARIABLE, "/nowhere/python")
    with pytest.raises(UserError, match=r"TAYLORSEER_LEGACY_PYTHON=/nowhere/python is no program"):
        legacy_python()


def test_facts(stubbed):
    facts = legacy_facts()
    assert facts["vbench_folder"].endswith("legacy_stub/vbench")
    assert facts["has_detectron2"] is False
    assert facts["python"].startswith("3.")
    assert "numpy" in facts["versions"]


def test_what_libraries_print_is_no_part_of_an_answer_and_a_process_answers_again(stubbed, tmp_path, monkeypatch):
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path))
    with LegacyWorker(log=tmp_path / "log") as worker:
        for _ in range(2):
            answer = ask_vbench(worker, tmp_path)
            assert answer == {"score": 0.5, "values": [["a fox-0.mp4", 0.5]], "device": "cpu"}
    assert (tmp_path / "log").read_text().count("and by its native code") == 2


def test_packages_of_this_environment_are_not_handed_on(stubbed, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    probe = stubbed.python.with_name("probe")
    probe.write_text('#!/bin/sh\nread line\necho "{\\"result\\": \\"$PYTHONPATH;$HF_HUB_OFFLINE;$MORE\\"}"\n')
    probe.chmod(0o755)
    monkeypatch.setenv(legacy.VARIABLE, str(probe))
    with LegacyWorker(variables={"MORE": "set"}) as worker:
        assert worker.ask("facts", str, limit_s=30) == ";1;set"


def test_an_error_of_a_library_is_told_and_the_process_goes_on(stubbed, tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_VBENCH", "exit")
    with LegacyWorker() as worker:
        with pytest.raises(LegacyError, match=r"vbench .* ended with SystemExit: no such weights") as caught:
            ask_vbench(worker, tmp_path)
        assert caught.value.kind == "SystemExit"
        assert worker.ask("facts", dict, limit_s=60)["has_detectron2"] is False


def test_a_crash_is_told_with_what_was_printed_last(stubbed, tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_VBENCH", "crash")
    with LegacyWorker(log=tmp_path / "log") as worker:
        with pytest.raises(LegacyError, match=r"by itself \(exit status 3\); .*: .*native code gave up \(all .*log\)"):
            ask_vbench(worker, tmp_path)
        with pytest.raises(LegacyError, match=r"has been ended after an earlier error"):
            worker.ask("facts", dict, limit_s=60)


def test_a_process_that_is_late_is_ended(stubbed, tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_VBENCH", "hang")
    with LegacyWorker() as worker:
        process = worker._process
        with pytest.raises(
            LegacyError, match=r"vbench in the legacy environment took longer than 1\.5 s and was ended"
        ):
            ask_vbench(worker, tmp_path, limit_s=1.5)
        assert process.returncode is not None


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("progress: 10 %", "said what is no answer"),
        ("[1]", "said what is no answer"),
        ("{}", "said what is no answer"),
        ('{"result": {"score": 1}}', 'answered half: it lacks "values"'),
    ],
)
def test_half_an_answer_is_none(stubbed, monkeypatch, said, message):
    stubbed.python.write_text(f"#!/bin/sh\nread line\necho '{said}'\nsleep 60\n")
    with LegacyWorker() as worker, pytest.raises(LegacyError, match=message):
        worker.ask("vbench", {"score": int, "values": list}, limit_s=30)


def test_a_python_that_does_not_start_is_told_with_the_remedy(stubbed):
    stubbed.python.write_text("#!/nowhere/sh\n")
    with pytest.raises(
        LegacyError, match=r"cannot be started .* make it anew with `bash scripts/setup_legacy_eval.sh`"
    ):
        LegacyWorker().__enter__()


def test_one_process_at_a_time_works_on_a_log(stubbed, tmp_path):
    with LegacyWorker(log=tmp_path / "log"), pytest.raises(UserError, match=r"another process is at work on .*log"):
        LegacyWorker(log=tmp_path / "log").__enter__()
    with LegacyWorker(log=tmp_path / "log"):
        pass


ASKER = """
import sys
from evaluation.legacy import LegacyWorker
with LegacyWorker() as worker:
    print(worker._process.pid, flush=True)
    worker.ask("vbench", {}, limit_s=600, dimension="color", full_info="", videos=".", out=sys.argv[1], device="cpu")
"""


def test_a_process_does_not_outlive_who_asked(stubbed, tmp_path, monkeypatch):
    """Not even a killed one, and not in the midst of an answer."""
    monkeypatch.setenv("STUB_VBENCH", "hang")
    asker = subprocess.Popen([sys.executable, "-c", ASKER, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
    worker = Path("/proc") / asker.stdout.readline().strip()
    while not (tmp_path / "out").exists():  # it has begun
        time.sleep(0.05)
    assert worker.exists()
    asker.kill()
    asker.wait()
    deadline = time.monotonic() + 10
    while worker.exists() and (worker / "stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_missing_file_is_named_with_size_place_and_source(tmp_path):
    one = Needed(name="a/b.pt", size="3 MB", source="https://example.org/b.pt", instead=("a/b.safetensors",))
    assert missing_lines([one], tmp_path) == [f"{tmp_path}/a/b.pt (3 MB), from https://example.org/b.pt"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.safetensors").touch()
    assert missing_lines([one], tmp_path) == []
