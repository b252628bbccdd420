"""What the repository promises about itself: one version, pinned tools, and a search that finds key files."""

import re
import subprocess
import tomllib

import pytest
import yaml

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


def test_the_top_level_is_what_it_was():
    names = {name.split("/")[0] for name in tracked() if not name.startswith(".")}
    assert names == {
        "hf_neuracrypt", "scripts", "model_cards", "tests", "README.md", "pyproject.toml", "Makefile", "LICENSE",
    }  # fmt: skip
    assert not any(name.endswith(".ipynb") for name in tracked())
