"""Download files from http(s) URLs, with limits on time and size."""

import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse

from ..messages import first_line

TIMEOUT = 20.0  # seconds
MAX_BYTES = 64 * 2**20
MAX_REDIRECTIONS = 5
CHUNK = 2**16


def is_url(text: str) -> bool:
    """Whether a text is an http(s) address."""
    return text.lower().startswith(("http://", "https://"))


def download(url: str, timeout: float = TIMEOUT, max_bytes: int = MAX_BYTES) -> bytes:
    """The content behind an http(s) address.

    Args:
        url: the address; at most 5 redirections are followed, to http(s) only.
        timeout: seconds that the server may be silent, and that the whole content may take.
        max_bytes: largest accepted content, checked on the header and again while it comes in.

    Raises:
        OSError: no answer in time, an error status, too large, cut off; the message names the address.
    """
    deadline = time.monotonic() + timeout
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "sap-detr-hf", "Accept": "image/*,*/*;q=0.5"})
        with _opener().open(request, timeout=timeout) as response:
            return _read(response, url, deadline, max_bytes)
    except TooLarge:
        raise
    except urllib.error.HTTPError as error:
        raise OSError(f"{url}: the server answered {error.code} {first_line(error.reason)}.") from error
    except TimeoutError as error:
        raise OSError(f"{url}: not complete within {timeout:g} seconds.") from error
    except (OSError, HTTPException, ValueError) as error:  # ValueError: an address that is none
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise OSError(f"{url}: no answer within {timeout:g} seconds.") from error
        raise OSError(f"{url}: cannot be fetched ({first_line(reason)}).") from error


class TooLarge(OSError):
    """A download above its limit."""


class _Redirections(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTIONS


def _opener() -> urllib.request.OpenerDirector:
    """Only http(s): the default opener also knows file:, ftp: and data:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirections(),
    ):
        opener.add_handler(handler)
    return opener


def _read(response: HTTPResponse, url: str, deadline: float, max_bytes: int) -> bytes:
    announced = int(response.headers.get("Content-Length") or 0)
    content = bytearray()
    # `read1` returns what is there: a server that drips byte by byte meets the deadline too.
    while announced <= max_bytes and (chunk := response.read1(CHUNK)):
        content += chunk
        if len(content) > max_bytes:
            break
        if time.monotonic() > deadline:
            raise TimeoutError
    if max(announced, len(content)) > max_bytes:
        raise TooLarge(f"{url}: larger than the limit of {max_bytes / 2**20:g} MiB.")
    if len(content) < announced:
        raise OSError(f"cut off after {len(content)} of {announced} bytes")
    return bytes(content)
