"""A table whose gates are not those that the blocks use is found at the first full step of a run, on every backbone."""

from dataclasses import replace

import pytest
import reference
import torch

from cache_dic import GateFactors, make_cache

BACKBONES = {  # two sites, in blocks of one kind, and what their blocks call them
    "dit": ((2, 3), ("1.attn", "1.mlp")),
    "flux": ((0, 1), ("0.img_attn", "0.img_mlp")),
    "hidream": ((0, 1), ("0.img_attn", "0.img_ff")),
    "hunyuan_video": ((0, 1), ("0.img_attn", "0.img_mlp")),
    "wan": ((0, 2), ("0.self_attn", "0.ffn")),
}


def swapped(backbone: str, sites: tuple[int, int] | None):
    """The network with a modulation table in which two sites have each other's gates, or all are as they are."""
    model = reference.network(backbone)
    make, count = model.modulation_table, sum(map(len, model.block_sites()))
    order = list(range(count))
    if sites is not None:
        order[sites[0]], order[sites[1]] = order[sites[1]], order[sites[0]]

    def table(*args, **conditions):
        made = make(*args, **conditions)
        gates = made.gates
        made.gates = lambda steps: gates(steps)[:, order]
        if made.factors is not None:
            made.factors = GateFactors(made.factors.constant[:, order], made.factors.shared)
        return made

    model.modulation_table = table
    return model


@pytest.mark.parametrize("engine", ["folded", "layerwise"])
@pytest.mark.parametrize(("backbone", "sites", "names"), [(name, *rest) for name, rest in BACKBONES.items()])
def test_two_swapped_gates_are_found_at_the_first_full_step(backbone, sites, names, engine):
    cache = make_cache(interval=3, warmup_steps=1, max_order=1, engine=engine)
    message = (
        rf"the blocks gate site ({names[0]}|{names[1]}) with another gate than the modulation table has for it "
        r"\(they differ by [\d.]+ of it\): forecasts would be wrong; see what gates\(c\) of its block takes"
    )
    with pytest.raises(RuntimeError, match=message):
        reference.sample(backbone, swapped(backbone, sites), 6, cache)
    latents, _ = reference.sample(backbone, swapped(backbone, None), 6, cache)
    assert torch.equal(latents, reference.sample(backbone, reference.network(backbone), 6, cache)[0])


@pytest.mark.parametrize("static_shapes", [False, True])
def test_gates_that_factor_are_checked_too(static_shapes):
    """Wan's, whose folded engine keeps sums by term of the gates."""
    cache = make_cache(interval=6, warmup_steps=1, max_order=1)
    cache = replace(cache, engine_settings=replace(cache.engine_settings, factored=True, static_shapes=static_shapes))
    with pytest.raises(RuntimeError, match=r"the blocks gate site 1\.(self_attn|ffn) with another gate"):
        reference.sample("wan", swapped("wan", (3, 5)), 8, cache)


@pytest.mark.parametrize("engine", ["stack", "hidden", "output"])
def test_forms_that_need_no_gates_do_not_look(engine):
    cache = make_cache(interval=3, warmup_steps=1, max_order=1, engine=engine)
    latents, _ = reference.sample("flux", swapped("flux", (0, 1)), 6, cache)
    assert torch.equal(latents, reference.sample("flux", reference.network("flux"), 6, cache)[0])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_first_full_step_in_bf16_is_no_swapped_gate(backbone):
    """Rounding of the gates and of the blocks' modulation is within the tolerance."""
    model, loop = reference.network(backbone), reference.open_loop(backbone, 4)
    model = model.cast(torch.bfloat16) if hasattr(model, "cast") else model.to(torch.bfloat16)
    conditions = {
        name: value.bfloat16() if value.is_floating_point() and name != "img_ids" else value
        for name, value in loop.branches[0].items()
    }
    latents = loop.latents[0].bfloat16()
    run = make_cache(interval=3, warmup_steps=1, max_order=1).start(model, latents, loop.timesteps, **conditions)
    output = model(latents, **{model.TIME: loop.timesteps[0].expand(len(latents))}, **conditions, cache=run.at(0))
    assert output.isfinite().all()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_sites_are_named_as_declared(backbone):
    model = reference.network(backbone)
    declared = [tuple(sites) for sites in model.block_sites()]
    names = [f"{block}.{site}" for block, sites in enumerate(declared) for site in sites]
    assert set(BACKBONES[backbone][1]) <= set(names)
    model.block_sites = lambda: [tuple(f"other_{site}" for site in sites) for sites in declared]
    with pytest.raises(RuntimeError, match=r"the blocks called site \w+ where the model declares 0\.other_\w+"):
        reference.sample(backbone, model, 4, make_cache(interval=3, warmup_steps=1, max_order=1))
