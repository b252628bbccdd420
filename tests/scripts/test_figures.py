"""The figures' parts; README's own block draws the pictures (test_readme.py)."""

import json

import numpy as np
import pytest
from PIL import Image

from hf_neuracrypt.errors import NeuraCryptError
from tests.commands import load_script
from tests.helpers import make_images


@pytest.fixture(scope="module")
def script():
    """scripts/experiments/figures.py as a module."""
    return load_script("figures")


def drawn_in(color: str, pixels: np.ndarray) -> np.ndarray:
    """Which pixels (H, W, 4) are of a colour "#rrggbb"."""
    return (pixels[..., :3] == list(bytes.fromhex(color[1:]))).all(-1)


def test_a_grid_changes_no_pixel_and_is_transparent_between(script):
    images = make_images(4, 32)
    first, second, third, fourth = images.transpose(0, 3, 1, 2)
    drawn = np.asarray(script.grid([[("plain", first), ("", second)], [("", third), ("", fourth)]]))
    gap, line = script.GAP, script.LINE
    assert drawn.shape == (line + 2 * 32 + gap, 2 * 32 + gap, 4)
    assert (drawn[line : line + 32, :32, :3] == images[0]).all() and (drawn[-32:, -32:, :3] == images[3]).all()
    assert drawn[line:, 32 : 32 + gap, 3].max() == 0 and drawn[:line, :, 3].any()


def test_a_table_of_numbers_is_grey_around_its_mean(script):
    numbers = np.random.default_rng(0).normal(5, 2, (64, 64)).astype(np.float32)
    drawn = script.table(numbers)
    assert drawn.shape == (3, 64, 64) and abs(drawn.mean() - 127) < 3 and 35 < drawn.std() < 50
    assert drawn[0, numbers.argmax() // 64, numbers.argmax() % 64] == drawn.max()


def test_throughput_is_drawn_from_what_was_measured(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "OUTPUT", tmp_path)
    with pytest.raises(NeuraCryptError, match=r"benchmark.py --output .*throughput.json encoder"):
        script.draw_throughput(tmp_path / "throughput.png")
    measured = {
        "images_per_second": {"exact, fused products": 900.0, "float32 network": 50.0},
        "int8_limit": {"images_per_second": 1000.0}, "environment": {"threads": 2, "processor": "a processor"},
    }  # fmt: skip
    (tmp_path / "throughput.json").write_text(json.dumps(measured))
    script.draw_throughput(tmp_path / "throughput.png")
    pixels = np.asarray(Image.open(tmp_path / "throughput.png"))
    assert pixels.shape[2] == 4 and pixels[0, 0, 3] == 0
    assert drawn_in(script.charts.BLUE, pixels).sum() > 1000


def test_curves_are_a_line_a_row_from_plain_images_or_ciphertexts(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "OUTPUT", tmp_path)
    entries = [
        {"row": row, "switches": {"plain": row == "plain images"}, "accuracy": [0.1, last]}
        for row, last in (("plain images", 0.9), ("labels alone", 0.2))
    ]
    (tmp_path / "ablation-long.json").write_text(json.dumps(entries))
    script.draw_curves(tmp_path / "curves.png")
    pixels = np.asarray(Image.open(tmp_path / "curves.png"))
    height = {}
    for color in (script.charts.ORANGE, script.charts.BLUE):
        height[color] = np.argwhere(drawn_in(color, pixels))[:, 0].min()
    assert height[script.charts.ORANGE] + 100 < height[script.charts.BLUE]  # the better line ends higher
