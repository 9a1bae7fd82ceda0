"""The page on scale, ``docs/scaling.md``, from what ``recompress.py`` and others measured.

`page` is called by ``report.py``. Everything that follows from a measurement is worked out here;
what is typed are assumptions, which the page marks, and the history at its end.
"""

from __future__ import annotations

REGION_MB = 4 * 12 * 1024 * 1024 * 2 / 1e6
REGIONS = 1e15 / (REGION_MB * 1e6)
PETABYTE_MB = 1e9
WORKERS, CORES = 100, 16
NETWORK_GB_S, GPU_TFLOP_S = 1.25, 17.0
CORE_PRICE, GPU_PRICE = 0.05, 3.0
"""Assumed, for an hour: one core of a rented machine, one H100 without the cores beside it."""
REQUEST_MS, REQUESTS_AT_ONCE, REQUESTS_A_RECORD = 30.0, 32, 2
GFLOP_A_MB = {"fp": 4.1, "elic": 13.7}
"""Counted: multiply-adds of the analysis and of the entropy networks, twice."""


def page(results: dict, family: dict, device: dict, share: dict, machine: str) -> str:
    """``docs/scaling.md``.

    Parameters
    ----------
    results, family, device, share : dict
        ``recompress.json``, ``reference_speed.json``, ``device.json`` and ``core_share.json``.
    machine : str
        What the first two were measured on, a sentence.
    """
    one, two = results["runs"]
    return "\n".join(
        [
            _head(results),
            *_measured(results, one, two, machine),
            *_parts(results, one, device),
            *_cpus(results, one),
            *_gpus(results, family, device),
            *_pays(share, family, device),
            _RESUMING.format(
                hours=_record_hours(), minutes=1e5 * _record_ms() / 6e4, gigabytes=REGIONS / 1e6
            ),
            _HISTORY,
        ]
    )


def _core_hours(mb_s: float) -> float:
    return PETABYTE_MB / mb_s / 3600


def _record_ms() -> float:
    return REQUEST_MS * REQUESTS_A_RECORD / REQUESTS_AT_ONCE


def _record_hours() -> float:
    return _record_ms() * REGIONS / 3.6e6


def _scheduler_hours(results: dict) -> float:
    return results["parts"]["scheduler_and_client_cpu_ms_per_task"] * REGIONS / 3.6e6


def _head(results: dict) -> str:
    return f"""# One petabyte, on paper

Made by `python benchmarks/report.py` from `benchmarks/results/`. What it would take to recompress 1 PB (10^15 bytes of uint16 in memory) of Sentinel-2 L2A, 12 bands, with the default model at quality {results["quality"]:g}, on {WORKERS} workers. **Nothing here was run at that scale.** Each number is measured on the development machine or, where it says so, on one with a GPU, or follows from one, or is marked as assumed.

A region of (4, 12, 1024, 1024) is {REGION_MB:.0f} MB: **{REGIONS / 1e6:.1f} million regions**, as many Dask tasks, shards and records.
"""  # noqa: E501


