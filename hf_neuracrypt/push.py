"""An encrypted dataset to the Hub: Parquet, manifest and card, in one commit, every byte looked at before it goes.

Notable decisions
- Shards are uploaded one at a time and committed together. Their bytes follow from the encrypted folder alone, so after
  a failure the same command finds those that arrived and sends only the others.
- The commit names the one it builds on: of two that push at once, one succeeds and the other is told.
- Private unless asked otherwise; a repository that is public already is never written to by accident.
"""

import dataclasses
import tempfile
from pathlib import Path

from datasets import Dataset, Features
from datasets.info import DatasetInfo, DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCardData, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from tqdm.auto import tqdm

from hf_neuracrypt import cards, store
from hf_neuracrypt.audit.rows import read_audit
from hf_neuracrypt.configuration import PublicConfig
from hf_neuracrypt.errors import DatasetError, HubError, KeyMismatchError
from hf_neuracrypt.guard import Guard
from hf_neuracrypt.hub import hub_errors
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.record import Record
from hf_neuracrypt.sources import published_manifest, quiet_datasets


# The Hub keeps larger files outside git: once uploaded they are not read again. Smaller ones may be, at the commit.
ALWAYS_KEPT_APART = 10_000_000


@dataclasses.dataclass
class Revision:
    """What is to be committed: uploaded shards, their entries in the manifest, and what a card says of them."""

    shards: list[CommitOperationAdd] = dataclasses.field(default_factory=list)
    files: dict[str, dict] = dataclasses.field(default_factory=dict)
    splits: dict[str, SplitInfo] = dataclasses.field(default_factory=dict)
    features: Features | None = None
    download_size: int = 0


def push_dataset(
    folder: str | Path,
    repo_id: str,
    key: SecretKey | None = None,
    *,
    public: bool = False,
    gated: bool = False,
    keep_columns: tuple[str, ...] = (),
    license: str | None = None,
    replace_key: bool = False,
    audit: Path | None = None,
) -> str:
    """Publish a finished encrypted folder as a new revision of a dataset repository.

    Args:
        folder: written by `hf-neuracrypt encrypt`.
        repo_id: "owner/name", or "name" under the account of the token; created if it is not there.
        key: searched for in everything that goes; its id must be the folder's.
        public: everybody may read it; otherwise the repository is, and must be, private.
        gated: readers ask, and the owner lets them in one by one.
        keep_columns: further columns of the folder to publish, in clear.
        license: an identifier that the Hub knows.
        replace_key: the repository may hold images of another key, which this revision replaces.
        audit: an `audit.json` of this folder, whose figures go into the card.

    Returns:
        The address of the commit.

    Raises:
        LeakError: something that must not be published, with the reason; nothing was committed.
        HubError: the Hub refused or could not be reached; the same call again continues.
        DatasetError, KeyMismatchError: the folder is not what was written, or not of this key; the repository holds
            something else.
    """
    folder = Path(folder)
    manifest = store.read_manifest(folder)
    record = Record.from_dict(manifest)
    if key is not None:
        record.check_key(key, folder)
    audited = read_audit(audit, record, store.checksum(manifest)) if audit else None
    guard = Guard(key, [get_token()])
    guard.check_folder(folder, [*manifest["files"], store.MANIFEST], ignored=[store.UNFINISHED])
    api = HfApi()
    with hub_errors(repo_id), tempfile.TemporaryDirectory(prefix="neuracrypt-push-") as scratch:
        repo_id = api.create_repo(repo_id, repo_type="dataset", private=not public, exist_ok=True).repo_id
        info = api.dataset_info(repo_id)
        _check_repository(info, record, public, replace_key)
        revision = Revision()
        for shard in tqdm(_shards(folder, manifest["files"]), desc="Publishing", unit=" shards"):
            _upload(api, repo_id, *shard, record.config, revision, guard, keep_columns, Path(scratch))
        url = _commit(
            api,
            info,
            _finishing_files(api, info, record, manifest, revision, guard, license, audited),
            revision,
        )
        if gated or (public and info.private):
            api.update_repo_settings(
                repo_id, repo_type="dataset", gated="manual" if gated else None, private=False if public else None
            )
    return url


def _check_repository(info, record: Record, public: bool, replace_key: bool) -> None:
    """Refuse to write where nobody meant to: into a public repository, another dataset, another key's."""
    if not info.private and not public:
        raise HubError(f"the repository {info.id} is public: give --public to publish there, or choose another name")
    names = {file.rfilename for file in info.siblings}
    if store.MANIFEST not in names:
        if names - {"README.md", ".gitattributes"}:
            raise HubError(f"{info.id} holds something else than an encrypted dataset: choose another name")
        return
    published = published_manifest(info.id, info.sha)
    if published["key_id"] != record.key_id and not replace_key:
        raise KeyMismatchError(
            f"{info.id} holds images of the key {published['key_id']}, this folder is of {record.key_id}: choose "
            "another name, or replace them with `hf-neuracrypt rotate`"
        )


