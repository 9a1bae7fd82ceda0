"""A synthetic landscape: fields, woods, water and a town through the seasons."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]


# Surface reflectance in DN, L2A band order: B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12.
_SPECTRA: dict[str, Field] = {
    name: np.array(values, np.float32)
    for name, values in {
        "crop": (230, 310, 640, 360, 1080, 3050, 3950, 4100, 4300, 4350, 1850, 880),
        "grass": (330, 430, 760, 560, 1250, 2700, 3250, 3400, 3600, 3650, 2250, 1250),
        "dry grass": (480, 680, 1020, 1230, 1680, 2080, 2330, 2480, 2630, 2700, 3250, 2250),
        "rapeseed": (340, 430, 1350, 1200, 1750, 2950, 3550, 3650, 3850, 3900, 2000, 1000),
        "broadleaf": (190, 240, 500, 280, 820, 2600, 3250, 3350, 3550, 3600, 1600, 720),
        "bare broadleaf": (380, 480, 640, 760, 1050, 1330, 1480, 1620, 1780, 1850, 2200, 1500),
        "conifer": (160, 200, 350, 230, 570, 1550, 1900, 2000, 2150, 2200, 1000, 470),
        "light soil": (720, 980, 1370, 1780, 2120, 2320, 2520, 2620, 2820, 2900, 3650, 3050),
        "dark soil": (430, 560, 790, 980, 1230, 1390, 1540, 1640, 1800, 1880, 2500, 2150),
        "clear water": (260, 310, 330, 190, 170, 130, 120, 105, 95, 95, 55, 40),
        "turbid water": (560, 740, 980, 870, 760, 420, 400, 330, 280, 250, 110, 80),
        "gravel": (900, 1200, 1580, 1850, 2050, 2180, 2280, 2380, 2480, 2530, 3050, 2700),
        "asphalt": (620, 740, 860, 930, 1020, 1090, 1150, 1230, 1290, 1330, 1550, 1430),
        "concrete": (1000, 1280, 1520, 1700, 1830, 1960, 2080, 2220, 2280, 2320, 2520, 2300),
        "red roof": (640, 760, 980, 1650, 1880, 2020, 2130, 2260, 2370, 2400, 2700, 2480),
        "metal roof": (2300, 2750, 2950, 3100, 3200, 3300, 3400, 3600, 3500, 3500, 3200, 2800),
    }.items()
}


# Share of direct light that haze and shadow take per band: strongest in the blue.
SKY_LIGHT = np.array(
    (0.55, 0.48, 0.38, 0.30, 0.27, 0.25, 0.23, 0.22, 0.21, 0.20, 0.13, 0.10), np.float32
)


@dataclass(frozen=True)
class _Crop:
    """When a crop is green: days of year of green-up and harvest, and how dense it gets."""

    green: str
    up: float
    down: float
    dense: float
    winter: float
    flowers: tuple[float, float] = (0.0, 0.0)


_CROPS = (
    _Crop("crop", 85, 188, 0.95, 0.15),  # winter cereal
    _Crop("crop", 160, 268, 0.95, 0.02),  # maize
    _Crop("grass", 80, 305, 0.90, 0.30),  # meadow
    _Crop("crop", 75, 180, 0.95, 0.25, (112, 138)),  # rapeseed
    _Crop("crop", 130, 285, 0.90, 0.03),  # sugar beet
    _Crop("dry grass", 100, 220, 0.70, 0.20),  # fallow
)


_CROP_SHARES = (0.30, 0.24, 0.20, 0.10, 0.08, 0.08)


class Landscape:
    """What stays where it is: relief, water, parcels, forest, roads, town."""

    def __init__(self, grid: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.grid = grid
        y, x = np.mgrid[:grid, :grid].astype(np.float32)
        river_line = _meander(rng, grid)
        to_river = _distance(y, x, river_line)
        hills = noise(rng, grid, 160, 5.2)
        flood_plain = np.exp(-((to_river / 45) ** 2))
        ridges = 1 - np.abs(noise(rng, grid, 50, 4.8))
        upland = ramp(hills - 1.2 * flood_plain, 0.0, 1.1)
        height = 60 * hills * (1 - 0.6 * flood_plain) + upland * (
            38 * ridges + 3 * noise(rng, grid, 25, 4.4)
        )
        self.slope_y, self.slope_x = (g / 10 for g in np.gradient(height.astype(np.float32)))

        width = 3.0 + 1.0 * noise(rng, grid, 120, 4.0)
        self.river = ramp(width - to_river, -0.6, 0.6)
        self.gravel = ramp(width + 2.2 + 1.8 * noise(rng, grid, 14, 3.0) - to_river, -0.6, 0.6)
        basins = noise(rng, grid, 60, 4.0) - 0.5 * upland - 0.4 * flood_plain
        self.pond = ramp(basins - np.quantile(basins, 0.985), -0.04, 0.04)

        wood_edge = 0.5 * noise(rng, grid, 70, 3.4) + 1.2 * upland - 0.65
        self.forest = ramp(wood_edge, -0.05, 0.05)
        gallery = ramp(width + 5 + 3 * noise(rng, grid, 30, 3.0) - to_river, -1, 1)
        self.forest = np.maximum(self.forest, gallery)
        self.conifer = ramp(noise(rng, grid, 45, 2.6) + 0.8 * upland - 0.5, -0.25, 0.25)
        self.crowns = noise(rng, grid, 6, 2.0)

        self.parcel, self.to_parcel_edge = _parcels(rng, y, x)
        count = int(self.parcel.max()) + 1
        self.parcel_crop = rng.choice(len(_CROPS), count, p=_CROP_SHARES)
        self.parcel_shift = rng.normal(0, 9, count).astype(np.float32)
        self.parcel_gain = np.exp(rng.normal(0, 0.10, count)).astype(np.float32)
        self.parcel_soil = rng.beta(1.6, 1.6, count).astype(np.float32)
        self.parcel_vigour = np.clip(rng.normal(0.92, 0.10, count), 0.5, 1).astype(np.float32)
        self.soil = noise(rng, grid, 90, 2.6)
        self.grain = noise(rng, grid, 12, 2.0)
        self.vigour = noise(rng, grid, 35, 3.4)
        self.rough = ramp(upland - 0.3 + 0.2 * noise(rng, grid, 50, 3.4), -0.06, 0.06)

        centre, roads = _roads(rng, grid, river_line)
        to_road = np.minimum.reduce([_distance(y, x, road) for road in roads])
        self.road = ramp(0.9 - to_road, -0.6, 0.4) * 0.8
        town_radius = np.hypot(y - centre[0], x - centre[1]) / 26
        self.town = ramp(0.9 + 0.45 * noise(rng, grid, 22, 2.4) - town_radius, -0.15, 0.15)
        self.town *= 1 - np.maximum(self.gravel, self.pond)
        self.building, self.roof = _buildings(rng, y, x)

    def on(self, day: int, rng: np.random.Generator) -> Field:
        """Surface reflectance in DN on a day of year, ``(12, y, x)``, shaded by the relief."""
        spectra = _SPECTRA
        wet = 0.12 * np.cos(2 * np.pi * (day - 20) / 365)
        soil = self.parcel_soil[self.parcel] + 0.20 * self.soil
        surface = _blend(spectra["dark soil"], spectra["light soil"], np.clip(soil - wet, 0, 1))
        surface *= 1 + 0.035 * self.grain
        self._grow(surface, day)
        surface *= self.parcel_gain[self.parcel]
        margin = ramp(0.9 - self.to_parcel_edge, -0.5, 0.5) * 0.55
        _paint(surface, margin, self._meadow(day))
        _paint(
            surface, self.rough, self._meadow(day) * (1 + 0.06 * self.grain + 0.08 * self.vigour)
        )
        leaves = _season(day, 115, 295, 9, 12)
        broadleaf = spectra["bare broadleaf"] + leaves * (
            spectra["broadleaf"] - spectra["bare broadleaf"]
        )
        trees = _blend(broadleaf, spectra["conifer"], self.conifer)
        trees *= np.exp(0.06 * self.crowns + 0.06 * self.vigour)
        _paint(surface, self.forest, trees)
        surface *= self._illumination(day)
        _paint(surface, self.gravel * (1 - 0.5 * self.forest), spectra["gravel"][:, None, None])
        _paint(surface, self.road, spectra["asphalt"][:, None, None])
        self._build(surface)
        turbid = np.clip(0.35 + 0.35 * np.sin(2 * np.pi * (day - 40) / 365), 0, 1)
        _paint(
            surface, self.river, _mix("clear water", "turbid water", turbid + rng.normal(0, 0.1))
        )
        _paint(surface, self.pond, _mix("clear water", "turbid water", 0.3 * turbid))
        return surface

    def water(self) -> Field:
        """Cover of open water, 0 to 1."""
        return np.maximum(self.river, self.pond)

    def _grow(self, surface: Field, day: int) -> None:
        when = day - self.parcel_shift
        for number, crop in enumerate(_CROPS):
            green = crop.winter + (crop.dense - crop.winter) * _season(
                when, crop.up, crop.down, 9, 7
            )
            cover = np.where(self.parcel_crop == number, green * self.parcel_vigour, 0)
            cover = cover[self.parcel] * np.clip(1 + 0.07 * self.vigour + 0.03 * self.grain, 0, 1.1)
            plant = _SPECTRA[crop.green]
            if crop.flowers[0] < day < crop.flowers[1]:
                plant = _SPECTRA["rapeseed"]
            _paint(surface, np.clip(cover, 0, 1), plant[:, None, None])

    def _meadow(self, day: int) -> Field:
        green = 0.35 + 0.5 * _season(day, 85, 290, 14, 20)
        return _mix("dry grass", "grass", green)

    def _illumination(self, day: int) -> Field:
        """Cosine of the sun's incidence over that of flat ground, softened by sky light."""
        zenith = np.radians(47 - 21 * np.cos(2 * np.pi * (day - 172) / 365))
        azimuth = np.radians(158)
        east, north = np.sin(azimuth), np.cos(azimuth)
        # y runs south: a slope that rises southward faces north.
        facing = -self.slope_x * east + self.slope_y * north
        cosine = (np.cos(zenith) + np.sin(zenith) * facing) / np.hypot(
            1, np.hypot(self.slope_x, self.slope_y)
        )
        lit = np.clip(cosine / np.cos(zenith), 0.25, 1.8)[None]
        return lit + SKY_LIGHT[:, None, None] * (1 - lit) * 0.5

    def _build(self, surface: Field) -> None:
        kinds = ("asphalt", "concrete", "red roof", "metal roof")
        for number, kind in enumerate(kinds):
            here = self.town * self.building * (self.roof == number)
            _paint(surface, here * 0.85, _SPECTRA[kind][:, None, None])


