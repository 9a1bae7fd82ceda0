#!/usr/bin/env bash
# Conformance of the TerraCodec family with terracodec==0.3.1 (`make conformance`).
# Makes the reference environment (TEC_REFERENCE_ENV) where it is missing, lets the reference save
# random weights, inputs and answers, and compares. About 20 minutes, 4 GiB of memory and 3 GB of
# disk on one idle core. With TEC_CONFORMANCE=DIR what the reference saved is kept and used again.
# Usage: run.sh [MODEL]...    (fp elic tt tt_l1c flex)
set -euo pipefail
cd "$(dirname "$0")/../.."
reference=${TEC_REFERENCE_ENV:-/tmp/tec-reference-env}
if [ -z "${TEC_CONFORMANCE:-}" ]; then
    TEC_CONFORMANCE=$(mktemp -d)
    trap 'rm -rf "$TEC_CONFORMANCE"' EXIT
fi
export TEC_CONFORMANCE
# More threads than cores wait for one another, for hours.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}
models=${*:-fp elic tt tt_l1c flex}
[ -x "$reference/bin/python" ] || ../shared/tools/reference-env "$reference"
for model in $models; do
    [ -e "$TEC_CONFORMANCE/$model.npz" ] ||
        "$reference/bin/python" -W ignore tests/conformance/reference_side.py "$TEC_CONFORMANCE" "$model"
done
python -m pytest -s -q tests/conformance
