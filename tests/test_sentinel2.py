import pytest

from tec_zarr import sentinel2
from tec_zarr.errors import TecError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("B2", "B02"),
        ("b02", "B02"),
        ("B02_10m", "B02"),
        ("B8a_20m", "B8A"),
        ("band12", "B12"),
        ("blue", "B02"),
        ("nir", "B08"),
        ("nir08", "B8A"),
        ("nir09", "B09"),
        ("red_edge_1", "B05"),
        ("rededge3", "B07"),
        ("SWIR16", "B11"),
        ("swir22", "B12"),
        ("coastal", "B01"),
    ],
)
def test_a_band_is_known_by_every_common_spelling(given, expected):
    assert sentinel2.band_name(given) == expected


def test_every_canonical_and_common_name_leads_to_its_band():
    for name, band in sentinel2.BANDS.items():
        assert sentinel2.band_name(name) == name
        assert sentinel2.band_name(band.common_name) == name


@pytest.mark.parametrize("wrong", ["B13", "B00", "B8B", "scl", "visual", "", "B2x"])
def test_what_is_not_a_band_is_named_in_the_error(wrong):
    with pytest.raises(sentinel2.UnknownBandError, match=repr(wrong)) as raised:
        sentinel2.band_name(wrong)
    assert isinstance(raised.value, TecError)


def test_the_same_band_twice_is_refused():
    assert sentinel2.band_names(["red", "B08"]) == ("B04", "B08")
    with pytest.raises(sentinel2.UnknownBandError, match="same band twice"):
        sentinel2.band_names(["red", "B04"])


def test_l2a_is_l1c_without_cirrus():
    assert len(sentinel2.L2A_BANDS) == 12
    assert sentinel2.L1C_BANDS[10] == "B10"
    assert tuple(b for b in sentinel2.L1C_BANDS if b != "B10") == sentinel2.L2A_BANDS


@pytest.mark.parametrize(
    ("baseline", "offset"),
    [("05.09", True), ("04.00", True), ("N0400", True), ("03.01", False), ("N0214", False)],
)
def test_offset_starts_with_baseline_04(baseline, offset):
    assert sentinel2.carries_offset(baseline) is offset


def test_a_baseline_that_is_none_is_refused():
    with pytest.raises(ValueError, match="processing baseline"):
        sentinel2.carries_offset("latest")
