"""Mask tools on masks small enough to draw: # is the organ, . is not. Rows are x, columns are y."""

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import TypeAdapter

from ui.tools import Subject, Tool, ToolError, propose

Mask = npt.NDArray[np.bool_]
TOOL: TypeAdapter = TypeAdapter(Tool)


def drawn(*slices: str) -> Mask:
    """[X, Y, Z] from one drawing per z, its rows separated by spaces."""
    return np.stack([np.array([[sign == "#" for sign in row] for row in text.split()]) for text in slices], axis=2)


def shown(mask: Mask) -> list[str]:
    return [" ".join("".join("#" if v else "." for v in row) for row in mask[:, :, z]) for z in range(mask.shape[2])]


def run(mask: Mask, spacing=(1.0, 1.0, 1.0), *, protected: Mask | None = None, image=None, **settings) -> list[str]:
    subject = Subject(mask, spacing, lambda: image)
    kept = mask.copy()
    nothing = np.zeros(mask.shape, bool)
    result = propose(TOOL.validate_python({"rev": 0, **settings}), subject, nothing if protected is None else protected)
    assert np.array_equal(mask, kept), "the given mask is not changed"
    return shown(result)


# --- distances ---


def test_grow_reaches_voxels_whose_center_is_near_enough() -> None:
    mask = drawn("..... ..... ..#.. ..... .....")
    assert run(mask, tool="grow", mm=1) == ["..... ..#.. .###. ..#.. ....."]
    assert run(mask, tool="grow", mm=1.4) == ["..... ..#.. .###. ..#.. ....."]  # the diagonal is 1.414 mm away
    assert run(mask, tool="grow", mm=1.5) == ["..... .###. .###. .###. ....."]


def test_grow_counts_millimeters_not_voxels() -> None:
    mask = drawn("... ... ...", "... .#. ...", "... ... ...")
    assert run(mask, (1, 2, 5), tool="grow", mm=1) == ["... ... ...", ".#. .#. .#.", "... ... ..."]
    assert run(mask, (1, 2, 5), tool="grow", mm=2) == ["... ... ...", ".#. ### .#.", "... ... ..."]
    assert run(mask, (1, 2, 5), tool="grow", mm=5) == ["... .#. ...", "### ### ###", "... .#. ..."]


def test_shrink_takes_the_rim_but_not_at_the_end_of_the_volume() -> None:
    assert run(drawn("..... .###. .###. .###. ....."), tool="shrink", mm=1) == ["..... ..... ..#.. ..... ....."]
    assert run(drawn("##. ##. ..."), tool="shrink", mm=1) == ["#.. ... ..."]  # the corner lies at the end of the volume


def test_a_mask_without_an_outside_keeps_its_voxels() -> None:
    assert run(drawn("## ##"), tool="shrink", mm=3) == ["## ##"]


@pytest.mark.parametrize("tool", [{"tool": t} for t in ("fill_holes", "keep_largest")] + [{"tool": "grow", "mm": 2}])
def test_an_empty_mask_stays_empty(tool: dict) -> None:
    assert run(drawn("... ..."), **tool) == ["... ..."]


def test_smooth_removes_a_spike_and_fills_a_nick() -> None:
    block = np.zeros((20, 20, 8), bool)
    block[4:16, 4:16] = True
    spoiled = block.copy()
    spoiled[10, 16:19] = True
    spoiled[4:7, 10] = False
    smooth = run(spoiled, tool="smooth", mm=2)
    assert smooth[4].split()[10][16:19] == "..."
    assert smooth[4].split()[6][10] == "#"


# --- parts ---


def test_fill_holes_fills_only_what_is_enclosed() -> None:
    floor = "##### ##### ##### ##### #####"
    assert run(drawn(floor, "##### #.#.. ##### ##### #####", floor), tool="fill_holes")[1] == "##### ###.. ##### ##### #####"


def test_keep_largest_counts_corners_as_neighbors() -> None:
    assert run(drawn("##..# ..#.# ....."), tool="keep_largest") == ["##... ..#.. ....."]


def test_remove_small_counts_cubic_millimeters() -> None:
    mask = drawn("##..# ##... ....#")
    assert run(mask, (1, 1, 2.5), tool="remove_small", mm3=2.5) == ["##..# ##... ....#"]
    assert run(mask, (1, 1, 2.5), tool="remove_small", mm3=2.6) == ["##... ##... ....."]


# --- slices ---


def test_interpolation_fills_what_lies_between_and_nothing_else() -> None:
    small, large, none = ".... .##. .##. ....", "#### #### #### ####", ".... .... .... ...."
    mask = drawn(none, small, none, none, none, small, none)
    assert run(mask, tool="interpolate", axis=2) == [none, small, small, small, small, small, none]
    assert run(drawn(small, none, large), tool="interpolate", axis=2)[1] in (small, large, ".##. #### #### .##.")


