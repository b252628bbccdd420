"""What the repository promises about itself: one version, pinned tools, and a search that finds key files."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hf_neuracrypt import SecretKey, __version__
from tests.helpers import ROOT


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
(RULE,) = tomllib.loads((ROOT / ".gitleaks.toml").read_text())["rules"]
HOOKS = {
    hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
}
SEARCHES = [RULE["regex"], f"(?i){HOOKS['secret-key']['entry']}"]


def tracked() -> list[str]:
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("not a git repository")
    return found.stdout.split("\n")[:-1]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_a_key_file_is_found(search, passphrase, tmp_path):
    SecretKey.generate().save(tmp_path / "a.key", passphrase=passphrase)
    text = (tmp_path / "a.key").read_text()
    assert re.search(search, text) and re.search(search, text.lower())
    assert any(keyword in text.lower() for keyword in RULE["keywords"])


@pytest.mark.parametrize("search", SEARCHES)
def test_no_key_but_the_golden_ones_is_in_the_repository(search):
    found = {
        name for name in tracked() if (ROOT / name).is_file() and re.search(search.encode(), (ROOT / name).read_bytes())
    }
    assert found and all(re.match(RULE["allowlists"][0]["paths"][0], name) for name in found), found
    assert all(re.match(HOOKS["secret-key"]["exclude"], name) for name in found)


def test_the_version_stands_in_one_place():
    assert "version" in PROJECT["project"]["dynamic"] and "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "hf_neuracrypt.__version__"}
    newest = re.search(r"^## (\S+),", (ROOT / ".github" / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert newest == __version__


def test_pre_commit_runs_the_linter_of_ci():
    pinned = next(
        line for line in (ROOT / "tests" / "constraints.txt").read_text().split() if line.startswith("ruff==")
    )
    assert HOOKS["ruff"]["additional_dependencies"] == HOOKS["ruff-format"]["additional_dependencies"] == [pinned]


def test_ci_runs_the_same_script_on_three_pythons_and_pinned_actions():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    job = yaml.safe_load(text)["jobs"]["ci"]
    assert {"run": "bash .ci/run"} in job["steps"] and job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    used = re.findall(r"uses: (\S+)", text) + re.findall(r"\bghcr\.io/\S+", text)
    assert used and all(re.search(r"@(sha256:)?[0-9a-f]{40,64}$", each) for each in used)


def requirements() -> list[Requirement]:
    """Of the package, its extras and its developers."""
    project = PROJECT["project"]
    lists = [
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *PROJECT["dependency-groups"].values(),
    ]
    return [Requirement(line) for each in lists for line in each]


def test_ci_runs_the_lowest_and_the_newest_versions():
    """Each dependency has a floor, which `uv` can install exactly; the versions of CI's main job lie above it."""
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["versions"]
    matrix = {entry["resolution"]: entry["python"] for entry in steps["strategy"]["matrix"]["include"]}
    assert matrix == {"lowest-direct": "3.11", "highest": "3.13"}
    lines = [Requirement(line.split("#")[0]) for line in (ROOT / "tests" / "constraints.txt").read_text().splitlines()
             if "==" in line and line[0] != "#"]  # fmt: skip
    pinned = {canonicalize_name(line.name): str(line.specifier).removeprefix("==") for line in lines}
    for requirement in requirements():
        assert [each.operator for each in requirement.specifier] == [">="], f"{requirement} has no floor"
        name = canonicalize_name(requirement.name)
        assert name == "peft" or requirement.specifier.contains(pinned[name]), f"{requirement}, CI runs {pinned[name]}"
    floors = {(canonicalize_name(each.name), str(each.specifier)) for each in requirements()}
    assert len(floors) == len({name for name, _ in floors}), "one package has two floors"


def test_every_import_is_of_a_dependency():
    """Not of what another package happens to bring."""
    declared = {canonicalize_name(each.name) for each in requirements()}
    packages = packages_distributions()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {each.split(".")[0] for each in found} - sys.stdlib_module_names - {"hf_neuracrypt"}:
                brought = {canonicalize_name(each) for each in packages.get(name, [name])}
                assert brought & declared, f"{file.name} imports {name}, of which pyproject.toml says nothing"


def test_the_top_level_is_what_it_was():
    names = {name.split("/")[0] for name in tracked() if not name.startswith(".")}
    assert names == {
        "hf_neuracrypt", "scripts", "model_cards", "tests", "README.md", "pyproject.toml", "Makefile", "LICENSE",
    }  # fmt: skip
    assert not any(name.endswith(".ipynb") for name in tracked())


# ------------------------------------------------------------------------------------------------------------ rooms

PACKAGE = ROOT / "hf_neuracrypt"
ROOMS = [  # a room may import those above it
    "errors", "keys", "schemes", "hub", "images", "encoders", "alignment", "data", "models", "jobs", "prediction",
    "publish", "training", "audit", "cli", "__main__",
]  # fmt: skip


def imports_of(file: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_neuracrypt":
            names = [alias.name for alias in node.names]
            inner = [f"{node.module}.{name}" for name in names]
            found |= {name if _is_module(name) else node.module for name in inner}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("hf_neuracrypt")}
    return found


def _is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").exists()


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_the_listing_can_be_read_at_a_glance():
    entries = {name.split("/")[1] for name in tracked() if name.startswith("hf_neuracrypt/")}
    assert len(entries) <= 18
    assert {name.removesuffix(".py") for name in entries} == {*ROOMS, "__init__", "py.typed"}
    long = {name for name in tracked() if name.endswith(".py") and not name.startswith("tests/")}
    assert not {name for name in long if (ROOT / name).exists() and len((ROOT / name).read_text().splitlines()) > 300}


def test_data_goes_down_the_rooms_and_never_back_up():
    for file in PACKAGE.rglob("*.py"):
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module in imports_of(file) if own != "__init__" else ():
            room = room_of(module)
            assert room in ("__init__", own) or ROOMS.index(room) < ROOMS.index(own), f"{file} imports {module}"


@pytest.mark.parametrize("room, other", [("training", "prediction"), ("publish", "audit"), ("jobs", "publish")])
def test_rooms_that_do_not_know_each_other(room, other):
    imported = {room_of(module) for file in (PACKAGE / room).rglob("*.py") for module in imports_of(file)}
    assert imported and other not in imported


def test_no_file_imports_itself_through_others():
    files = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}
    graph = {name: imports_of(file) & files.keys() for name, file in files.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_every_package_is_installed():
    folders = {f"hf_neuracrypt.{file.parent.name}" for file in PACKAGE.glob("*/__init__.py")}
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert listed == folders | {"hf_neuracrypt", "hf_neuracrypt.templates"}
