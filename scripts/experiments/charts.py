"""What the charts of all scripts share: transparent backgrounds, colours that are visible on light and dark pages."""

from pathlib import Path
from types import ModuleType
from typing import Any


INK, BLUE, ORANGE = "#808890", "#3b82c4", "#e08a2b"


def pyplot() -> ModuleType:
    """That of matplotlib, drawing into files; imported when a chart is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    """Ticks, frames and axis labels in INK, no background, no margin; the figure is closed."""
    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.tick_params(colors=INK)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(INK)
        for spine in axes.spines.values():
            spine.set_color(INK)
    figure.savefig(path, dpi=120, transparent=True, bbox_inches="tight")
    pyplot().close(figure)
