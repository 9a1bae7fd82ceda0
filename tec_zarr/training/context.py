"""Training of the embedded models' context network and tables.

Training runs in rounds. A round codes the training tiles with the current weights, collects the
inputs of the core's network and the symbols, fits the network to them, and counts the tables. The
core itself collects the inputs, so that training and coding cannot differ. The transforms are fixed
(`tec_zarr.training.transforms`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tec_zarr.native.core import MOST_BANDS
from tec_zarr.native.tile import FIXED_INPUTS, INPUTS, TileModel
from tec_zarr.training.transforms import fixed_tensors, usual_bases
from tec_zarr.training.weights import (
    HIDDEN,
    INDEXES,
    PLAIN,
    REACH,
    SHIFTS,
    SYMBOLS,
    TABLES,
    TENSORS,
    column_of,
    low_bits,
    table_of,
    weights_file,
)

_QUALITIES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)  # of the training tiles
_LAYER = 2.5  # quality between layers
_GRID = 1 << SHIFTS[0]  # units per 1.0 of a weight
_ACTIVATION = 16  # units per 1.0 of an input, and of an activation of the second layer
_FIRST_ACTIVATION = 8  # of the first layer
_EXCESS_BITS = 1e-3  # what a unit of a weight that is too large costs, in bits of a symbol


@dataclass(frozen=True)
class ContextConfig:
    """Settings of a training run.

    Attributes
    ----------
    data : tuple of str
        Folders of `.npz` cubes: `dn` (T, 12, H, W) and `present` (12,).
    out : str
        Folder for the weights and the log.
    held_out : tuple of str
        Prefixes of the names of files for validation.
    left_out : tuple of str
        Prefixes of the names of files that are not used at all.
    few : tuple of str
        Prefixes of the names of files of which only every eighth is used.
    model : str
        Name that selects this kind of configuration.
    side : int
        Largest height and width of a tile, pixels.
    dates : int
        Most dates of a cube that are used, each by itself.
    series : int
        Dates of a series that are predicted from one another.
    samples : int
        Most symbols that are collected from a tile at a quality.
    rounds : int
    iterations : int
        Steps of Adam in a round.
    batch : int
    rate : float
    seed : int
    threads : int
    """

    data: tuple[str, ...]
    out: str
    held_out: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    few: tuple[str, ...] = ()
    model: str = "tec-s2-context"
    side: int = 256
    dates: int = 3
    series: int = 6
    samples: int = 4000
    rounds: int = 3
    iterations: int = 4000
    batch: int = 8192
    rate: float = 4e-3
    seed: int = 0
    threads: int = 1


class ContextNet(nn.Module):
    """The context network with the core's whole numbers, and a smooth form of its tables.

    The probability of a symbol is a mixture of two Laplacian distributions. The network's index
    gives their scale. The share and the relative width of the second one depend on the index.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(0.15 * torch.randn(INPUTS, HIDDEN))
        self.first_bias = nn.Parameter(torch.zeros(HIDDEN))
        self.second = nn.Parameter(0.2 * torch.randn(HIDDEN, HIDDEN))
        self.second_bias = nn.Parameter(torch.zeros(HIDDEN))
        self.last = nn.Parameter(0.2 * torch.randn(HIDDEN))
        self.last_bias = nn.Parameter(torch.full((1,), 16.0))
        self.share = nn.Parameter(torch.full((INDEXES + 1,), -2.0))
        self.wider = nn.Parameter(torch.full((INDEXES + 1,), 0.5))
        self.whole = False

    def _weight(self, weight: Tensor) -> Tensor:
        inside = weight.clamp(-127 / _GRID, 127 / _GRID)
        return _on_grid(inside, _GRID) if self.whole else inside

    def _bias(self, bias: Tensor) -> Tensor:
        return _on_grid(bias, _GRID * _ACTIVATION) if self.whole else bias

    def _active(self, x: Tensor, most: int, units: int) -> Tensor:
        inside = x.clamp(0, most / units)
        return _on_grid(inside, units, torch.floor) if self.whole else inside

    def index(self, inputs: Tensor) -> Tensor:
        """Return the unrounded index (n,) of inputs (n, 28), which the core collected."""
        x = inputs.float() / _ACTIVATION
        x = x @ self._weight(self.first) + self._bias(self.first_bias)
        x = self._active(x, 127, _FIRST_ACTIVATION)
        x = x @ self._weight(self.second).T + self._bias(self.second_bias)
        x = self._active(x, 255, _ACTIVATION)
        return x @ self._weight(self.last) + self.last_bias

    def bits(self, inputs: Tensor, symbols: Tensor) -> Tensor:
        """Return the bits of each symbol, (n,)."""
        index = self.index(inputs).clamp(0, INDEXES - 1.001)
        if self.whole:
            index = _on_grid(index, 1)
        low = index.detach().long()
        part = index - low
        share = torch.sigmoid(torch.lerp(self.share[low], self.share[low + 1], part))
        wider = F.softplus(torch.lerp(self.wider[low], self.wider[low + 1], part))
        scale = torch.exp2((index - 20) / 4)
        size = symbols.abs().float()
        chance = (1 - share) * _laplacian(size, scale)
        chance = chance + share * _laplacian(size, scale * torch.exp2(wider))
        return -torch.log2(chance.clamp(min=1e-7))

    def excess(self) -> Tensor:
        """Return by how much weights are too large for kernels that add products in 16 bits.

        Those add six inputs of the first layer, up to 120, and eight of the second, up to 127.
        """
        total = torch.zeros(())
        for weight, inputs, most in ((self.first[:-FIXED_INPUTS].T, 6, 120), (self.second, 8, 127)):
            units = self._weight(weight) * _GRID
            room = 0.95 * (2**15 - 1) / most
            for side in (units, -units):
                largest = side.clamp(min=0).topk(inputs, dim=1).values.sum(dim=1)
                total = total + (largest - room).clamp(min=0).sum()
        return total

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the network's tensors as the core's whole numbers."""
        weight = {
            "first": self.first, "second": self.second, "last": self.last,
        }  # fmt: skip
        bias = {
            "first_bias": self.first_bias, "second_bias": self.second_bias,
        }  # fmt: skip
        out = {
            f"context.{name}": np.clip(np.rint(w.detach().numpy() * _GRID), -127, 127).astype(
                np.int8
            )
            for name, w in weight.items()
        }
        unit = _GRID * _ACTIVATION
        for name, b in bias.items():
            out[f"context.{name}"] = np.rint(b.detach().numpy() * unit).astype(np.int32)
        last = np.rint(self.last_bias.detach().numpy() * unit) + unit // 2
        return out | {"context.last_bias": last.astype(np.int32)}


def _on_grid(x: Tensor, units: int, rounded: Any = torch.round) -> Tensor:
    """Round x to a grid, with a straight-through gradient."""
    return x + (rounded(x.detach() * units) / units - x.detach())


def _laplacian(size: Tensor, scale: Tensor) -> Tensor:
    middle = 1 - torch.exp(-0.5 / scale)
    side = 0.5 * torch.exp(-(size - 0.5).clamp(min=0) / scale) * (1 - torch.exp(-1 / scale))
    return torch.where(size == 0, middle, side)


def train_context(config: ContextConfig) -> Path:
    """Train, and return the path of the weights.

    Raises
    ------
    ValueError
        There is no cube in the folders.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.jsonl"
    log.unlink(missing_ok=True)
    started = time.monotonic()

    def note(**what: Any) -> None:
        line = {"seconds": round(time.monotonic() - started), **what}
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    tensors = fixed_tensors() | _first_guess()
    tiles = list(_tiles(config, held_out=False))
    series = list(_series(config))
    checks = list(_tiles(config, held_out=True))
    if not tiles:
        raise ValueError(f"no cubes in {config.data}")
    tensors["usual_bases"] = usual_bases(tiles)
    note(config=asdict(config), tiles=len(tiles), series=len(series), checks=len(checks))
    net: ContextNet | None = None
    for number in range(config.rounds + 1):
        model = TileModel(weights_file(tensors), "training")
        if number == 0:
            tensors["context.mean"] = _fitted_means(model, tiles)
            model = TileModel(weights_file(tensors), "training")
        samples = _collected(model, tiles, series, config, first=number == 0)
        if number < config.rounds:
            net = net or ContextNet()
            rate = config.rate / (1 if number == 0 else 2)
            loss = _fit(net, samples, config, rate)
            note(round=number, samples=len(samples.symbols), bits_of_symbol=round(loss, 4))
            tensors |= net.tensors()
        assert net is not None
        tensors |= _tables(net, samples)
        model = TileModel(weights_file(tensors), "training")
        for quality, (bits, psnr) in _checked(model, checks, (1.0, 2.5, 4.0, 6.0, 8.0)).items():
            note(round=number, quality=quality, bpppb=round(bits, 5), psnr=round(psnr, 3))
        path = out / "tec-s2.safetensors"
        path.write_bytes(weights_file(tensors))
    return path


