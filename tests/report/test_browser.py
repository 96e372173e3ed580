"""The report in a real browser: no error, nothing loaded, no sideways scrolling, sorting, pictures light and dark."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from handmade import EVIL, evaluation
from PIL import Image

from frisket.report import report

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))),
    None,
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs a headless Chromium: none is installed")

PROBE = """<script>
const told = { errors: [], refused: [] };
addEventListener("error", (event) => told.errors.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => told.refused.push(event.blockedURI));
addEventListener("load", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  const root = document.documentElement;
  told.wide = root.scrollWidth - root.clientWidth;
  told.width = root.clientWidth;
  told.pictures = Array.from(document.images, (image) => image.naturalWidth);
  const table = document.querySelector("table.sortable");
  const order = () => Array.from(table.tBodies[0].rows, (row) => row.cells[0].dataset.value);
  const button = table.querySelectorAll("thead button")[1];
  told.orders = [order()];
  for (let turn = 0; turn < 2; turn++) {
    button.focus();
    document.activeElement.click();
    told.orders.push(order());
    told.sort = button.closest("th").getAttribute("aria-sort");
  }
  setTimeout(() => {  // the folds have told the page that they are open
    const frames = Array.from(document.querySelectorAll(".scroll"));
    const edge = (frame) => Math.min(...Array.from(frame.querySelector("thead tr:last-child").cells,
      (cell) => Math.abs(cell.offsetLeft + cell.offsetWidth - frame.clientWidth)));
    told.scrolling = frames.filter((frame) => frame.scrollWidth > frame.clientWidth + 1).length;
    told.cut = frames.filter((frame) => edge(frame) > 2.5).map((frame) => frame.getAttribute("aria-label"));
    told.texts = Array.from(document.querySelectorAll(".chart svg[role=img]"), (drawing) => {
      const box = drawing.getBoundingClientRect();
      return Array.from(drawing.querySelectorAll("text"), (text) => text.getBoundingClientRect()).every(
        (text) => text.left >= box.left - 0.5 && text.right <= box.right + 0.5 && text.bottom <= box.bottom + 0.5);
    });
    parent.postMessage(JSON.stringify(told), "*");
  }, 200);
});
</script>"""

FRAME = """<!doctype html><title>frame</title><p id="told"></p>
<script>addEventListener("message", (event) => { document.getElementById("told").textContent = event.data; });</script>
<iframe src="probe.html" style="border: 0; width: {width}px; height: 900px"></iframe>"""


def browse(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--force-device-scale-factor=1", f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", *flags,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"HOME": str(folder)})


@pytest.fixture
def page(put, trained: Path, tmp_path: Path) -> Path:
    """A page with everything on it: two models with long and evil names, curves, pictures, cost, training."""
    clicks = {"box/miou": 0.5, "click1/miou": 0.4, "click1/miou_s": 0.3, "curve/miou": [0.4, 0.5, 0.55], "masks": 1e4}
    models = {
        "a model with a rather long name, step 120000": clicks,
        EVIL: clicks | {"box/miou": 0.75},
        "third": clicks,
    }
    models["third"] = clicks | {"box/miou": 0.625}
    times = {f"{part}/ms": 3.0 for part in ("encoder", "box", "point", "points64", "post", "end_to_end")}
    times |= {"throughput/images_per_second": [10.0, 18.0, 20.0], "throughput/batch": [1.0, 2.0, 4.0]}
    long = "a/very/long/path/" * 12
    runs = [
        put("miou", evaluation("miou", models, data=long), ("masks", "best")),
        put("cost", evaluation("latency", {"third": times | {"macs/encoder_g": 486.0, "memory/peak_mib": 300.0}})),
        trained,
    ]
    return report.write(runs, tmp_path / "report.html")


@pytest.mark.parametrize("width", [390, 1280])
def test_it_runs_without_an_error_and_never_scrolls_sideways(page: Path, tmp_path: Path, width: int) -> None:
    (tmp_path / "probe.html").write_text(page.read_text().replace("<head>", f"<head>{PROBE}", 1))
    (tmp_path / "frame.html").write_text(FRAME.replace("{width}", str(width)))
    done = browse(tmp_path, "--virtual-time-budget=4000", "--dump-dom", f"file://{tmp_path / 'frame.html'}")
    match = re.search(r'<p id="told">(.+?)</p>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    told = json.loads(html.unescape(match[1]))
    assert (told["errors"], told["refused"]) == ([], [])
    assert "CONSOLE" not in done.stderr
    assert told["width"] == width
    assert told["wide"] == 0
    assert told["pictures"] == [640, 640, 60]
    assert told["scrolling"] and told["cut"] == []  # a wide table ends at a column's edge, never within a number
    assert len(told["texts"]) > 2 and all(told["texts"])  # no tick is clipped
    first, down, up = told["orders"]  # the overview's first number: box mIoU .5, .75, .625
    assert first == ["a model with a rather long name, step 120000", EVIL, "third"]
    assert down == [EVIL, "third", "a model with a rather long name, step 120000"]
    assert up == down[::-1]
    assert told["sort"] == "ascending"


@pytest.mark.parametrize(("scheme", "name"), [(1, "light"), (0, "dark")])
def test_it_looks_like_a_page(page: Path, tmp_path: Path, scheme: int, name: str) -> None:
    shot = tmp_path / f"{name}.png"
    browse(
        tmp_path, f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1280,1600", f"--screenshot={shot}",
        f"file://{page}",
    )  # fmt: skip
    with Image.open(shot) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    assert pixels.shape == (1600, 1280, 3)
    ground, ink = np.median(pixels), pixels.sum(2)
    assert ground > 230 if name == "light" else ground < 40
    written = (ink < 300).mean() if name == "light" else (ink > 500).mean()
    assert 0.005 < written < 0.25  # text and lines, neither nothing nor everything
    assert len(np.unique(pixels @ [65536, 256, 1])) > 200
