"""Those who answer in ask and chat: a student, the same before its training, its teacher; loaded once.

They are asked as in training, with the run's own system prompt, suffix and thinking switch, and sampled by the built-in
loop. Where a new adapter was trained, before and after are one model: the adapter is switched off for the answer of before.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from poweropd_lite.base.config import BUNDLED, load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.teachers import SELF
from poweropd_lite.checks.machine import compute_dtype
from poweropd_lite.engines.choose import unsloth_fault
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.evaluate.agenda import PromptSettings
from poweropd_lite.evaluate.sampling import as_answer, sample_answers
from poweropd_lite.evaluate.serve import load_target, served_bits
from poweropd_lite.evaluate.settings import load_eval_config
from poweropd_lite.evaluate.target import Target, Vocabulary, find_target, load_vocabulary
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.models.loading import load_model_config, model_path
from poweropd_lite.models.saved import saved_settings
from poweropd_lite.models.student import Student
from poweropd_lite.models.teacher import load_teacher
from poweropd_lite.problems.apart import is_apart
from poweropd_lite.problems.prompts import Prompt, Skipped, make_prompt

Message = dict[str, str]  # role and content


@dataclass(frozen=True)
class Manner:
    """A model that was found, and how it is asked; no weights yet."""

    target: Target
    vocabulary: Vocabulary
    asking: PromptSettings
    longest: int  # tokens of an answer
    positions: int | None  # the longest text that all who answer can read
    remote_code: bool  # whether Python code of the models may run

    @property
    def was_trained(self) -> bool:
        """Whether there is a before: of a run, and of an adapter."""
        return self.target.kind != "model"

    def prompt(self, earlier: Sequence[Message], question: str) -> Prompt:
        """Returns a question behind the turns before it; raises UserError for one that can't be asked."""
        turns = [*earlier, {"role": "user", "content": question}]
        prompt = make_prompt(turns, self.vocabulary.tokenizer, self.asking, "question")
        if isinstance(prompt, Skipped):
            raise UserError(f"the question can't be asked: {prompt.reason}")
        if self.positions is not None and (room := self.positions - len(prompt.ids)) < self.longest:
            what = "a conversation" if earlier else "a prompt"
            found = f"{what} of {len(prompt.ids)} and an answer of {self.longest} tokens are more than the model's"
            mend = f"ask with --max-new-tokens {room} (in Python max_new_tokens={room})"
            mend = "type /new to begin anew" if earlier else mend if room > 0 else "ask something shorter"
            raise UserError(f"{found} {self.positions} positions; {mend}")
        return prompt


def find_manner(
    model: str,
    base: str | None,
    max_new_tokens: int | None,
    teacher: bool = False,
    remote_code: bool = False,
) -> Manner:
    """Returns how to ask a model, and a run's teacher beside it; raises UserError where either is not there.

    `remote_code` is whether Python code of the models may run: a run's own word for it is not taken, for it may be another's.
    """
    import transformers

    unsloth_fault()  # imports it if it is installed: a run that begins later in this process wants it first
    transformers.utils.logging.disable_progress_bar()
    target = find_target(model, base, remote_code)
    trained = target.run or load_config(BUNDLED if target.is_bundled else None)
    vocabulary = load_vocabulary(target, remote_code)
    rooms = [vocabulary.positions]
    if teacher:
        if target.run is None:
            raise UserError(f"{model} is no run, so it names no teacher; leave out --teacher")
        if trained.served:
            raise UserError(
                f"the teacher of {model} is served, and gives log-probs of tokens alone here; leave out --teacher, and ask "
                f"{trained.teacher} itself"
            )
        if trained.teacher == SELF or is_apart(trained):
            raise UserError(
                f"the teacher of {model} reads prompts of its own or is the student's base, and a talk gives it neither; "
                "leave out --teacher"
            )
        with _of_the_run():
            text = load_model_config(trained.teacher, "teacher", remote_code)[0].get_text_config()
        rooms.append(getattr(text, "max_position_embeddings", None))
    return Manner(
        target,
        vocabulary,
        PromptSettings(
            trained.prompt_suffix, trained.system_prompt, trained.enable_thinking, sys.maxsize, trained.template_kwargs
        ),
        max_new_tokens or trained.max_new_tokens,
        min((room for room in rooms if room is not None), default=None),
        remote_code,
    )


@contextmanager
def _of_the_run() -> Iterator[None]:
    """Takes training's flags out of what is said of a teacher that can't be loaded: here --teacher takes no name."""
    try:
        yield
    except UserError as error:
        found, _, _ = str(error).partition("\n")
        raise UserError(f"{found}\nit is the run's teacher; leave out --teacher") from error


@dataclass(frozen=True)
class Said:
    """One answer."""

    text: str  # without special tokens
    tokens: int  # the stop token counts
    truncated: bool
    seconds: float


