"""The published TerraCodec checkpoints by name, and how to get them."""

from __future__ import annotations

from dataclasses import dataclass

from tec_zarr.errors import WeightsMismatchError


def only_decodes(name: str) -> WeightsMismatchError:
    family, _, rate = name.partition("/lambda-")
    how = (
        f"get the published ones, tec_zarr.terracodec.load({family!r}, {rate!r})"
        if family in PUBLISHED
        else "pip install --upgrade tec_zarr, or write a new array with the newest weights"
    )
    return WeightsMismatchError(
        f"these weights of model {name!r} came with a store (tec_zarr.use_embedded_weights): they "
        f"decode what others wrote, and never encode; {how}"
    )


@dataclass(frozen=True)
class Published:
    """A family of published checkpoints that differ in their rate only.

    Parameters
    ----------
    repository : str
        On Hugging Face.
    architecture : {"fp", "elic", "tt", "flex"}
    bands : int
        12 (L2A) or 13 (L1C).
    stem : str
        File name up to the rate.
    rates : tuple of str
        Lambdas, in the reference's spelling without ``lambda-``.
    """

    repository: str
    architecture: str
    bands: int
    stem: str
    rates: tuple[str, ...]

    def file(self, rate: str) -> str:
        """Name of the checkpoint file of a rate."""
        if rate.endswith("-lronly"):
            return f"FlexTEC_LRonly_v1_S2L2A_lambda-{rate.removesuffix('-lronly')}.pt"
        return f"{self.stem}_lambda-{rate}.pt"


_ORGANISATION = "embed2scale/TerraCodec-1.0-"


_IMAGE_RATES = ("0.5", "2", "10", "40", "200")


PUBLISHED: dict[str, Published] = {
    "terracodec_v1_fp_s2l2a": Published(
        _ORGANISATION + "FP-S2L2A", "fp", 12, "TerraCodec_v1_FP_S2L2A", _IMAGE_RATES
    ),
    "terracodec_v1_elic_s2l2a": Published(
        _ORGANISATION + "ELIC-S2L2A", "elic", 12, "TerraCodec_v1_ELIC_S2L2A", _IMAGE_RATES
    ),
    "terracodec_v1_tt_s2l2a": Published(
        _ORGANISATION + "TT-S2L2A",
        "tt",
        12,
        "TerraCodec_v1_TT_S2L2A",
        ("0.4", "1", "5", "20", "100", "200", "700"),
    ),
    "terracodec_v1_tt_s2l1c": Published(
        _ORGANISATION + "TT-S2L1C", "tt", 13, "TerraCodec_v1_TT_S2L1C", ("5", "20", "100")
    ),
    "flextec_v1_s2l2a": Published(
        _ORGANISATION + "FlexTEC-S2L2A", "flex", 12, "FlexTEC_v1_S2L2A", ("800", "800-lronly")
    ),
}
"""Published models by their names in the reference implementation."""


def how_to_get(name: str, rate: str) -> str:
    published = PUBLISHED[name]
    file = published.file(rate)
    return (
        "On a machine with a connection to Hugging Face run\n"
        f"    pip install huggingface_hub && hf download {published.repository} {file} "
        "--local-dir .\n"
        "and here, with that file,\n"
        f"    python -c \"import tec_zarr.terracodec as m; m.load('{name}', 'lambda-{rate}', "
        f"path='{file}')\""
    )