def test_interpolation_mixes_signed_distances() -> None:
    """Columns 2 to 4, and 2 to 8. Column 6 lies 2 mm outside the one and 3 mm inside the other, column 7 the other way round."""
    mask = drawn("..###......", "...........", "..#######..")
    assert run(mask, tool="interpolate", axis=2)[1] == "..#####...."


def test_painted_slices_are_not_touched_and_other_axes_work() -> None:
    one, other = "..###......", "..#######.."
    mask = np.moveaxis(drawn(one, "...........", other, "...........", one), 2, 0)  # slices along x
    again = np.moveaxis(drawn(*run(mask, tool="interpolate", axis=0)), 0, 2)
    assert shown(again) == [one, "..#####....", other, "..#####....", one]


def test_interpolation_stays_between_from_and_to() -> None:
    mask = drawn("#", ".", "#", ".", "#", ".", "#")
    assert run(mask, tool="interpolate", axis=2, **{"from": 2, "to": 4}) == ["#", ".", "#", "#", "#", ".", "#"]
    assert run(mask, tool="interpolate", axis=2, **{"from": 1, "to": 3}) == shown(mask)  # only one painted slice


# --- where ---


def test_a_box_limits_what_changes_not_what_is_looked_at() -> None:
    mask = drawn("##... ##... ....# .....")
    box = [[2, 3], [0, 5], [0, 1]]
    assert run(mask, tool="keep_largest", box=box) == ["##... ##... ..... ....."]
    assert run(mask, tool="keep_largest", box=[[0, 2], [0, 5], [0, 1]]) == shown(mask)  # the small part lies elsewhere
    with pytest.raises(ToolError, match=r"box \[\[2, 3\], \[0, 6\], \[0, 1\]\] does not lie in a volume of 4 x 5 x 1"):
        run(mask, tool="keep_largest", box=[[2, 3], [0, 6], [0, 1]])


def test_protected_voxels_are_not_taken_but_may_be_kept() -> None:
    mask, other = drawn("..#.."), drawn("..##.")
    assert run(mask, tool="grow", mm=1, protected=other) == [".##.."]
    assert run(mask, tool="grow", mm=1, protected=other, protect=False) == [".###."]


# --- random walker ---


def test_a_random_walker_stops_at_a_step_in_hu() -> None:
    image = np.zeros((12, 12, 3), np.int16)
    image[3:9, 3:9] = 200
    image += np.random.default_rng(0).integers(-5, 5, image.shape).astype(np.int16)
    flat = {name: int(np.ravel_multi_index(at, image.shape, order="F")) for name, at in (("in", (5, 5, 1)), ("out", (0, 0, 1)))}
    told = {"foreground": [flat["in"]], "background": [flat["out"]], "box": [[0, 12], [0, 12], [0, 3]]}
    result = run(np.zeros(image.shape, bool), (3, 3, 3), image=image, tool="random_walker", **told)
    assert result == shown(image > 100)


def test_a_random_walker_says_what_it_lacks() -> None:
    mask, image = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), np.int16)
    box = [[0, 4]] * 3
    with pytest.raises(ToolError, match="contrast"):
        run(mask, image=image, tool="random_walker", foreground=[0], background=[63], box=box)
    with pytest.raises(ToolError, match="inside its box"):
        run(mask, image=image, tool="random_walker", foreground=[0], background=[63], box=[[0, 2]] * 3)
    with pytest.raises(ValueError, match="a box of 20000000 voxels; random_walker takes at most 300000"):
        run(mask, image=image, tool="random_walker", foreground=[0], background=[63], box=[[0, 500], [0, 500], [0, 80]])


@pytest.mark.parametrize("tool", ["grow", "shrink", "smooth"])
def test_a_box_changes_where_not_what(tool: str) -> None:
    """Inside the box the mask is what it would be without one; outside it stays."""
    rng = np.random.default_rng(0)
    grid = np.indices((40, 36, 20))
    mask = (((grid - np.array([20, 18, 10])[:, None, None, None]) / np.array([14, 11, 7])[:, None, None, None]) ** 2).sum(0) < 1
    mask &= rng.random(mask.shape) < 0.97
    subject = Subject(mask, (0.8, 1.1, 2.5), lambda: None)
    nothing = np.zeros(mask.shape, bool)
    whole = propose(TOOL.validate_python({"rev": 0, "tool": tool, "mm": 3}), subject, nothing)
    for box in ([(4, 15), (10, 20), (2, 9)], [(15, 22), (14, 20), (8, 12)], [(0, 3), (0, 3), (0, 3)]):
        inside = tuple(slice(*span) for span in box)
        found = propose(TOOL.validate_python({"rev": 0, "tool": tool, "mm": 3, "box": box}), subject, nothing)
        np.testing.assert_array_equal(found[inside], whole[inside])
        expected = mask.copy()
        expected[inside] = whole[inside]
        np.testing.assert_array_equal(found, expected)
    assert (whole != mask).any()
