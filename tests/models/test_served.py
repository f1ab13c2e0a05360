"""The served teacher against the loaded one, with a server that answers by a real forward and goes wrong on demand."""

import math
import threading
import time
from dataclasses import replace

import pytest
import torch
from conftest import make_rollouts
from teacher_server import code, cut_off, last, never, no_json, serving, value

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.method.batch import Stops, loss_lengths, micro_batches
from poweropd_lite.method.update import token_logprobs
from poweropd_lite.models import served
from poweropd_lite.models.loading import load_causal_lm
from poweropd_lite.models.served import TeacherFault, WaitStopped, connect
from poweropd_lite.models.teacher import load_teacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("bundled", 32, CPU, torch.float32)


@pytest.fixture(scope="module")
def drawn(pair, prompts):
    """Eight rollouts of the base student, some of which stop."""
    return make_rollouts(load_causal_lm("bundled", "student", torch.float32).eval(), prompts[:8], pair, longest=60)


@pytest.fixture
def server(teacher, pair):
    with serving(teacher.model, pair.teacher_tokenizer) as one:
        yield one


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch):
    monkeypatch.setattr(served, "PAUSES", (0.001, 1.0))


def asked(server, say=print):
    """A connected teacher, whose server's list of requests is empty."""
    known = {text: server.tokenizer(text, add_special_tokens=False)["input_ids"] for text in served.TEXTS}
    found = served.ServedTeacher(server.address, server.name, known, 240, 3, 20.0, 0.05, say)
    found.check()
    server.asked.clear()
    return found


def batches(rollouts, mode="raw", budget=300):
    stops = Stops(mode, teacher=2)
    return micro_batches(rollouts, budget, stops, CPU), sum(loss_lengths(rollouts, stops))


@pytest.mark.parametrize("mode", ["mask", "raw", "relabel", "cross_eos"])
def test_log_p_is_the_loaded_teachers_in_every_stop_mode(mode, server, teacher, drawn):
    assert {r.finish for r in drawn} == {"stop", "length"}
    one, (parts, count) = asked(server), batches(drawn, mode)
    ours, theirs = (token_logprobs(model, parts, count, "teacher") for model in (one, teacher))
    assert ours.shape == (count,) and ours.dtype == torch.float32
    assert (ours - theirs).abs().max() < 1e-5
    assert len(parts) > 2 and len(server.asked) == 1 + len(parts)  # a request each, and the known texts
    sent = sorted(tuple(ids) for body in server.asked for ids in body["prompt"])
    read = {  # a stop that is not in the loss is not sent, and in place of one that was sampled the teacher's own
        r.prompt_ids + r.completion_ids
        if r.finish == "length" or mode == "raw"
        else r.prompt_ids + r.completion_ids[:-1] + ((2,) if mode in ("relabel", "cross_eos") else ())
        for r in drawn
    }
    assert sent == sorted([*read, *map(tuple, one.known.values())])


def test_a_teacher_with_prompts_of_its_own_is_sent_these(server, teacher, drawn):
    shown = [replace(r, teacher_prompt_ids=(5, 6, 7, *r.prompt_ids)) for r in drawn[:3]]
    parts, count = micro_batches(shown, 300, Stops("raw"), CPU, "teacher"), sum(loss_lengths(shown, Stops("raw")))
    one = asked(server)
    ours, theirs = (token_logprobs(model, parts, count, "teacher") for model in (one, teacher))
    assert (ours - theirs).abs().max() < 1e-5
    sent = [tuple(ids) for body in server.asked for ids in body["prompt"]]
    assert {r.teacher_prompt_ids + r.completion_ids for r in shown} <= set(sent)


