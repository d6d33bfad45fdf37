"""Curves of several seeds, and their picture."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from studies.shared.curves import Point, over_seeds, picture, save

SVG = "{http://www.w3.org/2000/svg}"


def test_a_curve_is_the_median_between_the_extremes() -> None:
    curve = over_seeds([0.0, 1.0], [[3.0, 1.0], [1.0, 5.0], [2.0, 4.0]])
    assert curve == [Point(0.0, 1.0, 2.0, 3.0), Point(1.0, 1.0, 4.0, 5.0)]


def test_curves_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        over_seeds([0.0, 1.0], [[3.0, 1.0], [1.0]])


def test_greater_values_are_drawn_higher_and_names_are_escaped() -> None:
    curves = {"a < b": [Point(0.0, 1.0, 1.0, 1.0), Point(2.0, 10.0, 10.0, 100.0)]}
    root = ElementTree.fromstring(picture(curves, x="steps", y="loss", log_y=True))
    (line,) = root.iter(f"{SVG}polyline")
    (x0, y0), (x1, y1) = [
        tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()
    ]
    assert x0 < x1
    assert y1 == pytest.approx((y0 + 30) / 2)  # on a log scale 10 lies halfway from 1 to 100
    assert "a < b" in [text.text for text in root.iter(f"{SVG}text")]


def test_a_picture_is_saved_in_a_folder_that_may_not_exist_yet(tmp_path: Path) -> None:
    path = tmp_path / "new" / "curves.svg"
    for drawing in ("<svg/>", "<svg></svg>"):
        save(drawing, path)
        assert path.read_text() == drawing