def _measured(results: dict, one: dict, two: dict, machine: str) -> list[str]:
    wall, cpu = (results["scaling_from_1_to_2"][key] for key in ("wall", "cpu"))
    shape = ", ".join(map(str, results["array_shape"]))
    overhead = {key: f"{100 * value:.1f} %" for key, value in results["overhead"].items()}
    slower, client = 1 - cpu, two["client_and_scheduler_cpu_s"] / (2 * two["wall_s"])
    rest = 1 - wall / 2 - slower - client
    spent = one["worker_cpu_s"]
    settings = (
        ", Dask set as `tec_zarr.recompression.dask_worker.QUIET` says"
        if "dask_settings" in results
        else ""
    )
    steps = (
        ("read the source, decode blosc", "read"),
        ("verify one chunk in 16", "verify"),
        ("CRC32 of the samples", "checksum"),
        ("Dask's event loop in the worker (heartbeats, measuring itself)", "event_loop"),
        ("Zarr's pipeline, writing, the rest (difference)", "rest"),
    )
    return [
        f"## Measured: {results['raw_bytes'] / 1e9:.1f} GB on one and two workers",
        "",
        f"`python benchmarks/recompress.py`, {results['date']}, commit {results['commit'][:12]}: "
        f"{results['arrays']} arrays of ({shape}) uint16, Zarr v2 with blosc/zstd, to sharded Zarr "
        f"v3 ({one['regions'] - 1} regions of reflectance, ratio {one['ratio']:.0f}; the "
        "landscapes are synthetic and repeat, real ones compress less). LocalCluster, one thread "
        f"for each worker{settings}. {machine} The results are in "
        "[`results/recompress.json`](../benchmarks/results/recompress.json). MB are 10^6 "
        'raw bytes; "others" is how many cores other processes used meanwhile.',
        "",
        "| workers | verification | wall clock | MB/s | processor, all workers | MB/s and core | "
        "peak memory of each | others |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {run['workers']} | {run['verify']} | {run['wall_s']:.0f} s | "
            f"{run['wall_MB_per_s']:.1f} | {run['cpu_s']:.0f} s | {run['cpu_MB_per_s']:.1f} | "
            f"{', '.join(f'{mb / 1000:.2f}' for mb in run['worker_peak_MB'])} GB | "
            f"{max(0, run['others_cores']):.2f} |"
            for run in (one, two)
        ),
        "",
        f"**From one worker to two: {wall:.2f} times as fast** by the wall clock (throughput per "
        f"processor second: {cpu:.2f} of that of one worker). The aim was 1.8"
        f"{': it is reached' if wall >= 1.8 else ', **and is missed**'}. Of what is missing to 2, "
        f"{100 * slower:.1f} % is that each worker is slower while the other one runs (the same "
        "code, the same bytes: caches, memory and clock are shared), "
        f"{100 * client:.1f} % that client and scheduler, "
        f"{two['client_and_scheduler_cpu_s']:.0f} s of processor time, have no core of their own "
        f"here, {100 * rest:.1f} % the rest: planning and publishing before and after, and the "
        "worker that waits while the other one ends the last region. A worker process has "
        f"{one['worker_start_MB'][0] / 1000:.2f} GB before its first region.",
        "",
        f"**Overhead over bare encoding: {overhead['over_encoding']}**, "
        f"{overhead['over_encoding_with_verification']} with the sampled verification that was on "
        "(one chunk of 16 decoded and compared; the first number leaves out what it took on the "
        "worker). The aim was less than 10 %. What this compares:",
        "",
        "- *Bare encoding* is `encode_chunk` in a loop, in a process with the settings of a worker "
        "(one thread, the same `mallopt`), without Dask, Zarr or files: "
        f"{results['bare_cpu_MB_per_s']:.1f} MB per processor second ("
        + ", ".join(f"{mb_s:.1f}" for mb_s in results["bare_cpu_MB_per_s_each_time"])
        + " in the turns before the run on one worker and after it). Its chunks, the first 512 x "
        "512 pixels of every array, are those of which the whole archive is made. Reading the "
        "source is **not** in it.",
        "- The other side is all processor time of the worker process, with everything that runs "
        "in it: reading and decoding the source, Zarr's pipeline and shards, checksums, records, "
        "Dask's event loop. Starting the cluster, and the model in it, is not.",
        "- If reading and decoding the source is counted as bare work too "
        f"({results['bare_with_reading_cpu_MB_per_s']:.1f} MB/s), the overhead is "
        f"{overhead['over_reading_and_encoding']}.",
        "",
        "Where the seconds of one worker go, in per cent of those that encode the chunks (run "
        "with verification):",
        "",
        "| step | per cent of encoding |",
        "| --- | --- |",
        *(f"| {name} | {100 * spent[key] / spent['encode']:.1f} |" for name, key in steps),
        "",
    ]


