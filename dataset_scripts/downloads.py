"""Verified downloads with the standard library alone: a large file that resumes, many small ones from slow hosts."""

import functools
import http.client
import io
import ipaddress
import itertools
import os
import re
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping

import tqdm.auto

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import MAX_FILE_BYTES, PARTIAL_PREFIX, file_digest, made_folder

CHUNK_BYTES = 1 << 20
MAX_DOWNLOAD_BYTES = 16 << 30  # no raw file of a data set here is nearly as large
# Some hosts of medical images answer 403 to clients that do not look like a browser.
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"


class DownloadError(Exception):
    """A request that failed; `status` is the HTTP status, or None where no (whole) answer came."""

    def __init__(self, reason: str, status: int | None = None):
        super().__init__(reason)
        self.status = status

    @property
    def passing(self) -> bool:
        """Whether trying again can help."""
        return self.status is None or self.status in (408, 416, 425, 429) or self.status >= 500


def host_of(url: str) -> str:
    """The host that a URL names, with its port if it has one; empty where there is none."""
    match = re.match(r"https?://([^/?#]+)", url)
    return match[1].lower() if match else ""


def download(
    url: str,
    path: str,
    md5: str | None = None,
    *,
    attempts: int = 5,
    timeout: float = 60.0,
    first_wait: float = 1.0,
    max_seconds: float = 24 * 3600.0,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
    progress: bool = True,
) -> None:
    """Fetch `url` to the file `path`, which appears whole and verified or not at all.

    Data arrives in a hidden file beside it. A dropped connection goes on where it stopped, within a call and, where an
    `md5` vouches for the result, in a later call too. A file that is there already with the right md5 (or without one
    given) is not fetched again. `attempts` counts failures in a row without a byte of progress; the wait between them,
    in seconds, starts at `first_wait` and doubles. Raises UserError, naming what to do, if the host does not give the
    file within `max_seconds` and `max_bytes`, or gives another one twice. Addresses are those that `fetch` takes.
    """
    if os.path.isfile(path) and (md5 is None or file_digest(path, algorithm="md5") == md5):
        return
    folder, name = os.path.split(os.path.abspath(path))
    partial = os.path.join(folder, f"{PARTIAL_PREFIX}{name}.part")
    with made_folder(folder):
        if md5 is None:
            _remove(partial)
        deadline = time.monotonic() + max_seconds
        for _ in range(2):
            try:
                _complete(url, partial, attempts, timeout, first_wait, deadline, max_bytes, progress)
            except DownloadError as error:
                raise UserError(
                    f"{url}: {error}\ndownload it by hand in a browser and save it as {os.path.abspath(path)}, "
                    "or run the same command again later: it goes on where it stopped"
                ) from None
            found = file_digest(partial, algorithm="md5") if md5 else None
            if found == md5:
                os.replace(partial, path)
                return
            _remove(partial)  # no way to tell which of its bytes are wrong
        raise UserError(
            f"{url}: md5 is {found}, expected {md5}, twice\n"
            f"the host gives another file: download it by hand in a browser and save it as {os.path.abspath(path)}"
        )


def fetch(
    url: str, *, attempts: int = 3, timeout: float = 20.0, first_wait: float = 1.0, max_seconds: float = 300.0
) -> bytes:
    """The content behind a URL, for files of at most MAX_FILE_BYTES.

    Only public hosts are asked, by http or https, redirects included; this machine only where the URL itself names it.
    Raises DownloadError if no attempt gives the content whole within `max_seconds` in all.
    """
    deadline = time.monotonic() + max_seconds

    def read() -> bytes:
        with _request(url, {}, timeout, deadline) as response:
            content = b"".join(_chunks(response, MAX_FILE_BYTES))
            _check_length(len(content), _total_length(response, 0))
            return content

    for attempt in itertools.count(1):
        try:
            return read()
        except DownloadError as error:
            if not error.passing or attempt >= attempts or time.monotonic() > deadline:
                raise
        time.sleep(first_wait * 2 ** (attempt - 1))


