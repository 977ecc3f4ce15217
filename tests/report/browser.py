"""Chromium without a window, spoken to through its debugging pipe, so that a test sees what the page does."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest


def find_chromium() -> str:
    """Return the browser; without one the test is skipped by name, under CI it fails."""
    found = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
    if found is None:
        message = "no chromium on this machine: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


_START = """
import fcntl, os, sys
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
for fd, place in zip(high, (3, 4)):
    os.dup2(fd, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Chromium reads commands from descriptor 3 and answers on 4."""


class Browser:
    """One tab. Keeps every request, console message, exception and log entry of the page."""

    def __init__(self, profile: Path) -> None:
        chromium = find_chromium()
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
            "--disable-sync --no-first-run --disable-default-apps --disable-dev-shm-usage --remote-debugging-pipe"
        )
        start = (sys.executable, "-c", _START, str(theirs_in), str(theirs_out), chromium)
        self.process = subprocess.Popen(
            [*start, *flags.split(), f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._out, self._in = ours_out, ours_in
        self._left, self._n, self._session = b"", 0, ""
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def __enter__(self) -> Browser:
        try:
            return self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> Browser:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def open(self, path: Path, *, width: int = 1200, scheme: str = "light") -> None:
        """Load a file at a width in CSS pixels and wait until it has loaded."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=path.as_uri())
        ready = f"document.readyState === 'complete' && location.href === {json.dumps(path.as_uri())}"
        until = time.monotonic() + 20
        while not self.value(ready):
            assert time.monotonic() < until, "the page did not load"
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """Evaluate an expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Save the whole page as PNG."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self, path: Path) -> None:
        """Print the page."""
        path.write_bytes(base64.b64decode(self.send("Page.printToPDF")["data"]))

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a command of the protocol and return its answer; what comes in between is kept."""
        self._n += 1
        message: dict[str, Any] = {"id": self._n, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._n:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._keep(answer.get("method", ""), answer.get("params", {}))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            data = os.read(self._in, 1 << 16)
            assert data, "chromium has ended"
            self._left += data
        line, _, self._left = self._left.partition(b"\0")
        return dict(json.loads(line))

    def _keep(self, method: str, values: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(values)[:500])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its own group: started with start_new_session
        self.process.wait(10)
        os.close(self._out)
        os.close(self._in)
