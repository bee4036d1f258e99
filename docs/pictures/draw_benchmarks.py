"""Draw both figures of docs/benchmarks.md from its table: ``python docs/pictures/draw_benchmarks.py``."""

import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from mlr3torch_py.forecast.ink import for_any_theme

HERE = Path(__file__).parent
PAGE = HERE.parent / "benchmarks.md"
OURS, EVEN = "#2a78c4", "#7f7f7f"


def rows():
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch("[a-i]", cells[0]) and len(cells) == 8:
            yield cells[0], cells[1], cells[2], float(cells[3])


def all_rows():
    """Return the whole table, as the benchmarks make it."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch("[a-k]", cells[0]) and len(cells) == 8:
            low, high = map(float, cells[4].split(" to "))
            limit = float(cells[5] or "nan")
            yield dict(zip(("benchmark", "case", "against"), cells[:3], strict=True)) | {
                "ratio": float(cells[3]),
                "low": low,
                "high": high,
                "limit": limit,
            }


def draw_all():
    sys.path.insert(0, str(HERE.parents[1]))
    from benchmarks.__main__ import drawn

    drawn(pd.DataFrame(all_rows())).savefig(HERE / "benchmarks.png", dpi=110)


def main():
    draw_all()
    table = list(rows())

    def panel(letter, case, against="", short=None):
        """Return the labels and the ratios of the rows of a benchmark."""
        found = [row for row in table if row[0] == letter and row[1].startswith(case) and row[2].startswith(against)]
        return [short(row) if short else row[2] for row in found], [row[3] for row in found]

    panels = {
        "An epoch with frozen_cache,\nover plain freezing": panel("e", "", "plain freezing", lambda row: row[1]),
        "A whole training (14 tensors),\nover that with": panel(
            "d", "whole training, 14", "", lambda row: re.sub(r" [\d.]+$", "", row[2])
        ),
        "The time inside the hooks\n(14 tensors), over that of": panel(
            "d", "hook time, 14", "", lambda row: re.sub(r" [\d.]+$", "", row[2])
        ),
        "The most memory while only the head\ntrains, over": panel("f", "the most while"),
    }
    figure, axes = plt.subplots(2, 2, figsize=(10, 5), layout="constrained")
    for ax, (title, (labels, ratios)) in zip(axes.flat, panels.items(), strict=True):
        ax.barh(labels, ratios, color=OURS, height=0.6)
        ax.axvline(1, color=EVEN, linewidth=1)
        for y, ratio in enumerate(ratios):
            ax.text(ratio, y, f" {ratio:.2f}", va="center", fontsize=9)
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xlim(0, 1.25 * max(1, *ratios))
        ax.invert_yaxis()
        ax.tick_params(length=0, axis="y", labelsize=8)
        ax.spines[["top", "right", "left"]].set_visible(False)
    for_any_theme(figure).savefig(HERE / "benchmarks_by_question.png", dpi=110)


if __name__ == "__main__":
    main()
