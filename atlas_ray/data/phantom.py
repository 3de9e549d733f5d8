"""Synthetic CT: a patient made up from a seed, or a given label map textured into a CT.

Both ways end in the same painter: a map of tissues becomes Hounsfield units. The procedural patient makes its own map from
configs/phantom/anatomy.yaml; a given label map keeps every labeled voxel and gets the rest of a body (wall, spine, ribs, bowel,
lungs) from the same file, laid around it. Nothing about any organ is written here: places, shapes and volumes are in anatomy.yaml,
Hounsfield units in hounsfield.yaml.

Everything is drawn before a grid is looked at, in millimeters of the patient frame (RAS, origin as anatomy.yaml says), so one seed
is one patient on any spacing, orientation or field of view; only the grain of the noise belongs to the grid.

What is not covered: pathology beyond the named variants, vessels beyond the large ones, motion, beam hardening beyond simple
streaks, and the spectrum of real noise. Results on these images say that the software works, nothing about patients.

Legend: X Y Z array axes; x y z patient frame in mm; "claim": which structure owns a voxel, 0 for none, else its place + 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Annotated, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, ValidationError, field_validator
from scipy.ndimage import find_objects, gaussian_filter, gaussian_filter1d, maximum_filter1d
from scipy.spatial.transform import Rotation

from atlas_ray.exceptions import ConfigError, LabelError
from atlas_ray.organs import CONFIGS, LabelMap, Organs
from atlas_ray.resampling import resample_labels, shape_at_spacing
from atlas_ray.schema import Fraction, IntTriple, Millimeters, Schema, Triple
from atlas_ray.strict_yaml import read_yaml
from atlas_ray.volume import Affine, Volume, reorient

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Range = tuple[float, float]  # drawn uniformly
MeanSd = tuple[float, float]  # drawn normally
Box = tuple[slice, slice, slice]
Phase = Literal["non_contrast", "arterial", "portal"]
PHASES: tuple[Phase, ...] = ("non_contrast", "arterial", "portal")

SLAB_VOXELS = 2_000_000  # structures are evaluated slab by slab: about 60 MB of coordinates at a time
REFERENCE_MM = 4.0  # grid on which an outline is moved until its organ has the volume drawn for it
REFERENCE_EXTENT_MM = ((-176.0, 176.0), (-112.0, 128.0), (-112.0, 176.0))  # holds every structure that has a volume
LARGEST_MOVE_MM = 16.0  # of that outline; farther would change the shape, not the size
BOX_MARGIN_MM = 34.0  # that move, and the warp at three sd
SLIMMEST_GIRTH = 0.92  # of anatomy.yaml's trunk; where a label map's organs ask for less, as at the dome or below the last one
VOXEL_SD = 12**-0.5  # sd of averaging over one voxel's width, in voxels: a Gaussian of it stands for partial volume
SPLINE_GAIN = (315 / 151) ** 1.5  # a cubic B-spline through white noise of sd 1 leaves (151/315)^(3/2); De Boor 1978

# --- knobs ----------------------------------------------------------------------------------------------------------


class Texture(Schema):
    """How a map of tissues looks as a CT.

    Args:
        phase: contrast phase, or "random": one of them, drawn per patient.
        noise_hu: sd of the scanner noise.
        grain_mm: sd of the Gaussian that correlates the noise; about what a soft reconstruction kernel leaves.
        blur_mm: sd of the scanner's point spread; averaging over the voxel comes on top.
    """

    phase: Phase | Literal["random"] = "portal"
    noise_hu: NonNegativeFloat = 14.0
    grain_mm: NonNegativeFloat = 0.9
    blur_mm: NonNegativeFloat = 0.9


class Phantom(Schema):
    """The scan of a patient made up from a seed.

    Args:
        spacing: voxel edges in mm, in the array-axis order of the result.
        orientation: where the result's axes grow toward, such as "RAS" or "LPS".
        field_of_view_mm: extent left-right, back-front and foot-head of the patient, whatever the orientation.
        center_mm: middle of the field of view in the patient frame; a field that is small or off the middle cuts the anatomy.
        texture: how it looks.
        variants: rare variants it has for certain, by their names in anatomy.yaml.
        variant_rate: chance of each other rare variant.
    """

    spacing: tuple[Millimeters, Millimeters, Millimeters] = (1.5, 1.5, 3.0)
    orientation: str = "RAS"
    field_of_view_mm: tuple[Millimeters, Millimeters, Millimeters] = (400.0, 300.0, 300.0)
    center_mm: Triple = (0.0, 10.0, 35.0)
    texture: Texture = Texture()
    variants: tuple[str, ...] = ()
    variant_rate: Fraction = 0.0

    @field_validator("orientation")
    @classmethod
    def _three_directions(cls, value: str) -> str:
        if sorted(_patient_axis(letter) for letter in value) != [0, 1, 2]:
            raise ValueError(f"orientation {value!r} must have one of L/R, one of P/A and one of I/S, in any order")
        return value


@dataclass(frozen=True, slots=True, eq=False)
class Patient:
    """A synthetic CT and its truth.

    Args:
        image: int16 HU.
        label: uint8 label ids of the organ set it was made with, on the image's grid.
        variants: the rare variants it has.
        phase: its contrast phase.
    """

    image: Volume
    label: Volume
    variants: tuple[str, ...]
    phase: Phase


def procedural_patient(knobs: Phantom, *, seed: int, organs: Organs) -> Patient:
    """A patient made up from a seed.

    Every structure of anatomy.yaml that `organs` names becomes its label; organs it does not describe stay absent.

    Raises:
        ConfigError: a variant that anatomy.yaml does not know, or two that exclude each other.
    """
    anatomy, streams = load_anatomy(), _Streams.of(seed)
    names = _choose_variants(anatomy, knobs.variants, knobs.variant_rate, streams.variants)
    body = _draw_body(anatomy, streams, names)
    offsets = _settle(body)
    frame, affine = _scan_frame(body, knobs)
    claims, tissues = _fill(body, frame, _unclaimed(frame), offsets)
    labels = np.take(_label_ids(body, organs), claims)
    image, phase = _paint(body, frame, tissues, knobs.texture, streams)
    scan, truth = (reorient(Volume(voxels, affine), knobs.orientation) for voxels in (image, labels))
    return Patient(_contiguous(scan), _contiguous(truth), names, phase)


def textured_patient(
    label: Volume,
    *,
    organs: Organs,
    texture: Texture,
    seed: int,
    variants: tuple[str, ...] = (),
    spacing: Triple | None = None,
) -> Patient:
    """A label map as a CT: a semi-synthetic patient. No labeled voxel changes, and no organ of the set is added.

    Args:
        label: label ids of `organs`, any orientation; oblique grids are taken at their nearest anatomical axes.
        organs: what the ids mean. An organ without an entry in hounsfield.yaml looks like soft tissue.
        texture: how it looks.
        seed: draws the contrast, the contents of hollow organs, and the body around the organs.
        variants: rare variants, of which only what they change in the image is done.
        spacing: the result's voxels, array-axis order; None keeps the label's grid. The label is resampled to the nearest voxel.

    Raises:
        ConfigError: a variant that is unknown, or that changes nothing but the label.
        LabelError: an id that `organs` does not know.
    """
    anatomy, streams = load_anatomy(), _Streams.of(seed)
    names = _choose_variants(anatomy, variants, 0.0, streams.variants)
    if shaping := [name for name in names if not anatomy.variants[name].changes_image]:
        raise ConfigError(f"variants {shaping} change only the label; over a given label map there is nothing they could change")
    if unknown := sorted(set(np.unique(label.voxels).tolist()) - {0, *organs.label_ids}):
        raise LabelError(f"label ids {unknown} have no organ; {organs.name} knows {sorted(organs.label_ids)}")
    label = label.with_voxels(label.voxels.astype(np.uint8, copy=False))
    if spacing is not None:
        label = resample_labels(label, shape_at_spacing(label.shape, label.spacing, spacing))
    ras = reorient(label, "RAS")
    body = _around_organs(_draw_body(anatomy, streams, names), organs)
    frame = _anchored_frame(body, ras, organs)
    owners = np.zeros(256, np.uint8)
    owners[list(organs.label_ids)] = np.arange(1, len(organs) + 1)
    _, tissues = _fill(body, frame, np.take(owners, ras.voxels), (0.0,) * len(body.placed))
    image, phase = _paint(body, frame, tissues, texture, streams)
    turned = reorient(Volume(image, ras.affine), label.orientation)
    return Patient(label.with_voxels(np.ascontiguousarray(turned.voxels)), label, names, phase)


def _contiguous(volume: Volume) -> Volume:
    return replace(volume, voxels=np.ascontiguousarray(volume.voxels))


def _patient_axis(letter: str) -> int:
    """0 for left-right, 1 for back-front, 2 for foot-head, -1 for no direction."""
    return next((axis for axis, pair in enumerate(("LR", "PA", "IS")) if letter in pair), -1)


# --- shapes (anatomy.yaml) ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Points:
    """Where voxels lie: x, y, z in the patient frame and mm inside the body cavity (negative outside), each [X, Y, Z]."""

    x: F32
    y: F32
    z: F32
    cavity: F32

    def __getitem__(self, box: Box) -> "_Points":
        return _Points(self.x[box], self.y[box], self.z[box], self.cavity[box])


class Ellipsoid(Schema):
    """turn_deg: about x, then y, then z."""

    shape: Literal["ellipsoid"] = "ellipsoid"
    part: str = ""
    center: Triple
    radii: Triple
    turn_deg: Triple = (0.0, 0.0, 0.0)

    @property
    def bounds(self) -> tuple[Triple, Triple]:
        return _around([self.center], [max(self.radii)])

    def scaled(self, by: float) -> "Ellipsoid":
        return self.model_copy(update={"radii": tuple(r * by for r in self.radii)})

    def level(self, points: _Points) -> F32:
        """About the distance to the surface in mm, positive inside: the first-order estimate of Quilez's ellipsoid."""
        turn = Rotation.from_euler("xyz", self.turn_deg, degrees=True).as_matrix().astype(np.float32)
        offset = [np.subtract(p, np.float32(c)) for p, c in zip((points.x, points.y, points.z), self.center, strict=True)]
        unit = np.zeros_like(points.x)
        slope = np.zeros_like(points.x)
        for axis, radius in enumerate(self.radii):
            along = (turn[0, axis] * offset[0] + turn[1, axis] * offset[1] + turn[2, axis] * offset[2]) / np.float32(radius)
            unit += along * along
            slope += (along / np.float32(radius)) ** 2
        np.sqrt(unit, out=unit)
        unit = np.maximum(unit, np.float32(1e-3))  # at the center itself the estimate is 0/0
        return np.asarray(unit * (1 - unit) / np.maximum(np.sqrt(slope), unit / max(self.radii)), np.float32)