def _first_guess() -> dict[str, np.ndarray]:
    """Return initial context tensors, with which the first round collects its samples."""
    out = {name: np.zeros(*TENSORS[name]) for name in TENSORS if name.startswith("context.")}
    guess = np.array([0.5, 0.5, -0.15, 0.05])[:, None] * 256
    out["context.mean"] = np.broadcast_to(guess, (4, MOST_BANDS)).astype(np.int16)
    flat = np.full((TABLES, SYMBOLS), (1 << 16) // SYMBOLS, np.int32)
    flat[:, REACH] += (1 << 16) - flat[0].sum()
    return out | {"frequencies": flat, "towards_zero": np.zeros((INDEXES, 2), np.uint8)}


def _tiles(config: ContextConfig, held_out: bool) -> Iterator[np.ndarray]:
    """Yield tiles, int32 (1, bands, h, w), almost without nodata pixels."""
    rng = np.random.default_rng(config.seed)
    files = sorted(file for folder in config.data for file in Path(folder).glob("*.npz"))
    rare = 0
    for file in files:
        if file.name.startswith(config.held_out) != held_out:
            continue
        if config.left_out and file.name.startswith(config.left_out):
            continue
        if config.few and file.name.startswith(config.few):
            rare += 1
            if rare % 8:
                continue
        with np.load(file) as held:
            dn, present = held["dn"], held["present"]
        dates, _, height, width = dn.shape
        for date in rng.permutation(dates)[: config.dates]:
            side = config.side
            row = int(rng.integers(0, max(height - side, 0) + 1))
            column = int(rng.integers(0, max(width - side, 0) + 1))
            tile = dn[date : date + 1, present, row : row + side, column : column + side]
            if tile.size and (tile > 0).mean() > 0.999:
                yield tile.astype(np.int32)


@dataclass(frozen=True)
class _Samples:
    inputs: np.ndarray
    symbols: np.ndarray
    off: np.ndarray  # magnitude of the value minus that of the coefficient, steps
    size: np.ndarray  # magnitude of the value


def _series(config: ContextConfig) -> Iterator[np.ndarray]:
    """Yield tiles of series, int32 (dates, bands, h, w), without nodata pixels."""
    files = sorted(file for folder in config.data for file in Path(folder).glob("*.npz"))
    for file in files:
        if file.name.startswith((*config.held_out, *config.left_out)):
            continue
        with np.load(file) as held:
            dn, present = held["dn"], held["present"]
        dn = dn[:, present, : config.side, : config.side]
        dn = dn[(dn > 0).all(axis=(1, 2, 3))]
        for first in range(0, min(len(dn) - 1, 4 * config.series), config.series):
            yield dn[first : first + config.series].astype(np.int32)


def _collected(
    model: TileModel,
    tiles: Sequence[np.ndarray],
    series: Sequence[np.ndarray],
    config: ContextConfig,
    first: bool,
) -> _Samples:
    """Collect samples: of single dates and, unless no model is there yet, of predicted ones."""
    rng = np.random.default_rng(config.seed + 1)
    parts: list[tuple[np.ndarray, ...]] = []
    for tile in tiles:
        grids = model.grids(tile, None, 4.0)
        for quality in _QUALITIES:
            wanted, latents, inputs, symbols, _ = model.collect(tile[0], grids, quality, first)
            live = np.flatnonzero(_is_heard(inputs) | (symbols != 0))
            chosen = rng.permutation(live)[: config.samples]
            flat = latents.reshape(-1)[chosen]
            off = (np.abs(flat) - np.abs(wanted.reshape(-1)[chosen])).astype(np.float32)
            parts.append((inputs[chosen], symbols[chosen], off, np.abs(flat)))
    for number, dates in enumerate(series if not first else ()):
        grids = model.grids(dates, None, 4.0)
        for quality in _QUALITIES[number % 2 :: 2]:
            layers = [quality - _LAYER, quality] if quality > 3 and number % 4 < 2 else [quality]
            inputs, symbols = model.collect_series(dates, grids, layers)
            live = np.flatnonzero(_is_heard(inputs) | (symbols != 0))
            chosen = rng.permutation(live)[: config.samples]
            none = np.zeros(len(chosen), np.int32)
            parts.append((inputs[chosen], symbols[chosen], none.astype(np.float32), none))
    return _Samples(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _is_heard(inputs: np.ndarray) -> np.ndarray:
    """Return where something around a value is not zero. The other values cost almost nothing."""
    return np.asarray(inputs[:, :-FIXED_INPUTS].any(axis=1))


def _fitted_means(model: TileModel, tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Fit the weights of the neighbours that predict block means: the tensor `context.mean`."""
    grams, sides = np.zeros((MOST_BANDS, 4, 4)), np.zeros((MOST_BANDS, 4))
    for tile in tiles:
        grids = model.grids(tile, None, 6.0)
        wanted, _, _, _, means = model.collect(tile[0], grids, 6.0, True)
        if min(wanted.shape[1:]) < 3:
            continue
        for k in range(means):
            plane = wanted[k] / max(float(wanted[k].std()), 1e-6)
            x = np.stack([plane[1:, :-2], plane[:-1, 1:-1], plane[:-1, :-2], plane[:-1, 2:]])
            x = x.reshape(4, -1)
            grams[k] += x @ x.T
            sides[k] += x @ plane[1:, 1:-1].reshape(-1)
    grams[8:], sides[8:] = grams[8:].sum(axis=0), sides[8:].sum(axis=0)  # few tiles have so many
    found = np.linalg.solve(grams + 1e-3 * np.eye(4), sides[..., None])[..., 0].T
    return np.clip(np.rint(256 * found), -1024, 1024).astype(np.int16)


def _fit(net: ContextNet, samples: _Samples, config: ContextConfig, rate: float) -> float:
    inputs, symbols = torch.from_numpy(samples.inputs), torch.from_numpy(samples.symbols)
    adam = torch.optim.Adam(net.parameters(), rate)
    loss_of = 0.0
    for step in range(config.iterations):
        done = step / config.iterations
        net.whole = done > 0.6
        for group in adam.param_groups:
            group["lr"] = rate * max(1 - done, 0.01)
        chosen = torch.randint(0, len(symbols), (config.batch,))
        bits = net.bits(inputs[chosen], symbols[chosen]).mean()
        loss = bits + _EXCESS_BITS * net.excess()
        adam.zero_grad()
        loss.backward()
        adam.step()
        loss_of += (float(bits.detach()) - loss_of) * max(0.005, 1 / (step + 1))
    net.whole = True
    return loss_of


def _tables(net: ContextNet, samples: _Samples) -> dict[str, np.ndarray]:
    """Count tables and centres from samples; the network's distributions smooth the tables."""
    with torch.no_grad():
        parts = torch.from_numpy(samples.inputs).split(1 << 17)
        index = torch.cat([net.index(part) for part in parts]).numpy()
        share, wider = torch.sigmoid(net.share).numpy(), F.softplus(net.wider).numpy()
    indexes = np.clip(np.floor(index + 0.5), 0, INDEXES - 1).astype(np.int64)
    counts = np.zeros((TABLES, SYMBOLS))
    np.add.at(counts, (table_of(indexes), column_of(samples.symbols, indexes)), 1.0)
    size = torch.arange(-REACH, REACH + 1).abs().float()
    frequencies = np.empty((TABLES, SYMBOLS), np.int32)
    for table in range(TABLES):
        at = min(table, PLAIN + 3)
        scale = torch.tensor(2.0 ** ((at - 20) / 4))
        prior = (1 - share[at]) * _laplacian(size, scale)
        prior = (prior + share[at] * _laplacian(size, scale * 2 ** wider[at])).numpy()
        seen = counts[table]
        if table < PLAIN:
            seen = (seen + seen[::-1]) / 2
        chance = seen + 200 * prior / prior.sum()
        whole = np.maximum(np.rint(chance / chance.sum() * (1 << 16)), 1).astype(np.int32)
        whole[whole.argmax()] += (1 << 16) - whole.sum()
        frequencies[table] = whole
    nearer = np.zeros((INDEXES, 2), np.uint8)
    for column, which in enumerate((samples.size == 1, samples.size >= 2)):
        plain = which & (low_bits(indexes) == 0)
        total = np.bincount(indexes[plain], samples.off[plain], INDEXES)
        count = np.bincount(indexes[plain], minlength=INDEXES)
        nearer[:, column] = np.clip(np.rint(64 * total / (count + 30)), 0, 24)
    return {"frequencies": frequencies, "towards_zero": nearer}


def _checked(
    model: TileModel, tiles: Sequence[np.ndarray], qualities: Sequence[float]
) -> dict[float, tuple[float, float]]:
    """Return bits per pixel and band, and PSNR against 10,000 DN, for each quality.

    Both are geometric means over the tiles: of the bits, and of the squared error.
    """
    out = {}
    for quality in qualities:
        logs = []
        for tile in tiles:
            grids, back = model.grids(tile, None, quality), np.empty(tile.shape[1:], np.int32)
            section, _ = model.encode(tile[0], None, grids, quality)
            model.decode(section, quality, back)
            off = np.clip(back, 0, 10_000) - np.clip(tile[0], 0, 10_000)
            error = max(float((off.astype(np.float64) ** 2).mean()), 1e-3)
            logs.append((np.log(8 * len(section) / tile.size), np.log10(1e8 / error)))
        if logs:
            bits, decibels = np.mean(logs, axis=0)
            out[quality] = (float(np.exp(bits)), 10 * float(decibels))
    return out
