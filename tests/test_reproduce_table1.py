"""The table script: rows of both kinds of ciphertext end to end at a tiny size, resumed, and reported."""

import importlib.util
import json
import sys

import datasets
import pytest

from hf_neuracrypt.errors import NeuraCryptError
from tests.conftest import ROOT


@pytest.fixture
def table(monkeypatch):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("reproduce_table1", ROOT / "scripts" / "reproduce_table1.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    module.BUDGETS["smoke"] = module.Budget(16, 8, 2, 8, 32, 8, 32, 1, {"depth": 8, "widening": 6})
    yield module
    datasets.enable_caching()  # which the script turns off for its process


def call(table, monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce_table1.py", *map(str, words)])
    table.main()


def test_rows_resume_and_report(table, monkeypatch, tmp_path, capsys):
    rows = ("--output", tmp_path, "--rows", "plain-vit", "neuracrypt", "etc")
    call(table, monkeypatch, *rows)
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").iterdir()}
    assert set(results) == {"plain-vit-1", "neuracrypt-1", "etc-1"}
    assert results["plain-vit-1"]["wrong_key"] is None and results["etc-1"]["neighbours"] == 0
    assert results["neuracrypt-1"]["neighbours"] < 1e-4
    assert all(0 <= result["accuracy"] <= 100 and result["seconds"]["all"] > 0 for result in results.values())

    path = tmp_path / "results" / "etc-1.json"
    path.write_text(json.dumps(results["etc-1"] | {"accuracy": 12.5}))
    capsys.readouterr()
    monkeypatch.setattr(table, "run", None)  # nothing is done again
    call(table, monkeypatch, *rows)
    assert "| etc | ele | 12.50 |" in capsys.readouterr().out
    assert "| etc | ele | 12." in (tmp_path / "table.md").read_text() and (tmp_path / "table.png").stat().st_size > 1000
    assert json.loads((tmp_path / "table.json").read_text())["rows"]["etc"][0]["accuracy"] == 12.5

    with pytest.raises(NeuraCryptError, match="another dataset or budget"):
        call(table, monkeypatch, *rows, "--budget", "cpu")


def test_published_figures_are_shown_for_their_dataset_only(table, tmp_path):
    run = {"accuracy": 50.0, "wrong_key": 10.0, "neighbours": 0.0}
    text = table.report(tmp_path, "cifar10", "smoke", ["ele"], {"ele": [run, run | {"accuracy": 52.0}]})
    assert "| ele | ele | 51.00 ± 1.41 | 10.00 ± 0.00 | 0.00 ± 0.00 | 83.06 | Madono" in text
    assert "83.06" not in table.report(tmp_path, "mnist", "smoke", ["ele"], {"ele": [run]})