class Tube(Schema):
    """A chain of cones through `points`; `squash`: how many times thinner it is along x, y, z than its radius says."""

    shape: Literal["tube"] = "tube"
    part: str = ""
    points: tuple[Triple, ...] = Field(min_length=2)
    radii: tuple[float, ...]
    squash: Triple = (1.0, 1.0, 1.0)

    @property
    def bounds(self) -> tuple[Triple, Triple]:
        return _around(self.points, [r / min(self.squash) for r in self.radii])

    def scaled(self, by: float) -> "Tube":
        return self.model_copy(update={"radii": tuple(r * by for r in self.radii)})

    def level(self, points: _Points) -> F32:
        """About the distance to the surface in mm, positive inside."""
        squash = np.array(self.squash, np.float32)
        where = [p * s for p, s in zip((points.x, points.y, points.z), squash, strict=True)]
        level = np.full_like(points.x, -np.inf)
        ends = list(zip(np.array(self.points, np.float32) * squash, np.array(self.radii, np.float32), strict=True))
        for (start, r_start), (end, r_end) in pairwise(ends):
            np.maximum(level, _cone(where, start, end, r_start, r_end), out=level)
        return level


class Shell(Schema):
    """A layer between two depths of the cavity; negative ones lie in its wall."""

    shape: Literal["shell"] = "shell"
    part: str = ""
    from_mm: float
    to_mm: float

    @property
    def bounds(self) -> tuple[Triple, Triple]:
        return _around([(0, 0, 0)], [np.inf])

    def scaled(self, by: float) -> "Shell":
        return self

    def level(self, points: _Points) -> F32:
        return np.asarray(np.minimum(points.cavity - np.float32(self.from_mm), np.float32(self.to_mm) - points.cavity), np.float32)