def noise(rng: np.random.Generator, grid: int, length: float, beta: float) -> Field:
    """Fractal noise of mean 0 and variance 1: power falls as f**-beta beyond 1/length px."""
    n = max(48, grid + min(grid, int(2 * length)))  # larger than shown: it must not look periodic
    fy, fx = np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None]
    amplitude = (fy**2 + fx**2 + length**-2) ** (-beta / 4)
    amplitude[0, 0] = 0
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, n))) * amplitude, (n, n))
    return (field / field.std())[:grid, :grid].astype(np.float32)


def ramp(x: NDArray, low: float, high: float) -> Field:
    """Smooth step from 0 at low to 1 at high."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def _season(day: NDArray | int, up: float, down: float, up_days: float, down_days: float) -> Any:
    """Double logistic greenness, 0 to 1, of a day or of each."""
    rise = 1 / (1 + np.exp(-(day - up) / up_days))
    return rise - 1 / (1 + np.exp(-(day - down) / down_days)) * rise


def _blend(a: Field, b: Field, share: Field) -> Field:
    """Spectra a where share is 0, b where it is 1, ``(band, y, x)``."""
    return (a[:, None, None] + (b - a)[:, None, None] * share).astype(np.float32)


def _mix(a: str, b: str, share: float) -> Field:
    return (_SPECTRA[a] + share * (_SPECTRA[b] - _SPECTRA[a]))[:, None, None]


def _paint(surface: Field, cover: Field, spectrum: Field) -> None:
    """Cover the surface with a spectrum, in place."""
    surface += cover * (spectrum - surface)


def _meander(rng: np.random.Generator, grid: int) -> NDArray[np.float64]:
    """A river's course from the left edge to the right, as (y, x) points."""
    s = np.linspace(-0.1, 1.1, 160)
    x = s * grid
    y = grid * (rng.uniform(0.3, 0.7) + rng.uniform(-0.25, 0.25) * (s - 0.5))
    for wavelength, reach in ((150, 16), (67, 8), (31, 3)):
        phase = rng.uniform(0, 2 * np.pi, 2)
        y = y + reach * np.sin(2 * np.pi * x / wavelength + phase[0])
        x = x + 0.6 * reach * np.sin(4 * np.pi * x / wavelength + phase[1])
    return np.stack([y, x], 1)


