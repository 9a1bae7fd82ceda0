"""The default model: exact latents, any shape, and the two implementations of its integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tec_zarr.cubes import synthetic
from tec_zarr.entropy.range_coder import SymbolDecoder, SymbolEncoder
from tec_zarr.entropy.tables import Tables, integer_table
from tec_zarr.errors import FormatError
from tec_zarr.metrics import psnr
from tec_zarr.models import klt
from tec_zarr.models.constants import GROUPS, step_size
from tec_zarr.models.registry import get_model
from tec_zarr.networks.image_net import IntConv, S2Net
from tec_zarr.networks.transform import Analysis, blocks_of, overlapped, with_margin
from tec_zarr.terracodec import exact


@pytest.fixture(scope="module")
def model():
    return get_model("tec-s2")


@pytest.fixture(scope="module")
def cube():
    return synthetic.cube(dates=2, size=96, seed=3, nodata_edge=False).values.astype(np.float32)


def roundtrip(model, cube, quality):
    encoded = model.encode(cube, quality, None)
    decoded, crc = model.decode(encoded.sections, cube.shape, quality, None)
    assert crc == encoded.latents_crc
    return encoded, decoded


def test_finer_quality_costs_more_and_is_closer(model, cube):
    bits, quality = [], []
    for level in (1.0, 2.5, 4.0, 6.0, 8.0):
        encoded, decoded = roundtrip(model, cube, level)
        bits.append(sum(map(len, encoded.sections)))
        quality.append(psnr(cube, decoded))
    assert np.all(np.diff(bits) > 0)
    assert np.all(np.diff(quality) > 0)
    assert quality[0] > 28
    assert quality[-1] > 46


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 8), (8, 8), (13, 70), (40, 33)])
@pytest.mark.parametrize("bands", [1, 4, 12, 13])
def test_any_size_and_number_of_bands(model, cube, size, bands):
    part = np.resize(cube[0], (1, 13, 96, 96))[:, :bands, : size[0], : size[1]]
    _, decoded = roundtrip(model, part, 5.0)
    assert decoded.shape == part.shape
    assert np.sqrt(np.mean((decoded - part) ** 2)) < 2 * step_size(5.0)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["noise", "flat", "spike", "checker"]))
def test_unnatural_images_decode_to_the_latents_that_were_coded(model, seed, kind):
    rng = np.random.default_rng(seed)
    cube = np.full((1, 3, 24, 24), rng.uniform(-1000, 20000), np.float32)
    if kind == "noise":
        cube[:] = rng.uniform(-1000, 20000, cube.shape)
    elif kind == "spike":
        cube[0, 1, rng.integers(24), rng.integers(24)] = 20000
    elif kind == "checker":
        cube[:, :, ::2, ::2] = -1000
    roundtrip(model, cube, float(rng.uniform(1, 8)))


def test_band_order_does_not_matter_to_the_size(model, cube):
    order = np.random.default_rng(0).permutation(12)
    plain = sum(map(len, model.encode(cube, 4.0, None).sections))
    mixed = sum(map(len, model.encode(np.ascontiguousarray(cube[:, order]), 4.0, None).sections))
    assert abs(mixed / plain - 1) < 0.05


def test_dates_stand_alone(model, cube):
    both = model.encode(cube, 4.0, None).sections
    assert model.encode(cube[1:], 4.0, None).sections == both[1:]


def test_thread_count_leaves_the_bytes_alone(model, cube):
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(model.encode(cube, 5.0, None).sections)
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_plain_python_range_decoder_reads_the_same_latents(model, cube):
    part = cube[:1, :, :40, :24]
    section = model.encode(part, 6.0, None).sections[0]
    fast, _ = model.decode_latents(section, part.shape[1:], 6.0)
    plain, _ = model.decode_latents(section, part.shape[1:], 6.0, reference=True)
    assert np.array_equal(fast, plain)
    assert (fast != 0).sum() > 100


def test_int8_and_float32_sums_are_the_same_numbers(model, cube, monkeypatch):
    section = model.encode(cube[:1], 6.0, None).sections[0]
    expected, _ = model.decode_latents(section, cube.shape[1:], 6.0)
    layers = [
        layer
        for part in (*model.coder.entropy.coarse, *model.coder.entropy.fine)
        for layer in vars(part).values()
        if hasattr(layer, "exact_int8")
    ]
    assert layers
    for layer in layers:
        monkeypatch.setattr(layer, "exact_int8", not layer.exact_int8 and hasattr(torch, "_int_mm"))
    found, _ = model.decode_latents(section, cube.shape[1:], 6.0)
    assert np.array_equal(found, expected)


@torch.no_grad()
def test_training_sees_the_networks_that_code():
    torch.manual_seed(0)
    net = S2Net().eval()
    for parameter in net.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    from tec_zarr.networks.walk import IntegerModel

    condition = torch.randint(-16, 30, (2, 13)).float()
    latents = torch.randn(2, sum(GROUPS), 9, 11) * 3
    trained = []
    for step in net.passes(condition, 9, 11):
        group = latents.split(GROUPS, 1)[step.group]
        step.decoded = (torch.round(group - step.mean) + step.mean) * step.mask
        trained.append((step.mean[:, :, step.mask], step.scale[:, :, step.mask]))
    flat = latents.flatten(2).transpose(1, 2)
    walk = IntegerModel(net).steps(condition, 9, 11, (True,) * len(GROUPS))
    for (mean, scale), step in zip(trained, walk, strict=True):
        target = flat[:, step.places, step.channels]
        step.write(torch.round(target - step.mean / 16).int())
        index = torch.floor(scale + 0.5).clamp(0, 51)
        assert (step.mean.transpose(1, 2) == torch.round(mean * 16)).float().mean() > 0.999
        assert (step.index.transpose(1, 2) == index).float().mean() > 0.999


@pytest.mark.parametrize(("quality", "size"), [(1.0, (200, 40)), (4.3, (40, 33)), (8.0, (136, 96))])
@pytest.mark.parametrize("bands", [1, 12])
@torch.no_grad()
def test_training_sees_the_pixels_that_are_decoded(model, cube, quality, size, bands):
    """With weights that make pixels in float32; tests/test_native.py has the others."""
    model = get_model("tec-s2", model.networks_sha256)
    part = np.resize(cube[0], (bands, 200, 96))[:, : size[0], : size[1]]
    encoded, decoded = roundtrip(model, part[None], quality)
    latents, context = model.decode_latents(encoded.sections[0], part.shape, quality)
    rows, columns = -(-size[0] // 8), -(-size[1] // 8)
    steps = torch.from_numpy(latents.astype(np.float32) / 16).view(1, rows, columns, -1)
    components = model.net.synthesise(
        steps.permute(0, 3, 1, 2), context.quality.float(), context.condition
    )[0, :, : size[0], : size[1]]
    spectral = context.spectral
    pixels = np.einsum("ck,kyx->cyx", spectral.basis[:, :12], components[:bands])
    assert np.abs(pixels + spectral.mean[:, None, None] - decoded[0]).max() < 0.05


@pytest.mark.parametrize("quality", [1.0, 4.3, 8.0])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (40, 31)])
@torch.no_grad()
def test_the_encoder_makes_the_latents_of_training_alike_everywhere(
    model, quality, size, monkeypatch
):
    random = torch.Generator().manual_seed(17)
    level = torch.tensor([quality], dtype=torch.float64)
    condition = torch.randint(-16, 40, (1, 13), generator=random).float()
    spread = torch.logspace(3, 0, 12, dtype=torch.float64)[:, None, None]
    picture = torch.randn(12, 8 * size[0], 8 * size[1], generator=random).double() * spread
    wanted = model.net.analyse(picture[None].float(), level.float(), condition)[0].flatten(1).T
    image, inside = with_margin(12, *size, torch.float64)
    inside.copy_(picture)
    blocks = blocks_of(overlapped(image, model.net.analysis_overlap.double())[:, 4:-4, 4:-4])
    blocks = blocks.permute(1, 3, 0, 2, 4).flatten(2).flatten(0, 1)
    found = model.analysis(blocks, level, condition, size[1])
    assert (found - wanted).square().mean() < 1e-6 * wanted.square().mean()
    monkeypatch.setattr(exact, "int8_is_exact", lambda device: False)
    elsewhere = Analysis(model.net, model.net.analysis)
    assert torch.equal(elsewhere(blocks, level, condition, size[1]), found)


def test_a_layer_that_float32_cannot_add_exactly_is_refused():
    conv = IntConv(1440, 2, 1, 32.0)
    weight, exponent, bias = (
        torch.full((2, 1440, 1, 1), 100, dtype=torch.int8),
        torch.zeros(2),
        torch.zeros(2),
    )
    with pytest.raises(ValueError, match="2\\*\\*24"):
        conv.freeze(weight, exponent, bias)


def test_damaged_sections_never_hang_or_crash(model, cube):
    section = bytearray(model.encode(cube[:1, :, :32, :32], 5.0, None).sections[0])
    good = model.decode_latents(bytes(section), (12, 32, 32), 5.0)[0]
    rng = np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(section)
        broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
        try:
            latents, _ = model.decode_latents(
                bytes(broken[: rng.integers(1, len(broken) + 1)]), (12, 32, 32), 5.0
            )
        except FormatError:
            continue
        assert latents.shape == good.shape


# ---- spectral header


@given(st.integers(1, 12), st.floats(1, 8), st.integers(0, 2**32 - 1))
def test_klt_reads_back_what_was_written(count, quality, seed):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(count, count)) * 10 ** rng.uniform(0, 3.5, count)
    mean = rng.uniform(-1000, 20000, count)
    data, written = klt.write(mean, mixing @ mixing.T, step_size(quality))
    read, rest = klt.read(data + b"rest", count, step_size(quality))
    assert rest == b"rest"
    assert np.array_equal(read.basis, written.basis)
    assert np.array_equal(read.spread, written.spread)
    assert np.array_equal(read.mean, written.mean)
    assert np.abs(read.basis.T @ read.basis - np.eye(count)).max() < 1e-6
    assert np.abs(read.mean - mean).max() <= max(step_size(quality) / 8, 0.5)


def test_klt_compacts_energy(cube):
    pixels = cube[0].reshape(12, -1).astype(float)
    _, spectral = klt.write(pixels.mean(1), np.cov(pixels), step_size(6.0))
    energy = (spectral.basis.T @ (pixels - pixels.mean(1)[:, None])).var(1)
    ideal = np.linalg.eigvalsh(np.cov(pixels))[::-1]
    assert energy[:3].sum() > 0.999 * ideal[:3].sum()


def test_klt_of_a_truncated_header_is_an_error():
    data, _ = klt.write(np.full(12, 1000.0), np.diag(np.arange(1, 13) * 1e5), 100.0)
    for size in range(len(data) - 1):
        with pytest.raises(FormatError):
            klt.read(data[:size], 12, 100.0)


def another_solver(seed):
    """An eigensolver as right as NumPy's, with roundings and choices of its own."""
    eigh, random = np.linalg.eigh, np.random.default_rng(seed)

    def solve(matrix):
        turn, _ = np.linalg.qr(random.normal(size=matrix.shape))
        values, vectors = eigh(turn @ matrix @ turn.T)
        return values, turn.T @ vectors * random.choice([-1, 1], len(values))

    return solve


