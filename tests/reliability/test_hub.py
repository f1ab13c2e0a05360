"""Without a network the hub is asked once, for a short while, and then no more."""

import os
import socket

import datasets
import pytest

from poweropd_lite.base.hub import settle_hub


@pytest.fixture
def hub(monkeypatch):
    """Returns what makes an address the hub's, asked of anew."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    settle_hub.cache_clear()
    yield lambda port: monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    settle_hub.cache_clear()


@pytest.mark.parametrize("answers", [False, True])
def test_a_hub_that_refuses_or_never_answers_is_given_up(hub, answers):
    from huggingface_hub import constants

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:  # the connection, and nothing after it
            server.listen()
        hub(server.getsockname()[1])
        fault = settle_hub(0.2)
    assert fault is not None and fault.startswith(f"{constants.ENDPOINT} can't be reached (")
    assert constants.is_offline_mode()  # which the libraries ask before every request
    assert datasets.config.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1"
    constants.HF_HUB_OFFLINE = False
    assert settle_hub(0.2) == fault and not constants.is_offline_mode()  # it is asked once


def test_a_hub_that_answers_anything_is_there(hub):
    import threading

    from huggingface_hub import constants

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        hub(server.getsockname()[1])

        def answer():
            with server.accept()[0] as connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        assert settle_hub(30) is None and not constants.is_offline_mode()
