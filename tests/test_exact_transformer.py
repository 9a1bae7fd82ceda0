"""The whole-number arithmetic of TEC-TT's and FlexTEC's transformer
(`tec_zarr.terracodec.exact`).
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from tec_zarr.errors import TecError
from tec_zarr.terracodec import exact as exact_module
from tec_zarr.terracodec.exact import ExactAttention, ExactGelu, ExactLayerNorm, ExactLinear, exact
from tec_zarr.terracodec.layers import Attention, Gelu
from tec_zarr.terracodec.tt import EntropyTransformer

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(params=["int8", "float32"])
def products(request, monkeypatch):
    """Both ways to multiply whole numbers."""
    if request.param == "float32":
        monkeypatch.setattr(exact_module, "int8_is_exact", lambda device: False)
    elif not exact_module.int8_is_exact("cpu"):
        pytest.skip("this processor's int8 products saturate")
    return request.param


def layer_of(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.copy_(weight)
    layer.bias.copy_(torch.linspace(-1, 1, len(weight)))
    return layer


def whole(row: np.ndarray) -> tuple[list[int], int]:
    """A row as the docstring says: whole numbers and the exponent of their unit."""
    largest = max(abs(Fraction(float(x))) for x in row)
    exponent = -100
    while largest * (1 + Fraction(1, 128)) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    exponent -= 14
    return [round(Fraction(float(x)) / Fraction(2) ** exponent) for x in row], exponent


def low_digit(number: int) -> int:
    return (number + 128) % 256 - 128


def by_fractions(layer: nn.Linear, x: torch.Tensor) -> np.ndarray:
    """What ExactLinear has to answer, without floating point until the last two roundings."""
    out = np.empty((len(x), layer.out_features), np.float32)
    columns = []
    for column in layer.weight.numpy():
        numbers, exponent = whole(column)
        while sum(map(abs, numbers)) >= 1 << 24:
            exponent += 1
            numbers = [round(Fraction(float(w)) / Fraction(2) ** exponent) for w in column]
        columns.append((numbers, exponent))
    for i, row in enumerate(x.numpy()):
        numbers, exponent = whole(row)
        for j, (column, own) in enumerate(columns):
            pairs = list(zip(numbers, column, strict=True))
            left_out = sum(low_digit(a) * low_digit(b) for a, b in pairs)
            total, rest = divmod(sum(a * b for a, b in pairs) - left_out, 256)
            assert rest == 0
            product = np.float32(total) * np.float32(2.0**exponent) * np.float32(2.0 ** (own + 8))
            out[i, j] = product + layer.bias.numpy()[j]
    return out


@pytest.mark.parametrize("size", [(5, 3), (192, 16), (768, 9)])
def test_linear_layers_are_what_whole_numbers_make(size, products):
    inputs, outputs = size
    random = torch.Generator().manual_seed(inputs)
    layer = layer_of(torch.randn(outputs, inputs, generator=random) * 0.02)
    x = torch.randn(4, inputs, generator=random) * torch.tensor([[1e-3], [1.0], [40.0], [0.0]])
    x[1, 0] = 300.0  # an outlier sets the unit of its row
    found = ExactLinear(layer)(x)
    np.testing.assert_array_equal(found.numpy(), by_fractions(layer, x))
    wanted = layer.double()(x.double())
    assert (found - wanted).abs().max() < 2e-3 * wanted.abs().max()


def test_the_largest_sums_do_not_overflow(products):
    inputs = 3072
    weight = torch.ones(4, inputs)
    weight[1] = -1.9999
    weight[2, ::2] = -1.0
    weight[3] = 2.0**-60
    layer = layer_of(weight)
    x = torch.stack([torch.full((inputs,), v) for v in (1.999, -1.999, 2.0**40, 1e-45)])
    found = ExactLinear(layer)(x)
    np.testing.assert_array_equal(found.numpy(), by_fractions(layer, x))


def test_the_order_and_the_company_of_rows_do_not_matter(products):
    random = torch.Generator().manual_seed(3)
    layer = layer_of(torch.randn(96, 768, generator=random))
    x = torch.randn(70, 768, generator=random)
    order = torch.randperm(768, generator=random)
    shuffled = layer_of(layer.weight[:, order])
    together = ExactLinear(layer)(x)
    assert torch.equal(ExactLinear(shuffled)(x[:, order]), together)
    assert torch.equal(torch.cat([ExactLinear(layer)(row[None]) for row in x]), together)


def test_both_products_give_the_same_bits(monkeypatch):
    if not exact_module.int8_is_exact("cpu"):
        pytest.skip("this processor's int8 products saturate")
    torch.manual_seed(5)
    model = EntropyTransformer(32, 48, 4, (1, 1, 1)).eval()
    context, tokens = (torch.randn(3, n, 32).mul(9).round() for n in (64, 16))

    def answers() -> list[torch.Tensor]:
        network = exact(model)
        encoded = network.encode_date(context)
        return list(network.predict(tokens, network.join_dates([encoded, encoded])))

    fast = answers()
    monkeypatch.setattr(exact_module, "int8_is_exact", lambda device: False)
    for one, other in zip(fast, answers(), strict=True):
        assert torch.equal(one, other)


def test_layer_normalisation_is_close_and_sees_no_order():
    random = torch.Generator().manual_seed(7)
    norm = nn.LayerNorm(768, eps=1e-6)
    norm.weight.copy_(torch.rand(768, generator=random) + 0.5)
    norm.bias.copy_(torch.randn(768, generator=random))
    x = torch.randn(30, 768, generator=random)
    x *= torch.logspace(-4, 4, 30)[:, None]
    x[3] += 5
    x[4] = 0
    x[5, 7] = 3.0  # a thousand times the others
    found = ExactLayerNorm(norm)(x)
    order = torch.randperm(768, generator=random)
    shuffled = nn.LayerNorm(768, eps=1e-6)
    shuffled.weight.copy_(norm.weight[order])
    shuffled.bias.copy_(norm.bias[order])
    assert torch.equal(ExactLayerNorm(shuffled)(x[:, order]), found[:, order])
    wanted = norm.double()(x.double())
    error = (found - wanted).abs().amax(1)
    assert error[3] < 4e-3  # a mean of 5000 deviations leaves few digits
    error[3] = 0
    assert error.max() < 2e-5
    assert torch.equal(found[4], norm.bias.float())


def test_gelu_follows_the_normal_distribution():
    x = torch.linspace(-12, 12, 100_001)
    wanted = nn.functional.gelu(x.double())
    assert (ExactGelu(Gelu())(x.clone()) - wanted).abs().max() < 2e-6


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_close_and_sees_no_order(causal):
    random = torch.Generator().manual_seed(9)
    queries, keys, values = (torch.randn(2, 4, 128, 48, generator=random) * 2 for _ in range(3))
    mask = torch.ones(128, 128, dtype=torch.bool).tril() if causal else None
    attention = ExactAttention(Attention())
    found = attention(queries, attention.keys(keys), attention.values(values), mask)
    wanted = nn.functional.scaled_dot_product_attention(
        queries.double(), keys.double(), values.double(), attn_mask=mask
    )
    assert (found - wanted).abs().max() < 4e-3
    order = torch.randperm(128, generator=random)
    shuffled = attention(
        queries,
        attention.keys(keys)[:, :, order],
        attention.values(values)[:, :, order],
        None if mask is None else mask[:, order],
    )
    assert torch.equal(shuffled, found)


def test_attention_refuses_what_its_sums_cannot_hold():
    attention = ExactAttention(Attention())
    for tokens, size in ((129, 48), (16, 65)):
        x = torch.zeros(1, 1, tokens, size)
        with pytest.raises(TecError, match="129 keys" if tokens > 128 else "65 channels"):
            attention(x, attention.keys(x), attention.values(x), None)
    with pytest.raises(TecError, match="2049 channels"):
        ExactLayerNorm(nn.LayerNorm(2049))(torch.zeros(1, 2049))


def test_attention_bounds_what_its_sums_must_hold():
    attention = ExactAttention(Attention())
    x = torch.full((1, 1, 128, 64), 1e9)
    assert float(attention.values(x).max()) * 128 * 2**17 < 2**53
    assert float(attention.keys(x).max()) ** 2 * 64 < 2**53
    assert math.isfinite(float(attention(x, attention.keys(x), attention.values(x), None).max()))


def test_tokens_one_by_one_are_those_of_one_pass():
    from tec_zarr.terracodec.tt import TokenDecoder

    torch.manual_seed(11)
    network = exact(EntropyTransformer(32, 48, 4, (1, 1, 2)).eval())
    context, tokens = (torch.randn(5, n, 32).mul(9).round() for n in (64, 16))
    encoded = network.encode_date(context)
    joint = network.join_dates([encoded, encoded])
    together = network.predict(tokens, joint)
    decoder = TokenDecoder(network, joint, 5)
    inputs = network.shifted(tokens)
    single = [decoder.advance(inputs[:, i : i + 1]) for i in range(16)]
    for part, values in enumerate(together):
        assert torch.equal(torch.cat([answer[part] for answer in single], dim=1), values)
        assert torch.equal(network.predict(tokens[2:3], joint[2:3])[part], values[2:3])


def test_predictions_stay_those_of_the_float_network():
    torch.manual_seed(13)
    model = EntropyTransformer(32, 96, 4, (2, 2, 2)).eval()
    context, tokens = (torch.randn(8, n, 32).mul(9).round() for n in (64, 16))

    def answers(network: EntropyTransformer) -> tuple[torch.Tensor, ...]:
        encoded = network.encode_date(context)
        return network.predict(tokens, network.join_dates([encoded, encoded]))

    for wanted, found in zip(answers(model), answers(exact(model)), strict=True):
        assert (found - wanted).std() < 1e-3 * wanted.std()
