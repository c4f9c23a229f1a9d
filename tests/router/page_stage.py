"""Serves the live page with made-up data: five minutes of two routers with load, failures, a gap and a lost worker."""

import json
import math
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "router" / "page"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
STEP_S, MOMENTS = 2.0, 150
GAP = range(70, 85)
BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, math.inf)
OUTPUT_S = 400.0
FRAME = """<!doctype html><body style="margin:0"><iframe style="border:0" width="WIDTH" height="2600" src="/"></iframe>
<pre></pre><script>setInterval(() => {
  const page = document.querySelector("iframe").contentDocument, all = (what) => [...page.querySelectorAll(what)];
  const box = (node) => node.getBoundingClientRect();
  document.querySelector("pre").textContent = JSON.stringify({
    overflow: page.documentElement.scrollWidth - WIDTH,
    cut: all("figcaption b, .card b, .scroll").filter((n) => n.scrollWidth > n.clientWidth + 1).map((n) => n.id),
    plots: [...new Set(all("figure svg").map((n) => `${Math.round(box(n).width)}x${box(n).height}`))],
    workersFirst: box(page.getElementById("fleet")).top < box(page.getElementById("charts")).top,
    ground: getComputedStyle(page.body).backgroundColor,
    failures: [...new Set(all("svg path.bad").map((n) => getComputedStyle(n).stroke))],
    lines: [...new Set(all("svg path:not(.bad)").map((n) => getComputedStyle(n).stroke))],
  });
}, 500);</script>"""


def live() -> dict[str, Any]:
    """Made-up answer of /live. At the end both routers together generate OUTPUT_S tokens a second."""
    times, series = [], {}
    moments = [i for i in range(MOMENTS) if i not in GAP]
    for column, i in enumerate(moments):
        times.append(1_790_000_000 + STEP_S * i)
        for name, value in _values(i * STEP_S).items():
            series.setdefault(name, [None] * len(moments))[column] = value
    return {"times": times, "series": series}


def _values(t: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for router, part in (("", 0.25), ("router=router-b", 0.75)):
        busy = 0.6 + 0.4 * math.sin(t / 40) if t < 240 else 1.0

        def put(metric: str, value: float, labels: str = "", router: str = router) -> None:
            told = ",".join(label for label in (labels, router) if label)
            found[f"{metric}{{{told}}}" if told else metric] = value

        done = part * (_grown(t) if t < 240 else _grown(240) + t - 240)
        put("ling_generated_tokens_total", OUTPUT_S * done)
        put("ling_prompt_tokens_total", 1900 * done)
        put("ling_requests_total", 8 * done, "api=chat,status=200")
        put("ling_requests_total", 0.4 * max(0.0, t - 210) * part, "api=chat,status=503")
        put("ling_in_flight", round(96 * part * busy))
        put("ling_in_flight_limit", 1024)
        for metric, mean, count in (("ttft", 0.18, 8), ("itl", 0.024, 400), ("request", 1.4, 8)):
            for bound in BOUNDS:
                share = 1 - math.exp(-((bound / (mean * (0.8 + 0.4 * busy))) ** 2))
                le = "+Inf" if math.isinf(bound) else str(bound)
                put(f"ling_{metric}_seconds_bucket", count * done * share, f"le={le}")
    for worker, running in (("decode-k2m4", 41), ("decode-x8q1", 37), ("prefill-a7c3", 3)):
        role = f"role={worker.split('-')[0]},worker={worker}"
        found[f"ling_worker_running{{{role}}}"] = round(running * (0.6 + 0.4 * math.sin(t / 40)))
        found[f"ling_worker_queued{{{role}}}"] = max(0, round(6 * math.sin(t / 25)))
        found |= {f"ling_worker_free_slots{{{role}}}": 64 - running, f"ling_worker_slots{{{role}}}": 64}
        found |= {f"ling_worker_free_pages{{{role}}}": 900, f"ling_worker_pages{{{role}}}": 2048}
    return found


def _grown(t: float) -> float:
    return 0.6 * t + 16 * (1 - math.cos(t / 40))


def status() -> dict[str, Any]:
    """Made-up answer of /status."""

    def worker(name: str, running: int, queued: int, pages: int) -> dict[str, Any]:
        ranks = [{"rank": r, "pid": 1, "node": "node-a", "device": "cuda"} for r in range(4)]
        return {
            "id": name, "state": "live", "pid": 1, "node": "node-a", "host": "10.0.0.1", "port": 1, "ranks": ranks,
            "running": running, "queued": queued, "transferring": 1, "slots": 64, "free_slots": 64 - running,
            "pages": 2048, "free_pages": 2048 - pages, "step_s": 0.0213,
        }  # fmt: skip

    lost = {"id": "decode-t5w9", "state": "lost", "problem": "its connection broke"}
    decode = [worker("decode-k2m4", 62, 2, 1148), worker("decode-x8q1", 37, 0, 1002), lost]
    return {
        "model": "Ling-2.6-flash-FP8", "ready": True, "reason": None,
        "router": {"name": "router-a", "pid": 1, "in_flight": 24, "max_queue": 1024},
        "pools": {
            "prefill": {"configured": 2, "live": 1, "workers": [worker("prefill-a7c3", 3, 1, 210)]},
            "decode": {"configured": 3, "live": 2, "workers": decode},
        },
    }  # fmt: skip


@contextmanager
def page_stage() -> Iterator[str]:
    """Serve the page; yields its address. `/frame?390` shows it 390 pixels wide and measures it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path == "/frame":
                body, kind = FRAME.replace("WIDTH", query), ".html"
            elif path in ("/live", "/status"):
                content = (
                    status() if path == "/status" else live() if "since=0" in query else {"times": [], "series": {}}
                )
                body, kind = json.dumps(content), ".json"
            else:
                file = PAGE / (path.strip("/") or "index.html")
                body, kind = (file.read_text(), file.suffix) if file.is_file() else ("", ".html")
            data = body.encode()
            self.send_response(200)
            self.send_header("content-type", f"{TYPES.get(kind, 'application/json')}; charset=utf-8")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def browse(url: str, folder: Path, *more: str) -> tuple[str, str]:
    """Headless Chromium's output and log, after the page has been drawn a few times."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=9000",
            *more, url,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr
