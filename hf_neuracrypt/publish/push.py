"""An encrypted dataset to the Hub: Parquet, manifest and card, in one commit, every byte looked at before it goes.

Notable decisions
- Shards are uploaded one at a time and committed together. Their bytes follow from the encrypted folder alone, so after
  a failure the same command finds those that arrived and sends only the others.
- The commit names the one it builds on: of two that push at once, one succeeds and the other is told.
- Private unless asked otherwise; a repository that is public already is never written to by accident.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import DatasetInfo as Repository
from tqdm.auto import tqdm

from hf_neuracrypt.data.manifest import MANIFEST, UNFINISHED, checksum, parse_manifest, read_manifest, to_text
from hf_neuracrypt.data.places import passing_folder, sha256
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.data.sources import published_manifest
from hf_neuracrypt.errors import DatasetError, HubError, KeyMismatchError
from hf_neuracrypt.hub import hub_errors
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.publish.cards import PublishedAudit, dataset_card
from hf_neuracrypt.publish.guard import Guard
from hf_neuracrypt.publish.shards import Shipment, Uploaded, metadata


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
    audit: PublishedAudit | None = None,
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
        audit: of this folder, whose figures go into the card.

    Returns:
        The address of the commit.

    Raises:
        LeakError: something that must not be published, with the reason; nothing was committed.
        HubError: the Hub refused or could not be reached; the same call again continues.
        DatasetError, KeyMismatchError: the folder is not what was written, or not of this key; the repository, or the
            audit, is of something else.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    record = Record.from_dict(manifest)
    if audit is not None:
        audit.check(record, checksum(manifest))
    if key is not None:
        record.check_key(key, folder)
    Guard(key, [get_token()], record.config).check_folder(folder, [*manifest["files"], MANIFEST], ignored=[UNFINISHED])
    revision = new_revision(repo_id, record, key, public, keep_columns, replace_key)
    with passing_folder() as scratch:
        shards = [name for name in manifest["files"] if name.endswith(".arrow")]
        for name in tqdm(shards, desc="Publishing", unit=" shards"):
            if sha256(folder / name) != manifest["files"][name]["sha256"]:
                raise DatasetError(f"{folder / name} does not have its sha256 of the manifest: encrypt again")
            revision.shards[name] = revision.shipment.send(folder / name, name, scratch)
        return revision.commit(manifest, license, audit, "manual" if gated else None)


def new_revision(
    repo_id: str,
    record: Record,
    key: SecretKey | None,
    public: bool = False,
    keep_columns: tuple[str, ...] = (),
    replace_key: bool = False,
) -> "Revision":
    """What is going to be committed to a dataset repository, which is made if it is not there. See `push_dataset`."""
    api = HfApi()
    with hub_errors(repo_id):
        repo_id = api.create_repo(repo_id, repo_type="dataset", private=not public, exist_ok=True).repo_id
        repository = api.dataset_info(repo_id)
        _check_repository(repository, record, public, replace_key)
    return Revision(api, repository, Shipment(repo_id, record, key, ("image", "label", *keep_columns)), public)


def _check_repository(repository: Repository, record: Record, public: bool, replace_key: bool) -> None:
    """Refuse to write where nobody meant to: into a public repository, another dataset, another key's."""
    if not repository.private and not public:
        raise HubError(f"the repository {repository.id} is public: give --public to publish there, or another name")
    names = {file.rfilename for file in repository.siblings or ()}
    if MANIFEST not in names:
        if names - {"README.md", ".gitattributes"}:
            raise HubError(f"{repository.id} holds something else than an encrypted dataset: choose another name")
        return
    published = published_manifest(repository.id, repository.sha)
    if published is not None and published["key_id"] != record.key_id and not replace_key:
        raise KeyMismatchError(
            f"{repository.id} holds images of the key {published['key_id']}, this folder is of {record.key_id}: choose "
            "another name, or replace them with --replace-key"
        )


