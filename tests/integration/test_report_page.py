"""The report page in a real browser: it renders, fits a desk and a phone, and runs nothing from a run folder."""

import re
import shutil
import struct
import subprocess
import zlib
from html import escape, unescape
from pathlib import Path

import pytest
import yaml

from dfer.emotions import BASIC7, MAFW11
from dfer.jobs.config import RunConfig
from dfer.report.write import write_report
from dfer.storage import Folder
from tests import fake_runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: install it (apt-get install chromium)"),
]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
MEASURE = """<script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const box = (e) => e.getBoundingClientRect();
  const pictures = [...page.querySelectorAll("svg")];
  const spilled = pictures.filter((p) => [...p.querySelectorAll("text")].some((t) =>
    box(t).left < box(p).left - 1 || box(t).right > box(p).right + 1 || box(t).top < box(p).top - 1));
  document.title = [root.scrollWidth, pictures.length, spilled.length,
                    Math.round(Math.min(...pictures.map((p) => box(p).width)))].join(" ");
});
</script>"""


def browse(tmp_path, page, *options):
    """Chromium's standard output for one local page."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout.decode()


def measured(tmp_path, page, width):
    """(page width the content needs, pictures, pictures whose text leaves them, narrowest picture), in pixels."""
    frame = tmp_path / "frame.html"
    style = f"border:0;width:{width}px;height:900px"
    frame.write_text(f'{MEASURE}<iframe style="{style}" srcdoc="{escape(page.read_text())}"></iframe>')
    title = re.search(r"<title>([^<]*)</title>", browse(tmp_path, frame, "--dump-dom", "--window-size=1400,1000"))
    return tuple(map(int, title[1].split()))


def png_pixels(path):
    """Width, height and the number of distinct rows of an 8-bit PNG, by the format's own rules."""
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    at, packed = 8, b""
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        packed += data[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    rows = zlib.decompress(packed)
    step = len(rows) // height
    return width, height, len({rows[i * step : (i + 1) * step] for i in range(height)})


@pytest.fixture(
    scope="module", params=[pytest.param(BASIC7, marks=pytest.mark.long), MAFW11], ids=["7 classes", "11 classes"]
)
def page(request, tmp_path_factory):
    run = fake_runs.write_crossval(tmp_path_factory.mktemp("run"), classes=request.param)
    return Path(write_report(Folder(run), RunConfig).html)


@pytest.mark.parametrize("width", [1200, 420])
def test_the_page_fits_its_window_and_every_picture_holds_its_text(tmp_path, page, width):
    needed, pictures, spilled, narrowest = measured(tmp_path, page, width)
    assert needed <= width
    assert pictures == 1 + 1 + 5 + 6, "pooled matrix, recalls, fold matrices, curves"
    assert spilled == 0
    assert narrowest >= 300


def test_a_screenshot_is_not_blank(tmp_path, page):
    shot = tmp_path / "shot.png"
    browse(tmp_path, page, f"--screenshot={shot}", "--window-size=1200,2400")
    width, height, distinct = png_pixels(shot)
    assert (width, height) == (1200, 2400)
    assert distinct > 500


def test_scripts_in_a_run_folder_do_not_run(tmp_path):
    evil = '</pre><script>document.title="pwned"</script><img src=x onerror="document.title=1">'
    run = fake_runs.write_fold(tmp_path / "run", fake_runs.result(num_folds=1, method=evil, validation=evil))
    (run / "config.yaml").write_text(yaml.safe_dump(fake_runs.config(run=evil)))
    dom = browse(tmp_path, Path(write_report(Folder(run), RunConfig).html), "--dump-dom")
    title = re.search(r"<title>([^<]*)</title>", dom)
    assert unescape(title[1]) == f"{evil} on DFEW"
    assert "<script" not in dom.lower()


def test_the_measure_itself_sees_text_outside_a_picture_and_a_page_too_wide(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        '<body style="margin:0"><div style="width:900px">.</div><svg width="320" height="40">'
        '<text x="300" y="20">this text leaves its picture</text></svg>'
    )
    needed, pictures, spilled, _ = measured(tmp_path, page, 420)
    assert (needed, pictures, spilled) == (900, 1, 1)
