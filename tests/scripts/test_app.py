"""The page to try it on: what it shows, what stays away from it, and that it works in a browser."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_neuracrypt import Classifier
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.errors import ImageError, KeyMismatchError, NeuraCryptError
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.publish.guard import Guard
from tests.helpers import ROOT, SMALL, batch, encrypt, load_script, make_images, save_model


NAMES = ["cat", "<b>dog</b>", "horse"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def app():
    pytest.importorskip("skimage")
    return load_script("app")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A key, a model of random weights, photos, encrypted and as examples (one damaged), and one that is no example."""
    folder = tmp_path_factory.mktemp("page")
    SecretKey.generate().save(folder / "a.key")
    save_model(folder / "model", NAMES, Record(SMALL, SecretKey.load(folder / "a.key").id))
    (folder / "photos").mkdir()
    for number, pixels in enumerate(make_images(40, 40, seed=3)):
        Image.fromarray(pixels).save(folder / "photos" / f"{number:02d}.png")
    made = encrypt(folder / "photos", folder / "a.key", folder / "encrypted")
    assert made.returncode == 0, made.stderr
    (folder / "photos" / "00.png").write_bytes(b"")
    Image.fromarray(make_images(1, 60, seed=4)[0]).save(folder / "jane.png")
    return folder


@pytest.fixture(scope="module")
def owner(app, work):
    key = SecretKey.load(work / "a.key")
    return app.Owner.of(str(work / "model"), key, Record(SMALL, key.id), sorted((work / "photos").iterdir()))


def best_answer(work) -> dict:
    """What the model says of the picture that is no example."""
    encoder = load_encoder(SMALL, SecretKey.load(work / "a.key"))
    ((best, *_),) = Classifier.from_pretrained(str(work / "model"), encoder).predict([work / "jane.png"])
    return best


def pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r"data:image/png;base64,([\w+/=]+)", html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


# ------------------------------------------------------------------------------------------------------ what it shows


def test_the_answer_is_that_of_predict(owner, work):
    key, photo = SecretKey.load(work / "a.key"), work / "jane.png"
    html = owner.ask(photo, wrong_key=False)
    plain, encrypted = pictures(html)
    assert np.array_equal(encrypted, load_encoder(SMALL, key).encrypt(batch(plain[None].copy()))[0].permute(1, 2, 0))
    best = best_answer(work)
    assert best["label"].replace("<", "&lt;").replace(">", "&gt;") == re.search("<b>(.*?)</b>", html)[1]
    assert f"{best['score']:.0%}" in html and "<b>dog" not in html
    _, other = pictures(owner.ask(photo, wrong_key=True))
    assert not np.array_equal(other, encrypted)


def test_the_attacker_knows_no_pair_of_the_picture(owner):
    """A picture from the examples is reconstructed no better than if it had never been there."""
    html = owner.attack(owner.examples[5])
    shown = pictures(html)
    assert [int(count) for count in re.findall(r"(\d+) pairs? known<small", html)] == [1, 4, 16]
    assert len(shown) == 6 and np.array_equal(shown[0].transpose(2, 0, 1), owner.examples[5])
    without = replace(owner, examples=np.delete(owner.examples, 5, 0), encrypted=np.delete(owner.encrypted, 5, 0))
    assert html == without.attack(owner.examples[5])
    with pytest.raises(ImageError):
        owner.attack(b"x")


def test_what_it_needs(app, work):
    key, other, photos = SecretKey.load(work / "a.key"), SecretKey.generate(), sorted((work / "photos").iterdir())
    with pytest.raises(NeuraCryptError, match="16 example images or more, there are 15"):
        app.Owner.of(str(work / "model"), key, Record(SMALL, key.id), photos[:16])
    with pytest.raises(KeyMismatchError, match="this key is"):
        app.Owner.of(str(work / "model"), other, Record(SMALL, other.id), photos)


# ------------------------------------------------------------------------------------------------------ as it is served


@pytest.fixture(scope="module")
def served(work):
    """The page in a process of its own: its address, and the log when it has ended."""
    pytest.importorskip("gradio")
    (work / "tmp").mkdir()
    words = ["--model", work / "model", "--encrypted", work / "encrypted", "--key-file", work / "a.key"]
    words += ["--examples", work / "photos"]
    with open(work / "log", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "app.py"), *map(str, words)], stdout=subprocess.PIPE, stderr=log,
            text=True, env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(work / "tmp"), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            line = process.stdout.readline()
            assert line.startswith("Open http://127.0.0.1:"), (work / "log").read_text()
            yield line.split()[1]
            assert any((work / "tmp").iterdir())
        finally:
            process.send_signal(signal.SIGTERM)
            rest = process.communicate(timeout=300)[0]
    assert not list((work / "tmp").glob("neuracrypt-page-*"))  # the pictures are gone
    said = (rest + (work / "log").read_text()).encode()
    Guard(SecretKey.load(work / "a.key")).check_bytes(said, "the log")
    assert b"Traceback" not in said


def fetch(address: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(address, timeout=300) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_key_is_not_on_the_page(served, work):
    key_file = work / "a.key"
    guard = Guard(SecretKey.load(key_file))
    for path in ("", "config", "gradio_api/info"):
        status, content = fetch(served + path)
        assert status == 200 or path
        guard.check_bytes(content, path)
        assert str(key_file).encode() not in content
    config = json.loads(fetch(served + "config")[1])
    assert config["analytics_enabled"] is False and not config.get("share_url")
    for path in (key_file, work / "photos" / "01.png", Path(os.path.relpath(key_file, ROOT))):
        assert fetch(f"{served}gradio_api/file={path}")[0] in (403, 404)
    with pytest.raises(OSError):  # only this machine is listened to
        urllib.request.urlopen(served.replace("127.0.0.1", "127.0.0.2"), timeout=2)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def test_in_a_browser(served, browser, work, tmp_path):
    """Upload, answer, wrong key, attack, a damaged picture; nothing is fetched from elsewhere."""
    page = browser.new_page(viewport={"width": 1180, "height": 900})
    page.set_default_timeout(300_000)  # a test machine may be busy
    elsewhere: list[str] = []
    page.on("request", lambda asked: elsewhere.append(asked.url))
    page.goto(served)
    assert "It does not stop an attacker" in page.inner_text(".warning")
    page.set_input_files("#picture input[type=file]", work / "jane.png")
    page.wait_for_selector("#answer .bar")
    best = best_answer(work)
    assert page.inner_text("#answer .bar >> nth=0").split() == [best["label"], f"{best['score']:.0%}"]
    right = page.get_attribute("#answer img >> nth=1", "src")
    page.check("#wrong-key input")
    page.wait_for_selector("text=under another, random key")
    assert page.get_attribute("#answer img >> nth=1", "src") != right
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    page.click("button[role=tab] >> text=attacker")
    page.wait_for_selector("text=16 pairs known")
    before = page.get_attribute("#attacked img >> nth=0", "src")
    page.click("#examples button >> nth=2")
    page.wait_for_function("src => document.querySelector('#attacked img').src != src", arg=before)
    page.screenshot(path=tmp_path / "attack.png", full_page=True)
    assert min(Image.open(tmp_path / "attack.png").size) >= 900
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    page.click("#picture button[aria-label='Remove Image']")
    page.set_input_files("#picture input[type=file]", tmp_path / "broken.png")
    page.wait_for_selector("text=This picture cannot be encrypted")
    assert [url for url in elsewhere if not url.startswith((served, "data:", "blob:"))] == []
