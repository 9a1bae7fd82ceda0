"""``tec-zarr demo``: one cube through TEC into Zarr v3 and back, in numbers and a picture."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tec_zarr import metrics
from tec_zarr.codec.decode import decode_chunk
from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.compare.align import in_dn
from tec_zarr.compare.tables import ERROR_COLUMNS, error_rows, size, table
from tec_zarr.cubes import synthetic
from tec_zarr.cubes.dims import chosen_variables, names_along_bands
from tec_zarr.cubes.encoding import drop_encoding, encoding
from tec_zarr.cubes.files import open_cube
from tec_zarr.cubes.layout import rechunk
from tec_zarr.cubes.stacking import single_array, stack_bands
from tec_zarr.sentinel2 import DN_PER_REFLECTANCE
from tec_zarr.stores.info import stored_arrays

Step = Callable[[str, Callable[[], object]], None]


def run_demo(
    out: Path,
    *,
    source: Path | None,
    step: Step,
    bands: Sequence[str] | None = None,
    **options: Any,
) -> tuple[str, Path | None]:
    """Encode a cube, reopen it and compare both.

    Parameters
    ----------
    out : Path
        Folder for ``demo.zarr`` and ``quicklook.png``. It is created if needed; the two are
        overwritten.
    source : Path, optional
        The cube (see :func:`tec_zarr.cubes.files.open_cube`); default a synthetic one.
    bands : sequence of str, optional
        Names of the bands of ``source``, in its order, if the file does not name them.
    step : callable
        Called with the name of a part of the work and a function that does it. It calls the
        function and may show progress.
    **options
        Options of a chunk, as in `tec_zarr.encoding`.

    Returns
    -------
    text : str
        Tables of sizes, speed and errors.
    picture : Path or None
        ``quicklook.png``; None if matplotlib is not installed.
    """
    said: list[str] = []
    ds = synthetic.dataset() if source is None else open_cube(source, bands=bands, said=said)
    # Lazy until the encoding is chosen, so that the store is the same as that of `tec-zarr encode`.
    ds = rechunk(stack_bands(ds, said=said))
    settings = encoding(ds, **options)
    names = chosen_variables(ds, None)
    ds = drop_encoding(ds).load()
    original = single_array(ds, names)
    store = out / "demo.zarr"
    shutil.rmtree(store, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    labels = names_along_bands(original)

    step("load the model", lambda: _warm_up(options.get("model", "tec-s2")))
    seconds = []
    reopened: list[xr.Dataset] = []
    for label, work in (
        ("encode", lambda: ds.to_zarr(store, mode="w", encoding=settings)),
        ("decode", lambda: reopened.append(xr.open_zarr(store).load())),
    ):
        start = time.perf_counter()
        step(label, work)
        seconds.append(time.perf_counter() - start)

    decoded = single_array(reopened[0], names)
    reference_dn, decoded_dn = in_dn(original, decoded)
    arrays = {a.path: a for a in stored_arrays(store)}
    same_nodata = not metrics.nodata_differs(reference_dn, decoded_dn).any()
    raw = sum(arrays[n].raw_bytes for n in names)
    stored = sum(arrays[n].stored_bytes for n in names)
    rows = error_rows(reference_dn, decoded_dn, labels)
    summary = [
        ["cube", f"{' x '.join(map(str, original.shape))} {original.dtype}"],
        ["codec", arrays[next(iter(names))].codec],
        ["raw size", size(raw)],
        ["stored size", size(stored)],
        ["ratio", f"{raw / stored:.1f} : 1"],
        ["bits per pixel per band", f"{8 * stored / original.size:.4f}"],
        ["PSNR", f"{rows[-1][1]:.2f} dB"],
        ["largest error", f"{rows[-1][4]:.0f} DN"],
        ["nodata exact", "yes" if same_nodata else "NO"],
        ["encode", f"{raw / 1e6 / seconds[0]:.1f} MB/s"],
        ["decode", f"{raw / 1e6 / seconds[1]:.1f} MB/s"],
    ]
    text = "\n\n".join(
        [*said, table(("", str(store)), summary), table(ERROR_COLUMNS, rows)]
    )
    return text, quicklook(reference_dn, decoded_dn, labels, rows, out / "quicklook.png")


def quicklook(
    original: np.ndarray, decoded: np.ndarray, bands: list[str], rows: list, file: Path
) -> Path | None:
    """Draw the original, the decoded cube, ten times their difference, and the error of each band.

    Parameters
    ----------
    original, decoded : ndarray of float32, (T, C, H, W)
        DN, NaN for nodata. The date with the most data is shown.
    bands : list of str
        Names along the band axis.
    rows : list
        Result of :func:`tec_zarr.compare.tables.error_rows`.
    file : Path
        The file to write.

    Returns
    -------
    Path or None
        ``file``; None if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    date = int(np.isfinite(original).mean(axis=(1, 2, 3)).argmax())
    shown = [bands.index(b) if b in bands else 0 for b in ("B04", "B03", "B02")]
    rgb = original[date][shown].transpose(1, 2, 0), decoded[date][shown].transpose(1, 2, 0)
    low, high = np.nanpercentile(rgb[0], [1, 99])
    pictures = [np.nan_to_num((p - low) / max(high - low, 1)).clip(0, 1) for p in rgb]
    difference = np.nan_to_num(0.5 + 10 * (rgb[1] - rgb[0]) / DN_PER_REFLECTANCE).clip(0, 1)

    figure = Figure(figsize=(15, 4.4), layout="constrained")
    axes = figure.subplots(1, 4)
    colours = " ".join(dict.fromkeys(bands[i] for i in shown))
    titles = (f"original ({colours})", f"decoded, {rows[-1][1]:.1f} dB", "difference x 10")
    for ax, picture, title in zip(axes, (*pictures, difference), titles, strict=False):
        ax.imshow(picture, interpolation="nearest")
        ax.set_title(title)
        ax.set_axis_off()
    mean = [row[3] for row in rows[:-1]]
    axes[3].bar(bands, mean, color="tab:blue")
    axes[3].set_title("mean |error| per band")
    axes[3].set_ylabel("DN (1/10,000 reflectance)")
    axes[3].tick_params(axis="x", rotation=90)
    figure.savefig(file, dpi=100)
    return file


def _warm_up(model: str) -> None:
    """Load the model, so that this does not count in the measured times."""
    tiny = np.arange(1, 12 * 64 * 64 + 1, dtype="uint16").reshape(1, 12, 64, 64) % 5000 + 1
    decode_chunk(encode_chunk(tiny, ChunkSpec(model=model)))
