"""The page, in a real browser: ask, click, and the click is in the log as that impression's."""

import asyncio
import html
import re
import shutil
import subprocess
import threading
from collections import Counter

import pytest
import uvicorn
from fakes import OTHERS, TURKISH, app, scorer

from openrlhf_qs.serve.export import click_log_rows

# A page of the same server that holds the other one in a frame, uses it, and says in its title what it found.
DRIVER = """<!doctype html><meta charset="utf-8"><title>not done</title>
<iframe src="/" style="width:WIDTHpx;height:800px;border:0"></iframe>
<script>
const frame = document.querySelector("iframe"), bad = [];
const until = async (what, check) => {
  for (let n = 0; n < 400; n++) { if (check()) return; await new Promise(go => setTimeout(go, 25)); }
  throw what;
};
const brightness = ([r, g, b]) => {
  const line = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  return .2126 * line(r) + .7152 * line(g) + .0722 * line(b);
};
const colour = text => text.match(/[\\d.]+/g).map(Number);
frame.onload = async () => {
  const page = frame.contentDocument, view = frame.contentWindow;
  view.onerror = message => bad.push(message);
  const $ = name => page.querySelector(name), all = name => [...page.querySelectorAll(name)];
  page.documentElement.style.scrollBehavior = "auto";  // frames of a smooth one are not drawn here
  try {
    await until("partner", () => $("#partner").textContent.includes("demo partner"));
    $("#text").value = "How do I begin with Turkish grammar?";
    $("#ask").requestSubmit();
    await until("suggestions", () => all(".suggestions > button").length === 3);
    const second = all(".suggestions > button")[1].textContent;
    await until("idle", () => page.activeElement === $("#text"));
    $("details").open = true;
    const look = () => {
      if (page.documentElement.scrollWidth > view.innerWidth) bad.push("overflow");
      for (const one of all("body *")) {
        if (!one.matches("h1, p, button, input, summary, td, th, .turn, .quiet")) continue;
        let behind = one;
        while (behind && /, 0\\)|transparent/.test(view.getComputedStyle(behind).backgroundColor)) {
          behind = behind.parentElement;
        }
        const [front, back] = [view.getComputedStyle(one).color, view.getComputedStyle(behind).backgroundColor];
        const [x, y] = [brightness(colour(front)), brightness(colour(back))].sort((p, q) => q - p);
        if ((x + .05) / (y + .05) < 4.5) bad.push("contrast " + one.tagName + one.className + front + back);
      }
      for (const one of all("button, input")) {
        if (!(one.textContent.trim() || page.querySelector(`label[for="${one.id}"]`))) bad.push("no name");
        if (one.getBoundingClientRect().height < 40) bad.push("small " + one.outerHTML);
        if (one.tabIndex < 0) bad.push("not reached by keyboard");
      }
      if ($("#chat").getAttribute("aria-live") !== "polite") bad.push("not read out");
    };
    look();
    const why = $("details").textContent;
    if (!why.includes("left out: not among the best") || !why.includes("2.00 ± 1.00")) bad.push(why);
    all(".suggestions > button")[1].click();
    await until("next", () => all(".suggestions").length === 2);
    await until("idle again", () => page.activeElement === $("#text"));
    look();
    const last = all(".suggestions").at(-1), form = $("#ask");
    await until("in sight", () => last.getBoundingClientRect().bottom <= form.getBoundingClientRect().top);
    if (!all(".turn.user").at(-1).textContent.endsWith(second)) bad.push("not said");
    if (all(".suggestions > button").slice(0, 3).some(one => !one.disabled)) bad.push("could be clicked again");
    document.title = "used: " + bad.join("; ");
  } catch (error) { document.title = "stuck at " + error + "; " + bad.join("; "); }
};
</script>"""


@pytest.fixture
def address(tmp_path):
    """``address(width)``: where the page that uses the page is served."""
    application, service = app(tmp_path / "live", scorer=scorer({TURKISH[2]: 2.0, OTHERS[0]: 1.0}))
    width = []

    async def with_driver(scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/drive":
            page = DRIVER.replace("WIDTH", str(width[-1])).encode()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
            await send({"type": "http.response.body", "body": page})
            return
        await application(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(with_driver, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)

    def start(pixels):
        width.append(pixels)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/drive"

    yield start
    server.should_exit = True
    thread.join(10)
    service.close()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "light"), (390, "dark")])
def test_what_is_clicked_on_the_page_is_in_the_log_as_a_click_of_that_impression(tmp_path, address, width, theme):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", "--virtual-time-budget=20000"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    flags += ["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
    shown = subprocess.run(["chromium", *flags, address(width)], capture_output=True, text=True, timeout=120).stdout
    assert html.unescape(re.search("<title>(.*?)</title>", shown, re.DOTALL)[1]) == "used: "
    first, second = click_log_rows([tmp_path / "live"], 60.0, False, Counter())
    assert first["clicks"] == [0, 1, 0] and second["clicks"] == [0, 0, 0]
    assert first["meta"]["heard"] == ["clicked", "shown"] and second["meta"]["heard"] == ["shown"]
    assert second["conversation"][-2] == {"role": "user", "content": first["suggestions"][1]}
    assert first["user_id"] == second["user_id"] and first["meta"]["chat"] == second["meta"]["chat"]