def _parts(results: dict, one: dict, device: dict) -> list[str]:
    around = results["parts"]
    rates = (
        ("encode, one core, without Dask", results["bare_cpu_MB_per_s"]),
        (
            "the same on a Dask worker, all included but verification",
            results["worker_without_verification_cpu_MB_per_s"],
        ),
        ("with verification of one chunk in each region", one["cpu_MB_per_s"]),
        ("read and decode blosc/zstd, local files", results["read_blosc_cpu_MB_per_s"]),
        ("CRC32 of the samples", around["checksum_cpu_MB_per_s"]),
    )
    mark, record = around["mark_region_cpu_ms"], around["read_record_of_region_cpu_ms"]
    network = PETABYTE_MB / 2 / (WORKERS * NETWORK_GB_S * 1e3) / 3600
    copied = device["limits"]["to_device_GB_per_s"]
    pcie = PETABYTE_MB / (WORKERS * copied * 1e3) / 3600
    return [
        "## Parts",
        "",
        "| part | number | for 1 PB |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {mb_s:,.{1 if mb_s < 100 else 0}f} MB/s | "
            f"{_core_hours(mb_s):,.0f} core hours |"
            for name, mb_s in rates
        ),
        "| scheduler and client, for each task | "
        f"{around['scheduler_and_client_cpu_ms_per_task']:.2f} ms | "
        f"{_scheduler_hours(results):.1f} hours of **one** core |",
        f"| write a record, local file | {mark:.2f} ms | {mark * REGIONS / 3.6e6:.1f} core hours, "
        "on the workers |",
        f"| read a record when resuming, local file | {record:.2f} ms | "
        f"{record * REGIONS / 3.6e6:.1f} hours of one core |",
        "",
        f"| part | assumed | for 1 PB on {WORKERS} workers |",
        "| --- | --- | --- |",
        f"| network, source compressed 2:1 | {NETWORK_GB_S:g} GB/s for each worker | "
        f"{network:.1f} hours |",
        f"| to the GPU's memory, **measured** (`results/device.json`) | {copied:.0f} GB/s | "
        f"{pcie:.2f} hours |",
        f"| requests of an object store, {REQUEST_MS:g} ms each, {REQUESTS_AT_ONCE} at a time, two "
        f"for each record when resuming | {_record_ms():.1f} ms for each region | "
        f"{_record_hours():.1f} hours |",
        "",
    ]


def _cpus(results: dict, one: dict) -> list[str]:
    core_hours = _core_hours(one["cpu_MB_per_s"])
    hours = core_hours / (WORKERS * CORES)
    return [
        "## On CPUs",
        "",
        f"{WORKERS} workers of {CORES} cores, one thread each: {core_hours:,.0f} / "
        f"{WORKERS * CORES:,} = **{hours:.0f} hours** with verification, if {CORES} processes on "
        "one machine are each as fast as one alone; measured were two. The bottleneck is "
        f"**encoding**. Such a cluster makes {REGIONS / hours / 3600:.0f} regions a second; the "
        f"scheduler's share, {results['parts']['scheduler_and_client_cpu_ms_per_task']:.2f} ms of "
        "one core for each, allows about "
        f"{1e3 / results['parts']['scheduler_and_client_cpu_ms_per_task']:,.0f}.",
        "",
    ]


def _gpus(results: dict, family: dict, device: dict) -> list[str]:
    here = {row["model"]: row for row in family["rows"] if row["side"] == "here"}
    raw = family["dates"] * 12 * family["size"] ** 2 * 2 / 1e6
    mb_s = {name: raw / here[name]["compress_cpu_s"] for name in ("fp", "elic", "tt")}
    gflop = GFLOP_A_MB | {"tt": 2 * here["tt"]["gmac"] / raw}
    on_cpu = {name: _core_hours(rate) / (WORKERS * CORES) for name, rate in mb_s.items()}
    counted = {
        name: PETABYTE_MB * count / (WORKERS * GPU_TFLOP_S * 1e3) / 3600
        for name, count in gflop.items()
    }
    rows = {name: [r for r in device["rows"] if r["model"] == name] for name in mb_s}
    batches = {
        name: {r["batch"]: r for r in found if r["device"] != "cpu"} for name, found in rows.items()
    }
    fastest = {
        name: max(r["encode_MB_per_s"] for r in found.values()) for name, found in batches.items()
    }
    on_gpu = {name: _core_hours(rate) / WORKERS for name, rate in fastest.items()}

    def both(row: dict | None) -> str:
        return f"{row['encode_MB_per_s']:.3g}, {row['decode_MB_per_s']:.3g}" if row else "not run"

    sizes = sorted({size for found in batches.values() for size in found})
    same = min(r["chunks_as_from_the_cpu"] for found in batches.values() for r in found.values())
    return [
        f"## On {WORKERS} workers with a GPU each",
        "",
        "The embedded models have no GPU path: they encode on the CPUs of all workers, and take "
        "what is above. FP, ELIC and TT have one ([`recompress.md`](recompress.md)). "
        f"`python benchmarks/device.py`, {device['date']}, one {device['device']} (full size, "
        f"random weights, synthetic chunks of {tuple(device['chunk'])}, beside one core of that "
        "machine's CPU; raw MB/s of encoding, and of decoding):",
        "",
        "| | FP | ELIC | TT |",
        "| --- | --- | --- | --- |",
        "| one core, no GPU | " + " | ".join(both(found[0]) for found in rows.values()) + " |",
        *(
            f"| GPU, {'one chunk' if size == 1 else f'batches of {size}'} | "
            + " | ".join(both(found.get(size)) for found in batches.values())
            + " |"
            for size in sizes
        ),
        "",
        f"{100 * same:.0f} % of the compared chunks (two of each model) had the same bytes as from "
        "the CPU; that is luck of rounding and not promised, while decoding to the same latents "
        "is. " + device["note"] + " TT's numbers are older than its transformer in whole numbers "
        "(28 November 2026; [`exactness.md`](exactness.md)), which has not run on a GPU yet.",
        "",
        "| 1 PB of encoding | FP | ELIC | TT |",
        "| --- | --- | --- | --- |",
        f"| on the {WORKERS * CORES:,} cores (`results/reference_speed.json`: "
        + ", ".join(f"{rate:.2g}" for rate in mb_s.values())
        + " MB/s each) | "
        + " | ".join(_long(hours) for hours in on_cpu.values())
        + " |",
        f"| on {WORKERS} GPUs as fast as the one measured, at its best batch | "
        + " | ".join(f"**{_long(hours)}**" for hours in on_gpu.values())
        + " |",
        f"| the networks' arithmetic alone ({', '.join(f'{n:.3g}' for n in gflop.values())} GFLOP "
        f"for each MB, counted), at {GPU_TFLOP_S:g} TFLOP/s in float64 (**assumed**: half of an "
        "H200's data sheet) | " + " | ".join(f"{h:.2g} hours" for h in counted.values()) + " |",
        f"| network, scheduler | 1.1 and {_scheduler_hours(results):.1f} hours | the same | the "
        "same |",
        "",
        "- **Larger batches hardly help where the entropy part is large**: it runs chunk by chunk, "
        "on one thread that launches many small steps and codes their symbols. FP gains in "
        "decoding, ELIC half as much again from 64 chunks, TT little. A worker's other cores are "
        "idle meanwhile.",
        f"- **One Dask scheduler takes {_scheduler_hours(results):.1f} hours** whatever the "
        "workers are. Several schedulers, which archives in several stores (below) have anyway, "
        "or larger regions: with eight dates instead of four there are half as many tasks.",
        "",
    ]


