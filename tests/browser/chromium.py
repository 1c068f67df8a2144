"""Headless Chromium over the DevTools pipe, with the standard library only.

Opens one page, records every console message, uncaught error, refused policy and request, measures it.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SECONDS = 60.0  # for one answer; a cold start on a busy machine takes about ten
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)
# The browser speaks on descriptors 3 and 4; a fresh process puts our pipe ends there.
SHIM = (
    "import os,sys;a,b=int(sys.argv[1]),int(sys.argv[2]);a,b=os.dup2(a,60),os.dup2(b,61);"
    "os.dup2(a,3);os.dup2(b,4);os.execv(sys.argv[3],sys.argv[3:])"
)


@dataclasses.dataclass
class Sight:
    """What the browser saw of one page."""

    faults: list[str]
    requests: list[str]


class Chromium:
    """A browser process; use it as a context manager."""

    def __enter__(self) -> Chromium:
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        if program is None:
            raise RuntimeError("Chromium is missing. Fix: install the Debian package chromium.")
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()
        arguments = [program, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", SHIM, str(read_there), str(write_there), *arguments],
            pass_fds=(read_there, write_there),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        self._in, self._out, self._rest = read_here, write_here, b""
        self._number = 0
        self._session: str | None = None
        self._sight = Sight([], [])
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one DevTools command and return its result; events that arrive meanwhile are recorded."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            more = os.read(self._in, 1 << 16) if ready else b""
            if not more:
                raise RuntimeError("Chromium gave no answer" if not ready else "Chromium ended")
            self._rest += more
        line, self._rest = self._rest.split(b"\0", 1)
        message = dict(json.loads(line))
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.consoleAPICalled":
            words = [str(a.get("value", a.get("description"))) for a in params["args"]]
            self._sight.faults.append(f"console.{params['type']}: {' '.join(words)}")
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self._sight.faults.append(f"uncaught: {details.get('exception', details).get('description', details)}")
        elif method == "Log.entryAdded":
            self._sight.faults.append(f"log {params['entry']['level']}: {params['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            self._sight.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self._loaded = True

    def open(self, page: Path, *, width: int = 1280, dark: bool = False) -> Sight:
        """Load a file at a window width in pixels and return what was seen until after its load event."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._sight, self._loaded = Sight([], []), False
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not self._loaded:
            self._receive()
        self.evaluate("new Promise(done => setTimeout(() => done(0), 100))")  # late errors
        return self._sight

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def screenshot(self, out: Path) -> Path:
        """The whole page as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        out.write_bytes(base64.b64decode(data))
        return out
