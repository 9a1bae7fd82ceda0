"""What a store holds and how far it is from a reference: the numbers that the CLI prints."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from tec_zarr import metrics

Row = Sequence[object]


def error_rows(reference: np.ndarray, decoded: np.ndarray, bands: Sequence[str]) -> list[Row]:
    """Per band: name, PSNR (dB), mean error, mean absolute error, largest error (DN).

    Parameters
    ----------
    reference, decoded : ndarray, (..., band, y, x)
        DN, NaN where nothing was measured. Samples that the reference does not have are left
        out, those that only the decoded side lacks count as 0 DN.
    bands : sequence of str
        Names along the band axis.

    Returns
    -------
    list of rows
        One per band and a last one, "all".
    """
    valid, decoded = np.isfinite(reference), metrics.without_gaps(reference, decoded)
    columns = [
        metrics.psnr_per_band(reference, decoded, valid),
        metrics.mean_error(reference, decoded, valid),
        metrics.mean_absolute_error(reference, decoded, valid),
        metrics.max_error(reference, decoded, valid),
    ]
    rows: list[Row] = [[name, *values] for name, *values in zip(bands, *columns, strict=True)]
    whole = [np.reshape(a, (1, -1, 1)) for a in (reference, decoded, valid)]
    rows.append([
        "all", metrics.psnr(reference, decoded, valid), metrics.mean_error(*whole)[0],
        metrics.mean_absolute_error(*whole)[0], metrics.max_error(*whole)[0],
    ])  # fmt: skip
    return rows


def nodata_line(reference: np.ndarray, decoded: np.ndarray) -> str:
    """How many samples are nodata on one side only, in words; empty where there are none."""
    differs = metrics.nodata_differs(reference, decoded)
    count = np.count_nonzero(differs)
    lost = np.count_nonzero(differs & np.isfinite(reference))
    if not count:
        return ""
    return f"nodata differs in {count} samples: {lost} are missing in B, {count - lost} in A"


ERROR_COLUMNS = ("band", "PSNR dB", "mean error", "mean |error|", "max |error| DN")


def table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Text table: names to the left, numbers to the right."""
    cells = [[str(c) for c in columns], *([_cell(v) for v in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def size(n_bytes: int) -> str:
    """Bytes as a person reads them."""
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if n_bytes >= 1000**power:
            return f"{n_bytes / 1000**power:.2f} {unit}"
    return f"{n_bytes} B"


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float | np.floating) else str(value)


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def html_table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """First column of names, then numbers; the row "all" stands out."""
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>"]
    for name, cells in rows:
        kind = ' class="total"' if name == "all" else ""
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f"<tr{kind}><td>{escape(name)}</td>{numbers}</tr>")
    return f"<table>{''.join(lines)}</table>"


def card_of(heading: str, content: str, note: str) -> str:
    return (
        f'<section class="card"><h2>{heading}</h2><div class="scroll">{content}</div>'
        f'<p class="soft" style="margin-top:8px">{note}</p></section>'
    )
