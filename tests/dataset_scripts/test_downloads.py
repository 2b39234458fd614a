"""Downloads against a real HTTP server on this machine, which misbehaves on request."""

import hashlib
import http.server
import os
import re
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dataset_scripts import downloads
from dataset_scripts.downloads import DownloadError, download, fetch, fetch_all
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.files import file_digest

CONTENT = np.random.default_rng(0).bytes(3_000_000)
PARTIAL = ".partial-file.bin.part"
MD5 = hashlib.md5(CONTENT).hexdigest()


class Host(http.server.ThreadingHTTPServer):
    """Serves CONTENT at every path, after going wrong once for each entry of `faults`; keeps the requests' headers.

    Faults: "drop" (half of the body), "wrong_byte", "no_range" (all of it, with status 200), "change" (of the ETag),
    "slow headers" and "slow body" (a byte now and then, without end), a status to answer, or an address to lead to;
    None where nothing goes wrong.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.requests, self.bytes_sent = [], [], 0
        self.etag, self.content_length = None, True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        host = self.server
        host.requests.append({"path": self.path, "time": time.monotonic(), **self.headers})
        fault = host.faults.pop(0) if host.faults else None
        if fault == "change":
            host.etag, fault = '"second"', 500
        if isinstance(fault, int):
            return self.send_error(fault)
        if fault in ("slow headers", "slow body"):
            return self.trickle(b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if fault == "slow body" else b""))
        if fault and ":" in fault:
            self.send_response(302)
            self.send_header("Location", fault)
            return self.end_headers()
        body = bytearray(CONTENT)
        if fault == "wrong_byte":
            body[len(body) // 2] ^= 1
        start = re.match(r"bytes=(\d+)-$", self.headers.get("Range", ""))
        whole = fault == "no_range" or not start or self.headers.get("If-Range", host.etag) != host.etag
        start = 0 if whole else int(start[1])
        if start >= len(body):
            return self.send_error(416)
        self.send_response(200 if whole else 206)
        if host.content_length:
            self.send_header("Content-Length", str(len(body) - start))
        if host.etag:
            self.send_header("ETag", host.etag)
        if not whole:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        sent = body[start : (start + len(body)) // 2] if fault == "drop" else body[start:]
        host.bytes_sent += len(sent)
        self.wfile.write(sent)

    def trickle(self, start: bytes) -> None:
        self.wfile.write(start)
        try:
            while True:
                self.wfile.write(b"x")
                time.sleep(0.02)
        except OSError:  # hung up
            pass


@pytest.fixture
def host():
    with Host() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def silent_url():
    """An address of this machine where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}/file.bin"


def get(url: str, path: Path, md5: str | None = MD5, **options) -> None:
    download(url, str(path), md5, first_wait=0.01, progress=False, **options)


def ranges(host: Host) -> list:
    return [request.get("Range") for request in host.requests]


def check_whole(path: Path) -> None:
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == [path.name], "nothing may be left beside it"


def test_a_file_arrives_in_a_new_folder_and_is_not_fetched_twice(host, tmp_path):
    path = tmp_path / "raw" / "file.bin"
    get(host.url, path)
    check_whole(path)
    assert file_digest(path, algorithm="md5") == MD5
    get(host.url, path)
    get(host.url, path, md5=None)
    assert len(host.requests) == 1
    assert host.requests[0]["User-Agent"].startswith("Mozilla/")


def test_a_wrong_file_that_is_there_is_replaced(host, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT[:-1])
    get(host.url, path)
    check_whole(path)


@pytest.mark.parametrize("md5", [MD5, None])
def test_a_dropped_connection_goes_on_where_it_stopped(host, tmp_path, md5):
    host.faults = ["drop"]
    get(host.url, tmp_path / "file.bin", md5)
    check_whole(tmp_path / "file.bin")
    assert ranges(host) == [None, f"bytes={len(CONTENT) // 2 - 1}-"]
    assert host.bytes_sent == len(CONTENT) + 1


def test_many_drops_are_borne_as_long_as_data_arrive(host, tmp_path):
    host.faults = ["drop"] * 8
    get(host.url, tmp_path / "file.bin", attempts=2)
    check_whole(tmp_path / "file.bin")


def test_a_host_that_ignores_the_range_makes_it_start_afresh(host, tmp_path):
    host.faults = ["drop", "no_range"]
    get(host.url, tmp_path / "file.bin")
    check_whole(tmp_path / "file.bin")


def test_a_file_that_changed_on_the_host_is_not_sewn_together(host, tmp_path):
    host.faults, host.etag = ["drop", "change"], '"first"'
    get(host.url, tmp_path / "file.bin", md5=None)
    check_whole(tmp_path / "file.bin")
    assert host.requests[2]["If-Range"] == '"first"'
    assert host.bytes_sent == len(CONTENT) * 3 // 2