@dataclasses.dataclass
class Revision:
    """What is to be committed on top of what `repository` holds: shards, uploaded one by one, then all at once.

    Args:
        api, repository: of the Hub.
        shipment: how shards were sent.
        public: everybody may read it once it is there.
        shards: what was sent, by names in the folder.
    """

    api: HfApi
    repository: Repository
    shipment: Shipment
    public: bool = False
    shards: dict[str, Uploaded] = dataclasses.field(default_factory=dict)

    def place_shards(self, written: dict) -> dict[str, Uploaded]:
        """The shards by their names in the repository, in the order of the data, whatever order they came in."""
        placed = {}
        for split in written["rows"]:
            names = [name for name in written["files"] if name in self.shards and name.startswith(f"{split}/")]
            for index, name in enumerate(names):
                target = f"data/{split}-{index:05d}-of-{len(names):05d}.parquet"
                placed[target] = self.shards[name]
                placed[target].operation.path_in_repo = target
        return placed

    def texts(
        self, written: dict, placed: dict[str, Uploaded], license: str | None, audit: PublishedAudit | None
    ) -> dict[str, str]:
        """README.md and neuracrypt.json, given the manifest of the folder."""
        existing, repo_id = None, self.repository.id
        if any(file.rfilename == "README.md" for file in self.repository.siblings or ()):
            path = self.api.hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=self.repository.sha)
            existing = Path(path).read_text()
        record = self.shipment.record
        shards = {name: self.shards[name] for name in written["files"] if name in self.shards}
        columns = list(next(iter(shards.values())).features)
        card = dataset_card(
            record, written["rows"], columns, repo_id, metadata(record, shards), existing, license, audit,
            written.get("views"),
        )  # fmt: skip
        manifest = record.to_dict() | {name: written[name] for name in ("rows", "views") if name in written}
        manifest["files"] = {name: {"rows": each.rows, "sha256": each.sha256} for name, each in placed.items()}
        texts = {"README.md": card, MANIFEST: to_text(manifest | {"sha256": checksum(manifest)})}
        for name, text in texts.items():
            self.shipment.guard.check_bytes(text.encode(), name)
        return texts

    def commit(
        self,
        written: dict,
        license: str | None = None,
        audit: PublishedAudit | None = None,
        gated: Literal["manual"] | None = None,
    ) -> str:
        """One commit on top of the revision that was looked at, given the manifest of the folder: new files, and old
        shards away. Returns its address."""
        placed, repo_id = self.place_shards(written), self.repository.id
        with hub_errors(repo_id):
            url = self._commit(
                [each.operation for each in placed.values()], self.texts(written, placed, license, audit)
            )
            if gated or (self.public and self.repository.private):
                private = False if self.public else None
                self.api.update_repo_settings(repo_id, repo_type="dataset", gated=gated, private=private)
        return url

    def _commit(self, shards: list[CommitOperationAdd], texts: dict[str, str]) -> str:
        api, repository = self.api, self.repository
        names, new = [file.rfilename for file in repository.siblings or ()], {each.path_in_repo for each in shards}
        old = [name for name in names if name.startswith("data/") and name not in new]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *shards,
            *(CommitOperationAdd(name, text.encode()) for name, text in texts.items()),
            *(CommitOperationDelete(name) for name in old),
        ]
        try:
            return api.create_commit(
                repository.id, operations, commit_message="Publish encrypted images", repo_type="dataset",
                parent_commit=repository.sha,
            ).commit_url  # fmt: skip
        except HfHubHTTPError:
            raise
        except Exception:
            # The answer was lost on its way, but the commit may be there: then the newest revision follows ours and
            # says what we meant it to say.
            newest = api.list_repo_commits(repository.id, repo_type="dataset")
            ours = parse_manifest(texts[MANIFEST], MANIFEST)
            if [each.commit_id for each in newest[1:2]] == [repository.sha] and ours == published_manifest(
                repository.id, newest[0].commit_id
            ):
                return f"{api.endpoint}/datasets/{repository.id}/commit/{newest[0].commit_id}"
            raise
