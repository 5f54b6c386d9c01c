"""A real browser on a page of ours: Debian's chromium, told by its debugging pipe what a person would do."""
import json
import os
import shutil
import subprocess
import time

PATIENCE = 120


def find():
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """Opens one page at a time; ``requests`` are the addresses it asked for, ``errors`` what its scripts complained of,
    and ``profile`` is where it keeps what pages store."""

    def __init__(self, profile):
        to_browser, self.to = os.pipe()
        self.back, from_browser = os.pipe()

        def wire():  # it reads commands from file 3 and answers in file 4
            first, second = os.dup(to_browser), os.dup(from_browser)
            os.dup2(first, 3)
            os.dup2(second, 4)

        self.process = subprocess.Popen(
            [find(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
             "--disable-background-networking", f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=wire, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.number, self.buffer, self.requests, self.errors, self.session = 0, b"", [], [], None
        target = next(one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        return self._until(lambda answer: answer.get("id") == self.number)["result"]

    def open(self, path):
        self.call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + PATIENCE
        while self.ask("document.readyState") != "complete" or self.ask("location.href") == "about:blank":
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def leave(self):
        """Close the page: what it did not store is gone."""
        self.call("Page.navigate", url="about:blank")
        assert self.ask("document.querySelector('#progress')") is None

    def ask(self, expression):
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key):
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def close(self):
        self.session = None
        try:
            self.call("Browser.close")
        except AssertionError:
            pass
        self.process.wait(PATIENCE)
        os.close(self.to)
        os.close(self.back)

    def _until(self, wanted):
        while True:
            while b"\0" not in self.buffer:
                part = os.read(self.back, 1 << 20)
                assert part, "the browser has gone"
                self.buffer += part
            message, _, self.buffer = self.buffer.partition(b"\0")
            found = json.loads(message)
            if found.get("method") == "Network.requestWillBeSent":
                self.requests.append(found["params"]["request"]["url"])
            if found.get("method") == "Runtime.exceptionThrown":
                self.errors.append(found["params"]["exceptionDetails"]["text"])
            if wanted(found):
                assert "error" not in found, found
                return found
