"""All benchmarks by one command: ``python -m benchmarks``, or some by their letters: ``python -m benchmarks a c``.

It prints one table. All of them also write it into ``docs/benchmarks.md``, and the figure beside it.
"""

import os
import platform
import re
import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch

from mlr3torch_py.forecast.ink import INK, for_any_theme

MODULES = {
    "a": "hook",
    "b": "event",
    "c": "training",
    "d": "rivals",
    "e": "cache",
    "f": "memory",
    "g": "stages",
    "h": "plan",
    "i": "backbones",
    "j": "growth",
    "k": "measured",
    "l": "search",
}
DOCS = Path(__file__).parents[1] / "docs"
WITHIN, ABOVE, NO_LIMIT = "#2a78c4", "#c2610c", "#7f7f7f"


def measured(letters):
    """The tables of some benchmarks as one."""
    tables = []
    for letter in letters:
        name = f"benchmarks.{MODULES[letter]}"
        if find_spec(name):
            print(f"({letter}) {MODULES[letter]} ...", file=sys.stderr)
            tables.append(import_module(name).measure())
    return pd.concat(tables, ignore_index=True)


def shown(frame):
    """The table for people."""
    numbers = {
        name: frame[name].map(lambda x: "" if pd.isna(x) else f"{x:.3g}" if x < 0.995 else f"{x:.4g}")
        for name in ("ratio", "limit")
    }
    return pd.DataFrame(
        {
            "": frame["benchmark"],
            "case": frame["case"],
            "against": frame["against"],
            "ratio": numbers["ratio"],
            "quartiles": [f"{low:.3f} to {high:.3f}" for low, high in zip(frame["low"], frame["high"], strict=True)],
            "at most": numbers["limit"],
            "ours": [f"{value:.3g} {unit}" for value, unit in zip(frame["value"], frame["unit"], strict=True)],
            "note": frame["note"],
        }
    )


def drawn(frame):
    """The ratios with their quartiles on a logarithmic axis, and their limits."""
    figure, ax = plt.subplots(figsize=(11, 1 + 0.24 * len(frame)), layout="constrained")
    for y, case in enumerate(frame.itertuples()):
        colour = NO_LIMIT if pd.isna(case.limit) else WITHIN if case.ratio <= case.limit else ABOVE
        ax.plot([case.low, case.high], [y, y], color=colour, linewidth=3, alpha=0.4, solid_capstyle="butt")
        ax.plot(case.ratio, y, "o", color=colour, markersize=5)
        ax.plot(case.limit, y, "|", color=INK, markersize=11)
    ax.axvline(1, color=INK, linewidth=0.8, zorder=0)
    labels = [f"({case.benchmark}) {case.case} / {case.against}" for case in frame.itertuples()]
    ax.set_yticks(range(len(frame)), labels=labels, fontsize=8)
    ax.set_ylim(len(frame) - 0.5, -0.5)
    ax.set_xscale("log")
    ticks = [
        tick
        for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20)
        if frame["low"].min() <= tick * 2 and tick <= 2 * frame["high"].max()
    ]
    ax.set_xticks(ticks, labels=map(str, ticks))
    ax.minorticks_off()
    ax.set_xlabel("ours over the other: below 1 is faster or smaller")
    ax.tick_params(length=0, axis="y")
    ax.spines[["top", "right", "left"]].set_visible(False)
    handles = [
        plt.Line2D([], [], marker=marker, linestyle="", color=colour, label=label)
        for marker, colour, label in (
            ("o", WITHIN, "within the limit"),
            ("o", ABOVE, "above the limit"),
            ("o", NO_LIMIT, "no limit"),
            ("|", INK, "limit"),
        )
    ]
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), frameon=False)
    return for_any_theme(figure)


def markdown(frame):
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def written(frame):
    """Write the table and the figure into the docs."""
    about = (
        f"Measured with Python {platform.python_version()}, torch {version('torch')}, skorch {version('skorch')} and "
        f"pandas {version('pandas')} on a machine with {os.cpu_count()} cores."
    )
    page = DOCS / "benchmarks.md"
    generated = f"<!-- begin of what is generated -->\n\n{about}\n\n{markdown(shown(frame))}\n\n<!-- end"
    text = re.sub(r"<!-- begin of .*<!-- end", lambda _: generated, page.read_text(), flags=re.DOTALL)
    page.write_text(text)
    drawn(frame).savefig(DOCS / "pictures" / "benchmarks.png", dpi=110)


def main(letters):
    unknown = [letter for letter in letters if letter not in MODULES]
    if unknown:
        sys.exit(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(MODULES)}")
    torch.set_num_threads(1)
    frame = measured(letters or MODULES)
    print(shown(frame).to_string(index=False))
    if not letters:
        written(frame)


if __name__ == "__main__":
    main(sys.argv[1:])
