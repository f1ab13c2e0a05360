"""A conversation with a student: what transformers and PEFT say to the same messages, at a terminal and through a pipe."""

import fcntl
import io
import os
import pty
import re
import signal
import struct
import sys
import termios
import textwrap

import forked
import pytest
import torch
from conftest import TINY, quick_flags, run_python, run_train

from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.evaluate.answer import Conversation, find_manner, speaking
from poweropd_lite.evaluate.chat import main, side_by_side
from poweropd_lite.kernels import head

FIRST, SECOND = "Compute 4 * 5 + 8 * 11.", "Compute 9 * 11 - 4 * 12."
HEAD = re.compile(r"(\S+) \(([\d,]+) tokens(?:, cut off there)?, \d+\.\d s\)")


def chat(*flags, cwd, lines):
    """The real command with lines piped in: what it returned, and its answers in order, each (who, tokens, text)."""
    done = forked.run("-m", "poweropd_lite.chat", *flags, cwd=cwd, input="\n".join(lines))
    return done, answers(done.stdout)


def answers(printed):
    parts = HEAD.split(re.sub(r"^> .*\n|^begun anew\n", "", printed, flags=re.MULTILINE))
    return [(who, int(n), text.strip("\n")) for who, n, text in zip(*(parts[i::3] for i in (1, 2, 3)), strict=True)]


