"""Plots as SVG that takes its colours and its font from the page around it; how each method is drawn.

Text and axes have the page's own colour, and every method a CSS variable, so that one figure is legible on light and
dark pages and in print. One hue a forget loss, one line style and marker a retain loss; Offset has hollow markers.
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from uld.report.numbers import quality

SIZE = (4.4, 3.3)  # inches of 72 units; legible when a phone shows it 360 pixels wide
_HUES = {"uld": "ink", "ga": "ga", "dpo": "dpo", "npo": "npo"}
_OTHERS = ("other-1", "other-2", "other-3", "other-4")
_LINES: dict[str, tuple[Any, str]] = {"": ((0, (1, 1.6)), "o"), "gd": ((0, (4, 1.8)), "s"), "kl": ("-", "^")}
_MARKERS = "DPXv<>*hpd"
# Stand-ins that matplotlib writes into the file, and what they become.
INK, FAINT = "#010203", "#010204"
COLOURS = {name: f"#0102{16 + at:02x}" for at, name in enumerate(("ga", "dpo", "npo", *_OTHERS))} | {"ink": INK}


@dataclass(frozen=True)
class Look:
    """How a method is drawn."""

    colour: str
    line: Any
    marker: str
    hollow: bool
    width: float

    def kwargs(self, *, line: bool) -> dict[str, Any]:
        """Arguments of matplotlib's ``plot``."""
        face = "none" if self.hollow else COLOURS[self.colour]
        return {
            "color": COLOURS[self.colour],
            "marker": self.marker,
            "markerfacecolor": face,
            "linestyle": self.line if line else "none",
            "linewidth": self.width,
            "markersize": 5.5,
            "markeredgewidth": 1.1,
            "clip_on": False,
        }


REFERENCES = {"target": Look("ink", "none", "+", False, 1.0), "retain-only": Look("ink", "none", "x", False, 1.0)}


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """How every method is drawn, the same in all figures."""
    found: dict[str, Look] = {}
    others = 0
    for method in sorted(set(methods)):
        offset = method.startswith("offset-")
        base, _, retain = method.removeprefix("offset-").partition("+")
        if base in _HUES and retain in _LINES:
            line, marker = ("-", "o") if base == "uld" else _LINES[retain]
            found[method] = Look(_HUES[base], line, marker, offset, 2.2 if base == "uld" else 1.1 if offset else 1.4)
        else:
            found[method] = Look(
                _OTHERS[others % len(_OTHERS)],
                _LINES.get(retain, ("-", ""))[0],
                _MARKERS[others % len(_MARKERS)],
                False,
                1.4,
            )
            others += 1
    return found


def swatch(look: Look, name: str, *, line: bool) -> str:
    """A short line and marker; no two of a page may share a name."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(0.5 if line else 0.22, 0.2))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_ylim(-1, 1)
    axes.set_xlim(0, 2)
    options: Any = look.kwargs(line=line) | {"markersize": 6, "markevery": [1] if line else None}
    axes.plot([0, 1, 2] if line else [1], [0, 0, 0] if line else [0], **options)
    return as_svg(figure, name, None)


def new_axes() -> tuple[Any, Any]:
    """An empty plot in the page's own colours."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=SIZE)
    axes = figure.add_axes((0.16, 0.16, 0.8, 0.79))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelcolor=INK, which="both", width=0.8)
    axes.grid(True, color=FAINT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def quality_axis(axes: Any) -> None:
    """Forget quality upwards, logarithmic, the line of 0.05 marked."""
    axes.set_yscale("log")
    low = axes.get_ylim()[0]
    axes.set_ylim(low, 3.0)
    axes.axhline(0.05, color=FAINT, linewidth=0.9, linestyle=(0, (2, 2)))
    plain_ticks(axes.yaxis, quality)
    axes.set_ylabel("F.Q. (dashed: 0.05)")


def plain_ticks(axis: Any, form: Callable[[float], str], subs: tuple[float, ...] = (1.0,)) -> None:
    """Few ticks of a logarithmic axis, as plain text."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def as_svg(figure: Any, name: str, text: str | None) -> str:
    """A figure as SVG to stand in a page: no declarations, own ids, the page's colours and font.

    Args:
        figure: Of matplotlib.
        name: What its ids are made from; no two figures of a page may share it.
        text: What it shows, for those who do not see it; None for decoration.
    """
    import matplotlib
    from markupsafe import escape

    salt = hashlib.sha256(name.encode()).hexdigest()[:8]
    options: Any = {"svg.hashsalt": salt, "svg.fonttype": "none"}
    out = io.StringIO()
    with matplotlib.rc_context(options):
        figure.patch.set_visible(False)
        for axes in figure.axes:
            axes.patch.set_visible(False)
            for part in (axes.xaxis.label, axes.yaxis.label, *axes.texts):
                part.set_color(INK)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', svg)
    width, height = view[1].split()[2:] if view else ("0", "0")
    told = f'role="img" aria-label="{escape(text)}"' if text is not None else 'aria-hidden="true"'
    head = f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" {told}>'
    svg = head + svg[svg.index(">") + 1 :]
    svg = re.sub(r"<defs>\s*<style.*?</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>f{salt}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, stand_in in COLOURS.items():
        svg = svg.replace(stand_in, "currentColor" if colour == "ink" else f"var(--{colour})")
    svg = svg.replace(FAINT, "var(--faint)")
    return re.sub(r"\n\s*", "\n", svg).strip()
