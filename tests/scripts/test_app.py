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
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from hf_neuracrypt import Classifier
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.encoders import load_encoder
from hf_neuracrypt.errors import ImageError, KeyMismatchError, NeuraCryptError
from hf_neuracrypt.keys import SecretKey
from hf_neuracrypt.publish.guard import Guard
from tests.commands import encrypt, load_script
from tests.helpers import ROOT, SMALL, batch, make_images, save_model


NAMES = ["cat", "<b>dog</b>", "horse"]
OPEN = {
    "GRADIO_ALLOWED_PATHS": "/", "GRADIO_ROOT_PATH": "http://evil.example", "GRADIO_SHARE": "True",
    "GRADIO_MCP_SERVER": "True", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_LOCAL_DEV_MODE": "1",
}  # fmt: skip
REBIND = "--host-resolver-rules=MAP rebind.example 127.0.0.1"
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


@pytest.mark.parametrize("score, said", [(63.25, "63.25"), (-0.5, "-0.5")])
def test_a_predicted_number_is_no_share(score, said, owner, app):
    def classify(stored, top_k):
        return [[{"label": "age", "score": score}]]

    classify.gives_numbers = True
    html = replace(owner, classifier=replace(owner.classifier, classify=classify)).ask(
        owner.examples[0], wrong_key=False
    )
    assert f"<span>{said}</span>" in html and "width: 0.0%" in html


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
    """The page in a process of its own, under an environment that would open it: its address; its log at the end."""
    pytest.importorskip("gradio")
    (work / "tmp").mkdir()
    environment = os.environ | OPEN | {"PYTHONPATH": str(ROOT), "TMPDIR": str(work / "tmp"), "OMP_NUM_THREADS": "1"}
    words = ["--model", work / "model", "--encrypted", work / "encrypted", "--key-file", work / "a.key"]
    words += ["--examples", work / "photos"]
    with open(work / "log", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "app.py"), *map(str, words)], stdout=subprocess.PIPE, stderr=log,
            text=True, env=environment,
        )  # fmt: skip
        try:
            line = process.stdout.readline()
            assert line.startswith("Open http://127.0.0.1:"), (work / "log").read_text()
            yield (address := line.split()[1])
            open_to_the_end = urllib.request.urlopen(f"{address}gradio_api/heartbeat/tab", timeout=300)
            assert any((work / "tmp").glob("neuracrypt-page-*/*"))
        finally:
            process.send_signal(signal.SIGTERM)
            rest = process.communicate(timeout=300)[0]
    open_to_the_end.close()
    assert process.returncode == 0
    assert not list((work / "tmp").glob("neuracrypt-page-*"))  # the pictures are gone
    said = (rest + (work / "log").read_text()).encode()
    Guard(SecretKey.load(work / "a.key")).check_bytes(said, "the log")
    assert b"Traceback" not in said and b"ERROR" not in said


def fetch(address: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    """Status and content; no answer may let another site read it."""
    asked = urllib.request.Request(address, headers=headers, method=method, data=b"" if method == "POST" else None)
    try:
        with urllib.request.urlopen(asked, timeout=300) as response:
            status, content = response.status, response.read()
    except urllib.error.HTTPError as error:
        response, status, content = error, error.code, error.read()
    other = headers.get("Origin") not in (None, f"http://{headers.get('Host', urlsplit(address).netloc)}")
    assert not other or not [name for name in response.headers if name.lower().startswith("access-control")]
    return status, content


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


ASKED = [("GET", ""), ("GET", "config"), ("POST", "gradio_api/upload"), ("POST", "gradio_api/queue/join")]


@pytest.mark.parametrize("method, path", [*ASKED, ("OPTIONS", "gradio_api/queue/join")])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", ""])
def test_no_other_name_leads_to_the_page(served, method, path, host):
    """As a browser asks after DNS rebinding: the token is right, if ever it was known."""
    host = host.format(port=urlsplit(served).port)
    assert fetch(served + path, method, Host=host)[0] == 403
    assert fetch(served + path, method, Host=host, Origin=f"http://{host}")[0] == 403


@pytest.mark.parametrize("method, path", [*ASKED, ("OPTIONS", "gradio_api/queue/join")])
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:9", "http://127.0.0.1:9", "http://localhost:{port}"]
)
def test_no_other_site_asks_the_page(served, method, path, origin):
    headers = {"Origin": origin.format(port=urlsplit(served).port), "Access-Control-Request-Method": "POST"}
    assert fetch(served + path, method, **headers)[0] == 403