class Speaker:
    """One who answers: what its engine decodes, `bare` without the adapter."""

    def __init__(self, engine: LoopEngine, manner: Manner, bare: bool = False) -> None:
        self.engine, self.manner, self.bare = engine, manner, bare
        known = set(manner.vocabulary.tokenizer.get_vocab().values())
        rows = range(len(engine.student.head.weight))
        self.forbidden = torch.tensor(sorted(set(rows) - known), dtype=torch.long, device=engine.student.device)

    def answer(self, prompt: Prompt, temperature: float = 0.0, seed: int = 0, turn: int = 0) -> Said:
        """Returns the answer, greedy at temperature 0; of one seed, all who answer a turn draw with the same numbers."""
        start, student = time.perf_counter(), self.engine.student
        greedy = Sampling(top_k=1, forbidden=self.forbidden)
        how = Sampling(temperature=temperature, forbidden=self.forbidden) if temperature else greedy
        with student.without_adapter() if self.bare else nullcontext():
            self.engine.sync()  # the adapter is on or off
            rollout = sample_answers(self.engine, [prompt], [(0, turn)], how, self.manner.longest, seed)[0]
        said = as_answer(rollout, self.manner.vocabulary.tokenizer)
        return Said(said.text, said.tokens, said.truncated, time.perf_counter() - start)


@contextmanager
def speaking(manner: Manner, before: bool, teacher: bool, kernels: str) -> Iterator[dict[str, Speaker]]:
    """Loads those who answer, by name: before, after and teacher, or a model that was not trained here by its own name.

    The teacher reads what it reads in training, the student's template, at the run's teacher_bits. Raises UserError for
    weights that can't be used, and where what was before is not there.
    """
    target, run, stops = manner.target, manner.target.run, manner.vocabulary.stop_ids
    if before and not manner.was_trained:
        raise UserError(f"{target.name} is a whole model and no run's, so there is no before; leave out --before")
    if before and target.adapter_config.get("bias", "none") != "none":
        found = f"{target.name} changed biases of its base too, so the base is not there beside it"
        raise UserError(f"{found}; ask it without the answer of before")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if teacher and run is not None and run.teacher_bits == 8 and device.type != "cuda":
        raise UserError("the run's teacher_bits 8 (LLM.int8) needs a CUDA card; leave out --teacher")
    if teacher and run is not None and run.teacher_offload:
        raise UserError(
            "the run's teacher is offloaded: all of it would be brought to the card for every token of an answer; leave "
            "out --teacher"
        )
    dtype, bits = compute_dtype("auto", device), served_bits(target, None)

    def engine(student: Student) -> LoopEngine:
        return LoopEngine(student, stops, print, kernels=kernels)

    how = bits, device, dtype, manner.remote_code
    after = engine(load_target(target, *how))
    speakers: dict[str, Speaker] = {}
    if before:
        base = after
        if run is not None and (target.adapter is None or run.adapter is not None):
            student = Target(run.student, model_path(run.student, "student"))
            if run.adapter is not None:  # which the run began with
                student = replace(student, adapter=(path := Path(run.adapter)), adapter_config=saved_settings(path))
            base = engine(load_target(student, *how))
        speakers["before"] = Speaker(base, manner, bare=base is after)
    speakers["after" if manner.was_trained else target.name] = Speaker(after, manner)
    if teacher and run is not None:
        with _of_the_run():
            model = load_teacher(run.teacher, run.teacher_bits, device, dtype, manner.remote_code).model
        speakers["teacher"] = Speaker(engine(Student(model, device, model.dtype)), manner)
    try:
        yield speakers
    finally:
        for speaker in speakers.values():
            speaker.engine.close()


class Conversation:
    """What each was asked and has said so far, apart: each sees its own answers. `single`: every question stands alone."""

    def __init__(self, speakers: dict[str, Speaker], manner: Manner, temperature: float, seed: int, single: bool):
        self.speakers, self.manner, self.single = speakers, manner, single
        self.temperature, self.seed, self.turn = temperature, seed, 0
        self.earlier: dict[str, list[Message]] = {}
        self.forget()

    def forget(self) -> None:
        """Begins anew."""
        self.earlier = {name: [] for name in self.speakers}

    def ask(self, question: str) -> Iterator[tuple[str, Said]]:
        """Yields who answers, and what, one after the other; a turn that is not taken to its end is forgotten.

        Raises UserError, before anyone answers, for a question that not all can be asked.
        """
        prompts = {name: self.manner.prompt(self.earlier[name], question) for name in self.speakers}
        turn, self.turn, told = self.turn, self.turn + 1, {}
        for name, speaker in self.speakers.items():
            said = speaker.answer(prompts[name], self.temperature, self.seed, turn)
            asked = [{"role": role, "content": content} for role, content in prompts[name].messages]
            told[name] = [*asked, {"role": "assistant", "content": said.text}]
            yield name, said
        if not self.single:
            self.earlier = told


def answers(model: str | Path, question: str, before: bool, **settings: Any) -> list[str]:
    """Returns what `ask` and `before_and_after` promise: the answer of before, if asked for, then the model's."""
    config = load_eval_config(model=model, **{name: value for name, value in settings.items() if value is not None})
    manner = find_manner(config.model, config.base, config.max_new_tokens, remote_code=config.trust_remote_code)
    prompt = manner.prompt([], question)
    with speaking(manner, before, False, config.kernels) as speakers:
        return [speaker.answer(prompt).text for speaker in speakers.values()]
