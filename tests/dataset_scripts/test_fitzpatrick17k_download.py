"""Fetching the images of Fitzpatrick17k from a host on this machine."""

import http.server
import threading

import pandas as pd
import pytest
from fitzpatrick17k_raw import (
    MELANOMA,
    NEVUS,
    Raw,
    as_jpeg,
    photograph,
)

from dataset_scripts.fitzpatrick17k import images
from dataset_scripts.fitzpatrick17k.annotations import read_annotations
from dataset_scripts.fitzpatrick17k.images import download_images


class Atlas(http.server.BaseHTTPRequestHandler):
    """Serves `server.contents` by path; drops the first connection to each path in `server.drops`."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append(self.path)
        content = server.contents.get(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        dropped = self.path in server.drops
        server.drops.discard(self.path)
        self.wfile.write(content[: len(content) // 2] if dropped else content)


@pytest.fixture
def atlas():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Atlas) as server:
        server.contents, server.drops, server.requests = {}, set(), []
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


DEAD = "http://127.0.0.1:9"  # the discard port: nothing listens
FAST = {"requests_per_second": 1000.0, "give_up_after": 3, "attempts": 2, "first_wait": 0.01}


@pytest.fixture
def remote(tmp_path, atlas) -> Raw:
    """Nothing on disk; of the live host's eight, one drops once, one is gone, one is a page, one was edited."""
    raw = Raw(tmp_path / "raw")
    for seed in range(5):
        raw.add(as_jpeg(photograph(seed)), MELANOMA, url=f"{DEAD}/{seed}.jpg", write=False)
    names = [
        raw.add(as_jpeg(photograph(10 + seed)), NEVUS, url=f"{atlas.url}/{seed}.jpg", write=False) for seed in range(8)
    ]
    raw.add(as_jpeg(photograph(30)), NEVUS, url="", write=False)
    atlas.contents = {f"/{seed}.jpg": raw.contents[name] for seed, name in enumerate(names)}
    atlas.drops.add("/0.jpg")
    del atlas.contents["/1.jpg"]
    atlas.contents["/2.jpg"] = b"<html>This atlas has moved</html>"
    atlas.contents["/3.jpg"] = as_jpeg(photograph(13), 40)
    return raw.annotate()


def test_download(remote, atlas, capsys):
    annotations = read_annotations(str(remote.folder / "fitzpatrick17k.csv"))
    names = list(remote.contents)
    failures = download_images(annotations, str(remote.folder), **FAST)
    had = {path.stem for path in (remote.folder / "images").iterdir()}
    assert had == {names[5], *names[9:13]}
    assert all(remote.path(name).read_bytes() == remote.contents[name] for name in had)
    assert "127.0.0.1:9: no answer 3 times in a row" in capsys.readouterr().err
    stored = pd.read_csv(remote.folder / "download_failures.csv", keep_default_na=False)
    assert stored.equals(failures)
    reasons = dict(zip(stored["image_id"], stored["reason"], strict=True))
    assert reasons.keys() == set(names) - had
    expected = {0: "no answer", 4: "given up", 6: "404", 7: "web page", 8: "modified", 13: "no URL"}
    assert all(text in reasons[names[number]] for number, text in expected.items())

    # What is whole is kept; what is not is fetched again, and no more than that.
    remote.path(names[5]).write_bytes(b"cut off")
    atlas.requests.clear()
    download_images(annotations, str(remote.folder), allow_modified=True, **FAST)
    assert set(atlas.requests) == {"/0.jpg", "/1.jpg", "/2.jpg", "/3.jpg"}
    assert {path.stem for path in (remote.folder / "images").iterdir()} == had | {names[8]}


def test_an_interrupted_download_keeps_its_images_and_its_list(remote, atlas, monkeypatch):
    annotations = read_annotations(str(remote.folder / "fitzpatrick17k.csv"))
    fetch_all = images.fetch_all

    def interrupt(wanted, **options):
        for name, content, reason in fetch_all(wanted, **options):
            yield name, content, reason
            if name == list(remote.contents)[9]:
                raise KeyboardInterrupt

    monkeypatch.setattr(images, "fetch_all", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download_images(annotations, str(remote.folder), **FAST)
    assert len(list((remote.folder / "images").iterdir())) == 2
    assert len(pd.read_csv(remote.folder / "download_failures.csv")) == 1 + 5 + 3
