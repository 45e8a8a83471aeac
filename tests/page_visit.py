"""A real server process of the page and the browser to visit it with."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

CHROMIUM = shutil.which("chromium")
CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Server:
    """A server process with a home, a working directory and a temporary folder of its own."""

    process: subprocess.Popen
    url: str
    folder: Path
    connections: list[tuple]  # that it tried to open to anything but this machine


@contextmanager
def running_server(arguments: list[str], folder: Path) -> Iterator[Server]:
    """Start a Python program that serves the page, and wait until it says where."""
    for name in ("home", "work", "tmp"):
        (folder / name).mkdir(parents=True)
    proxy, connections = start_recording_proxy()
    environment = {
        **{key: value for key, value in os.environ.items() if not re.match(r"HF_|GRADIO_|.*_proxy$", key, re.I)},
        **{"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")},
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), proxy),
        **{"NO_PROXY": "127.0.0.1,localhost", "GRADIO_SERVER_PORT": str(free_port())},
    }
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=folder / "work", env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert address, "the server ended"
        yield Server(process, address.group(), folder, connections)
    finally:
        process.kill()
        process.wait()


def start_recording_proxy() -> tuple[str, list[tuple]]:
    """Address of a proxy that refuses everything, and the list of who asked."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[tuple] = []

    def refuse() -> None:
        while True:
            connection, address = listener.accept()
            connections.append((address, connection.recv(200)))
            connection.close()

    threading.Thread(target=refuse, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}", connections


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Headless Debian Chromium that keeps to itself."""
    assert CHROMIUM, "chromium is not installed"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()