class Loops(Schema):
    """Many random bent tubes in an ellipsoid; each becomes a structure of its own, so that they lie beside each other."""

    shape: Literal["loops"] = "loops"
    count: int
    center: Triple
    radii: Triple
    length_mm: float
    radius_mm: Range

    def drawn(self, rng: np.random.Generator) -> tuple[Tube, ...]:
        return tuple(self._one(rng) for _ in range(self.count))

    def _one(self, rng: np.random.Generator) -> Tube:
        middle = np.array(self.center) + np.array(self.radii) * _unit(rng) * rng.random() ** (1 / 3)
        along, aside = _unit(rng) * self.length_mm / 2, _unit(rng) * self.length_mm / 4
        radius = rng.uniform(*self.radius_mm)
        points = [middle - along - aside / 2, middle + aside, middle + along - aside / 2]
        return Tube(points=tuple((float(x), float(y), float(z)) for x, y, z in points), radii=(radius,) * 3)


Solid = Annotated[Ellipsoid | Tube | Shell, Field(discriminator="shape")]
Part = Annotated[Ellipsoid | Tube | Shell | Loops, Field(discriminator="shape")]


def _unit(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A random direction."""
    direction = rng.normal(size=3)
    return np.asarray(direction / np.linalg.norm(direction))


def _around(points: Sequence[Triple], radii: Sequence[float]) -> tuple[Triple, Triple]:
    """The box that holds balls of `radii` at `points`."""
    low = np.min(np.array(points) - np.array(radii)[:, None], axis=0)
    high = np.max(np.array(points) + np.array(radii)[:, None], axis=0)
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def _cone(where: list[F32], start: F32, end: F32, r_start: np.float32, r_end: np.float32) -> F32:
    """Radius at the nearest point of the segment less the distance to it."""
    axis = end - start
    offset = [p - s for p, s in zip(where, start, strict=True)]
    share = (offset[0] * axis[0] + offset[1] * axis[1] + offset[2] * axis[2]) / np.float32(max(float(axis @ axis), 1e-6))
    np.clip(share, 0, 1, out=share)
    squared = sum(((o - share * a) ** 2 for o, a in zip(offset, axis, strict=True)), np.zeros_like(share))
    return np.asarray(r_start + share * (r_end - r_start) - np.sqrt(squared), np.float32)


def _join(a: F32, b: F32, blend_mm: float) -> F32:
    """Union of two levels, rounded over `blend_mm` where they meet (polynomial smooth maximum, Quilez 2013)."""
    if blend_mm == 0:
        return np.maximum(a, b)
    k = np.float32(blend_mm)
    share = np.clip(np.float32(0.5) + (a - b) / (2 * k), 0, 1)
    return np.asarray(b + (a - b) * share + k * share * (1 - share), np.float32)


# --- anatomy.yaml and hounsfield.yaml -------------------------------------------------------------------------------


class Repeat(Schema):
    """Bands along z + slope * y, one every `pitch_mm` from `start_mm`."""

    pitch_mm: float
    thickness_mm: float
    slope: float = 0.0
    start_mm: float = 0.0

    def level(self, points: _Points) -> F32:
        along = points.z + np.float32(self.slope) * points.y - np.float32(self.start_mm)
        pitch = np.float32(self.pitch_mm)
        return np.asarray(np.float32(self.thickness_mm / 2) - np.abs(along - pitch * np.rint(along / pitch)), np.float32)


class Structure(Schema):
    """One entry of anatomy.yaml, whose header explains the fields."""

    name: str
    tissue: str | None = None
    within: Literal["cavity", "trunk", "body"] = "cavity"
    inside: str | None = None
    volume_ml: Range | None = None
    shift_mm: float = 0.0
    turn_deg: float = 0.0
    stretch: float = 0.0
    blend_mm: float = 3.0
    repeat: Repeat | None = None
    parts: tuple[Part, ...] = ()
    cuts: tuple[Solid, ...] = ()

    def solids(self) -> tuple[Solid, ...]:
        return tuple(part for part in self.parts if not isinstance(part, Loops))

    @property
    def bounds(self) -> tuple[Triple, Triple]:
        low, high = zip(*(part.bounds for part in self.solids()), strict=True)
        (x0, y0, z0), (x1, y1, z1) = np.min(low, axis=0), np.max(high, axis=0)
        return (x0, y0, z0), (x1, y1, z1)

    def level(self, points: _Points) -> F32:
        """About mm inside the structure, before anything else claims a voxel, [X, Y, Z]."""
        first, *rest = self.solids()
        level = first.level(points)
        for part in rest:
            level = _join(level, part.level(points), self.blend_mm)
        for cut in self.cuts:
            level = -_join(-level, cut.level(points), self.blend_mm)
        return level if self.repeat is None else np.minimum(level, self.repeat.level(points))


class Waist(Schema):
    """How much narrower the trunk is around `z_mm`."""

    z_mm: float
    width_mm: Millimeters
    depth: Fraction


class Couch(Schema):
    tissue: str
    gap_mm: float
    thickness_mm: float


class BodyShape(Schema):
    """Trunk outline and its layers from the skin inward."""

    cavity_mm: tuple[Millimeters, Millimeters]
    center_y_mm: float
    squareness: float
    waist: Waist
    size: Range
    aspect: float
    wall_mm: Range
    fat_mm: Range
    skin_mm: float
    skin: str
    fat: str
    wall: str
    filling: str
    couch: Couch


class Landmarks(Schema):
    """Organs that lay the patient frame into a label map."""

    axis: str
    origin: tuple[str, ...]
    top: str
    top_mm: float


class WarpOctave(Schema):
    pitch_mm: Millimeters
    sd_mm: float


class Lumen(Schema):
    """What fills a hollow organ.

    Args:
        wall_mm: thickness of its wall.
        content: mean HU of the fluid or food, drawn in this range.
        texture: sd of the content, HU.
        gas_fraction: share of the lumen that is gas.
        patchiness: 0 lets all the gas rise to the front (the patient lies on the back), 1 scatters it.
    """

    wall_mm: float
    content: Range
    texture: float
    gas_fraction: Range
    patchiness: Fraction


class ScalePart(Schema):
    part: str
    by: Range


class Implants(Schema):
    hounsfield: float
    streak_hu: float
    sites: tuple[tuple[Solid, ...], ...]


class Variant(Schema):
    """A rare variant: what it changes of one of the named organs, or what it puts into the patient."""

    one_of: tuple[str, ...] = ()
    volume_ml: Range | None = None
    scale_part: ScalePart | None = None
    absent: bool = False
    lumen: Lumen | None = None
    implants: Implants | None = None
    excludes: tuple[str, ...] = ()

    @property
    def changes_image(self) -> bool:
        """Whether it can be laid over a given label map, of which it changes no voxel."""
        return self.lumen is not None or self.implants is not None


class Anatomy(Schema):
    landmarks: Landmarks
    body: BodyShape
    warp: tuple[WarpOctave, ...]
    structures: tuple[Structure, ...]
    variants: dict[str, Variant]


class Tissue(Schema):
    """Mean and between-patient sd of the HU per phase; `texture`: sd of the pattern within."""

    non_contrast: MeanSd
    arterial: MeanSd
    portal: MeanSd
    texture: float = 0.0
    lumen: Lumen | None = None


class Hounsfield(Schema):
    air: float
    fallback: str
    tissues: dict[str, Tissue]

    def number(self, name: str) -> int:
        """A tissue's value in a map of tissues; 0 is air, an unknown one is the fallback."""
        return 1 + list(self.tissues).index(name if name in self.tissues else self.fallback)


S = TypeVar("S", bound=Schema)


@cache
def load_anatomy() -> Anatomy:
    """configs/phantom/anatomy.yaml. Raises ConfigError where it is not one."""
    return _load("anatomy", Anatomy)


@cache
def load_hounsfield() -> Hounsfield:
    """configs/phantom/hounsfield.yaml. Raises ConfigError where it is not one."""
    return _load("hounsfield", Hounsfield)


def _load(name: str, schema: type[S]) -> S:
    path = CONFIGS / "phantom" / f"{name}.yaml"
    try:
        return schema.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"{path} cannot be used: {error}") from error


