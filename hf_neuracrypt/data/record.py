"""What is public about an encryption: algorithm, config, key id, sealed label names. One JSON line, the *record*.

It travels in `dataset.info.description`, survives `concatenate_datasets` (one line an owner), and is written to
`neuracrypt.json` beside a dataset and to a model's `config.json`.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from hf_neuracrypt.errors import ConfigError, KeyMismatchError, first_line
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.schemes import SchemeConfig, config_from_dict


RECORD_FORMAT = 1
LABEL_NAMES = "label names"  # the purpose that names are sealed for


@dataclasses.dataclass(frozen=True)
class Record:
    """What is public about an encryption.

    Args:
        config: the encoder's public parameters.
        key_id: the public id of the key.
        sealed_labels: with hidden labels, the label names and their permutation, readable with the key only.
    """

    config: SchemeConfig
    key_id: str
    sealed_labels: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it; `from_dict` reads it."""
        record: dict[str, Any] = {"neuracrypt": RECORD_FORMAT, "config": self.config.to_dict(), "key_id": self.key_id}
        return record | ({"sealed_labels": self.sealed_labels} if self.sealed_labels else {})

    def to_json(self) -> str:
        """One line of canonical JSON."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: object) -> "Record":
        """Raises ConfigError for anything but a record of this format."""
        if not isinstance(values, dict) or values.get("neuracrypt") != RECORD_FORMAT:
            raise ConfigError(
                f"it is not an encryption record of format {RECORD_FORMAT}, the only one this version of hf_neuracrypt "
                "reads: update hf_neuracrypt if the record is newer"
            )
        key_id, sealed = values.get("key_id"), values.get("sealed_labels")
        if not isinstance(key_id, str) or not re.fullmatch("nck1-[0-9a-f]{32}", key_id):
            raise ConfigError("an encryption record needs the key_id of a key: nck1- and 32 hexadecimal digits")
        if not isinstance(sealed, str | None):
            raise ConfigError("an encryption record has text in sealed_labels, or nothing")
        return cls(config_from_dict(values.get("config")), key_id, sealed)

    def true_names(self, key: SecretKey) -> dict[str, str]:
        """The names of hidden labels by the neutral names that are stored; empty if labels are not hidden.

        Raises:
            NeuraCryptError: they were sealed with another key.
        """
        if self.sealed_labels is None:
            return {}
        names = json.loads(key.unseal(self.sealed_labels, LABEL_NAMES))
        return {neutral: name for neutral, name in names.items() if neutral}

    def check_key(self, key: SecretKey, what: object) -> None:
        """Raises KeyMismatchError, saying of `what` this is the record, unless that was encrypted under `key`."""
        if self.key_id != key.id:
            raise KeyMismatchError(f"{what} was encrypted under the key {self.key_id}; this key is {key.id}")


def seal_names(key: SecretKey, names: Mapping[str, str], salt: str) -> str:
    """What `Record.true_names` opens; with the salt, equal names of two datasets are not sealed alike."""
    return key.seal(json.dumps({"": salt, **names}), LABEL_NAMES)


def records_of(dataset: Dataset | IterableDataset | DatasetDict | IterableDatasetDict) -> list[Record]:
    """The records a dataset carries: none if it is plain, several if owners' datasets were concatenated."""
    splits = dataset.values() if isinstance(dataset, dict) else [dataset]
    lines = [line for split in splits for line in (split.info.description or "").splitlines()]
    lines = [line for line in dict.fromkeys(lines) if line.startswith("{") and '"neuracrypt"' in line]
    try:
        return [Record.from_dict(json.loads(line)) for line in lines]
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the dataset's description holds a damaged encryption record: {first_line(error)}") from None