def fetch_all(
    urls: Mapping[str, str],
    *,
    requests_per_second: float = 2.0,
    give_up_after: int = 5,
    attempts: int = 3,
    timeout: float = 20.0,
    first_wait: float = 1.0,
) -> Iterator[tuple[str, bytes, str]]:
    """Fetch many small files politely, host by host: (name, content, ""), or (name, b"", why not).

    `urls` maps names to URLs. A host that does not answer `give_up_after` files in a row is given up with a line, so
    that a dead one does not block the others.
    """
    hosts: dict[str, list[str]] = {}
    for name, url in urls.items():
        hosts.setdefault(host_of(url), []).append(name)
    with tqdm.auto.tqdm(total=len(urls), desc="downloading", unit="file") as bar:
        for host, names in hosts.items():
            unanswered = 0
            for position, name in enumerate(_paced(names, requests_per_second), start=1):
                content, reason = b"", ""
                try:
                    content = fetch(urls[name], attempts=attempts, timeout=timeout, first_wait=first_wait)
                    unanswered = 0
                except DownloadError as error:
                    reason = str(error)
                    unanswered = unanswered + 1 if error.status is None else 0
                bar.update()
                yield name, content, reason
                if unanswered >= give_up_after:
                    _tell(bar, f"{host}: no answer {unanswered} times in a row; giving up its other files")
                    for rest in names[position:]:
                        bar.update()
                        yield rest, b"", f"{host} was given up: it does not answer"
                    break


def _paced(names: Iterable[str], per_second: float) -> Iterator[str]:
    start = 0.0
    for name in names:
        time.sleep(max(0.0, start - time.monotonic()))
        start = time.monotonic() + 1 / per_second
        yield name


def _complete(
    url: str,
    partial: str,
    attempts: int,
    timeout: float,
    first_wait: float,
    deadline: float,
    max_bytes: int,
    progress: bool,
) -> None:
    """Add to the file `partial` until it is as long as the host says, over as many connections as that takes."""
    failures, validator = 0, None
    with tqdm.auto.tqdm(
        desc=os.path.basename(partial), unit="B", unit_scale=True, unit_divisor=1024, disable=not progress
    ) as bar:
        while True:
            size = _size(partial)
            # The last byte is asked for again: a range that starts at the end of a whole file would be refused.
            start = max(0, size - 1)
            headers = {"Range": f"bytes={start}-"} if start else {}
            if start and validator:
                headers["If-Range"] = validator  # a file that changed on the host starts afresh
            try:
                with _request(url, headers, timeout, deadline) as response:
                    validator = _strong_validator(response) or validator
                    _append(response, partial, start, max_bytes, bar)
                return
            except DownloadError as error:
                if error.status == 416:  # longer than the host's file
                    _remove(partial)
                failures = 1 if _size(partial) > size else failures + 1
                if not error.passing or failures >= attempts or time.monotonic() > deadline:
                    raise
                wait = first_wait * 2 ** (failures - 1)
                _tell(bar, f"{url}: {error}; trying again in {wait:g} s")
            time.sleep(wait)


def _append(response: http.client.HTTPResponse, partial: str, start: int, max_bytes: int, bar: tqdm.auto.tqdm) -> None:
    """Write a response's body into `partial` from byte `start` on, or from 0 where the host ignored the range.

    Raises DownloadError where the body ends too soon.
    """
    if response.status == 206:
        content_range = response.headers.get("Content-Range", "")
        if not re.match(rf"bytes {start}-", content_range):
            raise DownloadError(f"the host answers the range {content_range!r} when asked for {start}-", 400)
    else:
        start = 0
    bar.total, bar.n = _total_length(response, start), start
    bar.refresh()
    with open(partial, "ab") as file:
        file.truncate(start)
        for chunk in _chunks(response, max_bytes - start):
            file.write(chunk)
            bar.update(len(chunk))
    _check_length(_size(partial), bar.total)


