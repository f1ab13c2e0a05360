"""A server of the bundled teacher, or another model, that answers as vLLM's does, by a real forward; and one that goes wrong.

What /v1/completions of vLLM 0.32 gives for `prompt_logprobs` 0 was read off the real one, which tests/engines/test_served.py asks.
"""

import json
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import torch

Fault = Callable[["Handler", dict], bool]  # changes an answer; whether it is still to be sent


class Server(ThreadingHTTPServer):
    """Serves `model` under `name` until it is closed; `faults` are taken one a request for completions, None for none."""

    daemon_threads = True

    def __init__(self, model, tokenizer, name: str = "bundled-teacher", port: int = 0, room: int = 512):
        super().__init__(("127.0.0.1", port), Handler)
        self.model, self.tokenizer, self.name, self.room = model, tokenizer, name, room
        self.faults: list[Fault | None] = []
        self.asked: list[dict] = []  # the bodies of completions
        self.key: str | None = None
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def answer(self, body: dict) -> dict:
        """What is sent, in an order of its own."""
        cut = self.tokenizer
        prompts = [cut(p, add_special_tokens=False)["input_ids"] if isinstance(p, str) else p for p in body["prompt"]]
        rows = [{"index": i, "prompt_logprobs": self.score(ids)} for i, ids in enumerate(prompts)]
        return {"choices": rows[::-1]}

    @torch.no_grad()
    def score(self, ids: list[int]) -> list:
        logits, next_ids = (
            self.model(input_ids=torch.tensor([ids])).logits[0, :-1].float(),
            torch.tensor(ids[1:])[:, None],
        )
        ranks = 1 + (logits > logits.gather(-1, next_ids)).sum(-1)
        found = zip(ids[1:], logits.log_softmax(-1).gather(-1, next_ids)[:, 0].tolist(), ranks.tolist(), strict=True)
        return [None, *({str(token): {"logprob": x, "rank": rank, "decoded_token": "?"}} for token, x, rank in found)]


class Proxy(Server):
    """Hands on what another server answers."""

    def __init__(self, upstream: str):
        super().__init__(None, None)
        self.upstream = upstream

    def answer(self, body: dict) -> dict:
        return httpx.post(f"{self.upstream}/v1/completions", json=body, timeout=300.0).raise_for_status().json()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_) -> None:
        pass

    def send(self, code: int, answer: dict) -> None:
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refused(self) -> bool:
        sent = self.headers.get("Authorization")
        if self.server.key is not None and sent != f"Bearer {self.server.key}":
            self.send(401, {"error": f"Unauthorized: {sent}"})
            return True
        return False

    def do_GET(self) -> None:
        if not self.refused():
            self.send(200, {"data": [{"id": self.server.name, "max_model_len": self.server.room}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        with self.server.lock:  # torch has one thread here
            self.server.asked.append(body)
            fault = self.server.faults.pop(0) if self.server.faults else None
            if body["model"] != self.server.name:
                return self.send(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
            answer = self.server.answer(body)
        with suppress(BrokenPipeError, ConnectionResetError):  # it is not waited for any more
            if fault is None or fault(self, answer):
                self.send(200, answer)


@contextmanager
def serving(model, tokenizer, **options):
    """Gives a server, closed at the end."""
    server = Server(model, tokenizer, **options)
    try:
        yield server
    finally:
        server.close()


def code(number: int) -> Fault:
    """An HTTP error."""

    def fault(handler: Handler, answer: dict) -> bool:
        handler.send(number, {"error": {"message": "EngineCore is busy", "code": number}})
        return False

    return fault


def cut_off(handler: Handler, answer: dict) -> bool:
    """Half an answer, and the connection ends."""
    body = json.dumps(answer).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True
    return False


def no_json(handler: Handler, answer: dict) -> bool:
    """A page of a proxy, say."""
    handler.send_response(200)
    handler.send_header("Content-Length", "6")
    handler.end_headers()
    handler.wfile.write(b"<html>")
    return False


def never(handler: Handler, answer: dict) -> bool:
    """No answer, as long as the server is there."""
    handler.server.closing.wait()
    return False


def last(change: Callable[[dict], object]) -> Fault:
    """Puts what `change` makes of the last token's entry in its place, in the last prompt."""

    def fault(handler: Handler, answer: dict) -> bool:
        rows = answer["choices"][0]["prompt_logprobs"]
        rows[-1] = change(rows[-1])
        return True

    return fault


def value(logprob: object) -> Fault:
    """Puts a number in the place of the last token's log-prob."""
    return last(lambda entry: {token: {**rest, "logprob": logprob} for token, rest in entry.items()})