class Reference:
    """Greedy answers by transformers' own generate; `told` are the messages so far."""

    def __init__(self, model, folder=TINY / "student"):
        from transformers import AutoTokenizer

        self.model, self.told, self.tokenizer = model, [], AutoTokenizer.from_pretrained(folder)

    def ids(self, question):
        messages = [*self.told, {"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return self.tokenizer(text, return_tensors="pt")["input_ids"]

    def say(self, question):
        """Returns (tokens, text) and remembers the turn."""
        ids, stops = self.ids(question), self.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
        mask = torch.ones_like(ids)
        done = self.model.generate(ids, attention_mask=mask, max_new_tokens=112, do_sample=False, eos_token_id=stops)
        new = done[0, ids.shape[1] :]
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        self.told += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        return len(new), text


@pytest.fixture
def live(trained, student_model):
    """The run's student by PEFT."""
    from peft import PeftModel

    return PeftModel.from_pretrained(student_model, trained / "run" / "adapter").eval()


def test_each_answers_as_by_peft_and_goes_on_with_its_own_words(trained, live):
    from poweropd_lite.models.teacher import load_teacher

    teacher = load_teacher("bundled", 4, torch.device("cpu"), torch.float32).model
    lines = [FIRST, SECOND, "", "/new", SECOND]
    done, told = chat("run", "--teacher", cwd=trained, lines=lines)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if line.startswith("> ")] == [f"> {x}" for x in lines if x]
    before, after, third = Reference(live), Reference(live), Reference(teacher)
    wanted = []
    for question in (FIRST, SECOND, "/new", SECOND):
        if question == "/new":
            before.told, after.told, third.told = [], [], []
            continue
        with live.disable_adapter():
            wanted.append(("before", *before.say(question)))
        wanted += [("after", *after.say(question)), ("teacher", *third.say(question))]
    assert told == wanted
    assert wanted[3:6] != wanted[6:9] and len({text for *_, text in wanted[:2]}) == 2  # what came before counts
    done, alone = chat("run", "--single", "--no-before", cwd=trained, lines=[FIRST, SECOND])
    assert done.returncode == 0 and alone == [wanted[1], wanted[7]]


def test_before_a_training_of_every_weight_is_the_run_s_student_loaded_beside(tmp_path, student_model):
    from transformers import AutoModelForCausalLM

    flags = quick_flags(steps=1, batch_size=4, eval_every=0, eval_benchmarks="none", lr=3e-3)
    done = run_train("--config", "bundled", *flags, "--full-finetune", "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "talk to it:  python -m poweropd_lite.chat run\n" in done.stdout
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32).eval()
    before, after = Reference(student_model), Reference(model, tmp_path / "run" / "model")
    done, told = chat("run", cwd=tmp_path, lines=[FIRST, SECOND])
    assert done.returncode == 0, done.stderr
    wanted = [(who, *one.say(x)) for x in (FIRST, SECOND) for who, one in (("before", before), ("after", after))]
    assert told == wanted and wanted[0][1:] != wanted[1][1:]


def test_a_conversation_longer_than_the_positions_is_refused_until_new(trained, live):
    long = "Compute 1" + " + 1" * 60 + "."
    done, told = chat("run", "--no-before", cwd=trained, lines=[long, long, "/new", FIRST, "/nwe", "/quit", FIRST])
    reference = Reference(live)
    assert told[0] == ("after", *reference.say(long))
    count = reference.ids(long).shape[1]
    assert count > 400
    too_long = f"a conversation of {count} and an answer of 112 tokens are more than the model's 512 positions"
    said = done.stderr.splitlines()
    assert said[0] == f"error: {too_long}; type /new to begin anew"
    assert said[1].startswith("error: no command /nwe; /new begins anew, /quit ends") and len(said) == 2
    assert done.returncode == 1 and told[1:] == [("after", *Reference(live).say(FIRST))]


def test_a_whole_model_answers_alone_and_a_longer_first_question_names_the_room(tmp_path, student_model):
    long = "Compute 1" + " + 1" * 150 + "."
    room = 512 - Reference(student_model).ids(long).shape[1]
    done, told = chat("bundled-student", cwd=tmp_path, lines=[long])
    assert "so there is no before: it answers alone" in done.stdout and told == [] and done.returncode == 1
    assert f"ask with --max-new-tokens {room} (in Python" in done.stderr
    done, told = chat("bundled-student", "--max-new-tokens", str(room), cwd=tmp_path, lines=[long])
    assert done.returncode == 0 and [who for who, *_ in told] == ["bundled-student"] and told[0][1] <= room


def test_sampled_answers_are_fixed_by_the_seed_and_new_ones_each_turn(trained):
    manner = find_manner(str(trained / "run"), None, 40)
    with speaking(manner, True, False, "off") as speakers:
        assert head.switched_off

        def texts(seed):
            conversation = Conversation(speakers, manner, 1.0, seed, single=True)
            return [[said.text for _, said in conversation.ask(FIRST)] for _ in range(3)]

        assert texts(3) == texts(3) != texts(4)
        assert len({tuple(turn) for turn in texts(3)}) == 3
    head.switch("auto")


def terminal(columns):
    """A pseudo-terminal: (what a person sees and types, what the command has)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return ours, open(theirs, "rb")


def read_until(handle, text):
    seen = ""
    while not (plain := re.sub(r"\x1b\[[?\d;]*\w", "", seen).replace("\r", "")).endswith(text):
        seen += os.read(handle, 4096).decode()
    return plain


@pytest.mark.parametrize(("columns", "ending"), [(120, "Ctrl-C"), (80, "Ctrl-D")])
def test_at_a_terminal_answers_stand_side_by_side_where_it_is_wide(trained, live, columns, ending):
    ours, theirs = terminal(columns)
    command = ("-m", "poweropd_lite.chat", "run")
    with theirs:
        process = forked.start(*command, cwd=trained, file=theirs, stdin=theirs)
    opening = read_until(ours, "\n> ")
    assert opening == (
        "before, after: greedily, at most 112 tokens an answer; /new begins anew, /quit ends\n"
        f"the bundled pair solves arithmetic problems and nothing else, such as: {FIRST}\n> "
    )
    os.write(ours, f"{FIRST}\n".encode())
    seen = read_until(ours, "\n> ")
    with live.disable_adapter():
        before = Reference(live).say(FIRST)[1].split("\n")
    after = Reference(live).say(FIRST)[1].split("\n")
    if columns == 120:  # two of 58, and three between them
        assert f"\n{'-' * 58} | {'-' * 58}\n{textwrap.wrap(before[0], 58)[0]:58} | {after[0]}\n" in seen
        assert re.search(r"\nbefore \(\d+ tokens, \d+\.\d s\) +\| after \(", seen)
    else:
        told = answers(seen.removesuffix("> ").partition("\n")[2])
        assert [(who, text) for who, _, text in told] == [("before", "\n".join(before)), ("after", "\n".join(after))]
    if ending == "Ctrl-C":
        process.send_signal(signal.SIGINT)
    else:
        os.write(ours, b"\x04")
    assert process.wait() == 0
    os.close(ours)


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on_as_if_it_was_not_asked(trained, live, monkeypatch, capsys):
    calls, sample = [], LoopEngine._sample

    def interrupted(self, *args):
        calls.append(self.student)
        if len(calls) == 2:  # the second who answers the first question
            os.kill(os.getpid(), signal.SIGINT)
        return sample(self, *args)

    ours, theirs = terminal(80)
    monkeypatch.setattr(LoopEngine, "_sample", interrupted)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(theirs))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        os.write(ours, f"{SECOND}\n{FIRST}\n/quit\n".encode())
        assert main([str(trained / "run")]) == 0
    finally:
        signal.signal(signal.SIGINT, handler)
        theirs.close()
        os.close(ours)
    first, stopped, rest = capsys.readouterr().out.partition(
        "\nstopped: this question and what was answered to it are forgotten\n"
    )
    assert stopped and [who for who, *_ in answers(first.replace("> ", ""))] == ["before"]
    with live.disable_adapter():
        before = Reference(live).say(FIRST)
    assert answers(rest.replace("> ", "")) == [("before", *before), ("after", *Reference(live).say(FIRST))]


def test_columns_are_wrapped_and_filled():
    told = [("before", "one two three four\n\n  five"), ("after", "six")]
    assert side_by_side(told, 23).split("\n") == [
        "before     | after",
        "---------- | ----------",
        "one two    | six",
        "three four |",
        "           |",
        "  five     |",
    ]


BAD = [
    (["run", "--temperature", "-1"], "temperature: found '-1'"),
    (["run", "--max-new-tokens", "0"], "max_new_tokens: found '0'"),
    (["run", "--teachr"], "unknown argument '--teachr'; did you mean '--teacher'?"),
    (["run", "2 + 3"], "unknown argument '2 + 3'"),
    ([], "the following arguments are required: RUN"),
]


def test_bad_flags_are_refused_before_torch_is_imported(tmp_path):
    code = (
        "import sys\nfrom poweropd_lite.base.errors import UserError\nfrom poweropd_lite.chat import main\n"
        f"for flags in {[flags for flags, _ in BAD]!r}:\n"
        "    try: main(flags)\n    except UserError as error: print(str(error).splitlines()[0])\n"
        "assert 'torch' not in sys.modules"
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(words in line for line, (_, words) in zip(done.stdout.splitlines(), BAD, strict=True)), done.stdout


def test_what_is_not_there_is_one_message_and_exit_code_2(tmp_path):
    for flags, words in (
        (["nowhere/at/all"], "no folder nowhere/at/all; type a run folder, an adapter, a model or a hub id"),
        (["bundled-student", "--teacher"], "bundled-student is no run, so it names no teacher; leave out --teacher"),
    ):
        done, _ = chat(*flags, cwd=tmp_path, lines=[FIRST])
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {words}\n")
