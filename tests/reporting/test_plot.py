import doctest

from mmm4rec.reporting import plot


def test_docstrings():
    assert doctest.testmod(plot).failed == 0


def test_what_is_said_of_several_datasets_stands_once_and_the_panels_keep_their_height():
    figure, _ = plot.panels(1, 2)
    height = figure.get_figheight()
    plot.write_below(figure, {"one": ["Seeds: 1.", "**A leak.**"], "two": ["Seeds: 1.", "**A leak.**"], "three": ["x"]})
    (text,) = figure.texts
    assert text.get_text() == "one, two: Seeds: 1. A leak.\nthree: x"
    assert figure.get_figheight() > height


def test_long_notes_are_broken():
    figure, _ = plot.panels(1, 1)
    plot.write_below(figure, {"one": ["Word. " * 100]})
    (text,) = figure.texts
    lines = text.get_text().splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= round(plot.CHARACTERS_AN_INCH * figure.get_figwidth())
