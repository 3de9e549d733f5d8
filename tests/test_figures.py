"""Plots look the same whatever else in the process has told matplotlib, and pages need nothing but themselves."""

import matplotlib

from atlas_ray.figures import figure, page, picture, png, table, text

PNG = b"\x89PNG\r\n"


def drawn() -> bytes:
    with figure(4, 3) as (made, axes):
        axes.plot([0, 1], [0, 1], label="a curve")
        axes.set_xlabel("Case")
        axes.legend()
    return png(made)


def test_what_others_set_does_not_reach_a_plot() -> None:
    """nnU-Net, for one, sets fonts for the whole process in which no axis has room left."""
    before = drawn()
    assert before.startswith(PNG)
    with matplotlib.rc_context({"font.size": 60, "axes.labelsize": 60, "xtick.labelsize": 60, "ytick.labelsize": 60}):
        assert drawn() == before
        assert matplotlib.rcParams["font.size"] == 60


def test_a_page_escapes_words_and_holds_its_pictures() -> None:
    html = page("A & B", text("<b>"), table(("case", "Dice"), [("a<b", 0.12345), ("c", None)]), picture(PNG, "a curve"))
    assert "<title>A &amp; B</title>" in html
    assert "<p>&lt;b&gt;</p>" in html
    assert "<td>a&lt;b</td><td>0.123</td>" in html
    assert "<td>c</td><td></td>" in html
    assert 'src="data:image/png;base64,' in html