def _shards(folder: Path, files: dict[str, dict]) -> list[tuple[Path, str, str, str]]:
    """Each shard's file, its sha256, its split, and its name on the Hub."""
    by_split: dict[str, list[str]] = {}
    for name in files:
        if name.endswith(".arrow"):
            by_split.setdefault(name.split("/")[0], []).append(name)
    return [
        (folder / name, files[name]["sha256"], split, f"data/{split}-{index:05d}-of-{len(names):05d}.parquet")
        for split, names in by_split.items()
        for index, name in enumerate(names)
    ]


def _upload(
    api: HfApi, repo_id: str, shard: Path, sha256: str, split: str, target: str, config: PublicConfig,
    revision: Revision, guard: Guard, keep_columns: tuple[str, ...], scratch: Path,
) -> None:  # fmt: skip
    """One shard: compare it with the manifest, look at its rows, turn it into Parquet, send it."""
    if store.sha256(shard) != sha256:
        raise DatasetError(f"{shard} does not have its sha256 of the manifest: encrypt again")
    dataset = Dataset.from_file(str(shard))
    guard.check_shard(dataset, f"{split}/{shard.name}", ("image", "label", *keep_columns), config)
    path = scratch / Path(target).name
    with quiet_datasets():
        dataset.to_parquet(str(path))
    guard.check_file(path, target)
    operation = CommitOperationAdd(target, str(path))
    api.preupload_lfs_files(repo_id, [operation], repo_type="dataset")
    revision.shards.append(operation)
    revision.files[target] = {"rows": len(dataset), "sha256": store.sha256(path)}
    revision.features, revision.download_size = dataset.features, revision.download_size + path.stat().st_size
    counted = revision.splits.setdefault(split, SplitInfo(split, num_bytes=0, num_examples=0))
    counted.num_bytes += dataset.data.nbytes
    counted.num_examples += len(dataset)
    if path.stat().st_size > ALWAYS_KEPT_APART:
        path.unlink()


def _finishing_files(
    api: HfApi, info, record: Record, written: dict, revision: Revision, guard: Guard, license: str | None,
    audit: dict | None,
) -> dict[str, str]:  # fmt: skip
    """README.md and neuracrypt.json of the new revision."""
    existing = None
    if any(file.rfilename == "README.md" for file in info.siblings):
        existing = Path(api.hf_hub_download(info.id, "README.md", repo_type="dataset", revision=info.sha)).read_text()
    card = cards.dataset_card(
        record, written["rows"], list(revision.features), info.id, metadata(record, revision), existing, license,
        audit, written.get("views"),
    )  # fmt: skip
    manifest = record.to_dict() | {name: written[name] for name in ("rows", "views") if name in written}
    manifest["files"] = revision.files
    texts = {"README.md": card, store.MANIFEST: store.to_text(manifest | {"sha256": store.checksum(manifest)})}
    for name, text in texts.items():
        guard.check_bytes(text.encode(), name)
    return texts


def metadata(record: Record, revision: Revision) -> dict[str, object]:
    """`configs` and `dataset_info` as `DatasetDict.push_to_hub` writes them, and the record as description.

    `load_dataset` puts the description where `encrypt_dataset` does, so the record is with the data whatever loads it.
    """
    splits = SplitDict()
    for split in revision.splits.values():
        splits.add(split)
    info = DatasetInfo(
        features=revision.features,
        splits=splits,
        download_size=revision.download_size,
        dataset_size=sum(split.num_bytes for split in revision.splits.values()),
    )
    data = DatasetCardData()
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    data_files = [{"split": split, "path": f"data/{split}-*"} for split in revision.splits]
    MetadataConfigs({"default": {"data_files": data_files}}).to_dataset_card_data(data)
    return {"configs": data["configs"], "dataset_info": {"description": record.to_json()} | data["dataset_info"]}


def _commit(api: HfApi, info, texts: dict[str, str], revision: Revision) -> str:
    """One commit on top of the revision that was looked at: new files, and old shards away. Returns its address."""
    old = [file.rfilename for file in info.siblings if file.rfilename.startswith("data/")]
    operations = [
        *revision.shards,
        *(CommitOperationAdd(name, text.encode()) for name, text in texts.items()),
        *(CommitOperationDelete(name) for name in old if name not in revision.files),
    ]
    try:
        return api.create_commit(
            info.id, operations, commit_message="Publish encrypted images", repo_type="dataset", parent_commit=info.sha
        ).commit_url
    except HfHubHTTPError:
        raise
    except Exception:
        # The answer was lost on its way, but the commit may be there: then the newest revision follows ours and says
        # what we meant it to say.
        newest = api.list_repo_commits(info.id, repo_type="dataset")
        ours = store.parse_manifest(texts[store.MANIFEST], store.MANIFEST)
        if [each.commit_id for each in newest[1:2]] == [info.sha] and ours == published_manifest(
            info.id, newest[0].commit_id
        ):
            return f"{api.endpoint}/datasets/{info.id}/commit/{newest[0].commit_id}"
        raise