def _distance(y: Field, x: Field, line: NDArray[np.float64]) -> Field:
    """Distance of every pixel to a polyline of (y, x) points, in pixels."""
    nearest = np.full(y.shape, np.inf, np.float32)
    for (y0, x0), (y1, x1) in pairwise(line):
        dy, dx = y1 - y0, x1 - x0
        along = np.clip(((y - y0) * dy + (x - x0) * dx) / max(dy * dy + dx * dx, 1e-9), 0, 1)
        square = (y - y0 - along * dy) ** 2 + (x - x0 - along * dx) ** 2
        np.minimum(nearest, square, out=nearest)
    return np.sqrt(nearest)


def _parcels(rng: np.random.Generator, y: Field, x: Field) -> tuple[NDArray[np.intp], Field]:
    """Parcel number of every pixel, and its distance to the parcel's edge in pixels.

    Farm land comes in blocks (Voronoi cells), each cut into strips of its own direction and
    strips into parcels.
    """
    grid = len(y)
    y = y + 3 * noise(rng, grid, 90, 5.5)
    x = x + 3 * noise(rng, grid, 90, 5.5)
    block, block_edge = _voronoi(rng, y, x, spacing=78)
    count = int(block.max()) + 1
    angle = rng.uniform(0, np.pi, count)[block]
    width = rng.uniform(7, 20, count)[block]
    length = rng.uniform(20, 55, count)[block]
    u = (np.cos(angle) * y + np.sin(angle) * x) / width
    strip = np.floor(u).astype(np.int64)
    stagger = _hash01(strip, block)
    v = (-np.sin(angle) * y + np.cos(angle) * x) / length + stagger
    piece = np.floor(v).astype(np.int64)
    edge = np.minimum(block_edge, width * np.minimum(u - strip, strip + 1 - u))
    edge = np.minimum(edge, length * np.minimum(v - piece, piece + 1 - v))
    keys = np.stack([block, strip, piece], -1).reshape(-1, 3)
    _, parcel = np.unique(keys, axis=0, return_inverse=True)
    return parcel.reshape(block.shape), edge.astype(np.float32)


