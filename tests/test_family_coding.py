"""Integer tables, the symbol coder and the ledger: what exactness rests on."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tec_zarr.errors import FormatError
from tec_zarr.terracodec.gaussian_tables import (
    SymbolDecoder,
    SymbolEncoder,
    gaussian_table,
    gaussian_table_ids,
    whole_words,
)
from tec_zarr.terracodec.ledger import EPSILON, LedgerReader, LedgerWriter


def sigma(level):
    return 0.01 * 25601 ** (level / 255)


def normal_cdf(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


@pytest.mark.parametrize(("level", "mean_step"), [(0, 100), (60, 37), (120, 200), (200, 0)])
def test_a_table_spends_the_bits_of_its_gaussian(level, mean_step):
    rng = np.random.default_rng(level)
    mean = mean_step / 200 - 0.5
    symbols = np.rint(rng.normal(mean, sigma(level), 20_000)).astype(np.int64)
    ids = np.full(symbols.shape, gaussian_table_ids(np.int64(level), np.int64(mean_step)))
    encoder = SymbolEncoder()
    encoder.code(symbols, ids, gaussian_table)
    values, counts = np.unique(symbols, return_counts=True)
    ideal = -sum(
        n
        * math.log2(
            normal_cdf((v + 0.5 - mean) / sigma(level))
            - normal_cdf((v - 0.5 - mean) / sigma(level))
        )
        for v, n in zip(values.tolist(), counts.tolist(), strict=True)
    )
    assert 8 * len(encoder.to_bytes()) == pytest.approx(ideal, rel=0.003, abs=64)


def test_tables_are_the_same_integers_as_ever():
    # Whoever changes a table breaks every stream: these are part of the format.
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256 * 201, 3000)
    symbols = rng.integers(-40, 40, 3000)
    encoder = SymbolEncoder()
    encoder.code(symbols, ids, gaussian_table)
    digest = hashlib.sha256(encoder.to_bytes()).hexdigest()
    assert digest.startswith("bbfd8da030912fcb")


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(-(2**38), 2**38) | st.integers(-9, 9), st.integers(0, 256 * 201 - 1)),
        max_size=60,
    )
)
def test_any_symbols_come_back_escapes_included(pairs):
    symbols = np.array([s for s, _ in pairs], np.int64)
    ids = np.array([i for _, i in pairs], np.int64)
    encoder = SymbolEncoder()
    half = len(pairs) // 2
    for part in (slice(0, half), slice(half, None)):
        encoder.code(symbols[part], ids[part], gaussian_table)
    decoder = SymbolDecoder(encoder.to_bytes())
    for part in (slice(0, half), slice(half, None)):
        np.testing.assert_array_equal(decoder.code(ids[part], gaussian_table), symbols[part])


def test_a_stream_of_broken_words_is_refused():
    with pytest.raises(FormatError, match="5 bytes"):
        SymbolDecoder(b"12345")


@settings(deadline=None)
@given(
    hnp.arrays(np.int64, st.integers(0, 50), elements=st.integers(-1000, 1000)),
    st.integers(0, 2**32 - 1),
)
def test_indexes_agree_whatever_the_noise_near_a_boundary(boundaries, seed):
    # Continuous indexes at and around rounding boundaries, disturbed by less than EPSILON.
    rng = np.random.default_rng(seed)
    shift = rng.choice([0.0, 1e-12, -1e-12, 0.3, 0.9 * EPSILON], boundaries.size)
    values = boundaries + shift
    noisy = values + rng.uniform(-1, 1, values.size) * 1e-9
    writer = LedgerWriter()
    cut = boundaries.size // 3
    truth = np.concatenate([writer.floor(values[:cut]), writer.floor(values[cut:])])
    reader = LedgerReader(writer.to_bytes() + b"rest")
    got = np.concatenate([reader.floor(noisy[:cut]), reader.floor(noisy[cut:])])
    np.testing.assert_array_equal(got, truth)
    np.testing.assert_array_equal(truth, np.floor(values))
    assert reader.end == len(writer.to_bytes())


def test_clear_indexes_cost_one_byte_in_all():
    writer = LedgerWriter()
    writer.floor(np.random.default_rng(0).integers(0, 99, 5000) + 0.4)
    assert len(writer) == 0
    assert len(writer.to_bytes()) == 1


@pytest.mark.parametrize("data", [b"", b"\x05\x01", b"\xff\xff\xff\xff\x7f", b"\x80" * 12])
def test_a_damaged_ledger_is_refused(data):
    with pytest.raises(FormatError):
        LedgerReader(data)


def decoded_from(number: bytes, ids: np.ndarray) -> list[int] | None:
    """Symbols of bytes cut to their shortest; None where they are no such stream."""
    try:
        decoder = SymbolDecoder(whole_words(number).astype("<u4").tobytes())
        return decoder.code(ids, gaussian_table).tolist()
    except FormatError:
        return None


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 256 * 201 - 1)), max_size=40))
def test_no_fewer_bytes_hold_the_same_symbols(pairs):
    symbols = np.array([s for s, _ in pairs], np.int64)
    ids = np.array([i for _, i in pairs], np.int64)
    encoder = SymbolEncoder()
    encoder.code(symbols, ids, gaussian_table)
    data = encoder.to_shortest()
    assert decoded_from(data, ids) == symbols.tolist()
    assert len(data) <= len(encoder.to_bytes())
    for size in range(max(len(data) - 2, 0), len(data)):
        number = int.from_bytes(data[:size], "big")
        for near in range(max(number - 2, 0), min(number + 3, 256**size)):
            again = decoded_from(near.to_bytes(size, "big"), ids)
            assert again is None or again != symbols.tolist()
