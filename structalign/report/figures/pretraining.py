"""The figure of how the tiny CLIP learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from structalign.report.figures.style import legend_beside, line_style, new_figure, styled


@styled
def pretraining(points: Sequence[Mapping[str, float]]) -> Figure:
    """Draw how the tiny CLIP learnt.

    Parameters
    ----------
    points : sequence of mapping
        One a measurement: step, loss, and the accuracy (percent) for each attribute by its name.

    Returns
    -------
    Figure
    """
    figure, (axes,) = new_figure(1, 1, width=7.6, height=4)
    steps = [point["step"] for point in points]
    for index, name in enumerate(name for name in points[0] if name not in ("step", "loss")):
        style = {**line_style(index), "marker": ""}
        axes.plot(steps, [point[name] for point in points], label=name, **style)
    axes.set(xlabel="step", ylabel="accuracy on held-out stills (%)", ylim=(0, 101))
    legend_beside(axes, "attribute")
    figure.suptitle("The tiny CLIP: what it tells apart by its prompts")
    return figure