def _voronoi(
    rng: np.random.Generator, y: Field, x: Field, spacing: float
) -> tuple[NDArray[np.intp], Field]:
    """Cell of every pixel among jittered seed points, and about the distance to its edge."""
    cells = int(np.ceil(len(y) / spacing)) + 2
    centres = (np.mgrid[:cells, :cells].reshape(2, -1).T - 0.5) * spacing
    centres = centres + rng.uniform(-0.4, 0.4, centres.shape) * spacing
    first = np.full(y.shape, np.inf, np.float32)
    second, cell = first.copy(), np.zeros(y.shape, np.intp)
    for number, (cy, cx) in enumerate(centres):
        distance = np.hypot(y - cy, x - cx)
        closer = distance < first
        second = np.where(closer, first, np.minimum(second, distance))
        cell[closer] = number
        np.minimum(first, distance, out=first)
    return cell, ((second - first) / 2).astype(np.float32)


def _buildings(rng: np.random.Generator, y: Field, x: Field) -> tuple[Field, NDArray[np.int64]]:
    """Cover by buildings and streets, and their material, everywhere: the town cuts it out."""
    turn = rng.uniform(0, np.pi / 2)
    u, v = np.cos(turn) * y + np.sin(turn) * x, -np.sin(turn) * y + np.cos(turn) * x
    plot_u, plot_v = np.floor(u / 3.1).astype(np.int64), np.floor(v / 2.6).astype(np.int64)
    draw = _hash01(plot_u, plot_v)
    street = (np.abs(u / 15.5 - np.rint(u / 15.5)) < 0.05) | (
        np.abs(v / 18.2 - np.rint(v / 18.2)) < 0.045
    )
    roof = np.select([draw < 0.30, draw < 0.52, draw < 0.56], [2, 1, 3], 0)
    built = np.where(draw < 0.66, 0.9, 0.15)
    return np.where(street, 0.9, built).astype(np.float32), np.where(street, 0, roof)


def _roads(
    rng: np.random.Generator, grid: int, river: NDArray[np.float64]
) -> tuple[tuple[float, float], list[NDArray[np.float64]]]:
    """The town's centre and roads that meet there; one follows the river."""
    side = 1 if river[:, 0].mean() < grid / 2 else -1
    bank = river[::6] + np.array([side * 17.0, 0.0])
    centre = bank[rng.integers(len(bank) // 3, 2 * len(bank) // 3)]
    roads = [bank]
    for heading in rng.uniform(0, 2 * np.pi) + np.array([0.0, 2.3, 4.1]):
        heading = heading + rng.normal(0, 0.25)
        turns = heading + np.cumsum(rng.normal(0, 0.16, 40))
        steps = grid / 26 * np.stack([np.sin(turns), np.cos(turns)], 1)
        roads.append(np.concatenate([centre[None], centre + np.cumsum(steps, axis=0)]))
    return (float(centre[0]), float(centre[1])), roads


def _hash01(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in [0, 1) that looks random, for a pair of integers."""
    mixed = a.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = mixed ^ (b.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F))
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((mixed ^ (mixed >> np.uint64(32))) >> np.uint64(11)).astype(np.float64) / 2.0**53
