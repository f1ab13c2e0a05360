"""A teacher that another program serves: log p of given ids, from vLLM's OpenAI-compatible server (docs/teachers.md).

A micro-batch is a request: each rollout's ids as a prompt, up to its last token in the loss, with `prompt_logprobs` 0 and one new
token that nobody reads. What comes back is taken only where it is the log-prob of the very id that was asked for. A server that
breaks off is asked again after a pause, and must first show that it is still the same model.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, NoReturn

import httpx
import torch
from torch import Tensor

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError, cut, printable
from poweropd_lite.base.progress import clock
from poweropd_lite.base.teachers import KEY, files_of
from poweropd_lite.kernels.products import Head
from poweropd_lite.method.batch import MicroBatch
from poweropd_lite.models.loading import load_tokenizer

PAUSES = 0.1, 30.0  # seconds: the first, and the longest, to which they double
SAME = 0.05  # nats a token, on average, that two answers of one model to the known texts may be apart: 16 bits round by less
LOWEST = -1000.0  # no log-prob is below it; vLLM writes -9999 for minus infinity
ROUNDING = 1e-5  # nor above this, up to which it counts as 0
BUSY = {408, 425, 429}  # codes of a server that may answer later, beside those from 500 on
TEXTS = (
    "What is 12 * (7 - 3) + 5?\nFirst 7 - 3 = 4, then 12 * 4 = 48, and 48 + 5 = 53. The answer is \\boxed{53}.",
    "Let x = 3.14;\n\n  give f(x) — naïve café, 東京, 😀.\tEnd",
)


class TeacherFault(UserError):
    """The served teacher is gone, is another one, or answers what is no log-prob; the weights are as before the step."""


class WaitStopped(Exception):
    """A stop was asked for while the teacher was waited for; the weights are as before the step."""


class Away(Exception):
    """The server did not answer, and may do so later."""


@dataclass(frozen=True)
class Asked:
    """What the teacher is to read of one rollout."""

    ids: list[int]
    first: int  # the place of the first id whose log-prob counts; all from there on do


class ServedTeacher:
    """Stands where a teacher does that is loaded (models/teacher.py), for log p of given ids alone."""

    compiled = None  # as of a teacher whose layers are not

    def __init__(
        self, address: str, name: str, known: dict[str, list[int]], longest: int = 0, concurrency: int = 4,
        timeout: float = 300.0, patience: float = 600.0, say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        """`known` are texts as ids, by the tokenizer that the server must have; `longest` the most ids of a rollout."""
        self.address, self.name, self.known = address.rstrip("/").removesuffix("/v1"), name, known
        self.longest, self.concurrency, self.timeout, self.patience = longest, concurrency, timeout, patience
        self.say, secure = say, address.lower().startswith("https")
        self.certificates = httpx.create_ssl_context() if secure else False  # read once: it takes longer than a request
        self.stopped: Callable[[], bool] = lambda: False  # asked while it waits for the server
        self.said: list[float] = []  # of the known texts, once it was asked

    @property
    def head(self) -> Head:
        """There is none."""
        self._never()

    def hiddens(self, several: Sequence[Tensor]) -> Iterator[Tensor]:
        """There are none."""
        self._never()

    def _never(self) -> NoReturn:
        raise UserError(
            f"{self.name} is served, and gives log-probs of tokens alone; type --teacher with a hub id or folder"
        )

    def token_logprobs(self, batches: Iterable[MicroBatch], count: int) -> Tensor:
        """Returns log p of the `teacher_ids` of all N tokens, [N] float32, on the batches' device.

        The known texts are asked beside them. Raises TeacherFault for an answer that can't be used, another model and a server
        that stays away, and WaitStopped.
        """
        batches = list(batches)
        known, *answers = self._answers([self._known, *map(_asked, batches)])
        self._check_said(known)
        out = torch.zeros(count, device=batches[0].ids.device if batches else None)
        for batch, values in zip(batches, answers, strict=True):
            out[batch.order] = torch.tensor(values, device=out.device)
        return out

    def check(self) -> None:
        """Asks for the model, the known texts and their log-probs, which must be as before. Raises TeacherFault, and Away."""
        with self._client() as client:
            self._check_model(client)
            try:
                by_text, by_ids = self._ask(client, self._known, list(self.known)), self._ask(client, self._known)
            except TeacherFault as fault:
                raise TeacherFault(
                    f"{fault}\nIt was asked for known texts, cut by the tokenizer of teacher_tokenizer (or teacher_name): is it that of "
                    f"{self.name}? --teacher-tokenizer names another"
                ) from None
        if apart(by_text, by_ids) > SAME:
            raise self._fault("scores a text otherwise than its ids; is it vLLM's server?")
        self._check_said(by_ids)
        self.said = self.said or by_ids

    @property
    def _known(self) -> list[Asked]:
        return [Asked(ids, 1) for ids in self.known.values()]

    def _check_said(self, known: list[float]) -> None:
        if self.said and (moved := apart(self.said, known)) > SAME:
            raise self._fault(
                f"is another model than before: what it says of known texts has moved by {moved:.3g} nats a token (limit {SAME:g}); "
                "serve the one that the run began with"
            )

    def _check_model(self, client: httpx.Client) -> None:
        try:
            rooms = {
                str(model["id"]): model.get("max_model_len") for model in self._send(client, "GET", "models")["data"]
            }
        except (LookupError, TypeError, AttributeError):
            raise TeacherFault(f"{self.address}/v1/models is no list of models; is it vLLM's server?") from None
        if self.name not in rooms:
            raise TeacherFault(
                f"{self.address} serves {', '.join(map(cut, rooms)) or 'nothing'}, and not {self.name}; type --teacher-name with what "
                "it serves, or serve that one"
            )
        room = rooms[self.name]
        if isinstance(room, int) and room <= self.longest:  # one new token is made
            raise TeacherFault(
                f"{self.address} takes {room} tokens, and a rollout may have {self.longest} and one more is made; serve it with "
                f"--max-model-len {self.longest + 1}, or lower --max-new-tokens"
            )

    def _answers(self, requests: list[list[Asked]]) -> list[list[float]]:
        """Returns the log-probs of each request, in order; after a break the server is checked, and asked for what is left."""
        done: dict[int, list[float]] = {}
        away: Away | None = None
        began, pauses = None, self._pauses()
        while left := [i for i in range(len(requests)) if i not in done]:
            try:
                if away is not None:
                    if began is None and self.patience:
                        began = time.monotonic()
                        self.say(
                            f"the teacher at {self.address} is away ({away}): waiting for it, {self.patience:g} s at most"
                        )
                    self._wait(next(pauses, None), away)
                    self.check()
                answers, away = self._side_by_side(requests, left)
            except Away as error:
                answers, away = {}, error
            done |= answers
            if answers and began is not None:
                self.say(f"the teacher answers again, after {clock(time.monotonic() - began)}")
            if answers:
                began, pauses = None, self._pauses()
        return [done[i] for i in range(len(requests))]

    def _pauses(self) -> Iterator[float]:
        """Gives seconds to wait, doubling, of `patience` in all."""
        pause, left = PAUSES[0], self.patience
        while left > 0:
            yield min(pause, left)
            left -= pause
            pause = min(2 * pause, PAUSES[1])

    def _wait(self, seconds: float | None, away: Away) -> None:
        if seconds is None:
            raise TeacherFault(
                f"the teacher {self.name} at {self.address} is away ({away}), and was waited for as long as teacher_patience says: "
                f"{self.patience:g} s. What there was is saved: start its server, and type the command again (train with --resume)"
            )
        end = time.monotonic() + seconds
        while not self.stopped() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))
        if self.stopped():
            raise WaitStopped

    def _side_by_side(
        self, requests: list[list[Asked]], places: list[int]
    ) -> tuple[dict[int, list[float]], Away | None]:
        """Sends the requests at some places; returns the answers by place, and what broke off, if something did.

        What was not sent by then is not sent. By threads that no end of this process waits for.
        """
        left, failed = iter(places), threading.Event()
        told = SimpleQueue[tuple[int, list[float] | Exception] | None]()

        def work() -> None:
            while not failed.is_set() and (i := next(left, None)) is not None:
                try:
                    told.put((i, self._ask(client, requests[i])))
                except Exception as error:
                    failed.set()
                    told.put((i, error))
            told.put(None)

        answers: dict[int, list[float]] = {}
        away, running = None, min(self.concurrency, len(places))
        with self._client() as client:
            for _ in range(running):
                threading.Thread(target=work, daemon=True).start()
            while running:
                if (one := told.get()) is None:
                    running -= 1
                elif isinstance(one[1], Away):
                    away = one[1]
                elif isinstance(one[1], Exception):
                    raise one[1]
                else:
                    answers[one[0]] = one[1]
        return answers, away

    def _ask(self, client: httpx.Client, asked: list[Asked], prompts: list[str] | None = None) -> list[float]:
        """Returns the log-probs that count, one rollout after the other; `prompts` are sent in place of the ids."""
        body = {
            "model": self.name,
            "prompt": [one.ids for one in asked] if prompts is None else prompts,
            "prompt_logprobs": 0,  # of the id itself alone
            "max_tokens": 1,
            "temperature": 1.0,
            "add_special_tokens": False,
        }
        answer = self._send(client, "POST", "completions", body)
        try:
            rows = {choice["index"]: choice["prompt_logprobs"] for choice in answer["choices"]}
            return [value for i, one in enumerate(asked) for value in self._values(rows[i], one)]
        except (LookupError, TypeError, AttributeError):
            raise self._fault("gives no prompt_logprobs for each prompt; is it vLLM's server?") from None

    def _values(self, row: list[Any], asked: Asked) -> Iterator[float]:
        """Gives the log-probs of the ids that count, out of a row with an entry an id, by id; the first id has none."""
        if len(row) != len(asked.ids):
            raise self._fault(f"gives {len(row)} log-probs for {len(asked.ids)} ids")
        for place in range(asked.first, len(row)):
            found, token = row[place] or {}, asked.ids[place]
            if str(token) not in found:
                raise self._fault(f"gives the log-prob of {', '.join(map(str, found)) or 'nothing'} for id {token}")
            value = found[str(token)]["logprob"]
            if type(value) not in (int, float) or not LOWEST < value <= ROUNDING:  # NaN is neither
                raise self._fault(
                    f"says {value} of id {token}, which is no log-prob; it must run with --logprobs-mode raw_logprobs (the default) "
                    "and sound weights"
                )
            yield min(float(value), 0.0)

    def _fault(self, what: str) -> TeacherFault:
        return TeacherFault(f"{self.name} at {self.address} {what}")

    def _client(self) -> httpx.Client:
        """One for each use: a connection kept over the student's part of a step is one that the server closes under our hands."""
        key = os.environ.get(KEY, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise TeacherFault(f"{KEY} holds letters that no HTTP header can; export it anew")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Timeout(self.timeout, connect=min(self.timeout, 30.0))
        return httpx.Client(headers=headers, timeout=limits, verify=self.certificates)

    def _send(self, client: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Returns the server's JSON; raises Away for what may pass, and TeacherFault for what does not."""
        try:
            reply = client.request(method, f"{self.address}/v1/{path}", json=body)
        except httpx.RequestError as error:
            raise Away(self._words(f"{type(error).__name__} {error}")) from None
        code = reply.status_code
        if code in (401, 403):
            raise TeacherFault(
                f"{self.address} refuses the key, or wants one ({code}): export {KEY}=... and type it again"
            )
        if code != 200:
            words = f"HTTP {code}: {self._words(reply.text)}"
            if code >= 500 or code in BUSY:
                raise Away(words)
            raise TeacherFault(f"{self.address} refuses a request: {words}")
        try:
            return reply.json()
        except ValueError:
            raise Away("its answer is no JSON") from None

    def _words(self, text: str) -> str:
        """Returns what a server or library says, cut and without the key, which some quote."""
        key = os.environ.get(KEY, "").strip()
        return cut(printable(" ".join((text.replace(key, "***") if key else text).split())), 300)


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns how far apart two answers to the known texts are, nats a token: infinitely where they are of other texts."""
    if not one or len(one) != len(other):
        return math.inf
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def _asked(batch: MicroBatch) -> list[Asked]:
    """Returns a micro-batch as the teacher reads it: prompts, and behind each the ids whose log p counts."""
    ids, found = batch.ids.tolist(), dict[int, Asked]()
    for line, column, token in zip(
        batch.lines.tolist(), batch.columns.tolist(), batch.teacher_ids.tolist(), strict=True
    ):
        found.setdefault(line, Asked(ids[line][: column + 1], column + 1)).ids.append(token)
    return list(found.values())


def connect(config: Config, say: Callable[[str], None]) -> ServedTeacher:
    """Returns a config's served teacher, which has answered; raises UserError where it does not, or not as it should."""
    tokenizer = load_tokenizer(files_of(config, "teacher"), "teacher", config.trust_remote_code)
    known = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS}
    limits = config.teacher_concurrency, config.teacher_timeout, config.teacher_patience
    longest = config.max_prompt_tokens + config.max_new_tokens
    teacher = ServedTeacher(config.teacher, str(config.teacher_name), known, longest, *limits, say)
    try:
        teacher.check()
    except Away as away:
        start = f"start it (vllm serve {config.teacher_name}), or type --teacher with its address"
        raise UserError(f"no teacher answers at {teacher.address} ({away}); {start}") from None
    return teacher
