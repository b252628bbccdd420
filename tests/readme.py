"""The pages as lists of commands, and a process that runs them: `python tests/readme.py OUTCOMES.json`.

Every ```bash and ```python block runs in the current folder, page by page, in one process: imports take longer than
the commands themselves, and that each command works in a process of its own is what other tests show.
"""

import contextlib
import io
import json
import re
import runpy
import shlex
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(ROOT / "hf_neuracrypt" / room / "README.md" for room in ("data", "encoders", "publish", "training")),
    ROOT / "scripts" / "experiments" / "README.md",
]

# Blocks are named by how they begin.
NOT_RUN = {
    "make demo": "minutes long; CI runs both targets",
    "hf-neuracrypt predict --endpoint": "needs a server: prediction/test_endpoint.py has one on loopback",
    "# several processes": "many processes or nodes: scripts/test_scripts.py runs the launchers, small",
    "hf-neuracrypt encrypt --dataset 's3:": "needs a bucket: test_buckets.py and test_to_hub.py have one on loopback",
    "# metadata.csv": "images with findings: test_findings.py runs it, small",
    "hf jobs uv run": "needs a rented machine: scripts/test_scripts.py reads the header by which it runs",
    "accelerate launch --config_file": "several GPUs: training/test_ranks.py runs both files with two processes",
}
TINY = "model-scans/ --model_name_or_path tiny/"
INSTEAD = {
    "hospital.key --output encrypted/": "hospital.key --output encrypted/ --image-size 96",  # a fifth of the pixels
    "clinic.key --output encrypted-": "clinic.key --image-size 32 --patch-size 8 --output encrypted-",
    "model-scans/ \\\n    --model_name_or_path google/vit-base-patch16-224-in21k": TINY,
    "--model plain-vit/": "--model pretrained/",
    "--pairs 64": "--pairs 3",  # the folder has 35 photos, 32 of which are kept to say what is given away
    "image_size=224, patch_size=16": "image_size=96, patch_size=16",
    "google/vit-base-patch16-224-in21k": "pretrained/",  # a tiny ViT, instead of a download
    "scripts/experiments/figures.py": "scripts/experiments/figures.py --output figures/",  # the committed ones stay
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its line, its text, and its page."""

    language: str
    line: int
    text: str
    page: str = ""

    @property
    def reason(self) -> str | None:
        """Why it is not run; None if it is."""
        return next((reason for start, reason in NOT_RUN.items() if self.text.startswith(start)), None)

    def commands(self) -> list[list[str]]:
        """The words of each command line of a bash block."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(text: str, page: str = "") -> list[Block]:
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(each[1], text.count("\n", 0, each.start()) + 1, each[2], page) for each in found]


def blocks_of_pages() -> list[Block]:
    """Those that are commands, page by page."""
    found = [block for page in PAGES for block in blocks(page.read_text(), str(page.relative_to(ROOT)))]
    return [block for block in found if block.language in ("bash", "python")]


def run_words(words: list[str]) -> None:
    """A command line, in this process; of a launcher, what it launches. Raises SystemExit if it fails."""
    try:
        _run_words(words)
    except SystemExit as end:
        if end.code:
            raise


def _run_words(words: list[str]) -> None:
    from hf_neuracrypt import cli

    if words[:2] == ["accelerate", "launch"]:
        words = ["python", *words[2:]]
    sys.argv = words[1:]
    if words[0] == "hf-neuracrypt":
        sys.argv = words
        cli.main()
    elif words[:2] == ["python", "-m"]:
        sys.argv = words[2:]
        runpy.run_module(words[2], run_name="__main__")
    elif words[0] == "python":
        folder = str((ROOT / words[1]).parent)
        sys.path.insert(0, folder)  # as Python itself does
        try:
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
        finally:
            while folder in sys.path:
                sys.path.remove(folder)
    else:
        raise ValueError(f"no such program here: {words[0]}")


def run(block: Block) -> dict:
    """What a block printed, and what stopped it."""
    text, problem, out = block.text, None, io.StringIO()
    for known, other in INSTEAD.items():
        text = text.replace(known, other)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            if block.language == "python":
                exec(compile(text, f"{block.page}:{block.line}", "exec"), {"__name__": "readme"})
            for words in Block(block.language, block.line, text).commands() if block.language == "bash" else ():
                run_words(words)
        except BaseException:
            problem = traceback.format_exc()
    return {"name": f"{block.page}:{block.line}", "problem": problem, "output": out.getvalue()}


if __name__ == "__main__":
    written = Path(sys.argv[1])  # before the commands have their own
    outcomes = [run(block) for block in blocks_of_pages() if not block.reason]
    written.write_text(json.dumps(outcomes))
