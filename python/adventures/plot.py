"""A picture of quality against cost: a PNG, or a page that needs nothing else."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from adventures.comparison import Outcome

KINDS = (".png", ".html")

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }}
table {{ font-variant-numeric: tabular-nums; white-space: nowrap; }}
th, td {{ text-align: right; padding: .3rem .8rem; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
svg {{ max-width: 100%; height: auto; }}
</style>
<h1>{title}</h1>
{picture}
<table>
{rows}
</table>
</html>
"""


def check(path: str | os.PathLike[str]) -> None:
    """Raises where no picture could be made at a path, before the work is done.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        FileNotFoundError: There is no such folder.
        ValueError: It is neither a PNG nor a page.
    """
    if Path(path).suffix.lower() not in KINDS:
        raise ValueError(f"a plot is written to a file that ends in {' or '.join(KINDS)}, not to {path}")
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {Path(path).absolute().parent} to write the plot to")
    try:
        import matplotlib as mpl  # noqa: F401 (whether it is there)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a plot needs matplotlib: pip install 'adventures[plot]'") from error


def save(
    outcomes: Sequence[Outcome], path: str | os.PathLike[str], *, title: str, table: Sequence[Sequence[str]]
) -> None:
    """Writes the picture of a comparison; a page has the table too.

    Args:
        outcomes: What came of the settings.
        path: A file that ends in `.png` or `.html`.
        title: What was compared on which data.
        table: Rows of cells, the heading first.
    """
    check(path)
    if Path(path).suffix.lower() == ".png":
        figure(outcomes, title=title).savefig(path, dpi=130)
        return
    buffer = io.StringIO()
    figure(outcomes).savefig(buffer, format="svg")
    picture = buffer.getvalue()
    rows = [
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in zip(["th", *["td"] * len(table)], table, strict=False)
    ]
    page = _PAGE.format(title=html.escape(title), picture=picture[picture.index("<svg") :], rows="\n".join(rows))
    Path(path).write_text(page, encoding="utf-8")


def figure(outcomes: Sequence[Outcome], *, title: str = "") -> Any:
    """Returns a matplotlib figure: the first measure of each setting over its time and over its size."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawn = Figure(figsize=(11, 5), layout="constrained")
    measure = next(iter(outcomes[0].measures))
    left, right = drawn.subplots(1, 2, sharey=True)
    sizes = [outcome.megabytes for outcome in outcomes if outcome.megabytes is not None]
    known = len(sizes) == len(outcomes)
    for plot, cost, label in (
        (left, [outcome.p50 for outcome in outcomes], "milliseconds a search (median)"),
        # Nobody knows what a library on an object store takes.
        (
            right,
            sizes if known else [float(outcome.passages) for outcome in outcomes],
            "megabytes on the disk" if known else "passages",
        ),
    ):
        for number, (outcome, x) in enumerate(zip(outcomes, cost, strict=True)):
            y = outcome.measures[measure]
            plot.scatter(x, y, s=46, color=f"C{number % 10}", label=f"{number + 1}  {outcome.setting.name}", zorder=3)
            plot.annotate(f"{number + 1}", (x, y), xytext=(6, 5), textcoords="offset points", fontsize=9)
            if plot is left and outcome.difference is not None:
                first = outcomes[0].measures[measure]
                ends = [[y - first - outcome.difference.low], [outcome.difference.high - (y - first)]]
                plot.errorbar(x, y, yerr=ends, color=f"C{number % 10}", alpha=0.4, capsize=3, zorder=2)
        plot.set(xlabel=label)
        plot.margins(0.12)
        plot.xaxis.set_major_locator(MaxNLocator(6))
        plot.grid(alpha=0.25)
        plot.spines[["top", "right"]].set_visible(False)
    if max(outcome.p50 for outcome in outcomes) > 8 * min(outcome.p50 for outcome in outcomes):
        left.set_xscale("log")
    left.set(ylabel=measure)
    handles, labels = left.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=9)
    if title:
        drawn.suptitle(title, fontsize=11)
    return drawn
