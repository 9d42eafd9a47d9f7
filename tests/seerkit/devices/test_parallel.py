"""Shards and attention of several processes. Under torchrun, this file prints what its tests look at."""

import json

import pytest
import torch

from seerkit.devices.distributed import World, start_world, stop_world
from seerkit.devices.parallel import WHOLE, SequenceAttention, Shard, attend_with_lse, sequence_degrees, start_sequence
from seerkit.layers.attention import attention_backend, sdpa

BATCH, HEADS, LENGTH, DIM = 2, 4, 11, 8
PROCESSES = 4
LAYOUTS = ((4, 1), (2, 2), (1, 4))  # (ulysses, ring)
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-4}  # of values up to 5


def draw_qkv(dtype: torch.dtype, device: str = "cpu") -> list[torch.Tensor]:
    """The same on every process."""
    draw = torch.Generator().manual_seed(0)
    qkv = (torch.randn(BATCH, HEADS, LENGTH, DIM, generator=draw, dtype=torch.float64) for _ in range(3))
    return [x.to(device, dtype) for x in qkv]


def key_masks() -> list[torch.Tensor | None]:
    """All keys, some, and a single one of each process."""
    some = torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.5
    single = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    single[:, [Shard(rank, PROCESSES).bounds(LENGTH).start for rank in range(PROCESSES)]] = True
    return [None, some | single, single]


def largest_errors(world: World) -> dict[str, float]:
    """Largest difference of attention to one process, by layout and dtype, over masks."""
    errors = {}
    for ulysses, ring in LAYOUTS:
        shard = start_sequence(world, heads=HEADS, ulysses=ulysses, ring=ring)
        attend = SequenceAttention(shard.mesh)
        for dtype in TOLERANCES:
            q, k, v = draw_qkv(dtype)
            differences = []
            for keys in key_masks():
                own_keys = None if keys is None else shard.split(keys)
                own = attend(*(shard.split(x, dim=2) for x in (q, k, v)), own_keys)
                differences.append((shard.gather(own, LENGTH, dim=2) - sdpa(q, k, v, keys)).abs().max().item())
            errors[f"{ulysses} x {ring}, {dtype}"] = max(differences)
    return errors


def gathers_exactly(world: World) -> bool:
    """Of more tokens than processes, and of fewer, along every dimension."""
    shard = start_sequence(world, heads=HEADS)
    x = torch.arange(LENGTH * LENGTH * 2).view(LENGTH, LENGTH, 2)
    return all(torch.equal(shard.gather(shard.split(x, dim), x.shape[dim], dim), x) for dim in range(3))


def errors_raised(world: World) -> dict[str, str]:
    """Messages of what attention refuses."""
    messages = {}
    shard = start_sequence(world, heads=HEADS, ring=world.size)
    nothing = torch.empty(BATCH, HEADS, 0, DIM)
    q = k = v = nothing if world.is_main else nothing.new_zeros(BATCH, HEADS, 1, DIM)
    for name, function in (
        ("too few tokens", lambda: SequenceAttention(shard.mesh)(q, k, v)),
        ("ring backend", lambda: SequenceAttention(shard.mesh, "reference")),
    ):
        try:
            function()
        except ValueError as error:
            messages[name] = str(error)
    return messages


def main() -> None:
    world = start_world("cpu")
    with torch.inference_mode():
        found = {"errors": largest_errors(world), "gathers": gathers_exactly(world), "raised": errors_raised(world)}
    if world.is_main:
        print(json.dumps(found))
    stop_world()


@pytest.fixture(scope="session")
def found(run_script) -> dict:
    done = run_script(__file__, processes=PROCESSES)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("ulysses", "ring"), LAYOUTS)
def test_attention_over_processes_is_attention_over_all_tokens(found, ulysses, ring, dtype):
    assert found["errors"][f"{ulysses} x {ring}, {dtype}"] <= TOLERANCES[dtype]


def test_parts_gathered_are_the_whole(found):
    assert found["gathers"]


def test_what_attention_over_processes_refuses(found):
    assert "3 tokens are too few for 4 processes" in found["raised"]["too few tokens"]
    assert "'reference'; choose 'sdpa'" in found["raised"]["ring backend"]


def test_parts_are_contiguous_and_even_to_one_token():
    for length in (3, 11, 12):
        parts = [Shard(rank, 4).bounds(length) for rank in range(4)]
        assert [index for part in parts for index in range(length)[part]] == list(range(length))
        sizes = [part.stop - part.start for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_one_process_is_whole():
    assert start_sequence(World(0, 1, torch.device("cpu")), heads=HEADS) == WHOLE


@pytest.mark.parametrize(
    ("degrees", "message"),
    [
        ({}, "does not divide 4 attention heads; give ulysses 2 and ring 3"),
        ({"ulysses": 6, "ring": 1}, "does not divide 4 attention heads"),
        ({"ulysses": 4}, "ulysses degree 4 does not divide the number of processes, 6"),
        ({"ring": 0}, "ring degree 0 does not divide"),
        ({"ulysses": 2, "ring": 2}, "must make up the number of processes, 6"),
    ],
)
def test_degrees_must_fit_processes_and_heads(degrees, message):
    with pytest.raises(ValueError, match=message):
        sequence_degrees(6, HEADS, **degrees)


@pytest.mark.parametrize(
    ("processes", "degrees", "made"),
    [(4, {}, (4, 1)), (8, {"ulysses": 2}, (2, 4)), (8, {"ring": 4}, (2, 4)), (6, {"ulysses": 2, "ring": 3}, (2, 3))],
)
def test_a_degree_left_out_is_what_the_other_leaves(processes, degrees, made):
    assert sequence_degrees(processes, HEADS, **degrees) == made


def check_lse(dtype: torch.dtype, device: str) -> None:
    q, k, v = draw_qkv(dtype, device)
    scores = q.double() @ k.double().transpose(-2, -1) * DIM**-0.5
    for keys in key_masks():
        keys = None if keys is None else keys.to(device)
        out, lse = attend_with_lse(q[:, :, :9], k, v, keys)
        wanted = (scores if keys is None else scores.masked_fill(~keys[:, None, None], -torch.inf)).logsumexp(-1)
        precise = attention_backend("reference")(*(x.double() for x in (q[:, :, :9], k, v)), keys)
        assert out.dtype == lse.dtype == torch.promote_types(dtype, torch.float32)
        assert (out - precise).abs().max() <= TOLERANCES[dtype]
        assert (lse - wanted[:, :, :9]).abs().max() <= TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_log_sum_exp_comes_with_attention(dtype):
    check_lse(dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_sum_exp_comes_with_attention_on_cuda(dtype):
    check_lse(dtype, "cuda")


if __name__ == "__main__":
    main()