def _pays(share: dict, family: dict, device: dict) -> list[str]:
    worth = 1 + GPU_PRICE / (CORES * CORE_PRICE)
    network = 2 * NETWORK_GB_S * 1e3
    rows, costs = [], []
    for row in share["rows"]:
        walk, arithmetic, host = (row["share"][part] for part in ("walk", "arithmetic", "host"))
        rows.append(
            f"| `{row['model']}`, {row['direction']} | {row['mb_s']:.0f} | {100 * walk:.0f} % | "
            f"{100 * arithmetic:.0f} % | {100 * host:.0f} % | {1 / (1 - arithmetic):.1f} | "
            f"{1 / host:.1f} | {CORES * row['mb_s'] / 1e3:.1f} GB/s |"
        )
        if row["direction"] == "encode":
            few, most = (
                min(network, CORES * row["mb_s"] / left) for left in (1 - arithmetic, host)
            )
            costs.append(
                f"| `{row['model']}` | {_dollars(row['mb_s'], CORE_PRICE)} | "
                f"{_dollars(few, GPU_PRICE + CORES * CORE_PRICE)} | "
                f"{_dollars(most, GPU_PRICE + CORES * CORE_PRICE)} |"
            )
    raw = family["dates"] * 12 * family["size"] ** 2 * 2 / 1e6
    here = {row["model"]: row for row in family["rows"] if row["side"] == "here"}
    for name in ("fp", "elic", "tt"):
        gpu = max(
            r["encode_MB_per_s"]
            for r in device["rows"]
            if r["model"] == name and r["device"] != "cpu"
        )
        costs.append(
            f"| {name.upper()}, published | "
            f"{_dollars(raw / here[name]['compress_cpu_s'], CORE_PRICE)} | "
            f"{_dollars(gpu, GPU_PRICE + CORE_PRICE)} (measured on the GPU beside one core) | |"
        )
    return [
        "## Would a GPU pay?",
        "",
        "**Not for the embedded models.** `python benchmarks/core_share.py` samples where one core "
        f"of the development machine is (kernel `{share['kernel']}`, seasonal cubes of 256 x 256 "
        f"pixels at quality {share['quality']:g}, commit {share['commit'][:12]}, other processes "
        f"running: load {share['load_average'][0]:.0f} on {share['machine']['cores']} cores, so "
        "MB/s are of CPU time). The *walk* codes coefficients one after the other: the context "
        "network sees the neighbours, then the range coder takes the symbol. *Arithmetic* is the "
        "rest of the core. The *host* part is Python, NumPy, the system and the frame.",
        "",
        "| | MB/s of a core | walk | arithmetic | host | times as fast at most with the "
        f"arithmetic on a GPU | with the walk too | {CORES} cores, no GPU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        "The bounds are Amdahl's: what moves to the GPU takes no time there, nor on the way. A "
        "walk on a GPU needs many hundred tiles at once and a second implementation of the same "
        "bytes; there is none. "
        f"The way itself is short: {device['limits']['to_device_GB_per_s']:.0f} GB/s were "
        "measured. The MB/s are those of this commit; the runs of whole archives above are older.",
        "",
        f"Assumed prices: {CORE_PRICE:g} $ for an hour of a core, {GPU_PRICE:g} $ for one of a "
        f"GPU like an H100. Such a GPU beside {CORES} cores pays if it makes them more than "
        f"**{worth:.2f} times as fast**. A network of {NETWORK_GB_S:g} GB/s brings "
        f"{network / 1e3:g} GB/s of samples, which no worker can exceed.",
        "",
        f"| 1 PB of encoding | on cores | {CORES} cores and a GPU, arithmetic at the bound | the "
        "walk at the bound too |",
        "| --- | --- | --- | --- |",
        *costs,
        "",
        "Encoding with an embedded model costs more on a GPU in every case, even at the bounds. "
        "Decoding on cores is faster than the network already. FP and ELIC "
        "cost more on a GPU as well; TT costs about the same there, and a worker is faster: that "
        "is what its GPU path is for.",
        "",
    ]


