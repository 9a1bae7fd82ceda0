"""Check a reader with this kit: python3 check.py PROGRAM [ARGUMENT ...]

The program is called with the path of a frame and the path of the file to write, after its own
arguments. It writes the samples (time, band, y, x) in C order and little-endian, and exits with 0.
For streams that have to be refused it exits with another status. Exit status here: 0 if all is as
it should be, otherwise 1, and a line for each stream that is not.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

KIT = Path(__file__).resolve().parent


def main(program):
    """Check all streams; return how many failed."""
    manifest = json.loads((KIT / "manifest.json").read_text())
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, stream in enumerate(manifest["streams"] + manifest["refused"]):
            said = fault(program, stream, Path(folder) / str(number))
            if said:
                print(f"{stream['frame']}: {said}")
                wrong += 1
    good, bad = len(manifest["streams"]), len(manifest["refused"])
    print(f"{good} streams to decode, {bad} to refuse: {wrong or 'none'} failed")
    return wrong


def fault(program, stream, out):
    """Return what is wrong with one stream, or nothing."""
    done = subprocess.run([*program, str(KIT / stream["frame"]), str(out)], capture_output=True)
    if "samples" not in stream:
        return "was not refused" if done.returncode == 0 else ""
    if done.returncode:
        return f"exit status {done.returncode}: {done.stderr.decode(errors='replace').strip()}"
    found = out.read_bytes() if out.is_file() else b""
    expected = (KIT / stream["samples"]).read_bytes()
    if hashlib.sha256(expected).hexdigest() != stream["samples_sha256"]:
        return f"the kit is damaged: {stream['samples']} does not have its SHA-256"
    if len(found) != len(expected):
        return f"{len(found)} bytes of samples, {len(expected)} expected"
    place = next((i for i in range(len(found)) if found[i] != expected[i]), None)
    return "" if place is None else f"other samples, from byte {place} on"


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
