"""A shard on its way to the Hub: looked at, turned into Parquet, sent; on whatever machine it was made."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from datasets import Dataset, Features
from datasets.info import DatasetInfo, DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import CommitOperationAdd, DatasetCardData, HfApi, get_token

from hf_neuracrypt.data.dataset import WRITER_BATCH_SIZE
from hf_neuracrypt.data.places import sha256
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.hub import hub_errors
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.publish.guard import Guard


def write_parquet(dataset: Dataset, path: Path) -> None:
    """As `Dataset.to_parquet`, whose files the viewer and streams read, but compressed: bytes of ciphertexts have less
    than 7 bits of entropy. Chunks are cut by content, so that the Hub knows again what a later revision keeps."""
    with pq.ParquetWriter(
        path, dataset.features.arrow_schema, compression="zstd", compression_level=3, use_dictionary=False,
        use_content_defined_chunking=True, write_page_index=True,
    ) as writer:  # fmt: skip
        for start in range(0, len(dataset), WRITER_BATCH_SIZE):
            writer.write_table(dataset.data.table.slice(start, WRITER_BATCH_SIZE))


class Uploaded(NamedTuple):
    """A shard that the Hub has, and that no commit has yet."""

    operation: CommitOperationAdd
    rows: int
    sha256: str
    size: int
    nbytes: int
    features: Features


@dataclasses.dataclass(frozen=True)
class Shipment:
    """How shards go to a repository, from whatever machine they are on; nothing of the account is in it.

    Args:
        repo_id: owner/name.
        record: of what is sent.
        key: looked for in everything.
        columns: those that may be published.
    """

    repo_id: str
    record: Record
    key: SecretKey | None
    columns: tuple[str, ...]

    @property
    def guard(self) -> Guard:
        return Guard(self.key, [get_token()], self.record.config)

    def send(self, shard: Path, name: str, scratch: Path | None = None) -> Uploaded:
        """One shard: look at its rows, turn it into Parquet, look at that, and send it.

        Without `scratch`, where the Parquet file lies meanwhile, it takes the place of the shard.

        Raises:
            LeakError, HubError: as `push_dataset`.
        """
        guard, dataset, path = self.guard, Dataset.from_file(str(shard)), (scratch or shard.parent) / "shard.parquet"
        guard.check_shard(dataset, name, self.columns, self.record.config)
        write_parquet(dataset, path)
        rows, nbytes, features = len(dataset), dataset.data.nbytes, dataset.features
        del dataset  # whose file would be kept on the disk by it
        if scratch is None:
            shard.unlink()
        guard.check_file(path, name)
        operation = CommitOperationAdd(f"{Path(name).name}.parquet", str(path))  # its place follows at the commit
        with hub_errors(self.repo_id):
            HfApi().preupload_lfs_files(self.repo_id, [operation], repo_type="dataset")
        if operation.path_or_fileobj:  # kept in git, as the repository wants it: it goes with the commit
            operation.path_or_fileobj = path.read_bytes()
        return Uploaded(operation, rows, sha256(path), path.stat().st_size, nbytes, features)


def metadata(record: Record, shards: dict[str, Uploaded]) -> dict[str, Any]:
    """`configs` and `dataset_info` as `DatasetDict.push_to_hub` writes them, and the record as description.

    `load_dataset` puts the description where `encrypt_dataset` does, so the record is with the data whatever loads it.
    """
    splits = SplitDict()
    for name in dict.fromkeys(name.split("/")[0] for name in shards):
        sent = [each for of, each in shards.items() if of.startswith(f"{name}/")]
        rows, nbytes = sum(each.rows for each in sent), sum(each.nbytes for each in sent)
        splits.add(SplitInfo(name, num_bytes=nbytes, num_examples=rows))
    info = DatasetInfo(
        features=next(iter(shards.values())).features,
        splits=splits,
        download_size=sum(each.size for each in shards.values()),
        dataset_size=sum(split.num_bytes for split in splits.values()),
    )
    data = DatasetCardData()
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    data_files = [{"split": split, "path": f"data/{split}-*"} for split in splits]
    MetadataConfigs({"default": {"data_files": data_files}}).to_dataset_card_data(data)
    described = {"description": record.to_json()} | data["dataset_info"]
    return {"configs": data["configs"], "dataset_info": described}