@pytest.mark.parametrize("step", [48.0, 2400.0])
@pytest.mark.parametrize("bands", [2, 3, 12, 14])
@pytest.mark.parametrize(
    "covariance",
    [
        np.eye,  # one eigenvalue, so many times
        lambda n: 0.3 * np.eye(n) + 0.7,  # one, and all others alike
        lambda n: np.diag(np.arange(n) % 3 + 0.0),  # bands that are constant
        lambda n: np.ones((n, n)),
        lambda n: np.zeros((n, n)),
        lambda n: np.kron(np.eye(-(-n // 2)), [[1, 0.5], [0.5, 1]])[:n, :n],  # (1, 1) and (1, -1)
        lambda n: np.cov(np.random.default_rng(n).normal(size=(n, 99))),
    ],
)
def test_the_basis_of_a_tile_is_not_the_eigensolvers_choice(covariance, bands, step, monkeypatch):
    mean, matrix = np.full(bands, 1500.0), covariance(bands) * 1e6
    expected, _ = klt.write(mean, matrix, step)
    for seed in range(3):
        monkeypatch.setattr(np.linalg, "eigh", another_solver(seed))
        assert klt.write(mean, matrix, step)[0] == expected
        monkeypatch.undo()


def test_pixels_with_a_repeated_eigenvalue_give_the_same_bytes_with_any_solver(monkeypatch):
    random = np.random.default_rng(2)
    half = random.integers(-900, 900, (8, 16))
    one = np.concatenate([half, -half])
    cube = np.full((1, 4, 32, 32), 2000, np.float32)
    for band in range(4):  # the same somewhere else: bands of equal variance, not correlated
        row, column = 16 * (band // 2), 16 * (band % 2)
        cube[0, band, row : row + 16, column : column + 16] += one
    model = get_model("tec-s2")
    expected = model.encode(cube, 5.0, None).sections
    monkeypatch.setattr(np.linalg, "eigh", another_solver(1))
    assert model.encode(cube, 5.0, None).sections == expected


# ---- range coder


@given(st.integers(0, 2**32 - 1), st.integers(0, 400))
def test_symbols_come_back_through_both_decoders(seed, count):
    rng = np.random.default_rng(seed)
    rows = np.zeros((4, 41), int)
    for i, reach in enumerate((3, 5, 12, 20)):
        rows[i, 20 - reach : 21 + reach] = integer_table(rng.random(2 * reach + 1) ** 4 + 1e-9)
    tables = Tables(rows)
    index = rng.integers(0, 4, count).astype(np.uint8)
    symbols = np.rint(rng.standard_cauchy(count) * 3).clip(-60000, 60000).astype(np.int32)
    encoder = SymbolEncoder(tables)
    encoder.put(symbols, index)
    encoder.put(symbols[::-1], index)
    data = encoder.finish()
    for reference in (False, True):
        decoder = SymbolDecoder(tables, data, reference)
        assert np.array_equal(decoder.get(index), symbols)
        assert np.array_equal(decoder.get(index), symbols[::-1])


@given(st.integers(0, 2**32 - 1), st.integers(1, 3000))
def test_tables_are_complete(seed, size):
    table = integer_table(np.random.default_rng(seed).random(size) ** 8)
    assert table.sum() == 1 << 16
    assert table.min() >= 1