# --- drawing a patient ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Streams:
    """Independent random streams, so that a knob of one does not disturb the draws of another."""

    variants: np.random.Generator
    anatomy: np.random.Generator
    appearance: np.random.Generator
    noise: np.random.Generator

    @classmethod
    def of(cls, seed: int) -> "_Streams":
        return cls(*np.random.default_rng(seed).spawn(4))


@dataclass(frozen=True, slots=True, eq=False)
class _Field:
    """Smooth random field of mean 0 and sd 1 in the patient frame; repeats every len(lattice) * pitch_mm."""

    lattice: F32  # [N, N, N]
    pitch_mm: float

    @classmethod
    def drawn(cls, rng: np.random.Generator, pitch_mm: float) -> "_Field":
        return cls(rng.standard_normal((20, 20, 20), np.float32) * np.float32(SPLINE_GAIN), pitch_mm)

    def sample(self, x: F32, y: F32, z: F32) -> F32:
        """On the grid of three axes: [X], [Y], [Z] -> [X, Y, Z]."""
        weights = (self._weights(axis) for axis in (x, y, z))
        return np.asarray(np.einsum("xi,yj,zk,ijk->xyz", *weights, self.lattice, optimize=True), np.float32)

    def _weights(self, axis: F32) -> F32:
        """Cubic B-spline weights of the lattice points for each place, [len(axis), N]."""
        n = len(self.lattice)
        place = axis / np.float32(self.pitch_mm)
        distance = np.abs((place[:, None] - np.arange(n, dtype=np.float32) + n / 2) % n - n / 2)
        near = 2 / 3 - distance**2 + distance**3 / 2
        far = np.clip(2 - distance, 0, None) ** 3 / 6
        return np.where(distance < 1, near, far).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Placed:
    """A structure with its own variation: the patient's point p is anatomy.yaml's about + turn @ (p - about - shift)."""

    structure: Structure
    turn: npt.NDArray[np.float64]
    shift: npt.NDArray[np.float64]
    target_ml: float | None

    @property
    def about(self) -> npt.NDArray[np.float64]:
        return np.asarray(np.mean(self.structure.bounds, axis=0))

    @property
    def is_still(self) -> bool:
        return not self.shift.any() and bool((self.turn == np.eye(3)).all())

    def bounds(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        low, high = (np.array(edge) for edge in self.structure.bounds)
        grown = (high - low) / 2 * max(1.0, 1 / float(np.linalg.svd(self.turn, compute_uv=False).min()))
        middle = (high + low) / 2 + self.shift if np.isfinite(low).all() else np.zeros(3)
        return middle - grown - BOX_MARGIN_MM, middle + grown + BOX_MARGIN_MM

    def level(self, points: _Points) -> F32:
        return self.structure.level(points if self.is_still else self._own(points))

    def _own(self, points: _Points) -> _Points:
        turn = self.turn.astype(np.float32)
        origin = self.about - self.turn @ (self.about + self.shift)
        x, y, z = (
            row[0] * points.x + row[1] * points.y + row[2] * points.z + np.float32(constant)
            for row, constant in zip(turn, origin, strict=True)
        )
        return _Points(x, y, z, points.cavity)


@dataclass(frozen=True, slots=True, eq=False)
class _Body:
    """One patient before any grid: every number that anatomy.yaml leaves to chance is drawn."""

    shape: BodyShape
    landmarks: Landmarks
    course: tuple[Triple, ...]  # of the axis organ in anatomy.yaml
    size: npt.NDArray[np.float64]  # [3], of the patient against anatomy.yaml
    wall_mm: float
    fat_mm: float
    placed: tuple[_Placed, ...]
    warp: tuple[tuple[float, tuple[_Field, _Field, _Field]], ...]  # sd in mm and a field per direction
    lumens: dict[str, Lumen]  # tissues whose lumen a variant has changed
    implants: tuple[tuple[Implants, tuple[Solid, ...]], ...]


def _choose_variants(anatomy: Anatomy, certain: tuple[str, ...], rate: float, rng: np.random.Generator) -> tuple[str, ...]:
    """Names of this patient's variants, in the order of anatomy.yaml."""
    if unknown := sorted(set(certain) - set(anatomy.variants)):
        raise ConfigError(f"variants {unknown} are unknown; anatomy.yaml has {', '.join(anatomy.variants)}")
    for name in certain:
        if barred := sorted(set(anatomy.variants[name].excludes) & set(certain)):
            raise ConfigError(f"variant {name!r} excludes {barred}; one patient cannot have both")
    chosen = list(certain)
    for name, roll in zip(anatomy.variants, rng.random(len(anatomy.variants)), strict=True):
        if roll < rate and name not in chosen and not set(anatomy.variants[name].excludes) & set(chosen):
            chosen.append(name)
    return tuple(name for name in anatomy.variants if name in chosen)


def _draw_body(anatomy: Anatomy, streams: _Streams, names: tuple[str, ...]) -> _Body:
    rng, shape = streams.anatomy, anatomy.body
    effects: dict[str, Variant] = {}
    implants: list[tuple[Implants, tuple[Solid, ...]]] = []
    for variant in (anatomy.variants[name] for name in names):
        if variant.one_of:
            effects[variant.one_of[streams.variants.integers(len(variant.one_of))]] = variant
        if variant.implants is not None:
            implants.append((variant.implants, variant.implants.sites[streams.variants.integers(len(variant.implants.sites))]))
    size, aspect = rng.uniform(*shape.size), rng.normal(0, shape.aspect)
    wall_mm, fat_mm = rng.uniform(*shape.wall_mm), rng.uniform(*shape.fat_mm)
    warp = tuple((octave.sd_mm, _three_fields(rng, octave.pitch_mm)) for octave in anatomy.warp)
    # One child stream per structure: a variant of one leaves every other as it was.
    children = rng.spawn(len(anatomy.structures))
    placed = (
        placed
        for structure, child in zip(anatomy.structures, children, strict=True)
        for placed in _place(structure, effects.get(structure.name), child)
    )
    return _Body(
        shape=shape,
        landmarks=anatomy.landmarks,
        course=_course(anatomy),
        size=np.array([size * np.exp(aspect), size * np.exp(-aspect), size]),
        wall_mm=wall_mm,
        fat_mm=fat_mm,
        placed=tuple(placed),
        warp=warp,
        lumens={name: variant.lumen for name, variant in effects.items() if variant.lumen is not None},
        implants=tuple(implants),
    )


def _course(anatomy: Anatomy) -> tuple[Triple, ...]:
    """Points along the axis organ."""
    structure = next(s for s in anatomy.structures if s.name == anatomy.landmarks.axis)
    return next(part.points for part in structure.parts if isinstance(part, Tube))


def _three_fields(rng: np.random.Generator, pitch_mm: float) -> tuple[_Field, _Field, _Field]:
    return _Field.drawn(rng, pitch_mm), _Field.drawn(rng, pitch_mm), _Field.drawn(rng, pitch_mm)


def _place(structure: Structure, effect: Variant | None, rng: np.random.Generator) -> Iterator[_Placed]:
    """The structure as this patient has it; nothing where it is absent; one per loop where it is made of loops."""
    shift = rng.normal(0, 1, 3) * structure.shift_mm
    angles = rng.normal(0, 1, 3) * structure.turn_deg
    stretch = np.exp(rng.normal(0, 1, 3) * structure.stretch)
    quantile, factor = rng.random(2)
    if effect is not None and effect.absent:
        return
    usual = structure.volume_ml
    volume_ml = effect.volume_ml if effect is not None and effect.volume_ml is not None else usual
    target_ml = None if volume_ml is None else _within(volume_ml, quantile)
    growth = 1.0 if target_ml is None or usual is None else (target_ml / _within(usual, 0.5)) ** (1 / 3)
    if effect is not None and effect.scale_part is not None:
        structure, growth = _with_scaled_part(structure, effect.scale_part, factor), 1.0
    turn = np.diag(1 / (stretch * growth)) @ Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    loops = [tube for part in structure.parts if isinstance(part, Loops) for tube in part.drawn(rng)]
    if structure.solids():
        yield _Placed(structure, turn, shift, target_ml)
    for tube in loops:
        yield _Placed(structure.model_copy(update={"parts": (tube,)}), np.eye(3), np.zeros(3), None)


def _within(limits: Range, share: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * share


def _with_scaled_part(structure: Structure, scale: ScalePart, share: float) -> Structure:
    by = _within(scale.by, share)
    return structure.model_copy(
        update={"parts": tuple(p.scaled(by) if not isinstance(p, Loops) and p.part == scale.part else p for p in structure.parts)}
    )


def _around_organs(body: _Body, organs: Organs) -> _Body:
    """The body for a given label map: its organs, as owners without a shape, then all that is no organ of the set."""
    given = (_Placed(Structure(name=organ.name), np.eye(3), np.zeros(3), None) for organ in organs)
    return replace(body, placed=(*given, *(p for p in body.placed if p.structure.name not in organs.names)))


# --- frames: where the voxels lie in the patient --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Frame:
    """A grid in the patient frame: x [X] and y [Y] count from center_x, center_y [Z] of their slice; z, girth [Z] per slice.

    Coordinates are divided by the patient's size, so they are anatomy.yaml's; spacing and voxel_ml are the scanner's.
    """

    x: F32
    y: F32
    z: F32
    center_x: F32
    center_y: F32
    girth: F32  # of the trunk against anatomy.yaml
    spacing: Triple

    @property
    def shape(self) -> IntTriple:
        return len(self.x), len(self.y), len(self.z)

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing)) / 1000

    def slab(self, z: slice) -> "_Frame":
        return replace(self, z=self.z[z], center_x=self.center_x[z], center_y=self.center_y[z], girth=self.girth[z])

    def slabs(self) -> Iterator[slice]:
        step = max(1, SLAB_VOXELS // (len(self.x) * len(self.y)))
        return (slice(start, min(start + step, len(self.z))) for start in range(0, len(self.z), step))

    def box(self, low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> Box:
        """The voxels between two corners of the patient frame."""
        x = _span(self.x, low[0] + self.center_x.min(), high[0] + self.center_x.max())
        y = _span(self.y, low[1] + self.center_y.min(), high[1] + self.center_y.max())
        return x, y, _span(self.z, low[2], high[2])


def _span(axis: F32, low: float, high: float) -> slice:
    return slice(int(np.searchsorted(axis, low)), int(np.searchsorted(axis, high, side="right")))


def _frame(body: _Body, extent_mm: Sequence[Range], shape: IntTriple) -> _Frame:
    """A grid of `shape` that fills `extent_mm` of a procedural patient."""
    spacing = [(high - low) / n for (low, high), n in zip(extent_mm, shape, strict=True)]
    x, y, z = (
        ((low + (np.arange(n) + 0.5) * step) / size).astype(np.float32)
        for (low, _), n, step, size in zip(extent_mm, shape, spacing, body.size, strict=True)
    )
    waist = body.shape.waist
    girth = 1 - np.float32(waist.depth) * np.exp(-(((z - waist.z_mm) / waist.width_mm) ** 2))
    still = np.zeros_like(z)
    return _Frame(x, y, z, still, still, girth.astype(np.float32), (spacing[0], spacing[1], spacing[2]))


def _reference_frame(body: _Body) -> _Frame:
    shape = [round((high - low) / REFERENCE_MM) for low, high in REFERENCE_EXTENT_MM]
    return _frame(body, REFERENCE_EXTENT_MM, (shape[0], shape[1], shape[2]))


def _scan_frame(body: _Body, knobs: Phantom) -> tuple[_Frame, Affine]:
    """The scan's grid in RAS and its affine; world millimeters are those of the patient frame."""
    spacing = np.empty(3)
    spacing[[_patient_axis(letter) for letter in knobs.orientation]] = knobs.spacing
    shape = np.maximum(1, np.rint(np.array(knobs.field_of_view_mm) / spacing).astype(int))
    start = np.array(knobs.center_mm) - shape * spacing / 2
    extent = [(low, low + n * step) for low, n, step in zip(start, shape, spacing, strict=True)]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = start + spacing / 2
    return _frame(body, extent, (int(shape[0]), int(shape[1]), int(shape[2]))), affine


def _anchored_frame(body: _Body, label: Volume, organs: Organs) -> _Frame:
    """The patient frame laid into a RAS label map by its landmarks, slice by slice, and a trunk that encloses its organs."""
    x, y, z = ((np.arange(n) * step).astype(np.float32) for n, step in zip(label.shape, label.spacing, strict=True))
    heights = _heights(body.landmarks, label.voxels, z, organs)
    center_x, center_y = _centers(body, label.voxels, (x, y, heights), organs)
    frame = _Frame(x, y, heights, center_x, center_y, np.ones_like(z), label.spacing)
    return replace(frame, girth=_enclosing_girth(body, frame, label.voxels > 0))


def _heights(landmarks: Landmarks, labels: LabelMap, z: F32, organs: Organs) -> F32:
    """Patient-frame z of each slice: 0 amid the origin's organs, `top_mm` at the top of the top organ."""
    origin = _slices_of(labels, organs, landmarks.origin)
    if not len(origin):
        origin = np.flatnonzero(labels.any(axis=(0, 1)))
    if not len(origin):
        return np.asarray(z - z.mean(), np.float32)
    zero, top = z[origin].mean(), _slices_of(labels, organs, (landmarks.top,))
    if not len(top) or top[-1] == len(z) - 1:  # absent, or cut off: no height can be told
        return np.asarray(z - zero, np.float32)
    # Patients differ by less than these limits; a label that stops short within the organ could differ by more.
    return np.asarray((z - zero) / np.clip((z[top[-1]] - zero) / landmarks.top_mm, 0.67, 1.5), np.float32)


def _slices_of(labels: LabelMap, organs: Organs, names: Sequence[str]) -> npt.NDArray[np.intp]:
    """Slices that hold any of these organs, [n]."""
    ids = [organs.label_id(name) for name in names if name in organs.names]
    return np.flatnonzero(np.isin(labels, ids).any(axis=(0, 1)))


def _centers(body: _Body, labels: LabelMap, axes: tuple[F32, F32, F32], organs: Organs) -> tuple[F32, F32]:
    """Where each slice's origin lies on x and y: the axis organ's center less where anatomy.yaml has it at that height."""
    x, y, z = axes
    name = body.landmarks.axis
    mask = organs.mask(labels, name) if name in organs.names else np.zeros(labels.shape, bool)
    if not mask.any():
        mask = labels > 0 if labels.any() else np.ones(labels.shape, bool)
        near = np.argwhere(mask).mean(axis=0)
        return np.full_like(z, np.interp(near[0], range(len(x)), x)), np.full_like(z, np.interp(near[1], range(len(y)), y))
    usual = np.array(body.course)
    counts = mask.sum(axis=(0, 1))
    there = counts > 0
    centers = []
    for axis, line in ((0, x), (1, y)):
        along = mask.sum(axis=1 - axis)[:, there]  # [X, Z] or [Y, Z]
        off = line @ along / counts[there] - np.interp(z[there], usual[:, 2], usual[:, axis])
        centers.append(_smooth(np.interp(z, z[there], off), z, 15.0))
    return centers[0], centers[1]


def _smooth(values: npt.NDArray[np.floating], z: F32, sd_mm: float) -> F32:
    """Gaussian along the slices, [Z]."""
    step = float(np.ptp(z)) / max(len(z) - 1, 1)
    return np.asarray(gaussian_filter1d(values, sd_mm / max(step, 1e-3), mode="nearest"), np.float32)


def _enclosing_girth(body: _Body, frame: _Frame, organ: Bools) -> F32:
    """How wide each slice's trunk must be to hold its organs, smooth along z, never slimmer than a slim patient, [Z]."""
    x, y = (_relative(frame.x, frame.center_x, 0.0), _relative(frame.y, frame.center_y, body.shape.center_y_mm))  # [X, Z], [Y, Z]
    width, depth = body.shape.cavity_mm
    n = body.shape.squareness
    reach = (np.abs(x / width) ** n)[:, None, :] + (np.abs(y / depth) ** n)[None, :, :]
    needed = np.where(organ, reach, 0).max(axis=(0, 1)) ** (1 / n) * 1.03
    there = needed > 0
    if not there.any():
        return np.ones_like(frame.z)
    every = np.interp(frame.z, frame.z[there], needed[there])
    step = float(np.ptp(frame.z)) / max(len(frame.z) - 1, 1)
    widest = maximum_filter1d(every, 2 * round(40 / max(step, 1e-3)) + 1, mode="nearest")
    return np.maximum(_smooth(widest, frame.z, 25.0), np.float32(SLIMMEST_GIRTH), dtype=np.float32)


def _relative(axis: F32, centers: F32, offset: float) -> F32:
    """Places on one axis counted from each slice's center, [len(axis), Z]."""
    return np.asarray(axis[:, None] - centers[None, :] - np.float32(offset), np.float32)


def _points(body: _Body, frame: _Frame) -> _Points:
    """The warped place of every voxel of a frame (or of a slab of it)."""
    moved = [np.zeros(frame.shape, np.float32) for _ in range(3)]
    for sd_mm, fields in body.warp:
        for total, field in zip(moved, fields, strict=True):
            total += np.float32(sd_mm) * field.sample(frame.x, frame.y, frame.z)
    x, y, z = moved
    x += _relative(frame.x, frame.center_x, 0.0)[:, None, :]
    y += _relative(frame.y, frame.center_y, 0.0)[None, :, :]
    z += frame.z
    return _Points(x, y, z, _cavity_depth(body.shape, x, y, frame.girth))


def _cavity_depth(shape: BodyShape, x: F32, y: F32, girth: F32) -> F32:
    """Mm inside the superellipse that bounds the cavity, measured along the ray from its center, [X, Y, Z]."""
    y = y - np.float32(shape.center_y_mm)
    n = np.float32(shape.squareness)
    width, depth = (np.float32(half) * girth for half in shape.cavity_mm)
    share = (np.abs(x / width) ** n + np.abs(y / depth) ** n) ** (1 / n)
    radius = np.sqrt(x * x + y * y)
    # At the center itself 0/0: both are kept off zero so that their quotient stays about a semi-axis.
    return np.asarray(np.maximum(radius, 1) / np.maximum(share, 1 / np.float32(shape.cavity_mm[0])) - radius, np.float32)


# --- who owns which voxel -------------------------------------------------------------------------------------------


def _unclaimed(frame: _Frame) -> LabelMap:
    return np.zeros(frame.shape, np.uint8)


def _claim(
    body: _Body, points: _Points, frame: _Frame, claims: LabelMap, offsets: tuple[float, ...] | None
) -> tuple[LabelMap, tuple[float, ...]]:
    """Let every structure, in order, claim the free voxels inside its outline.

    Args:
        claims: what is owned already, [X, Y, Z]; filled in place.
        offsets: how far each outline is moved; None finds those that give every organ its volume on this frame.

    Returns:
        The claims, and the offsets used.
    """
    used = []
    for number, placed in enumerate(body.placed):
        box = frame.box(*placed.bounds()) if placed.structure.parts else (slice(0), slice(0), slice(0))
        if not claims[box].size:
            used.append(0.0 if offsets is None else offsets[number])
            continue
        level = placed.level(points[box])
        open_ = _open_to(body, placed.structure, claims[box], points.cavity[box])
        offset = _offset_for_volume(level[open_], placed.target_ml, frame.voxel_ml) if offsets is None else offsets[number]
        claims[box][open_ & (level > offset)] = number + 1
        used.append(offset)
    return claims, tuple(used)


def _settle(body: _Body) -> tuple[float, ...]:
    """How far each outline must be moved for its organ to have the volume drawn for it, found on a grid of its own."""
    last = max((n for n, placed in enumerate(body.placed, start=1) if placed.target_ml is not None), default=0)
    needed = replace(body, placed=body.placed[:last])
    frame = _reference_frame(body)
    _, offsets = _claim(needed, _points(body, frame), frame, _unclaimed(frame), None)
    return offsets + (0.0,) * (len(body.placed) - last)


def _open_to(body: _Body, structure: Structure, claims: LabelMap, cavity: F32) -> Bools:
    """Voxels a structure may claim."""
    outward_mm = {"cavity": 0.0, "trunk": body.wall_mm, "body": body.wall_mm + body.fat_mm}[structure.within]
    if structure.inside is not None:
        owners = [n for n, p in enumerate(body.placed, start=1) if p.structure.name == structure.inside]
        return np.isin(claims, owners)
    return np.asarray((claims == 0) & (cavity > -outward_mm))


def _offset_for_volume(level: F32, target_ml: float | None, voxel_ml: float) -> float:
    """The level above which a structure has its volume; 0 keeps the outline as drawn."""
    if target_ml is None or not level.size:
        return 0.0
    rank = min(round(target_ml / voxel_ml), level.size) - 1
    offset = float(np.partition(level, level.size - 1 - rank)[level.size - 1 - rank])
    return float(np.clip(offset, -LARGEST_MOVE_MM, LARGEST_MOVE_MM))


def _fill(body: _Body, frame: _Frame, claims: LabelMap, offsets: tuple[float, ...]) -> tuple[LabelMap, LabelMap]:
    """Claims and tissue numbers of a whole grid, slab by slab, each [X, Y, Z]."""
    hounsfield = load_hounsfield()
    numbers = [0, *(hounsfield.number(p.structure.tissue or p.structure.name) for p in body.placed)]
    tissues = np.empty(frame.shape, np.uint8)
    for z in frame.slabs():
        slab = frame.slab(z)
        points = _points(body, slab)
        _claim(body, points, slab, claims[:, :, z], offsets)
        tissues[:, :, z] = np.where(
            claims[:, :, z] > 0, np.take(np.array(numbers, np.uint8), claims[:, :, z]), _layers(body, slab, points)
        )
    return claims, tissues


def _layers(body: _Body, frame: _Frame, points: _Points) -> LabelMap:
    """Tissue numbers of what no structure owns: air, couch, skin, fat, wall, filling, [X, Y, Z]."""
    shape, hounsfield = body.shape, load_hounsfield()
    skin_mm = body.wall_mm + body.fat_mm
    edges = np.array([-skin_mm - shape.skin_mm, -skin_mm, -body.wall_mm, 0.0], np.float32)
    numbers = [0, *(hounsfield.number(name) for name in (shape.skin, shape.fat, shape.wall, shape.filling))]
    layers = np.take(np.array(numbers, np.uint8), np.searchsorted(edges, points.cavity))
    depth = shape.cavity_mm[1] * frame.girth.max() + skin_mm + shape.couch.gap_mm
    behind = shape.center_y_mm - depth - _relative(frame.y, frame.center_y, 0.0)[None, :, :]  # mm below the couch's surface
    couch = (layers == 0) & (behind > 0) & (behind < shape.couch.thickness_mm)
    layers[couch] = hounsfield.number(shape.couch.tissue)
    return layers


def _label_ids(body: _Body, organs: Organs) -> LabelMap:
    """Claim -> label id: that of the structure's name, else, inside another structure, of that one, else 0."""
    ids = [0]
    for placed in body.placed:
        names = (placed.structure.name, placed.structure.inside)
        ids.append(next((organs.label_id(name) for name in names if name in organs.names), 0))
    return np.array(ids, np.uint8)


# --- painting -------------------------------------------------------------------------------------------------------


def _paint(
    body: _Body, frame: _Frame, tissues: LabelMap, texture: Texture, streams: _Streams
) -> tuple[npt.NDArray[np.int16], Phase]:
    """Tissue numbers -> HU, [X, Y, Z], and the phase it was painted in."""
    hounsfield, rng = load_hounsfield(), streams.appearance
    drawn = PHASES[rng.integers(len(PHASES))]
    phase = drawn if texture.phase == "random" else texture.phase
    image = np.take(_patient_means(hounsfield, phase, rng), tissues)
    swing = np.take(np.array([0.0, *(t.texture for t in hounsfield.tissues.values())], np.float32), tissues)
    coarse, fine, gas = (_Field.drawn(rng, pitch_mm) for pitch_mm in (13.0, 5.0, 22.0))
    _fill_lumens(body, frame, tissues, image, swing, gas, rng)
    for z in frame.slabs():
        axes = frame.x, frame.y, frame.z[z]
        # Two octaves of equal power: lobules and streaks beside slow shading.
        image[:, :, z] += swing[:, :, z] * np.float32(0.5**0.5) * (coarse.sample(*axes) + fine.sample(*axes))
    blur = [float(np.hypot(texture.blur_mm / s, VOXEL_SD)) for s in frame.spacing]
    image = gaussian_filter(image, blur, mode="nearest", truncate=3)
    for implants, solids in body.implants:
        _implant(body, frame, image, implants, solids)
    image += _noise(frame, texture, streams.noise)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16), phase


def _patient_means(hounsfield: Hounsfield, phase: Phase, rng: np.random.Generator) -> F32:
    """Mean HU per tissue number in this patient.

    Most of a patient's deviation is common to all tissues (dose per body weight, timing), the rest is each tissue's own.
    Both are cut at two sd: a made-up patient outside the textbook is a bug, not a variant.
    """
    common, *own = np.clip(rng.normal(size=1 + len(hounsfield.tissues)), -2, 2)
    values = [getattr(tissue, phase) for tissue in hounsfield.tissues.values()]
    means = [mean + sd * (0.8 * common + 0.6 * mine) for (mean, sd), mine in zip(values, own, strict=True)]
    return np.array([hounsfield.air, *means], np.float32)


def _fill_lumens(
    body: _Body, frame: _Frame, tissues: LabelMap, image: F32, swing: F32, gas: _Field, rng: np.random.Generator
) -> None:
    """Put fluid, food and gas into hollow tissues, in place in `image` (HU) and `swing` (sd of the texture)."""
    hounsfield = load_hounsfield()
    boxes = find_objects(tissues)  # one per number up to the highest, None where it is not there
    for name, tissue in hounsfield.tissues.items():
        draws = rng.random(2)
        lumen = body.lumens.get(name, tissue.lumen)
        number = hounsfield.number(name)
        found = boxes[number - 1] if number <= len(boxes) else None
        if lumen is None or found is None:
            continue
        box = found[0], found[1], found[2]
        hollow = _beneath_wall(tissues[box] == number, lumen.wall_mm, frame.spacing)
        content_hu, gas_fraction = _within(lumen.content, draws[0]), _within(lumen.gas_fraction, draws[1])
        image[box][hollow], swing[box][hollow] = content_hu, lumen.texture
        if gas_fraction > 0 and hollow.any():
            bubbles = hollow & _gas(frame, box, hollow, gas, gas_fraction, lumen.patchiness)
            image[box][bubbles], swing[box][bubbles] = hounsfield.air + 30, 0.0


def _beneath_wall(mask: Bools, wall_mm: float, spacing: Triple) -> Bools:
    """Voxels deeper than the wall: where a Gaussian of sd wall_mm sees at least what it sees that deep behind a flat surface
    (the normal distribution's 84 %). Cheaper than a distance map, and the thicker wall it gives narrow ends is welcome."""
    seen = gaussian_filter(mask.astype(np.float32), [wall_mm / s for s in spacing], mode="nearest", truncate=3)
    return np.asarray(mask & (seen > 0.84))


def _gas(frame: _Frame, box: Box, hollow: Bools, field: _Field, fraction: float, patchiness: float) -> Bools:
    """The `fraction` of the lumen most to the front, or, with patchiness, where a random field is high."""
    x, y, z = frame.x[box[0]], frame.y[box[1]], frame.z[box[2]]
    inside = hollow.any(axis=(0, 2))
    front = (y - y[inside].min()) / max(float(np.ptp(y[inside])), 1.0)
    score = (1 - patchiness) * front[None, :, None] + np.float32(0.3 * patchiness) * field.sample(x, y, z)
    return np.asarray(score > np.quantile(score[hollow], 1 - fraction))


def _implant(body: _Body, frame: _Frame, image: F32, implants: Implants, solids: tuple[Solid, ...]) -> None:
    """Metal with simple streaks: in every slice it lies in, dark and bright rays that fade away from it, in place."""
    structure = Structure(name="implant", parts=solids)
    reach = max(frame.spacing) * 0.35  # keeps a rod thinner than a voxel from falling between the voxels' centers
    box = frame.box(*(np.array(edge) + side * BOX_MARGIN_MM for edge, side in zip(structure.bounds, (-1, 1), strict=True)))
    if not image[box].size:
        return
    slab = frame.slab(box[2])
    metal = np.zeros(slab.shape, bool)
    metal[box[:2]] = structure.level(_points(body, slab)[box[0], box[1], slice(None)]) > -reach
    for z in np.flatnonzero(metal.any(axis=(0, 1))):
        image[:, :, box[2].start + z] += np.float32(implants.streak_hu) * _streaks(slab, metal[:, :, z])
    image[:, :, box[2]][metal] = implants.hounsfield


def _streaks(frame: _Frame, metal: Bools) -> F32:
    """Rays from the middle of the metal in one slice: 1 at the metal's edge, fading over 50 mm, [X, Y]."""
    where = np.argwhere(metal)
    dx = (frame.x - frame.x[where[:, 0]].mean())[:, None]
    dy = (frame.y - frame.y[where[:, 1]].mean())[None, :]
    angle, radius = np.arctan2(dy, dx), np.hypot(dx, dy)
    rays = np.cos(8 * angle + 1.0) + 0.6 * np.cos(14 * angle)
    return np.asarray(rays * np.exp(-radius / 50) / 1.6, np.float32)


def _noise(frame: _Frame, texture: Texture, rng: np.random.Generator) -> F32:
    """Correlated noise of exactly the sd asked for, [X, Y, Z]."""
    noise = rng.standard_normal(frame.shape, np.float32)
    sd = [texture.grain_mm / s for s in frame.spacing]
    if max(sd) > 0.2:  # below, neighbors are as good as independent
        noise = gaussian_filter(noise, sd, mode="wrap", truncate=3)
    return np.asarray(noise * np.float32(texture.noise_hu / max(float(noise.std()), 1e-6)), np.float32)
