"""Where the Hub does not answer, its clients are not left to try for minutes."""

import socket
import threading
import time

import datasets
import pytest
from huggingface_hub import constants

from melanoma_fair_xai.base import hub_client
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.hub_client import local_folder, look_for_hub, open_repository
from melanoma_fair_xai.data.loading import load_records


@pytest.fixture
def listener(monkeypatch, tmp_path):
    """A socket as the Hub, which accepts and says nothing; asked for the first time."""
    for owner in (constants, datasets.config):
        monkeypatch.setattr(owner, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub_client, "CONTACT", 0.3)
    look_for_hub.cache_clear()
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server
    look_for_hub.cache_clear()


def never_again(*_, **__):
    raise AssertionError("tried again")


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "refused"])
def test_what_is_asked_of_a_hub_that_does_not_answer_ends_at_once(listener, silent, monkeypatch, tmp_path):
    monkeypatch.setattr(time, "sleep", never_again)
    if not silent:
        listener.close()
    for ask in (
        lambda: local_folder("someone/none", ["config.json"]),
        lambda: load_records("someone/none"),
        lambda: open_repository("someone/none", "model", True),
    ):
        monkeypatch.setenv("HF_TOKEN", "hf_x")
        with pytest.raises(UserError, match=r"no connection to the Hub \((timed out|no answer within|.*refused)"):
            ask()
    assert constants.is_offline_mode() and datasets.config.HF_HUB_OFFLINE


def test_a_host_that_is_looked_up_for_ever_has_no_more_time(listener, monkeypatch):
    looked_up = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: looked_up.wait(20) and [])
    monkeypatch.setattr(constants, "ENDPOINT", "http://somewhere.invalid")
    threads = set(threading.enumerate())
    assert look_for_hub() == "no answer within 0.3 seconds"
    looked_up.set()
    for thread in set(threading.enumerate()) - threads:  # others may fork
        thread.join()


def test_any_answer_is_one_and_nobody_is_asked_offline(listener, monkeypatch):
    monkeypatch.setattr(hub_client, "CONTACT", 10)

    def answer():
        connection = listener.accept()[0]
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
        connection.close()

    thread = threading.Thread(target=answer)
    thread.start()
    assert look_for_hub() is None and not constants.is_offline_mode()
    thread.join()
    look_for_hub.cache_clear()
    listener.close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert look_for_hub() is None  # the user said so
    with pytest.raises(UserError, match="not asked for, as HF_HUB_OFFLINE is set"):
        local_folder("someone/none", ["config.json"])
