"""Mean and standard deviation of each band, as the published models were trained with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Statistics:
    """Mean and standard deviation of every band, in DN without the +1000 offset.

    Parameters
    ----------
    by_band : dict
        Band name to (mean, standard deviation), in the model's order.
    """

    def __init__(self, by_band: dict[str, tuple[float, float]]) -> None:
        self.bands = tuple(by_band)
        self.mean, self.std = zip(*by_band.values(), strict=True)


STATISTICS = {
    12: Statistics(
        {
            "B01": (793.243, 1160.144),
            "B02": (924.863, 1201.092),
            "B03": (1184.553, 1219.943),
            "B04": (1340.936, 1397.225),
            "B05": (1671.402, 1400.035),
            "B06": (2240.082, 1373.136),
            "B07": (2468.412, 1429.17),
            "B08": (2563.243, 1485.025),
            "B8A": (2627.704, 1447.836),
            "B09": (2711.071, 1652.703),
            "B11": (2416.714, 1471.002),
            "B12": (1849.625, 1365.307),
        }
    ),
    13: Statistics(
        {
            "B01": (1607.345, 786.523),
            "B02": (1393.068, 849.702),
            "B03": (1320.225, 875.318),
            "B04": (1373.963, 1143.578),
            "B05": (1562.536, 1126.248),
            "B06": (2110.071, 1161.98),
            "B07": (2392.832, 1273.505),
            "B08": (2321.154, 1246.79),
            "B8A": (2583.77, 1342.755),
            "B09": (838.712, 576.795),
            "B10": (21.753, 45.626),
            "B11": (2205.112, 1340.347),
            "B12": (1545.798, 1145.036),
        }
    ),
}
"""Published statistics by number of bands: 12 (L2A) and 13 (L1C)."""


def standardise(cube: npt.NDArray[np.float32], count: int, where: Sequence[int]) -> Tensor:
    """DN (T, C, h, w) to the model's input (T, count, h, w); absent bands are their mean."""
    statistics = STATISTICS[count]
    out = np.zeros((cube.shape[0], count, *cube.shape[2:]), np.float32)
    for given, band in enumerate(where):
        out[:, band] = (cube[:, given] - statistics.mean[band]) / statistics.std[band]
    return torch.from_numpy(out)


def destandardise(x: Tensor, where: Sequence[int]) -> npt.NDArray[np.float32]:
    """The model's output (T, count, h, w) to DN of the bands in `where`."""
    statistics = STATISTICS[x.shape[1]]
    wanted = list(where)
    mean = torch.tensor(statistics.mean)[wanted, None, None]
    std = torch.tensor(statistics.std)[wanted, None, None]
    return (x[:, wanted].cpu() * std + mean).numpy()
