"""Draws with matplotlib, to SVG text that is the same for the same results."""

import io
import re
from collections.abc import Callable

from matplotlib import style
from matplotlib.figure import Figure

_LONG_NUMBER = re.compile(r"\b\d+\.\d{3,}\b")
_INDENTATION = re.compile(r"^ +", re.MULTILINE)
_BREAK_WITHIN_AN_ELEMENT = re.compile(r" *\n(?=[^<])")

LINE_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#7f7f7f")
_STYLE = {
    # text stays text, laid out with the font that matplotlib brings
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    # the grid shows where the ticks are
    "xtick.bottom": False,
    "ytick.left": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    # white, so that it can be read on a dark page too
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # names of elements come from their content, not from random numbers
    "svg.hashsalt": "fiddler",
}


def svg(draw: Callable[[], Figure]) -> str:
    """Draws a figure, whatever the user's own settings of matplotlib are, and returns it as the text of an SVG file.

    Args:
        draw: Makes the figure. It runs with the project's style.
    """
    file = io.StringIO()
    with style.context(_STYLE, after_reset=True):
        draw().savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    # A hundredth of a point is enough, also where another CPU's arithmetic differs in the last bits.
    text = _LONG_NUMBER.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), file.getvalue())
    return _BREAK_WITHIN_AN_ELEMENT.sub(" ", _INDENTATION.sub("", text))