def test_a_partial_file_of_an_earlier_call_is_used_only_with_a_checksum(host, tmp_path):
    path = tmp_path / "file.bin"
    partial = tmp_path / PARTIAL
    partial.write_bytes(CONTENT[:1000])
    get(host.url, path)
    check_whole(path)
    assert ranges(host) == ["bytes=999-"]
    path.unlink()
    (tmp_path / "file.bin.partial").write_bytes(b"of the user's browser")
    partial.write_bytes(b"of an older edition")
    get(host.url, path, md5=None)
    assert path.read_bytes() == CONTENT and not partial.exists()
    assert (tmp_path / "file.bin.partial").read_bytes() == b"of the user's browser"


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"more"], ids=["whole", "too long"])
def test_a_partial_file_that_is_whole_or_too_long(host, tmp_path, left):
    (tmp_path / PARTIAL).write_bytes(left)
    get(host.url, tmp_path / "file.bin")
    check_whole(tmp_path / "file.bin")
    assert host.bytes_sent == (1 if left == CONTENT else len(CONTENT))


def test_one_wrong_byte_is_noticed_and_fetched_again_from_scratch(host, tmp_path):
    host.faults = ["wrong_byte"]
    get(host.url, tmp_path / "file.bin")
    check_whole(tmp_path / "file.bin")
    assert ranges(host) == [None, None]


def test_a_drop_then_a_wrong_byte_before_it(host, tmp_path):
    """What a real bad day looks like: the first half is bad, the second is resumed and good."""
    (tmp_path / PARTIAL).write_bytes(bytes(1000))
    get(host.url, tmp_path / "file.bin")
    check_whole(tmp_path / "file.bin")
    assert ranges(host) == ["bytes=999-", None]


def test_a_wrong_checksum_twice_is_an_error_that_names_both(host, tmp_path):
    expected = "0" * 32
    with pytest.raises(UserError) as caught:
        get(host.url, tmp_path / "file.bin", md5=expected)
    assert all(text in str(caught.value) for text in (host.url, expected, MD5))
    assert len(host.requests) == 2 and os.listdir(tmp_path) == []


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_passing_error_is_tried_again(host, tmp_path, status):
    host.faults = [status]
    get(host.url, tmp_path / "file.bin")
    check_whole(tmp_path / "file.bin")


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final_and_says_what_to_do(host, tmp_path, status):
    host.faults = [status]
    with pytest.raises(UserError, match=f"{status}.*\n.*by hand in a browser.*file.bin") as caught:
        get(host.url, tmp_path / "file.bin")
    assert str(caught.value).count("\n") == 1
    assert len(host.requests) == 1 and os.listdir(tmp_path) == []
    host.faults = [status]
    with pytest.raises(UserError):
        get(host.url, tmp_path / "new" / "raw" / "file.bin")
    assert os.listdir(tmp_path) == []


def test_no_answer_is_an_error_after_a_few_attempts(silent_url, tmp_path):
    with pytest.raises(UserError, match="(?i)no answer.*refused.*\n.*by hand"):
        get(silent_url, tmp_path / "file.bin", attempts=2)


def test_a_host_that_stays_silent_times_out(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/file.bin"
        with pytest.raises(UserError, match="timed out"):
            get(url, tmp_path / "file.bin", attempts=1, timeout=0.1)


def test_what_was_had_of_a_failed_download_is_kept(host, tmp_path):
    host.faults = ["drop", 404]
    with pytest.raises(UserError, match="404"):
        get(host.url, tmp_path / "file.bin")
    assert (tmp_path / PARTIAL).read_bytes() == CONTENT[: len(CONTENT) // 2]


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "", "http://[", "http://a b:x/"])
def test_only_web_addresses_are_opened(url, tmp_path):
    with pytest.raises(UserError, match="address"):
        get(url, tmp_path / "file.bin")


