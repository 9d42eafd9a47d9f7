"""How alike features are from step to step, how well they are forecast, and the paths they take: of a features record."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache_dic.forecast import Taylor
from cache_dic.schedule import taylorseer
from evaluation.figures import COLOURS, plotting, save, shared_legend
from seerkit.io.records import Form
from seerkit.io.tables import counted

DEPTHS = {"first": "-", "middle": "--", "last": ":"}
"""Of blocks, with the style of their lines."""
BANDS = 2
"""Orders that have one."""
_MEANS: Form = {"mean": [float], "low": [(None, float)], "high": [(None, float)]}
_SITE: Form = {"name": str, "block": int, "depth": str}
FEATURES: Form = {
    "command": "eval/figures.py",
    "settings": {"model": str, "num_steps": int},
    "weights": str,
    "num_samples": int,
    "coordinates": {"of": int, "measured": int},
    "warmup_steps": int,
    "sites": [
        {
            **_SITE,
            "similarity": {"distance": [int], **_MEANS},
            "forecast_error": {"interval": [int], "by_order": {str: _MEANS}},
        }
    ],
    "trajectories": {
        "interval": int, "max_order": int, "warmup_steps": int, "prompts": [str],
        "sites": [{**_SITE, "variance": [float], "paths": [[[float]]]}],
    },
}  # fmt: skip
"""What is read of a record of `eval/figures.py measure`."""


def facts(record: Mapping[str, Any]) -> str:
    """Model, steps and samples of a record, for a title."""
    s, coordinates = record["settings"], record["coordinates"]
    name = f"{s['model']} ({record['weights']} weights), {s['num_steps']} steps, {counted(record['num_samples'], 'sample')}"
    if coordinates["measured"] < coordinates["of"]:
        name += f", {coordinates['measured']} of {coordinates['of']} coordinates"
    return name


def draw_features(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """features-MODEL: a row for each kind of site; similarity, then the forecast error in first, middle and last block.

    Bands are 95 % intervals of the mean over samples; of forecasts those of the lowest orders, on which the others would lie.
    """
    kinds = list(dict.fromkeys(site["name"] for site in record["sites"]))
    by_place = {(site["name"], site["depth"]): site for site in record["sites"]}
    depths = [depth for depth in DEPTHS if any(site["depth"] == depth for site in record["sites"])]
    with plotting() as plt:
        rows, columns = len(kinds), 1 + len(depths)
        figure, axes = plt.subplots(rows, columns, figsize=(3.1 * columns, 2.3 * rows + 1), squeeze=False, sharex="col")
        for axis, kind in zip(axes[:, 0], kinds, strict=True):
            for number, depth in enumerate(DEPTHS):
                if site := by_place.get((kind, depth)):
                    found = site["similarity"]
                    _line(axis, found["distance"], found, depth, COLOURS[number], DEPTHS[depth])
            axis.set(ylabel=f"{kind}\nmean cosine")
        errors = axes[:, 1:]
        for axis in errors.flat:
            axis.set(yscale="log")
            axis.sharey(errors[0, 0])
            axis.yaxis.set_major_locator(plt.matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
            axis.yaxis.set_minor_locator(plt.matplotlib.ticker.NullLocator())
            axis.tick_params(labelleft=axis in errors[:, 0])
        for line, kind in zip(errors, kinds, strict=True):
            for axis, depth in zip(line, depths, strict=True):
                if site := by_place.get((kind, depth)):
                    found = site["forecast_error"]
                    for number, (order, means) in enumerate(found["by_order"].items()):
                        name = "reuse (order 0)" if order == "0" else f"Taylor, order {order}"
                        width = 1 + 0.9 * (len(found["by_order"]) - 1 - number)  # lines that meet are all seen
                        _line(axis, found["interval"], means, name, COLOURS[number], "-", width, band=number < BANDS)
                    axis.set_title(f"{kind}, block {site['block']}")
                else:
                    axis.set_axis_off()
            line[0].set(ylabel="relative error of a forecast")
        for axis in axes[:, 0]:
            axis.set_title("similarity")
        axes[-1, 0].set(xlabel="distance, steps")
        for column in range(1, columns):
            lowest = max(row for row in range(rows) if axes[row, column].axison)
            axes[lowest, column].set(xlabel=f"steps between full ones ({depths[column - 1]} block)")
            axes[lowest, column].tick_params(labelbottom=True)
        figure.suptitle(f"Features of an uncached run of {facts(record)}")
        figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
        shared_legend(figure, axes[::-1, :1], loc="lower left", bbox_to_anchor=(0.01, 0), ncols=3, title="block")
        shared_legend(figure, errors, loc="lower right", bbox_to_anchor=(0.99, 0), ncols=5, title="forecast")
        return save(figure, folder, f"features-{record['settings']['model'].replace('/', '-')}")


def _line(
    axis: Any, x: Sequence[int], means: Mapping[str, Any], label: str, colour: str, style: str, width: float = 1.5,
    *, band: bool = True,
) -> None:  # fmt: skip
    axis.plot(x, means["mean"], style, color=colour, linewidth=width, label=label)
    if band and None not in (*means["low"], *means["high"]):
        axis.fill_between(x, means["low"], means["high"], color=colour, alpha=0.12, linewidth=0)


def draw_trajectories(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """trajectories-MODEL: for each site the paths of some samples' features, and TaylorSeer's forecasts from the full steps.

    A forecast's place is the sum, by its weights, of the places of full steps: the weights sum to 1.
    """
    found, num_steps = record["trajectories"], record["settings"]["num_steps"]
    full_steps = taylorseer(num_steps, interval=found["interval"], warmup_steps=found["warmup_steps"])
    forecaster = Taylor(max_order=found["max_order"], warmup_steps=found["warmup_steps"])
    with plotting() as plt:
        columns = min(len(found["sites"]), 4)
        rows = -(-len(found["sites"]) // columns)
        figure, axes = plt.subplots(rows, columns, figsize=(3.7 * columns, 3.5 * rows + 1), squeeze=False)
        for axis, site in zip(axes.flat, found["sites"], strict=False):
            for number, (prompt, path) in enumerate(zip(found["prompts"], site["paths"], strict=True)):
                colour = COLOURS[number % len(COLOURS)]
                axis.plot(*zip(*path, strict=True), color=colour, linewidth=2.5, alpha=0.35, label=prompt)
                axis.plot(
                    *zip(*forecast_path(path, full_steps, forecaster), strict=True), "x", color=colour, markersize=4
                )
                axis.plot(*zip(*(path[step] for step in full_steps), strict=True), "o", color=colour, markersize=4.5)
                axis.plot(*path[0], "s", color=colour, markersize=9, fillstyle="none", markeredgewidth=1.5)
            first, second = site["variance"]
            axis.set(
                title=f"{site['name']}, block {site['block']}",
                xlabel=f"component 1 ({first:.0%} of the variance)",
                ylabel=f"component 2 ({second:.0%})",
            )
        for axis in axes.flat[len(found["sites"]) :]:
            axis.set_axis_off()
        axes.flat[0].plot([], [], "s", color="grey", fillstyle="none", label="first step")
        axes.flat[0].plot([], [], "o", color="grey", label="full step")
        axes.flat[0].plot([], [], "x", color="grey", label="forecast step")
        figure.suptitle(
            f"Paths of features in {facts(record)}\ncrosses: TaylorSeer's forecasts from the dots, interval "
            f"{found['interval']}, order {found['max_order']}"
        )
        figure.tight_layout(rect=(0, 0.55 / figure.get_figheight(), 1, 1))
        shared_legend(figure, axes, loc="lower center", ncols=4, fontsize="small")
        return save(figure, folder, f"trajectories-{record['settings']['model'].replace('/', '-')}")


def forecast_path(
    path: Sequence[Sequence[float]], full_steps: Sequence[int], forecaster: Taylor
) -> list[tuple[float, float]]:
    """Where the forecasts of all steps that are not full lie, from the places (x, y) of the full ones."""
    forecast = []
    for step in range(len(path)):
        if step not in full_steps:
            known = [full for full in full_steps if full < step]
            weights = forecaster.weights(known, step)
            terms = list(zip(weights, known[-len(weights) :], strict=True))
            forecast.append(tuple(sum(weight * path[full][axis] for weight, full in terms) for axis in (0, 1)))
    return forecast
