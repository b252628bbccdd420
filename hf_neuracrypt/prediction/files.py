"""Queries by the folder: which files, their answers as they come, and where these are written.

What was answered is kept: an image that cannot be read is named and left out, and when the model stops answering, the
lines before that are written already.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm

from hf_neuracrypt.data.batches import encrypt_rows
from hf_neuracrypt.data.files import Files
from hf_neuracrypt.errors import ImageError, NeuraCryptError, printable
from hf_neuracrypt.prediction.classifier import Classifier


BATCH_SIZE = 16
FILE_WIDTH, LABEL_WIDTH = 60, 20  # of columns, at most: longer names stick out

Show = Callable[[Path, list[dict]], None]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files as they are given; of folders, what is or may be an image in them and in their subfolders, by name.

    Raises:
        ImageError: a folder without images, or with a tar of them.
        DatasetError: a folder that cannot be read, or is reached twice.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = Files(path)
            if not inside.images:
                raise ImageError(f"there is no image in the folder {path}")
            if any("offset" in inside.source(file) for file in inside.images):
                raise ImageError(f"in the folder {path} lies a tar of DICOM files: unpack it")
            files += [path / file for file in sorted([*inside.images, *inside.others])]
        else:
            files.append(path)
    return files


def answer_files(classifier: Classifier, files: Sequence[Path], top_k: int, show: Show) -> int:
    """Give `show` each file's answer, and say on stderr which files could not be encrypted.

    Returns:
        How many those are.

    Raises:
        ImageError: all of them.
        NeuraCryptError: the model stopped answering.
    """
    answered, rejected, waiting = 0, [], iter(files)
    with tqdm(total=len(files), desc="Asking the model", unit=" images", disable=len(files) == 1) as bar:
        while batch := list(islice(waiting, BATCH_SIZE)):
            good, stored = [], []
            for file, rows in zip(batch, encrypt_rows(classifier.encoder, batch)):
                if isinstance(rows, ImageError):
                    rejected.append(printable(f"{file} cannot be encrypted: {rows}"))
                    bar.update()
                    if len(files) > 1:
                        tqdm.write(rejected[-1], sys.stderr)
                else:
                    good.append(file)
                    stored += rows
            try:
                for file, answer in zip(good, classifier.answer(stored, top_k) if stored else ()):
                    show(file, answer)
                    answered += 1
                    bar.update()
            except NeuraCryptError as error:
                before = f" ({answered} of {len(files)} images were answered before that)" if answered else ""
                raise type(error)(f"{error}{before}") from None
    if not answered:
        raise ImageError(rejected[0] + (f"; nor can the other {len(rejected) - 1}" if len(rejected) > 1 else ""))
    return len(rejected)


@contextmanager
def writer(output: Path | None, as_json: bool, files: Sequence[Path] = ()) -> Iterator[Show]:
    """Where answers go: lines on stdout, aligned for `files`, or a new file, to which each is written as it comes.

    `.csv` has the columns image, rank, label, score; `.jsonl` a line for each image, as `as_json` prints it.
    """
    if output is None:
        width = min(max((len(str(file)) for file in files), default=0), FILE_WIDTH)
        yield lambda path, answer: tqdm.write(_json(path, answer) if as_json else _line(path, answer, width))
        return
    with open(output, "x", newline="", encoding="utf-8") as file:
        if output.suffix == ".csv":
            rows = csv.writer(file)
            rows.writerow(["image", "rank", "label", "score"])
        else:
            rows = None

        def show(path: Path, answer: list[dict]) -> None:
            if rows is None:
                file.write(_json(path, answer) + "\n")
            else:
                named = ((rank, _cell(entry["label"]), entry["score"]) for rank, entry in enumerate(answer, 1))
                rows.writerows([_cell(str(path)), *each] for each in named)
            file.flush()

        yield show


def check_output(output: Path | None) -> None:
    """Raises NeuraCryptError for a file that is there, or of another kind than `writer` writes."""
    if output is not None and output.suffix not in (".csv", ".jsonl"):
        raise NeuraCryptError(f"{output} is neither .csv nor .jsonl, which are what answers can be written as")
    if output is not None and output.exists():
        raise NeuraCryptError(f"{output} exists: choose another name")


def what_is_left(output: Path | None) -> str:
    """What an interrupted run leaves, and what to do: unlike `encrypt`, it is not continued."""
    if output is None:
        return "the same command starts again with the first image"
    return f"the answers so far are in {output}; a new run needs another name, and starts again with the first image"


def _json(path: Path, answer: list[dict]) -> str:
    return json.dumps({"image": str(path), "predictions": answer})


def _line(path: Path, answer: list[dict], width: int) -> str:
    """A row of a table: the file, then scores and labels, the best first."""
    widest = min(max((len(entry["label"]) for entry in answer), default=0), LABEL_WIDTH)
    cells = (f"{entry['score']:.3f} {entry['label']:{widest}}" for entry in answer)
    return printable("  ".join((f"{path!s:{width}}", *cells)).rstrip())


def _cell(text: str) -> str:
    """Text of a CSV file that a spreadsheet must not take for a formula."""
    return f"'{printable(text)}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else printable(text)
