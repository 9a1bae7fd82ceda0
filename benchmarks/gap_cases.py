"""What is hidden from the methods that fill gaps: clouds over seasonal cubes, gaps in dense series.

Seasonal cubes are the evaluation cubes of four dates. They come without scene classes, so that
cloud shapes are drawn: a Gaussian field whose spectrum falls as k^(-5/3), as that of cloud fields
does (Cahalan and Joseph 1989; sizes then follow the power law of Wood and Field 2011), above the
level that gives the share.

Dense series are training series that nothing was chosen on (`HELD_OUT`); settings of rivals and of
the default come from the others (`TUNED_ON`). They have no scene classes either. Their real clouds
are found as a jump of the blue band above its low values over time (as Hagolle et al. 2010 do it)
or as shadow; these pixels are hidden from all methods, and no truth is taken from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from environment import scenes

from tec_zarr.sentinel2 import L2A_BANDS

SHARES = (0.1, 0.3, 0.5, 0.7, 1.0)
"""Shares of a date of the seasonal cubes that are hidden."""
CLOUDY, CLOUDY_SHARES = 0.3, (0.3, 1.0)
"""Share of the other dates that is hidden in the second part, and shares that it is done for."""
GAPS = (1, 2, 4, 8)
"""Dates one after the other that are hidden altogether in dense series."""
PARTS = (0.3, 0.7)
"""Shares of a date of a dense series that are hidden."""
TARGETS = 3
"""Dates of a dense series that are estimated in each row."""
WINDOW = 12
"""Dates of the short dense series: as many around the target."""

_OPENEO = "openeo-photovoltaic__S2-2022-"
HELD_OUT = (
    "worldcereal-classification__0000280849BAC91C", f"{_OPENEO}2011", f"{_OPENEO}739",
    f"{_OPENEO}1913", f"{_OPENEO}1933", "s2cloudmask__wright-stack",
)  # fmt: skip
TUNED_ON = (
    "worldcereal-classification__00002806639B424A", f"{_OPENEO}159", f"{_OPENEO}2004",
    f"{_OPENEO}415", f"{_OPENEO}819", "presto-worldcereal__belgium-20m",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A date to estimate.

    Attributes
    ----------
    part, row : str
        Part of the table, and the row of it.
    series : str
    date : int
        The date to estimate.
    cube : DataArray of uint16, (time, band, y, x)
        DN. Pixels of other dates that are hidden are 0, which is nodata.
    mask : DataArray of bool, (time, y, x)
        What is hidden of the date to estimate.
    scored : ndarray of bool, (y, x)
        Hidden pixels of that date whose truth is known.
    bands : tuple of str
    """

    part: str
    row: str
    series: str
    date: int
    cube: xr.DataArray
    mask: xr.DataArray
    scored: np.ndarray
    bands: tuple[str, ...]

    def seen(self, dated: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Float32 DN (T, C, H, W), NaN where nothing may be read, and days (T,).

        Days are the positions of the dates if these are not known, or not wanted.
        """
        cube = self.cube.values.astype(np.float32)
        unseen = (self.cube.values == 0).any(1) | self.mask.values
        cube[np.broadcast_to(unseen[:, None], cube.shape)] = np.nan
        if not (dated and "time" in self.cube.coords):
            return cube, np.arange(len(cube), dtype=float)
        stamps = self.cube.time.values
        return cube, (stamps - stamps[0]) / np.timedelta64(1, "D")


def clouds(height: int, width: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Cloud mask (height, width) that covers ``share`` of the image."""
    noise = np.fft.rfft2(rng.standard_normal((height, width)))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    k = np.hypot(y, x)
    k[0, 0] = np.inf
    field = np.fft.irfft2(noise * k ** (-(5 / 3 + 1) / 2), s=(height, width))
    return (
        field >= np.quantile(field, 1 - share)
        if 0 < share < 1
        else np.full_like(field, share, bool)
    )


def seasonal(data: Path) -> Iterator[Case]:
    """Cases of the evaluation cubes: each date in turn, under each share of clouds."""
    for scene in (s for s in scenes(data) if s.kind == "seasonal"):
        rng = np.random.default_rng(0)
        parts = ((0.0, SHARES), (CLOUDY, CLOUDY_SHARES))
        for cloudy, share in ((c, s) for c, shares in parts for s in shares):
            for date in range(len(scene.dn)):
                cover = np.stack([clouds(*scene.dn.shape[2:], cloudy, rng) for _ in scene.dn])
                cover[date] = clouds(*scene.dn.shape[2:], share, rng)
                row = f"{share:.0%} hidden" + (", other dates cloudy" if cloudy else "")
                yield case("seasonal", row, scene.name, scene.dn, None, cover, date, scene.bands)


def case(
    part: str, row: str, series: str, dn: np.ndarray, days: np.ndarray | None, hidden: np.ndarray,
    date: int, bands: tuple[str, ...], truth: np.ndarray | None = None,
) -> Case:  # fmt: skip
    """The case of (T, C, H, W) DN with hidden pixels (T, H, W).

    ``days`` are datetime64 dates. ``truth`` (H, W) says where the date may be scored, by default
    everywhere but at nodata.
    """
    mask = np.zeros_like(hidden)
    mask[date] = hidden[date]
    values = np.where((hidden & ~mask)[:, None], np.uint16(0), dn)
    coords = {} if days is None else {"time": days}
    scored = mask[date] & (dn[date] != 0).all(0)
    return Case(
        part, row, series, date, xr.DataArray(values, coords, ("time", "band", "y", "x")),
        xr.DataArray(mask, coords, ("time", "y", "x")),
        scored if truth is None else scored & truth, bands,
    )  # fmt: skip


# ---- dense series


def dense(folder: Path, names: Sequence[str]) -> Iterator[Case]:
    """Cases of dense series: gaps of several dates, the ends, and dates that are partly hidden."""
    for name in names:
        if not (folder / f"{name}.npz").exists():
            continue
        dn, days, bands = read(folder, name)
        unseen = cloudy(dn, bands)
        clear = np.flatnonzero(unseen.mean((1, 2)) < 0.05)
        if len(clear) < 4:
            continue
        label = name.split("__")[1]
        rng = np.random.default_rng(0)
        for part in (f"{WINDOW} dates", "all dates"):
            for row, targets, gap, share in _rows(clear, len(dn)):
                for target in targets:
                    if part == "all dates":
                        dates = np.arange(len(dn))
                    else:
                        first = np.clip(target - WINDOW // 2, 0, max(len(dn) - WINDOW, 0))
                        dates = np.arange(first, min(first + WINDOW, len(dn)))
                    if row == "first date":
                        dates = np.arange(target, min(target + len(dates), len(dn)))
                    elif row == "last date":
                        dates = np.arange(max(target + 1 - len(dates), 0), target + 1)
                    hidden, place = unseen[dates].copy(), int(np.flatnonzero(dates == target)[0])
                    gone = np.arange(place - gap // 2, place - gap // 2 + gap)
                    if row.endswith("date"):
                        gone = np.array([place])
                    if share < 1:
                        hidden[place] |= clouds(*dn.shape[2:], share, rng)
                    else:
                        hidden[gone[(gone >= 0) & (gone < len(dates))]] = True
                    when = None if days is None else days[dates]
                    yield case(part, row, label, dn[dates], when, hidden, place, bands,
                               ~unseen[target])  # fmt: skip


def _rows(clear: np.ndarray, count: int) -> Iterator[tuple[str, list[int], int, float]]:
    """Rows: name, dates to estimate, dates hidden around each, share of it that is hidden."""
    inner = clear[(clear >= 2) & (clear < count - 2)]
    some = [int(v) for v in inner[np.linspace(0, len(inner) - 1, TARGETS + 2).round().astype(int)]]
    middle = list(dict.fromkeys(some[1:-1]))
    for gap in GAPS:
        yield f"gap of {gap} date" + "s" * (gap > 1), middle, gap, 1.0
    yield "first date", [int(v) for v in clear[:2]], 1, 1.0
    yield "last date", [int(v) for v in clear[-2:]], 1, 1.0
    for share in PARTS:
        yield f"{share:.0%} hidden", middle, 1, share


def read(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """DN (T, C, H, W), dates if they are known, and bands of a training series."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        present = file["present"]
        dn = np.ascontiguousarray(file["dn"][:, present])
    entries = json.loads((folder.parent / "index.json").read_text())
    times = next(entry["times"] for entry in entries if entry["id"] == name)
    dated = all(len(t) == 10 for t in times)
    days = np.array(times, "datetime64[ns]") if dated else None
    keep = np.arange(len(dn))
    if days is not None:
        keep = np.unique(days, return_index=True)[1]
        days = days[keep]
    bands = tuple(b for b, has in zip(L2A_BANDS, present, strict=True) if has)
    return dn[keep], days, bands


def cloudy(dn: np.ndarray, bands: Sequence[str]) -> np.ndarray:
    """Clouds, snow and shadow (T, H, W) of a series, grown by a pixel, and nodata."""
    blue, red_edge = (dn[:, bands.index(b)].astype(np.float32) for b in ("B02", "B08"))
    infrared = dn[:, bands.index("B11")].astype(np.float32)
    bright = blue > np.quantile(blue, 0.2, axis=0) + 500
    seen = np.where(bright, np.nan, 1)
    with np.errstate(all="ignore"):
        usual = [np.nanmedian(v * seen, axis=0) for v in (red_edge, infrared)]
    dark = (red_edge < 0.4 * usual[0]) & (infrared < 0.4 * usual[1])
    found = np.pad(bright | dark, ((0, 0), (1, 1), (1, 1)))
    grown = np.zeros_like(bright)
    for down in range(3):
        for across in range(3):
            grown |= found[:, down : down + dn.shape[2], across : across + dn.shape[3]]
    return grown | (dn == 0).all(1)
