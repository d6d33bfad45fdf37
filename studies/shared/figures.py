"""Figures that are drawn with matplotlib, as SVG files that only change when their content does."""

from pathlib import Path

try:
    import matplotlib
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
    from matplotlib.patches import Rectangle as Rectangle
except ImportError as error:
    raise SystemExit(
        "This study draws with matplotlib, which is not installed. Install it with the other "
        "packages of the studies: pip install 'hyperopt_dl[studies]'"
    ) from error


def save(figure: Figure, path: Path) -> None:
    """Write a figure to an SVG file, and make its folder if need be."""
    matplotlib.rcParams["svg.hashsalt"] = path.stem
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
