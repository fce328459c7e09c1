"""Pages in a headless Chromium, where there is one."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")
CATCH = "<script>window.failures = []; onerror = (message) => failures.push(message);</script>"


def data_of(page: Path) -> Any:
    """What a page's script reads."""
    found = re.search(r'id="data">(.*?)</script>', page.read_text())
    assert found is not None
    return json.loads(found[1])


def look(page: Path, script: str, folder: Path) -> Any:
    """What `script` left in the page's body, as JSON, at a phone's width. It finds uncaught errors in `failures`."""
    assert BROWSER is not None
    probe = f"<script>{script}</script></html>"
    (folder / "probe.html").write_text(CATCH + page.read_text().replace("</html>", probe))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,800", "--virtual-time-budget=3000"]
    command = [BROWSER, *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    done = subprocess.run([*command, f"file://{folder / 'probe.html'}"], capture_output=True, text=True, timeout=120)
    body = re.search(r"<body>(.*)</body>", done.stdout, re.S)
    assert body is not None, done
    return json.loads(html.unescape(body[1]))
