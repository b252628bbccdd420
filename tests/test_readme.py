"""README: its commands run, its options exist, its tree and its links are those of the repository."""

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from tests import loopback_hub
from tests.helpers import ROOT, TINY_VIT, make_dicom, make_images
from tests.readme import INSTEAD, NOT_RUN, PAGES, Block, blocks, blocks_of_pages


README = ROOT / "README.md"
TEXT = README.read_text()
DOCUMENTS = [
    *PAGES, ROOT / "scripts" / "README.md", *sorted((ROOT / ".github").glob("*.md")),
    *sorted((ROOT / "model_cards").rglob("*.md")),
]  # fmt: skip
HOME = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
BLOCKS = blocks_of_pages()


def write_photos(folder, count: int, seed: int) -> None:
    """`count` photos of two classes, cat/ and dog/."""
    for number, image in enumerate(make_images(count, 64, seed)):
        place = folder / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.jpg")


def write_scans(folder, count: int) -> None:
    """`count` CT slices of as many patients, ill/ and well/, without endings."""
    for number, image in enumerate(make_images(count, 32, seed=3)):
        place = folder / ("ill", "well")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        scan = make_dicom(
            image[..., 0] * np.int16(4), PatientID=f"P{number}", RescaleSlope="1", RescaleIntercept="-500"
        )
        (place / str(number)).write_bytes(scan)


