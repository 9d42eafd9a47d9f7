"""Operations of forecast steps: what counts as one, and eval/op_counts.py."""

import json

import pytest
import torch
import torch.nn.functional as F

from cache_dic import ENGINES, make_cache
from evaluation import op_counts
from evaluation.backbones import BACKBONES, workload
from evaluation.operations import count_forecast, count_operations
from evaluation.rivals import RIVALS, count_rival


@pytest.mark.parametrize(
    ("function", "operations"),
    [
        (lambda x: x + 1, 1),
        (lambda x: x.add_(1), 1),
        (lambda x: torch.empty(3, 3).copy_(x), 1),  # taking memory is none
        (lambda x: x.view(9).reshape(3, 3)[1:].transpose(0, 1).unsqueeze(0).detach(), 0),
        (lambda x: x.t().reshape(9), 1),  # a copy
        (lambda x: x.to(torch.float32), 0),
        (lambda x: x.to(torch.float64), 1),
        (lambda x: x.contiguous(), 0),
        (lambda x: F.linear(x, x, x[0]), 1),
        (lambda x: F.silu(x) * x, 2),
        (lambda x: [x.clone() for _ in range(5)], 5),
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_counts(function, operations, mode, device):
    with torch.device(device), mode():
        x = torch.zeros(3, 3)
        assert count_operations(lambda: function(x)) == operations


def test_a_value_brought_to_the_host_counts():
    assert count_operations(lambda: torch.ones(1).sum().item()) == 3


def debug_case(depth: int, device: str = "cpu", dtype: torch.dtype = torch.float32):
    with torch.device(device):
        return BACKBONES["flux-debug"].build(workload("flux-debug", depth=depth), dtype)


@torch.no_grad()
def count(engine: str, depth: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> int:
    case = debug_case(depth, device, dtype)
    timesteps = BACKBONES["flux-debug"].timesteps(case, 20).to(device)
    cache = make_cache("taylorseer", engine=engine, preset="flux")
    return count_forecast(case, cache, timesteps)


@pytest.mark.parametrize("engine", ENGINES)
def test_meta_device_and_cpu_agree(engine):
    assert count(engine, 1) == count(engine, 1, "meta")


def test_folded_does_not_depend_on_depth():
    counts = {depth: count("folded", depth, "meta", torch.bfloat16) for depth in (1, 3)}
    assert counts[1] == counts[3] <= 40


@pytest.mark.slow
def test_layerwise_takes_an_operation_for_each_term_and_one_for_the_gate():
    walks = [count("layerwise", depth, "meta") for depth in (1, 2, 3)]
    sites, terms = 4, 3  # of a double and two single blocks, at order 2
    assert walks[2] - walks[1] == walks[1] - walks[0] == sites * (terms + 1)


@torch.no_grad()
def test_a_forecaster_for_every_module_by_hand():
    """A double block: 2 modulations and 4 modules, each an operation for order 1, order 2 and gate; a single block: 1 and 1."""

    def cost(depth: int) -> int:
        return count_rival(RIVALS["a forecast for every module"][1], BACKBONES["flux-debug"], debug_case(depth), 2)

    double, single = 2 + 4 * 3, 1 + 3
    assert cost(2) - cost(1) == double + 2 * single


def test_the_command(load_command, need, tmp_path, capsys):
    need("diffusers")
    out = tmp_path / "counts.json"
    load_command("eval/op_counts.py").main(["--depth", "1", "--json", "--out", str(out)])
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(out.read_text())
    assert record["settings"]["depth_single_blocks"] == 2
    rows = {row["label"]: row["operations"] for row in record["rows"]}
    assert rows["this repository, folded engine"] < rows["TaylorSeer hook"]
    assert len(rows) == sum(engine.enters_model for engine in ENGINES.values()) + len(RIVALS)


def test_a_package_that_is_missing_leaves_its_row_empty(load_command, monkeypatch):
    command = load_command("eval/op_counts.py")
    monkeypatch.setattr(op_counts, "version_of", lambda package: None)
    record = op_counts.count_all(command.MODEL, command.parse_args(["--depth", "1"]))
    missing = [row for row in record["rows"] if row["package"]]
    assert missing
    assert all(row["operations"] is None and "(not installed)" in row["package"] for row in missing)
    assert "–" in op_counts.text(record)