PASSING = {
    "500": code(500),
    "503": code(503),
    "429": code(429),
    "connection cut": cut_off,
    "slow": never,
    "no JSON": no_json,
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_asked_again_and_the_numbers_are_the_same(name, server, drawn):
    said = []

    def say(line):
        said.append(line)
        one.timeout = 20.0  # once it is known to be away

    one, (parts, count) = asked(server, say), batches(drawn[:4], budget=2000)
    plain = one.token_logprobs(parts, count)
    server.faults = [None, PASSING[name]]
    one.timeout = 0.05 if name == "slow" else 20.0
    assert torch.equal(one.token_logprobs(parts, count), plain)
    assert len(said) == 2 and "is away (" in said[0] and said[1].startswith("the teacher answers again")


WRONG = {
    "NaN": (value(math.nan), "says nan of id"),
    "null": (value(None), "says None of id"),
    "text": (value("-1.0"), "says -1.0 of id"),
    "above 0": (value(0.5), "says 0.5 of id"),
    "infinite": (value(-math.inf), "says -inf of id"),
    "a sentinel": (value(-9999.0), "says -9999.0 of id"),
    "another id": (last(lambda entry: {"511": entry.popitem()[1]}), "gives the log-prob of 511 for id"),
    "nothing": (last(lambda entry: None), "gives the log-prob of nothing for id"),
    "no number": (last(lambda entry: {token: {} for token in entry}), "gives no prompt_logprobs"),
    "too few": (lambda handler, answer: answer["choices"][0]["prompt_logprobs"].pop(), "log-probs for"),
    "a prompt less": (lambda handler, answer: answer["choices"].pop(), "gives no prompt_logprobs"),
    "none": (lambda handler, answer: [c.pop("prompt_logprobs") for c in answer["choices"]], "gives no prompt_logprobs"),
    "HTTP 400": (code(400), "refuses a request: HTTP 400: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_log_prob_of_the_id_is_an_error(name, server, drawn):
    fault, message = WRONG[name]
    one = asked(server)
    server.faults = [None, fault]
    parts, count = batches(drawn[:2], budget=2000)
    with pytest.raises(TeacherFault, match=message):
        one.token_logprobs(parts, count)


def test_a_little_above_0_is_rounding(server, drawn):
    one, (parts, count) = asked(server), batches(drawn[:1])
    one.concurrency = 1  # the known texts first
    server.faults = [None, value(1e-7)]
    assert one.token_logprobs(parts, count)[-1] == 0.0


def test_a_server_that_stays_away_is_waited_for_and_one_that_comes_back_goes_on(teacher, pair, drawn):
    said, (parts, count) = [], batches(drawn[:2])
    with serving(teacher.model, pair.teacher_tokenizer) as first:
        one, port = asked(first, said.append), first.server_address[1]
        plain = one.token_logprobs(parts, count)
    with pytest.raises(TeacherFault, match=r"is away \(ConnectError.*teacher_patience says: 0.05 s.*--resume"):
        one.token_logprobs(parts, count)
    assert len(said) == 1 and "waiting for it, 0.05 s at most" in said[0]
    one.patience, again = 20.0, []
    waiting = threading.Thread(target=lambda: again.append(one.token_logprobs(parts, count)))
    waiting.start()
    while len(said) < 2:  # it waits by now
        time.sleep(0.001)
    with serving(teacher.model, pair.teacher_tokenizer, port=port):
        waiting.join(20)
    assert torch.equal(again[0], plain) and said[-1].startswith("the teacher answers again")


def test_a_stop_ends_the_wait(teacher, pair, drawn):
    with serving(teacher.model, pair.teacher_tokenizer) as first:
        one = asked(first)
    one.patience = 1000.0
    one.stopped = lambda: True
    with pytest.raises(WaitStopped):
        one.token_logprobs(*batches(drawn[:1]))


@pytest.mark.parametrize("broke", [True, False])
def test_another_model_under_the_name_is_seen_after_a_break_and_without_one(broke, server, student_model, drawn):
    one = asked(server)
    server.model = student_model
    server.faults = [None, code(500)] if broke else []
    with pytest.raises(TeacherFault, match=r"is another model than before: .* moved by \d"):
        one.token_logprobs(*batches(drawn[:2]))


def test_what_the_start_refuses(server, other):
    def start(**changes):
        settings = {"teacher": server.address, "teacher_name": "bundled-teacher", **changes}
        return connect(load_config("bundled", **settings), print)

    def refused(message, **changes):
        with pytest.raises(UserError, match=message):
            start(**changes)

    refused("serves bundled-teacher, and not Qwen/Qwen3-4B", teacher_name="Qwen/Qwen3-4B", teacher_tokenizer="bundled")
    server.room = 240
    refused(
        r"takes 240 tokens, and a rollout may have 240 .* --max-model-len 241",
        max_prompt_tokens=112,
        max_new_tokens=128,
    )
    server.room = 241
    assert len(start(max_prompt_tokens=112, max_new_tokens=128).said) > 80

    from transformers import AutoTokenizer

    odd = AutoTokenizer.from_pretrained(other("teacher", str))
    odd.add_tokens(["answer"])
    sound, server.tokenizer = server.tokenizer, odd
    refused(r"log-probs for \d+ ids\nIt was asked for known texts")
    server.tokenizer = sound
    server.faults = [None, lambda handler, answer: scaled(answer)]
    refused("scores a text otherwise than its ids")
    server.close()
    refused(f"no teacher answers at {server.address} .*vllm serve bundled-teacher")


def scaled(answer):
    for choice in answer["choices"]:
        for entry in choice["prompt_logprobs"][1:]:
            next(iter(entry.values()))["logprob"] *= 2
    return True


def test_the_key_comes_from_the_environment_and_is_never_quoted(server, drawn, monkeypatch):
    server.key = "sk-right"
    with pytest.raises(UserError, match=r"refuses the key, or wants one \(401\): export POWEROPD_TEACHER_KEY"):
        asked(server)
    monkeypatch.setenv(served.KEY, "sk-right\n")
    one = asked(server)
    assert len(one.token_logprobs(*batches(drawn[:1]))) == batches(drawn[:1])[1]

    def quotes(handler, answer):
        handler.send(400, {"error": f"bad key {handler.headers['Authorization']}"})

    server.faults = [quotes]
    with pytest.raises(TeacherFault, match=r"bad key Bearer \*\*\*") as fault:
        one.token_logprobs(*batches(drawn[:1]))
    assert "sk-right" not in str(fault.value)
    monkeypatch.setenv(served.KEY, "sk\nright")
    with pytest.raises(UserError, match="holds letters that no HTTP header can") as fault:
        asked(server)
    assert "right" not in str(fault.value)


def test_it_has_no_hidden_states(server):
    one = asked(server)
    for ask in (lambda: one.head, lambda: one.hiddens([torch.zeros(1, 2, dtype=torch.long)])):
        with pytest.raises(UserError, match="gives log-probs of tokens alone"):
            ask()