def write_volumes(folder, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        volume = np.moveaxis(make_images(3, 32, seed=number)[..., 0], 0, 2) * np.int16(4) - np.int16(500)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1, -1, 1, 1])), folder / f"{number}.nii.gz")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Every block that can run here, run in the order of the file, with a Hub on loopback."""
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("readme")
    write_photos(folder / "photos" / "train", 36, seed=0)
    write_photos(folder / "photos" / "test", 8, seed=1)
    write_photos(folder / "similar-photos", 34, seed=2)
    ViTForImageClassification(ViTConfig(**TINY_VIT)).save_pretrained(folder / "tiny")
    write_scans(folder / "scans", 60)
    (folder / "scan.dcm").write_bytes((folder / "scans" / "ill" / "0").read_bytes())
    write_volumes(folder / "volumes", 5)
    (folder / "photos" / "train" / "cat" / "0.jpg").rename(folder / "photo.jpg")
    tiny = ViTConfig(**TINY_VIT | {"image_size": 96, "patch_size": 16})
    ViTForImageClassification(tiny).save_pretrained(folder / "pretrained")
    with loopback_hub.LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setitem(loopback_hub.USERS, "hf_hospital", "hospital")
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | hub.environment(folder / "home", "hf_hospital")
        words = [sys.executable, str(ROOT / "tests" / "readme.py"), "outcomes.json"]
        subprocess.run(words, cwd=folder, env=environment, timeout=600, check=True)
    return folder, {entry["name"]: entry for entry in json.loads((folder / "outcomes.json").read_text())}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_the_block_runs(block, request):
    if block.reason is None:
        entry = request.getfixturevalue("outcomes")[1][f"{block.page}:{block.line}"]
        assert entry["problem"] is None, f"{block.text}\n{entry['problem']}\n{entry['output']}"


def test_the_blocks_leave_what_the_text_says(outcomes):
    folder, entries = outcomes
    said = "\n".join(entry["output"] for entry in entries.values())
    assert re.search(r"photo.jpg +0\.\d+ (cat|dog) +0\.\d+ (cat|dog)", said)
    assert re.search(r"scan.dcm +0\.\d+ (ill|well) +0\.\d+ (ill|well)", said)
    assert json.loads((folder / "encrypted-scans" / "neuracrypt.json").read_text())["config"]["window"] == "40,400"
    slices = {split: len(list((folder / "slices" / split).iterdir())) for split in ("train", "test")}
    assert json.loads((folder / "encrypted-slices" / "neuracrypt.json").read_text())["rows"] == slices
    first = nibabel.load(folder / "volumes" / "0.nii.gz").get_fdata()[::-1, ::-1, 0].T[::-1]  # to right, anterior up
    expected = ((first - 40) / 400 + 0.5).clip(0, 1) * 255
    assert np.abs(np.asarray(Image.open(folder / "slices" / "test" / "0-0.png")) - expected).max() <= 0.5
    assert json.loads((folder / "model" / "config.json").read_text())["architectures"] == ["ViTForImageClassification"]
    assert 0 <= json.loads((folder / "results.json").read_text())["accuracy"] <= 1
    for name in (
        "audit/audit.html", "encrypted-too/dataset_dict.json", "encrypted-2/neuracrypt.json", "xrays-vit/README.md",
        "ele-adaptnet-small/config.json", "figures/overview.png", "figures/schemes.png",
    ):  # fmt: skip
        assert (folder / name).exists(), name


def test_git_ignores_what_the_blocks_write(outcomes):
    given = {
        "photos",
        "similar-photos",
        "photo.jpg",
        "scans",
        "scan.dcm",
        "volumes",
        "tiny",
        "pretrained",
        "home",
        "outcomes.json",
        "figures",
    }
    made = [path for path in outcomes[0].iterdir() if path.name not in given]
    words = ["git", "check-ignore", "--no-index", *(f"{path.name}/" if path.is_dir() else path.name for path in made)]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if shown.returncode == 128:
        pytest.skip("not a git repository")
    ignored = shown.stdout.split()
    assert {name.rstrip("/") for name in ignored} == {path.name for path in made}


def test_what_is_not_run_as_written_is_there():
    for start in NOT_RUN:
        assert any(block.text.startswith(start) for block in BLOCKS), start
    for words in INSTEAD:
        assert any(words in block.text for block in BLOCKS if block.reason is None), words
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"\bmake (\w+)", TEXT):
        assert target in targets, target


# ------------------------------------------------------------------------------------------------------------- options


def command_lines() -> list[list[str]]:
    """Every command of ours in the pages, in blocks and in running text."""
    text = "\n".join(page.read_text() for page in DOCUMENTS)
    lines = [words for block in blocks(text) if block.language == "bash" for words in block.commands()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    lines += [Block("bash", 0, span).commands()[0] for span in spans if span.startswith(("hf-neuracrypt ", "python "))]
    return [words for words in lines if "hf-neuracrypt" in words or any(word.startswith("scripts/") for word in words)]


def parameters_of(subcommand: str) -> list:
    """The options and arguments of `hf-neuracrypt SUBCOMMAND`."""
    import typer

    from hf_neuracrypt import cli

    return typer.main.get_command(cli.app).commands[subcommand].params


def known_options(script: str | None, subcommand: str) -> set[str]:
    """The options of `hf-neuracrypt SUBCOMMAND`, or of a script."""
    if script is None or script == "scripts/encrypt.py":
        parameters = parameters_of(subcommand if script is None else "encrypt")
        return {option for each in parameters for option in (*each.opts, *each.secondary_opts)} | {"--help"}
    source = (ROOT / script).read_text()
    if script == "scripts/train.py":
        from transformers import TrainingArguments

        names = [field.name for field in fields(TrainingArguments)] + re.findall(
            r"^    (\w+): .* field\(", source, re.M
        )
        return {f"--{name}" for name in names}
    return set(re.findall(r'"(--[a-z_-]+)"', source))


def test_every_command_in_a_block_has_the_options_it_needs():
    blocks_of_all = [block for page in DOCUMENTS for block in blocks(page.read_text()) if block.language == "bash"]
    lines = [words for block in blocks_of_all for words in block.commands() if words[0] == "hf-neuracrypt"]
    assert len(lines) >= 10
    for _, subcommand, *words in lines:
        needed = {each.opts[0] for each in parameters_of(subcommand) if each.required and each.opts[0][:2] == "--"}
        assert needed <= set(words), f"{subcommand} {' '.join(words)}"


def test_every_option_exists():
    lines, known = command_lines(), {}
    assert len(lines) >= 20
    for words in lines:
        script = next((word for word in words if word.startswith("scripts/") and word.endswith(".py")), None)
        first = words.index(script) if script else words.index("hf-neuracrypt")
        program = (script, words[first + 1] if script is None else "")
        options = known.setdefault(program, known_options(*program))
        for word in words[first + 1 :]:
            assert not word.startswith("--") or word in options, " ".join(words)


def test_the_launchers_take_these_flags():
    from accelerate.commands.launch import launch_command_parser

    for words in command_lines():
        if words[:2] == ["accelerate", "launch"]:
            known = launch_command_parser().parse_args(words[2:])
            assert known.training_script.startswith("scripts/")


# ------------------------------------------------------------------------------------------------- lists and links


def test_the_front_page_is_short():
    assert len(TEXT.splitlines()) <= 200
    assert len(TEXT.split()) <= 1_800
    assert "**not** from a capable attacker" in TEXT[: TEXT.index("##")]


def test_the_list_of_rooms_is_that_of_the_package():
    tree = re.search(r"## The rooms\n.*?```\nhf_neuracrypt/\n(.*?)```", TEXT, re.DOTALL)[1]
    rooms = re.findall(r"^  (\S+) ", tree, re.MULTILINE)
    ours = {path.name + "/" * path.is_dir() for path in (ROOT / "hf_neuracrypt").iterdir()}
    assert sorted(rooms) == sorted(ours - {"__init__.py", "__main__.py", "py.typed", "__pycache__/"})
    assert set(re.findall(r"^(\w+)/ ", tree, re.MULTILINE)) == {"scripts", "model_cards", "tests"}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page):
    place = r"(?<![\w/.-])(?:tests|scripts|hf_neuracrypt|model_cards)/[\w/-]+\.(?:py|md|json|yaml|png)\b"
    named = set(re.findall(place, page.read_text()))
    assert not {name for name in named if not (ROOT / name).exists()}


def headings(page: Path) -> set[str]:
    """As links name them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    raw = HOME.replace("github.com", "raw.githubusercontent.com")
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        name, _, heading = target.partition("#")
        place = page.parent / name if name else page
        if target.startswith((HOME, raw)):
            place = ROOT / name.removeprefix(f"{HOME}/blob/main/").removeprefix(f"{raw}/main/")
        elif target.startswith("https://"):
            continue
        elif name:
            assert page != README, f"{target}: where the README is shown elsewhere, only whole addresses work"
        assert place.exists(), target
        assert not heading or heading in headings(place), target
