#!/usr/bin/env bash
# Conformance of the TerraCodec family with terracodec==0.3.1 (`make conformance`).
# Makes the reference environment where it is missing, lets the reference save random weights,
# inputs and answers, and compares. About 20 minutes and 4 GiB on one core.
set -euo pipefail
cd "$(dirname "$0")/../.."
reference=${TEC_REFERENCE_ENV:-/tmp/tec-reference-env}
export TEC_CONFORMANCE=${TEC_CONFORMANCE:-$(mktemp -d)}
[ -x "$reference/bin/python" ] || ../shared/tools/reference-env "$reference"
for model in ${1:-fp elic tt tt_l1c flex}; do
    [ -e "$TEC_CONFORMANCE/$model.npz" ] ||
        "$reference/bin/python" -W ignore tests/conformance/reference_side.py "$TEC_CONFORMANCE" "$model"
done
python -m pytest -s -q tests/conformance