def test_a_full_disk_is_not_taken_for_a_dropped_connection(host, tmp_path, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    (tmp_path / PARTIAL).symlink_to("/dev/full")
    monkeypatch.setattr("dataset_scripts.downloads.os.path.isfile", os.path.exists)
    with pytest.raises(OSError, match="No space|Invalid argument"):
        get(host.url, tmp_path / "file.bin")
    assert len(host.requests) == 1


def test_fetch_gives_small_files_whole_or_not_at_all(host):
    host.faults = ["drop", 500]
    assert fetch(host.url, first_wait=0.01) == CONTENT
    assert len(host.requests) == 3
    assert fetch(host.url.replace("file.bin", "a picture é.jpg"), first_wait=0.01) == CONTENT
    assert host.requests[-1]["path"] == "/a%20picture%20%C3%A9.jpg"


def test_fetch_all_goes_on_after_failures_and_gives_up_a_dead_host(host, silent_url, capsys):
    host.faults = [404, "drop"]
    urls = {f"dead{i}": f"{silent_url}?{i}" for i in range(9)} | {f"live{i}": f"{host.url}?{i}" for i in range(3)}
    had = {
        name: (content, reason)
        for name, content, reason in fetch_all(
            urls, requests_per_second=1000, give_up_after=3, attempts=2, first_wait=0.01
        )
    }
    assert list(had) == list(urls), "every file is accounted for, once"
    assert [name for name, (content, _) in had.items() if content == CONTENT] == ["live1", "live2"]
    assert "404" in had["live0"][1]
    assert all("no answer" in had[f"dead{i}"][1] for i in range(3))
    assert all("given up" in had[f"dead{i}"][1] for i in range(3, 9))
    assert "3 times in a row" in capsys.readouterr().err


def test_fetch_all_is_polite(host):
    urls = {str(i): f"{host.url}?{i}" for i in range(4)}
    begun = time.monotonic()
    assert all(content for _, content, _ in fetch_all(urls, requests_per_second=10))
    arrived = np.array([request["time"] for request in host.requests])
    # A busy machine may see a request late, and the next one soon after it, but none before its turn.
    assert (arrived - begun > 0.095 * np.arange(4)).all()


def test_a_host_that_answers_now_and_then_is_not_given_up(host):
    host.faults = ["drop", "drop", 404, "drop", "drop", None, "drop", "drop"]
    urls = {str(i): f"{host.url}?{i}" for i in range(9)}
    had = fetch_all(urls, requests_per_second=1000, give_up_after=3, attempts=1, first_wait=0.01)
    assert [bool(reason) for _, _, reason in had] == [True] * 5 + [False] + [True] * 2 + [False]


@pytest.mark.parametrize("fault", ["slow headers", "slow body"])
def test_a_host_that_never_ends_is_given_up_in_time(host, tmp_path, fault):
    host.faults = [fault, fault]
    with pytest.raises(DownloadError, match="(no answer|dropped).*(time allowed|timed out)"):
        fetch(host.url, max_seconds=0.2)
    with pytest.raises(UserError, match="time allowed|timed out"):
        get(host.url, tmp_path / "file.bin", max_seconds=0.2)
    assert len(host.requests) <= 2, "nothing is tried again"


@pytest.mark.parametrize("says_length", [True, False])
def test_more_than_a_file_may_have_is_not_fetched(host, tmp_path, monkeypatch, says_length):
    host.content_length = says_length
    monkeypatch.setattr(downloads, "MAX_FILE_BYTES", len(CONTENT) - 1)
    with pytest.raises(DownloadError, match="longer than 2,999,999 bytes"):
        fetch(host.url)
    get(host.url, tmp_path / "whole" / "file.bin", max_bytes=len(CONTENT))
    host.faults = ["drop"]
    with pytest.raises(UserError, match="longer than"):
        get(host.url, tmp_path / "file.bin", max_bytes=len(CONTENT) - 1)
    assert not (tmp_path / "file.bin").exists()


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/x", "file:///etc/hostname", "data:,x"])
def test_redirects_lead_to_web_addresses_only(host, address):
    host.faults = [f"{host.url}?again", address]
    with pytest.raises(DownloadError, match=f"{re.escape(address)}.* (not|no) ") as caught:
        fetch(host.url)
    assert not caught.value.passing and len(host.requests) == 2


def test_a_public_name_or_redirect_that_means_this_machine_is_refused(host, monkeypatch):
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *rest, **more: resolve("127.0.0.1", *rest, **more))
    url = host.url.replace("127.0.0.1", "atlas.example")
    with pytest.raises(DownloadError, match="atlas.example is not a public host but 127.0.0.1") as caught:
        fetch(url)
    assert not caught.value.passing and host.requests == []
    first = iter([True])
    monkeypatch.setattr(downloads, "_is_public", lambda address: next(first, False))
    host.faults = [host.url]
    with pytest.raises(DownloadError, match="127.0.0.1 is not a public host"):
        fetch(url)
    assert len(host.requests) == 1


def test_which_addresses_are_public():
    private = ["10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "127.0.0.1", "0.0.0.0", "100.64.0.1"]
    private += ["::1", "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1"]
    assert not any(map(downloads._is_public, private))
    assert all(map(downloads._is_public, ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"]))
    assert all(map(downloads._is_loopback, ["localhost", "localhost:80", "127.0.0.1:1", "[::1]:443", "[::1]"]))
    assert not any(map(downloads._is_loopback, ["10.0.0.1", "localhost.example", "127.0.0.1.example", ""]))


def test_a_proxy_may_have_a_private_address(host, monkeypatch):
    monkeypatch.setenv("http_proxy", host.url.removesuffix("/file.bin"))
    monkeypatch.setenv("no_proxy", "")
    assert fetch("http://atlas.example/file.bin") == CONTENT
    assert host.requests[0]["path"] == "http://atlas.example/file.bin"
