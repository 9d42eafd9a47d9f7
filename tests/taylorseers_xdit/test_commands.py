"""run_flux.py, run_hunyuan.py and run_wan.py: what they refuse before anything is loaded, and what they would do."""

import pytest

from seerkit.command.cli import run_command

FLUX, HUNYUAN, WAN = (f"TaylorSeers-xDiT/run_{name}.py" for name in ("flux", "hunyuan", "wan"))


@pytest.fixture
def run(load_command, capsys, monkeypatch):
    """`run(script, flags, processes)` -> exit code, stdout, stderr."""

    def call(script: str, flags: str, processes: int = 2) -> tuple[int, str, str]:
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        with pytest.raises(SystemExit) as stop:
            run_command(load_command(script).main, flags.split())
        return (stop.value.code, *capsys.readouterr())

    return call


@pytest.mark.parametrize("script", [FLUX, HUNYUAN, WAN])
@pytest.mark.parametrize(
    ("flags", "refusal"),
    [
        ("--pipefusion_parallel_degree 2", "PipeFusion spreads the blocks of a step over processes"),
        ("--use_cfg_parallel", "generate.py has --guidance-parallel"),
        ("--tensor_parallel_degree 2", "it spreads the features of a token over processes"),
        ("--ulysses_degree 4", "ulysses degree 4 does not divide the number of processes, 2"),
        ("--ulysses_degree 2 --ring_degree 2", "must make up the number of processes, 2"),
        ("--height 1000", "--height 1000 must be a multiple of 16"),
        ("--interval 0", "argument --interval"),
        ("--method toca --dry-run", "method 'toca' computes some tokens of a block"),
    ],
)
def test_what_does_not_go_with_caches_is_refused_before_anything_is_loaded(run, script, flags, refusal):
    code, _, err = run(script, f"--prompt fox {flags}")
    assert code == 2
    assert refusal in err


@pytest.mark.parametrize(
    ("script", "flags", "processes", "refusal"),
    [
        (
            FLUX,
            "--height 1040 --width 1040",
            2,
            "4225 tokens of the image or video are not the same number for each of 2",
        ),
        (
            FLUX,
            "--max-sequence-length 255",
            2,
            "255 tokens of the text (--max-sequence-length) are not the same number",
        ),
        (WAN, "", 16, "32760 tokens of the image or video"),
        (WAN, "--num-frames 80", 2, "--num-frames 80 must be 4n + 1, such as 81"),
        (HUNYUAN, "--backend diffusers", 2, "ContextParallelConfig has no plan for HunyuanVideoTransformer3DModel"),
        (FLUX, "", 2, "xfuser attends on GPUs, and torch"),
    ],
)
def test_uneven_lengths_and_machines_without_a_gpu_are_refused_by_name(run, script, flags, processes, refusal):
    if "on GPUs" in refusal:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU, and xfuser would attend on it")
    code, _, err = run(script, f"--prompt fox {flags}", processes)
    assert code == 2
    assert refusal in err


def test_a_plan_tells_full_steps_and_tokens(run):
    code, out, _ = run(WAN, "--prompt fox --num_inference_steps 12 --interval 3 --warmup-steps 1 --dry-run")
    assert code == 0
    assert "full steps (0, 3, 6, 9) of 12, 32760 tokens" in out


@pytest.mark.parametrize(
    ("script", "flags", "published"),
    [
        (FLUX, "", "flux+2Ddev"),
        (HUNYUAN, "", "hunyuan+2Dvideo"),
        (WAN, "", "wan+2Dt2v+2D14B"),
        (WAN, "--model Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "wan+2Dt2v+2D1.3B"),
    ],
)
def test_the_name_of_a_model_on_the_hub_finds_what_is_published_for_it(run, script, flags, published):
    code, out, _ = run(script, f"--prompt fox --method teacache --dry-run {flags}")
    assert code == 0
    assert f"calibration={published}: full steps decided while sampling" in out


def test_sharing_needs_a_transformer_and_a_process_group():
    nn = pytest.importorskip("torch.nn")
    pytest.importorskip("diffusers")
    from cache_dic import UserError
    from taylorseers_xdit import share

    class Pipeline:
        transformer = nn.Linear(2, 2)

    with pytest.raises(UserError, match="'xfusr' is unknown; choose from xfuser, diffusers; did you mean 'xfuser'"):
        share(Pipeline(), "xfusr")
    with pytest.raises(UserError, match="object has no transformer; give a pipeline of one of FluxTransformer2DModel"):
        share(object(), "xfuser")
    with pytest.raises(
        UserError, match=r"start the program by torchrun, and call torch\.distributed\.init_process_group"
    ):
        share(Pipeline(), "diffusers", ulysses=2)
