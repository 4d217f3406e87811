import re
from xml.etree import ElementTree

from uld.report.paper import METHODS
from uld.report.svg import as_svg, looks, new_axes, quality_axis, swatch


def plot(name: str = "one", text: str | None = "A <b> & c") -> str:
    figure, axes = new_axes()
    axes.plot([0, 1], [0.5, 1e-9], **looks(["npo+kl"])["npo+kl"].kwargs(line=True))
    quality_axis(axes)
    return as_svg(figure, name, text)


def test_a_plot_has_no_colour_and_no_font_of_its_own():
    svg = plot()
    assert not re.search(r"#[0-9a-fA-F]{6}\b", svg)
    assert "font-family" not in svg and "var(--npo)" in svg and "currentColor" in svg and "var(--faint)" in svg


def test_a_plot_is_well_formed_and_described_and_scales():
    root = ElementTree.fromstring(plot().replace("xlink:href", "href"))
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == "A <b> & c"
    assert root.attrib["viewBox"].startswith("0 0 ")
    assert ElementTree.fromstring(plot(text=None).replace("xlink:href", "href")).attrib["aria-hidden"] == "true"


def test_the_same_plot_has_the_same_bytes_and_two_plots_share_no_id():
    assert plot("one") == plot("one")
    one, other = (set(re.findall(r'id="([^"]+)"', plot(name))) for name in ("one", "other"))
    assert one and not one & other
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', plot("one"))) <= one


def test_no_two_of_the_papers_methods_look_the_same():
    found = looks([*METHODS, "uld", "simnpo", "rmu", "undial", "di", "uniform", "uniform+gd", "uniform+kl"])
    assert len({(look.colour, look.marker, look.hollow) for look in found.values()}) == len(found) == 20
    assert looks(["npo", "ga"])["npo"] == found["npo"]


def test_a_swatch_shows_what_the_plot_shows():
    look = looks(["offset-npo+kl"])["offset-npo+kl"]
    assert "fill: var(--npo)" not in swatch(look, "a", line=False)
    assert "fill: var(--npo)" in swatch(looks(["npo"])["npo"], "b", line=False)