def _request(url: str, headers: dict[str, str], timeout: float, deadline: float) -> http.client.HTTPResponse:
    """An open response. Raises DownloadError: with the status the host answers, or without where it does not."""
    if not url.startswith(("http://", "https://")):
        raise DownloadError("not an http or https address", 400)
    try:
        address = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
        request = urllib.request.Request(address, headers={"User-Agent": BROWSER, "Accept": "*/*", **headers})
        opener = urllib.request.build_opener(_WebHandler(deadline, _is_loopback(request.host)), _RedirectHandler)
        return opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            raise DownloadError(f"the host answers {error.code} {error.reason}", error.code) from None
    except ValueError as error:  # http.client.InvalidURL is of this kind
        raise DownloadError(f"not a valid address ({error})", 400) from None
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"no answer ({_reason(error)})") from None


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, response, code, message, headers, url):
        if not url.startswith(("http://", "https://")):  # urllib follows to ftp, too
            raise DownloadError(f"the host leads to {url}, which is not an http or https address", code)
        return super().redirect_request(request, response, code, message, headers, url)


class _WebHandler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections that end at `deadline` (of time.monotonic) and reach public hosts, or else this machine."""

    def __init__(self, deadline: float, from_loopback: bool):
        super().__init__()
        self.limits = {"deadline": deadline, "from_loopback": from_loopback}

    def http_open(self, request):
        return self.do_open(_HTTPConnection, request, **self.limits, by_proxy=request.has_proxy())

    def https_open(self, request):
        return self.do_open(_HTTPSConnection, request, **self.limits, by_proxy=request._tunnel_host is not None)


class _LimitedConnection:
    def __init__(self, *arguments, deadline: float, from_loopback: bool, by_proxy: bool, **options):
        super().__init__(*arguments, **options)
        self.response_class = functools.partial(_LimitedResponse, deadline=deadline)
        self.from_loopback, self.by_proxy = from_loopback, by_proxy

    def connect(self):
        super().connect()
        # The address that was reached, not the name, which may mean another one a moment later. A proxy has a
        # private one, and looks up the names itself.
        address = self.sock.getpeername()[0]
        if not (self.by_proxy or _is_public(address) or (self.from_loopback and _is_loopback(address))):
            self.close()
            raise DownloadError(f"{self.host} is not a public host but {address}", 403)


class _HTTPConnection(_LimitedConnection, http.client.HTTPConnection):
    pass


class _HTTPSConnection(_LimitedConnection, http.client.HTTPSConnection):
    pass


class _LimitedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments, deadline: float, **options):
        super().__init__(sock, *arguments, **options)
        self.fp = io.BufferedReader(_LimitedStream(sock, deadline))


class _LimitedStream(io.RawIOBase):
    """What a socket receives until `deadline`; its own timeout begins anew with every byte."""

    def __init__(self, sock: socket.socket, deadline: float):
        self.sock, self.timeout, self.deadline = sock, sock.gettimeout(), deadline
        self.stream = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("longer than the time allowed in all")
        self.sock.settimeout(min(self.timeout, left))
        return self.stream.readinto(buffer)

    def close(self) -> None:
        self.stream.close()
        super().close()


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_global


def _is_loopback(host: str) -> bool:
    """Whether a host, with its port or without, is this machine by its name or address."""
    name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _chunks(response: http.client.HTTPResponse, max_bytes: int) -> Iterator[bytes]:
    """The body; DownloadError where the connection breaks, and where it is longer than `max_bytes`."""
    too_long = DownloadError(f"longer than {max_bytes:,} bytes", 413)
    if (_total_length(response, 0) or 0) > max_bytes:
        raise too_long
    # A generator, so that a full disk where the chunks are written is not taken for a dropped connection.
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise DownloadError(f"the connection dropped ({_reason(error)})") from None
        if not chunk:
            return
        max_bytes -= len(chunk)
        if max_bytes < 0:
            raise too_long
        yield chunk


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _total_length(response: http.client.HTTPResponse, start: int) -> int | None:
    length = response.headers.get("Content-Length")
    return start + int(length) if length and length.isdigit() else None


def _check_length(size: int, expected: int | None) -> None:
    if expected is not None and size < expected:
        raise DownloadError(f"the connection dropped ({size:,} of {expected:,} bytes)")


def _strong_validator(response: http.client.HTTPResponse) -> str | None:
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else None


def _tell(bar: tqdm.auto.tqdm, line: str) -> None:
    bar.write(line, file=sys.stderr)


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0


def _remove(path: str) -> None:
    if os.path.isfile(path):
        os.remove(path)