def test_the_page_itself_is_answered(served):
    port = urlsplit(served).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        for method, path in ASKED:
            status, _ = fetch(served + path, method, Host=host, Origin=f"http://{host}")
            assert status == 200 if method == "GET" else status not in (403, 404)


def test_nothing_without_the_token(served):
    parts = urlsplit(served)
    token, root = parts.path.strip("/"), f"http://{parts.netloc}/"
    assert len(token) >= 43
    page = fetch(served)[1].decode()
    paths = ["", "config", "theme.css", "gradio_api/info", "gradio_api/startup-events", "docs", "openapi.json", "login"]
    paths += ["gradio_api/file=/etc/passwd", "monitoring", *re.findall(r'"\./(assets/[^"]+)"', page)]
    assert any(path.startswith("assets/") for path in paths)
    for start in ("", token[:-1] + "/", token + "x/", "%2e/", f"?token={token}&x="):
        for path in paths:
            for method in ("GET", "POST"):
                assert fetch(root + start + path, method)[0] in (404, 405), start + path
    cookies = {"Cookie": f"token={token}", "Referer": served}
    assert fetch(root + "config", **cookies)[0] == 404


def test_the_environment_opens_nothing(served):
    assert fetch(f"{served}gradio_api/file=/etc/hostname")[0] == 403
    assert b"evil.example" not in fetch(served + "config")[1] + fetch(served)[1]
    assert fetch(served + "gradio_api/mcp/")[0] == 404


# ---------------------------------------------------------------------------------------------------- what it leaves

PAGE = """
import os, pathlib, time
from private_page import temporary_pictures
with temporary_pictures():
    folder = pathlib.Path(os.environ["GRADIO_TEMP_DIR"])
    (folder / "picture.png").touch()
    print(folder, sorted(name for name in os.environ if name.startswith("GRADIO_")), flush=True)
    time.sleep(600)
"""


def test_pictures_of_a_killed_page_go_at_the_next_start(tmp_path):
    def started() -> tuple[subprocess.Popen, Path]:
        process = subprocess.Popen([sys.executable, "-c", PAGE], stdout=subprocess.PIPE, text=True, env=environment)
        folder, variables = process.stdout.readline().split(maxsplit=1)
        assert variables.strip() == "['GRADIO_ANALYTICS_ENABLED', 'GRADIO_TEMP_DIR']"
        return process, Path(folder)

    paths = os.pathsep.join(map(str, (ROOT, ROOT / "scripts")))
    environment = os.environ | OPEN | {"TMPDIR": str(tmp_path), "PYTHONPATH": paths}
    (tmp_path / "precious").mkdir(0o700)
    (tmp_path / "precious" / "photo.png").touch()
    (tmp_path / "neuracrypt-page-link").symlink_to(tmp_path / "precious")
    (tmp_path / "neuracrypt-page-open").mkdir(0o755)  # not made by the page
    living, own = started()
    killed, left = started()
    try:
        assert own.stat().st_mode & 0o777 == 0o700
        killed.kill()
        killed.wait()
        assert (left / "picture.png").exists()
        killed, last = started()
        assert not left.exists() and (own / "picture.png").exists() and (last / "picture.png").exists()
        assert (tmp_path / "precious" / "photo.png").exists() and (tmp_path / "neuracrypt-page-open").exists()
    finally:
        for process in (living, killed):
            process.terminate()
            process.wait()
            process.stdout.close()
    assert not own.exists() and not last.exists()


# ------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", REBIND])
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


def test_other_sites_in_a_browser(served, browser, tmp_path):
    """A name that leads here, and a page at another port that knows the address: neither reads, neither asks."""
    page, address = browser.new_page(), urlsplit(served)
    assert page.goto(served.replace("127.0.0.1", "rebind.example")).status == 403
    (tmp_path / "index.html").write_text("hello")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    fetched = "async address => { try { return (await fetch(address + 'config')).status } catch { return 0 } }"
    statuses = []
    page.on("response", lambda answer: statuses.append(answer.status) if "/upload" in answer.url else None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        for name in ("localhost", "127.0.0.1"):
            page.goto(f"http://{name}:{other.server_port}/")
            assert page.evaluate(fetched, served) == 0
            send = "address => fetch(address, {method: 'POST', mode: 'no-cors', body: new FormData()}).then(_ => 1)"
            assert page.evaluate(send, served + "gradio_api/upload") == 1
        other.shutdown()
    page.goto(f"http://localhost:{address.port}{address.path}")
    assert page.evaluate(fetched, page.url) == 200 and statuses == [403, 403]
