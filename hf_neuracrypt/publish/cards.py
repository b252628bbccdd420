"""The cards of published datasets and models, from the templates in `model_cards/templates/`.

A card opens with what the encryption does not protect. Whatever else its owner or other tools wrote into the metadata
of a card that is already there (`configs`, a licence, tags) stays.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_neuracrypt import __version__
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.errors import KeyMismatchError


PACKAGE = Path(__file__).parent.parent
TEMPLATES = (PACKAGE / "templates", PACKAGE.parent / "model_cards" / "templates")  # installed; in a checkout
TAGS = ("neuracrypt", "encrypted-images", "privacy")
TASK = "image-classification"
# What lies around our text in a dataset card is its owner's, and stays.
BEGIN, END = "<!-- hf_neuracrypt: begin -->", "<!-- hf_neuracrypt: end -->"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))
FRAMEWORKS = ("transformers", "torch", "datasets", "accelerate")


@dataclass(frozen=True)
class PublishedAudit:
    """What a card shows of an audit, and what that was an audit of; `audit.results.read_audit` reads one.

    Args:
        key_id, config, manifest_sha256: of the encrypted folder.
        images: how many were attacked.
        version: of hf_neuracrypt.
        rows: the attacks, with `title`, `grade` and `figures`.
    """

    key_id: str
    config: Mapping[str, Any]
    manifest_sha256: str
    images: int
    version: str
    rows: Sequence[Any]

    def check(self, record: Record, manifest_sha256: str) -> None:
        """Raises KeyMismatchError unless it is the audit of this folder."""
        if self.key_id != record.key_id or self.config != record.config.to_dict():
            raise KeyMismatchError("the audit is of another key or config: audit this folder")
        if self.manifest_sha256 != manifest_sha256:
            raise KeyMismatchError("the audit is of another encrypted folder: audit this one")


def dataset_card(
    record: Record,
    rows: Mapping[str, int],
    columns: Sequence[str],
    repo_id: str,
    metadata: Mapping[str, object],
    existing: str | None = None,
    license: str | None = None,
    audit: PublishedAudit | None = None,
    views: Mapping[str, Any] | None = None,
) -> str:
    """The README.md of an encrypted dataset.

    Args:
        record: how it was encrypted.
        rows: images of each split.
        columns: those of the dataset; all but `image` and `label` are named as published in clear.
        repo_id: "owner/name" on the Hub.
        metadata: `configs` and `dataset_info` as `datasets` writes them; they replace those of the same name.
        existing: the README.md that is there now.
        license: an identifier that the Hub knows.
        audit: only its figures are shown.
        views: of the manifest: how many rows each image of `train` has, and whether some are mirrored; None: one.
    """
    old = DatasetCard(existing, ignore_metadata_errors=True) if existing else None
    data = old.data if old else DatasetCardData()
    size = next((name for limit, name in SIZES if sum(rows.values()) < limit), "n>10M")
    ours = {
        "pretty_name": data.get("pretty_name") or repo_id.split("/")[-1],
        "license": license or data.get("license"),
        "task_categories": _union(data.get("task_categories"), [TASK]),
        "tags": _union(data.get("tags"), [*TAGS, record.config.scheme]),
        "size_categories": size,
        **metadata,
    }
    for name, value in ours.items():
        data[name] = value
    hidden = record.sealed_labels is not None
    body = render(
        "dataset_card.md.jinja",
        pretty_name=ours["pretty_name"],
        repo_id=repo_id,
        scheme=record.config.title,
        config=record.config,
        key_id=record.key_id,
        rows=rows,
        columns=columns,
        hidden_labels=hidden,
        kept_columns=[column for column in columns if column not in ("image", "label")],
        protection=protection(hidden),
        audit=audit,
        views=views,
    )
    before, after = _around(old.text if old else "")
    return f"---\n{data.to_yaml()}\n---\n{before}{BEGIN}\n{body}{END}\n{after}"


def model_card(
    records: Sequence[Record],
    model_type: str,
    repo_id: str,
    hyperparameters: Mapping[str, object],
    results: Mapping[str, float],
    step: float,
    epoch: float,
    dataset_ids: Sequence[str] = (),
    base_model: str | None = None,
    problem_type: str | None = None,
) -> str:
    """The README.md of a model.

    Args:
        records: how its training images were encrypted; none: they were plain.
        model_type: "vit", or one of `hf_neuracrypt.models`.
        repo_id: "owner/name" on the Hub, or the name of a folder.
        hyperparameters: as they are to be shown.
        results: the last evaluation: `accuracy`, `loss`, …; empty before the first one.
        step, epoch: how far training was then.
        dataset_ids: those datasets that are on the Hub.
        base_model: the pre-trained model, if it is on the Hub.
        problem_type: of its config.
    """
    name = repo_id.split("/")[-1]
    shown = {metric: f"{value:.4f}" for metric, value in results.items()}
    source = dataset_ids[0] if dataset_ids else "encrypted-images" if records else "images"
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        tags=_union(TAGS, [record.config.scheme for record in records]) if records else ["vision"],
        base_model=base_model,
        datasets=list(dataset_ids) or None,
        model_name=name,
        eval_results=[
            EvalResult(TASK, source, source, metric, round(value, 4), task_name="Image Classification")
            for metric, value in results.items()
        ]
        or None,
    )
    body = render(
        "model_card.md.jinja",
        model_name=name,
        model_type=model_type,
        problem_type=problem_type,
        repo_id=repo_id,
        records=records,
        hyperparameters=hyperparameters,
        results=shown,
        step=step,
        epoch=epoch,
        dataset_ids=dataset_ids,
        version=__version__,
        frameworks={framework: version(framework) for framework in FRAMEWORKS},
        protection=protection(any(record.sealed_labels is not None for record in records)),
    )
    return f"---\n{data.to_yaml()}\n---\n{body}"


def protection(hidden_labels: bool = False) -> str:
    """What this kind of encryption does not protect, and what it does: the first section of every card."""
    return render("protection.md.jinja", hidden_labels=hidden_labels).strip()


def render(template: str, autoescape: bool = False, **values: object) -> str:
    """A template of `model_cards/`, filled in; Markdown is not escaped, HTML must be."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=autoescape,
    )  # fmt: skip
    return environment.get_template(template).render(**values)


def _union(old: str | Iterable[str] | None, new: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*([old] if isinstance(old, str) else old or ()), *new]))


def _around(text: str) -> tuple[str, str]:
    """What lies before and after our text in an existing card; an existing card without our text goes below it."""
    if BEGIN in text and END in text:
        before, rest = text.split(BEGIN, 1)
        return before.lstrip("\n"), rest.split(END, 1)[1].lstrip("\n")
    return "", text.strip("\n") + "\n" if text.strip() else ""
