"""The part of `benchmark.py` that measures nothing: what many images would cost, from what few did."""

import argparse
from typing import Any

from hf_neuracrypt.data.manifest import MAX_MANIFEST_BYTES


INPUTS = {  # by the name of their option: value, unit
    "cpu_ms": (4.4, "ms of CPU an image of 224 px, from a JPEG of 299 px (`benchmark.py encrypt`)"),
    "bytes": (150_800, "bytes of an encrypted image in a bucket: Arrow, 224 px"),
    "hub_bytes": (128_100, "bytes of it on the Hub: Parquet, zstd"),
    "source_bytes": (110_000, "bytes of a plain image (ImageNet's average)"),
    "shard": (500_000_000, "bytes of a shard (`--shard-size`)"),
    "writes": (13, "writing requests of such a shard in S3: 10 parts, their begin and end, a note"),
    "reads": (60, "reading requests for a GB of source in S3"),
    "hub_requests": (4, "requests of a shard to the Hub"),
    "book_ms": (0.37, "ms of bookkeeping a shard on the driver (`benchmark.py shards`)"),
    "entry": (140, "bytes of a shard in the manifest (the same)"),
    "price_core": (0.045, "$ an hour of a core, on demand"),
    "price_write": (0.005, "$ for 1,000 writing requests"),
    "price_read": (0.0004, "$ for 1,000 reading requests"),
    "price_month": (0.023, "$ a GB and month in S3"),
    "price_out": (0.09, "$ a GB that leaves the cloud for the internet"),
}
LIMITS = {  # files: of the Hub, as its documentation and `HfApi.create_commit` have them
    "entries of a folder, recommended": 10_000,
    "files of a commit": 25_000,
    "files of a repository, recommended": 100_000,
}


def cost(images: int, x: dict[str, float]) -> dict[str, str]:
    """Rows of the table: what so many images need."""
    shards, plain = images * x["bytes"] / x["shard"], images * x["source_bytes"] / 1e9  # GB
    hours, stored, hub = images * x["cpu_ms"] / 3.6e6, images * x["bytes"] / 1e9, images * x["hub_bytes"] / 1e9
    writes, reads = shards * x["writes"], plain * x["reads"] + shards
    return {
        "core-hours": f"{hours:,.0f}",
        "days on 64 cores": f"{hours / 64 / 24:,.1f}",
        "shards": f"{shards:,.0f}",
        "TB in a bucket": f"{stored / 1e3:,.1f}",
        "TB on the Hub": f"{hub / 1e3:,.1f}",
        "requests to S3, writing": f"{writes:,.0f}",
        "requests to S3, reading": f"{reads:,.0f}",
        "requests to the Hub": f"{shards * x['hub_requests']:,.0f}",
        "bookkeeping, s": f"{shards * x['book_ms'] / 1e3:,.0f}",
        "$ for cores": f"{hours * x['price_core']:,.1f}",
        "$ for requests": f"{(writes * x['price_write'] + reads * x['price_read']) / 1e3:,.1f}",
        "$ a month for the bucket": f"{stored * x['price_month']:,.0f}",
        "$ for what leaves the cloud, once, to the Hub": f"{hub * x['price_out']:,.0f}",
    }


def paper(args: argparse.Namespace) -> dict[str, Any]:
    """Two tables in Markdown, and at how many images each limit is met."""
    x = {name: getattr(args, name) for name in INPUTS}
    print("\n| input | value |\n|---|---|")
    for name, (_, unit) in INPUTS.items():
        print(f"| {unit} | {x[name]:,g} |")
    costs = [cost(images, x) for images in args.images]
    print(
        "\n| images | " + " | ".join(f"{images:,}" for images in args.images) + " |\n|---" + "|---" * len(costs) + "|"
    )
    for name in costs[0]:
        print(f"| {name} | " + " | ".join(each[name] for each in costs) + " |")
    met = {what: int(files * x["shard"] / x["bytes"]) for what, files in LIMITS.items()}
    met["bytes of a manifest that is read"] = int(MAX_MANIFEST_BYTES / x["entry"] * x["shard"] / x["bytes"])
    print("\n| limit | met at so many images |\n|---|---|")
    for what, images in sorted(met.items(), key=lambda item: item[1]):
        print(f"| {what} | {images / 1e6:,.0f} million |")
    return {"inputs": x, "costs": dict(zip(map(str, args.images), costs)), "limits_met_at": met}
