"""The report in a real browser, where one is installed: no error, no request, no sideways scrolling."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is installed"),
]


class Browser:
    """A page of Chromium, over its DevTools protocol."""

    def __init__(self, folder: Path):
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
        ]
        self.process = subprocess.Popen([CHROMIUM, *flags], stderr=subprocess.PIPE, text=True, start_new_session=True)
        from websockets.sync.client import connect

        line = next(line for line in self.process.stderr if "DevTools listening on" in line)
        self.stack = ExitStack()
        self.socket = self.stack.enter_context(connect(re.search(r"ws://\S+", line)[0], max_size=None))
        self.ids, self.events, self.session = count(1), [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self.ids)
        session = {"sessionId": self.session} if self.session else {}
        self.socket.send(json.dumps({"id": number, "method": method, "params": params, **session}))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path: Path, width: int):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.socket.recv(timeout=60)))

    def value(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def close(self):
        self.stack.close()
        os.killpg(self.process.pid, signal.SIGKILL)  # what starts the browser is not the browser
        self.process.wait()


@pytest.mark.parametrize("width", [360, 1200])
def test_the_report_opens_without_errors_or_requests(tmp_path, width):
    pytest.importorskip("websockets")
    from report_runs import make_run

    from dsrl.report import ReportConfig, report

    runs = tuple(make_run(tmp_path / f"seed{seed}", seed) for seed in range(2))
    report(ReportConfig(runs, out=tmp_path / "report.html", strips=0))
    browser = Browser(tmp_path / "browser")
    try:
        browser.open(tmp_path / "report.html", width)
        browser.value("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value("document.querySelectorAll('svg').length") >= 8
        # every chart has a size and its text is not smaller than what can be read
        assert (
            browser.value(
                "Math.min(...[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().width))"
            )
            > 250
        )
        methods = [event["method"] for event in browser.events]
        assert not {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"} & set(methods)
        asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        assert [url for url in asked if not url.startswith("data:")] == [(tmp_path / "report.html").as_uri()]
    finally:
        browser.close()
