"""The one look of our pictures: light ground, colour-blind-safe colours, fonts of 9 points and more, the same bytes
every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours without the yellow, which is too pale for lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
POLICY_COLOUR = {"oreo": "#0072B2", "dpo": "#D55E00", "rejection_sampling": "#009E73", "sft": "#6E6E6E"}
# Colours tell policies apart; a decoding has its marker and line. Dashes are left to greedy answers.
LOOK_OF_DECODING: dict[str, tuple[str, Any]] = {
    "greedy": ("o", "--"),
    "beam": ("s", "-"),
    "best_of_n": ("^", (0, (7, 1.5))),
    "majority": ("v", (0, (4, 1.5, 1, 1.5))),
    "pass@n": ("D", (0, (1, 1.2))),
    "likelihood": ("P", (0, (7, 1.5, 1, 1.5))),
    "log_ratio": ("X", (0, (7, 1.5, 1, 1.5, 1, 1.5))),
}
OTHER_MARKERS = ("*", "<", ">", "h", "p")
INK = "#222222"
GRID = "#E3E3E3"
DPI = 144

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8A8A8A",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "lines.linewidth": 1.6,
}


@contextmanager
def figure(path: Path, n_rows: int, n_columns: int, *, width: float, height: float, **axes: Any) -> Iterator[Any]:
    """Axes [n_rows, n_columns] to draw on; the PNG is written to `path` on leaving. Sizes are in inches."""
    new_figure, styled = _matplotlib()
    with styled(_STYLE):
        canvas: Figure = new_figure(figsize=(width, height), layout="constrained")
        yield canvas.subplots(n_rows, n_columns, squeeze=False, **axes)
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, dpi=DPI, metadata={"Software": None})


def legend_below(axes: Axes, *, n_columns: int = 2) -> None:
    """The legend under the axes, where it hides no data."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(
            loc="upper left", bbox_to_anchor=(0.0, -0.16), ncols=n_columns, borderaxespad=0.0, handlelength=1.8
        )


def legend_of_all(axes: Axes, *, n_columns: int) -> None:
    """The legend of these axes under all axes of the figure, as wide as those together."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside lower left", ncols=n_columns, handlelength=3.4)


def log_scale_y(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def colour_of_policy(policy: str, others: Sequence[str]) -> str:
    """The fixed colour of a known policy; others take the remaining ones in the order of `others`."""
    if policy in POLICY_COLOUR:
        return POLICY_COLOUR[policy]
    free = [colour for colour in PALETTE if colour not in POLICY_COLOUR.values()]
    unknown = [name for name in dict.fromkeys(others) if name not in POLICY_COLOUR]
    return free[unknown.index(policy) % len(free)]


def look_of_decoding(decoding: str, others: Sequence[str]) -> tuple[str, Any]:
    """Marker and line of a known decoding; others take the remaining markers, and a plain line, in their order."""
    if decoding in LOOK_OF_DECODING:
        return LOOK_OF_DECODING[decoding]
    unknown = [name for name in dict.fromkeys(others) if name not in LOOK_OF_DECODING]
    return OTHER_MARKERS[unknown.index(decoding) % len(OTHER_MARKERS)], "-"


def _matplotlib() -> tuple[Any, Any]:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'posttrain[report]'") from error
    # Figure without pyplot draws with Agg and keeps no global state.
    return Figure, rc_context