def _dollars(mb_s: float, hourly: float) -> str:
    return f"{_core_hours(mb_s) * hourly:,.0f} $"


def _long(hours: float) -> str:
    return f"{hours:.0f} hours" if hours < 100 else f"{hours / 24:.0f} days"


_RESUMING = """## Resuming

A run that goes on reads the record of every finished region and asks for the length of its objects: near the end of 1 PB that is some {hours:.0f} hours on an object store, and {gigabytes:.0f} GB in the client's memory (about 1 kB each). This does not scale, and is not meant to: **make one store for each tile and year**, or another piece of up to 10 TB (100,000 regions, about {minutes:.0f} minutes to resume). A thousand such runs are independent, can have schedulers of their own, and become readable one after the other.
"""  # noqa: E501

_HISTORY = """## What we found while measuring

Comparisons made on the way, each with the code of its day, on one machine and one after the other; none is from the run above.

- Dask's nanny starts workers with `MALLOC_TRIM_THRESHOLD_=65536`. That also freezes glibc's mmap threshold at 128 kB, so that every array of a model's step is mapped, faulted in page by page, and unmapped: encoding fell from 14.9 to 5.2 MB/s of processor time (same chunk, same core, same minute). The worker plugin raises both thresholds while a recompression runs.
- That left 10 to 27 % of overhead. Half of it was the same thing elsewhere: the heap of a thread that is not the main one is unmapped whenever it is empty, which happens between the steps of a model (215,000 page faults and 13 % `sys` time for 50 MB in a thread, none in the main one). A large `M_TOP_PAD` keeps it; a whole run of 0.3 GB then had 3,000 faults instead of 583,000. A plain process without any of these settings spends 7 to 13 % in page faults as well, so bare encoding is given them too.
- Dask watches itself. With nothing to do at all, a worker's event loop took 3.5 % of a core: its profiler looks at the stack a hundred times a second, and a tick measures fifty times a second how late the loop is. While a recompression runs the plugin pauses the first and slows the second to once a second (Dask's profile page stays empty meanwhile): 0.9 %. The settings of `tec_zarr.recompression.dask_worker.QUIET`, which are for clusters on one machine, also reach the scheduler and the nannies, which a LocalCluster has in the client's process, and have memory looked at once a second instead of ten times: workers 0.4 %, the client's process 1.2 % instead of 4.5 %. On two cores that are both encoding, all this comes out of their time. Before this tick was found, two workers were 1.77 times as fast as one.
- Zarr compares every chunk with the fill value before it encodes: 4 %. Where a chunk's first column says that it is not empty, we tell Zarr not to look.
- Checksums without a copy: from 1.3 to 6 GB/s. The comparison after decoding: from 0.10 to 0.02 s a chunk.

## Not measured

- A GPU worker in a running recompression (dask-cuda): the models were measured on a GPU, the cluster's part with a stand-in.
- Real data, S3 under load, more than two workers, runs of more than some minutes.
"""  # noqa: E501
