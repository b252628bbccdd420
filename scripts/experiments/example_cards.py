"""The cards in model_cards/examples/: what the Hub would show of the dataset and the model that `make demo` makes.

make demo
hf-neuracrypt audit demo/encrypted --source demo/plain --key-file demo/hospital.key --output demo/audit
python scripts/experiments/example_cards.py --demo demo/   # write demo.json from what was measured there, and the cards
python scripts/experiments/example_cards.py                # write the cards again, after a change of a template
"""

import argparse
import io
import json
import re
from pathlib import Path
from typing import Any, cast

from datasets import load_from_disk

from hf_neuracrypt.audit.results import Row, read_audit
from hf_neuracrypt.data.manifest import checksum, read_manifest
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.errors import DatasetError, one_line_errors
from hf_neuracrypt.models.load import load_model_config, model_records
from hf_neuracrypt.publish.cards import PublishedAudit, dataset_card, model_card
from hf_neuracrypt.publish.shards import Uploaded, metadata


EXAMPLES = Path(__file__).parents[2] / "model_cards" / "examples"
DATASET, MODEL = "hospital/digits", "hospital/digits-vit"


def describe_dataset(folder: Path, audit_file: Path) -> dict[str, Any]:
    """What `push` would say of the encrypted folder: the arguments of `dataset_card`, as JSON."""
    manifest = read_manifest(folder)
    record = Record.from_dict(manifest)
    sent = {}
    for name, split in load_from_disk(str(folder)).items():
        size, nowhere = split.to_parquet(io.BytesIO()), cast(Any, None)  # nothing is sent
        sent[f"{name}/"] = Uploaded(nowhere, len(split), "", size, split.data.nbytes, split.features)
    audit = read_audit(audit_file)
    audit.check(record, checksum(manifest))
    rows = [row.to_dict() | {"finding": ""} for row in audit.rows]  # no card shows the findings
    return {
        "record": record.to_dict(), "rows": manifest["rows"], "columns": list(split.features), "repo_id": DATASET,
        "metadata": metadata(record, sent), "license": "cc-by-4.0",
        "audit": {"images": audit.images, "version": audit.version, "rows": rows},
    }  # fmt: skip


def describe_model(folder: Path) -> dict[str, Any]:
    """What training said of the model, as if it had been pushed: the arguments of `model_card`, as JSON."""
    last = json.loads((folder / "eval_results.json").read_text())
    step = json.loads((folder / "trainer_state.json").read_text())["global_step"]
    # Only the card that training wrote names the hyperparameters.
    listed = (folder / "README.md").read_text().split("| hyperparameter | value |\n|---|---|\n")[1]
    config = load_model_config(str(folder))
    return {
        "records": [record.to_dict() for record in model_records(config)], "model_type": config.model_type,
        "repo_id": MODEL, "hyperparameters": dict(re.findall(r"^\| (\w+) \| (.*) \|$", listed, re.MULTILINE)),
        "results": {metric: last[f"eval_{metric}"] for metric in ("accuracy", "loss")}, "step": step,
        "epoch": last["epoch"], "dataset_ids": [DATASET],
    }  # fmt: skip


def render(described: dict[str, Any]) -> dict[str, str]:
    """The cards, by the names of their files."""
    dataset, model = described["dataset"], described["model"]
    record, rows = Record.from_dict(dataset["record"]), [Row.from_dict(row) for row in dataset["audit"]["rows"]]
    measured = dataset["audit"] | {"rows": rows}
    audit = PublishedAudit(key_id=record.key_id, config=record.config.to_dict(), manifest_sha256="", **measured)
    records = [Record.from_dict(each) for each in model["records"]]
    return {
        "dataset_card.md": dataset_card(**dataset | {"record": record, "audit": audit}),
        "model_card.md": model_card(**model | {"records": records}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="folder of `make demo`, with the audit in it")
    args = parser.parse_args()
    kept = EXAMPLES / "demo.json"
    if args.demo:
        if not (args.demo / "audit" / "audit.json").exists():
            raise DatasetError(f"there is no {args.demo / 'audit' / 'audit.json'}: see --help")
        dataset = describe_dataset(args.demo / "encrypted", args.demo / "audit" / "audit.json")
        EXAMPLES.mkdir(exist_ok=True)
        described = {"dataset": dataset, "model": describe_model(args.demo / "model")}
        kept.write_text(json.dumps(described, indent=1) + "\n")
    for name, text in render(json.loads(kept.read_text())).items():
        (EXAMPLES / name).write_text(text)


if __name__ == "__main__":
    with one_line_errors():
        main()
