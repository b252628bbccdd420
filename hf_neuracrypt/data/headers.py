"""What the headers of DICOM files decide of rows: their split by patient, their names in tables, how many there are.

A header is read for these alone, before work, and nothing of it is stored.
"""

from pathlib import PurePath

from hf_neuracrypt.data.files import Files, show
from hf_neuracrypt.errors import DatasetError, ImageError
from hf_neuracrypt.images.dicom import MAX_FRAMES, Header, is_dicom, read_header
from hf_neuracrypt.images.read import read_bytes
from hf_neuracrypt.keys import SecretKey


ONE_IN = 5  # of the patients is tested with


class Headers:
    """The headers of the files of a folder, each read once; None: of what is no DICOM, or damaged."""

    def __init__(self, files: Files):
        self.files = files
        self._read: dict[PurePath, Header | None] = {}

    def __getitem__(self, file: PurePath) -> Header | None:
        if file not in self._read:
            try:
                known = file in self.files.dicom or is_dicom(self.files.start(file) or b"")
                found = read_header(read_bytes(self.files.source(file))) if known else None
            except ImageError:  # the job will say so of its row
                found = None
            self._read[file] = found
        return self._read[file]


def frames_of(header: Header | None) -> range:
    """The frames of a file that become rows; of one that says it has more than any has, one, which is refused then."""
    return range(header.frames if header and header.frames <= MAX_FRAMES else 1)


def by_patient(files: Files, headers: Headers, key: SecretKey) -> dict[str, list[PurePath]]:
    """Images of the splits train and test: about one patient in five is tested with, as the key and PatientID say.

    So the same patient is in the same split in whatever is encrypted under the same key.

    Raises:
        DatasetError: an image is of no known patient, or all patients are in one split.
    """
    splits: dict[str, list[PurePath]] = {"train": [], "test": []}
    for file in files.images:
        header = headers[file]
        if not header.patient if header else file not in files.dicom:
            raise DatasetError(f"{show([file])} has no PatientID, so --group-by-patient cannot place it")
        tested = header is not None and key.permutation(header.patient, "patients", ONE_IN)[0] == 0
        splits["test" if tested else "train"].append(file)
    if not all(splits.values()):
        raise DatasetError(
            "--group-by-patient puts all of so few patients into one split: make the folders train and test instead"
        )
    return splits
