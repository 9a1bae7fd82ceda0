import re

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
        ("nbart_red", "B04"),
        ("nbart_coastal_aerosol", "B01"),
        ("S2_B8A", "B8A"),
        ("B4, central wavelength 665 nm", "B04"),
        ("B8A (865 nm)", "B8A"),
        ("Band 4 - Red", "B04"),
    ],
)
def test_a_band_is_known_by_every_common_spelling(given, expected):
    assert sentinel2.band_name(given) == expected


def test_every_canonical_and_common_name_leads_to_its_band():
    for name, band in sentinel2.BANDS.items():
        assert sentinel2.band_name(name) == name
        assert sentinel2.band_name(band.common_name) == name


@pytest.mark.parametrize("wrong", [
    "B13", "B00", "B8B", "scl", "visual", "", "B2x", "SR_B5", "Band 5 - NIR", "B04 (cloud mask)",
    "oa_fmask", "nbart_panchromatic", "B8A,B04",
])  # fmt: skip
def test_what_is_not_a_band_is_named_in_the_error(wrong):
    with pytest.raises(sentinel2.UnknownBandError, match=re.escape(repr(wrong))) as raised:
        sentinel2.band_name(wrong)
    assert isinstance(raised.value, TecError)


def test_the_same_band_twice_is_refused():
    assert sentinel2.band_names(["red", "B08"]) == ("B04", "B08")
    with pytest.raises(sentinel2.UnknownBandError, match="same band twice"):
        sentinel2.band_names(["red", "B04"])


def test_the_second_swir_band_is_known_by_those_beside_it():
    """Digital Earth Australia counts Landsat's from 1.6 micrometres, Sentinel-2's from 1.2."""
    landsat = ["nbart_nir", "nbart_swir_1", "nbart_swir_2"]
    assert sentinel2.band_names(landsat) == ("B08", "B11", "B12")
    assert sentinel2.band_names(["nbart_swir_2", "nbart_swir_3"]) == ("B11", "B12")
    assert sentinel2.band_names(["nbart_nir_1", "nbart_swir_2"]) == ("B08", "B11")


def test_l2a_is_l1c_without_cirrus():
    assert len(sentinel2.L2A_BANDS) == 12
    assert sentinel2.L1C_BANDS[10] == "B10"
    assert tuple(b for b in sentinel2.L1C_BANDS if b != "B10") == sentinel2.L2A_BANDS


@pytest.mark.parametrize(
    ("baseline", "offset"),
    [("05.09", True), ("04.00", True), ("N0400", True), ("03.01", False), ("N0214", False),
     (5.09, True), (5.1, True), (2.14, False)],
)
def test_offset_starts_with_baseline_04(baseline, offset):
    assert sentinel2.carries_offset(baseline) is offset


def test_a_baseline_that_is_none_is_refused():
    for wrong in ("latest", 509.0, float("nan")):
        with pytest.raises(TecError, match="is not a processing baseline"):
            sentinel2.carries_offset(wrong)
