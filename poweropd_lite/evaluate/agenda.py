"""What an evaluation will do, settled before any weights are loaded: model, problems, engine, folder.

Everything that can be wrong is found here, so an agenda that was made can be carried out.
"""

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import poweropd_lite
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import check_writable, read_json, refuse_full
from poweropd_lite.base.memory import machine_bytes
from poweropd_lite.checks.grader import check_grader
from poweropd_lite.checks.machine import compute_dtype
from poweropd_lite.engines.choose import answers_at_once, choose_sampler, installed, part_fault
from poweropd_lite.evaluate.asked import Asked, load_asked, named
from poweropd_lite.evaluate.folder import SETTINGS, folder_for, problems_record
from poweropd_lite.evaluate.near import Near, settle_near
from poweropd_lite.evaluate.paper import paper_row
from poweropd_lite.evaluate.sampling import Key
from poweropd_lite.evaluate.serve import Serving, served_bits, vllm_unfit_for
from poweropd_lite.evaluate.settings import EvalConfig
from poweropd_lite.evaluate.target import Target, Vocabulary, asked_as, find_target, fingerprint, load_vocabulary
from poweropd_lite.grade.custom import Grader
from poweropd_lite.models.shape import read_config, read_shape
from poweropd_lite.problems.apart import is_apart
from poweropd_lite.problems.benchmarks import HELD_OUT, Problems, find_benchmarks
from poweropd_lite.run.folder import held_out_by


@dataclass(frozen=True)
class PromptSettings:
    """How a problem is put to the model; what data.make_prompt reads."""

    prompt_suffix: str
    system_prompt: str
    enable_thinking: bool
    max_prompt_tokens: int
    template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A benchmark to be sampled: its problems, the most tokens an answer gets, and the samples."""

    problems: Problems
    longest: int
    keys: list[Key]

    @property
    def name(self) -> str:
        return self.problems.benchmark.name


@dataclass(frozen=True)
class Agenda:
    """An evaluation that can be carried out."""

    config: EvalConfig
    target: Target
    vocabulary: Vocabulary
    parts: list[Part]
    serving: Serving
    near: Near | None  # the KL to a teacher, if it is asked for
    grader: Grader | None  # a user's function that scores, if it is asked for
    path: Path
    settings: dict[str, Any]  # what the samples depend on, beside the problems
    about: dict[str, Any]  # what is good to know of them

    @property
    def samples(self) -> int:
        """How many there will be."""
        return sum(len(part.keys) for part in self.parts)


def make_agenda(config: EvalConfig, say: Callable[[str], None]) -> Agenda:
    """Returns the agenda of an evaluation, having said what is odd about it; raises UserError for what can't work."""
    if config.benchmarks:
        find_benchmarks(config.benchmarks, config.benchmark_folder)  # an unknown one is refused at once
    target = find_target(config.model, config.base, config.trust_remote_code)
    asker = asked_as(target, config.problems_of)  # whose problems, and how they are put
    grader = _grader(config, asker)

    import transformers

    transformers.utils.logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":  # as in session.py: it would plan anew for each of the many lengths
        torch.backends.cuda.enable_cudnn_sdp(False)
    # One thread is the faster at the bundled pair's size.
    if threads := config.threads if config.threads is not None else int(target.is_bundled):
        torch.set_num_threads(threads)
    names, run = named(config, asker, device), asker.run
    if config.benchmarks is None and names is not None:
        whose = ", as the run was scored on" if run and run.eval_benchmarks else ""
        say(f"benchmarks: {names}{whose} (--benchmarks takes others)")
    benchmarks = find_benchmarks(names, config.benchmark_folder) if names else []

    vocabulary = load_vocabulary(target, config.trust_remote_code)
    if not vocabulary.tokenizer.chat_template:
        say(f"{target.name} has no chat template: problems are put as plain text")
    asking = _prompt_settings(config, asker, vocabulary.positions, say)
    asked = load_asked(config, asker, benchmarks, vocabulary.tokenizer, asking, say, grader is not None)
    if grader is not None and not asked.sets:
        raise UserError(
            f"{asker.run_folder or target.name} kept no prompts of its own to score by {grader.name}; type --benchmarks with a file"
        )
    sets = [(problems, _longest(problems, config, asked, vocabulary, say)) for problems in asked.sets]
    near = settle_near(config, asker, asked, vocabulary.positions, say)

    room = max(max(len(p.ids) for p in s.prompts) + most for s, most in sets) if sets else 1
    room = max(room, near.room if near else 1)
    dtype, bits = compute_dtype(config.dtype, device), served_bits(target, config.bits, run)
    if bits == 4 and config.bits is None and target.run is None and run is not None:
        say(f"{target.name} in 4 bits, as {config.problems_of} had it (--bits 16 for the whole one)")
    if config.problems_of is not None and run is not None and is_apart(run):
        say(f"the teacher of {config.problems_of} reads prompts of its own; here all are put as to its student")
    engine = choose_sampler(
        config.engine,
        device,
        dtype,
        vllm_unfit_for(target, bits) or part_fault(target.base, config.trust_remote_code),
        lambda: read_config(target.base, "model", config.trust_remote_code),
        target.adapter is not None,
    )
    size = config.batch_size
    if size is None:
        shape = read_shape(target.base, "model", config.trust_remote_code)
        memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else machine_bytes()
        size = answers_at_once(
            engine.name, device.type, shape, bits if bits < 16 else 8 * dtype.itemsize, room, dtype.itemsize, memory
        )
    seed = config.seed if config.seed is not None else run.seed if run else 0
    wanted = {
        "weights": fingerprint(target, config.trust_remote_code),
        "n": config.n,
        "seed": seed,
        **{key: getattr(config, key) for key in ("temperature", "top_k", "top_p")},
        **asdict(asking),
        "stop_tokens": vocabulary.tokenizer.convert_ids_to_tokens(sorted(vocabulary.stop_ids)),
        "engine": engine.name,
        "device": device.type,
        "chat_template": bool(vocabulary.tokenizer.chat_template),
        "dtype": str(dtype).removeprefix("torch."),
        "bits": bits,
        "grader": grader and grader.name,
        "grader_sha256": grader and grader.sha256,
    }
    own = target.run
    row = paper_row(own) if own and grader is None else None
    problems = {s.benchmark.name: problems_record(s.prompts, most) for s, most in sets}
    if config.problems_of and run and asker.run_folder and asked.known and HELD_OUT in problems:
        problems[HELD_OUT]["of"] = held_out_by(asker.run_folder, run)
    return Agenda(
        config=config,
        target=target,
        vocabulary=vocabulary,
        parts=[Part(s, most, [(i, k) for i in range(len(s.prompts)) for k in range(config.n)]) for s, most in sets],
        serving=Serving(engine, device, dtype, bits, room, size, config.kernels, seed, config.trust_remote_code),
        near=near,
        grader=grader,
        path=_output(config, target, wanted, problems),
        settings=wanted,
        about={  # what does not change a sample
            "batch_size": size,
            "model": target.name,
            "kind": target.kind,
            "base": target.base,
            "title": f"{own.pair}, {own.reward_label}" if own else target.name,
            "whole": {s.benchmark.name: s.whole for s in asked.sets},
            "sources": {s.benchmark.name: s.benchmark.source.data for s in asked.sets},
            "paper": asdict(row) if row else None,
            "versions": versions("torch", "transformers", "peft", "vllm", "math-verify"),
            "benchmarks": problems,
        },
    )


def _grader(config: EvalConfig, target: Target) -> Grader | None:
    """The user's function: the one that was asked for or, of a run's own problems, the run's."""
    of_run = target.run.eval_grader if target.run and config.benchmarks is None else None
    name, flag = config.grader or of_run, "--grader"
    if name is not None and config.official_grading:
        raise UserError(f"--official-grading is of maths, and the run was scored by {name}; leave it out")
    return check_grader(name, flag) if name is not None else None


def _prompt_settings(
    config: EvalConfig, target: Target, positions: int | None, say: Callable[[str], None]
) -> PromptSettings:
    """As asked, or as the run was trained, or plainly."""
    values: dict[str, Any] = {"prompt_suffix": "", "system_prompt": "", "enable_thinking": False, "template_kwargs": {}}
    for name in values:
        own, trained = getattr(config, name), target.run and getattr(target.run, name)
        values[name] = next((value for value in (own, trained) if value is not None), values[name])
    longest = config.max_prompt_tokens
    if positions is not None:  # a longer prompt would leave no room for an answer: it is left out, and counted
        room = max(1, positions - min(config.max_new_tokens or positions, positions // 2))
        if room < longest and "max_prompt_tokens" in config.model_fields_set:
            say(f"prompts of at most {room} tokens, not {longest}: the model has {positions} positions")
        longest = min(longest, room)
    return PromptSettings(**values, max_prompt_tokens=longest)


def _longest(
    problems: Problems, config: EvalConfig, asked: Asked, vocabulary: Vocabulary, say: Callable[[str], None]
) -> int:
    """The most new tokens of an answer: as asked, and never more than the model has positions for."""
    name, room = problems.benchmark.name, vocabulary.positions
    prompt, of_run = max(len(p.ids) for p in problems.prompts), asked.longest.get(problems.benchmark.name)
    longest = config.max_new_tokens or of_run or problems.benchmark.longest
    if room is None or prompt + longest <= room:
        return longest
    if config.max_new_tokens is not None:
        found = (
            f"an answer to {name} may take {prompt} prompt and {longest} new tokens, but the model has {room} positions"
        )
        raise UserError(f"{found}; type --max-new-tokens {room - prompt}")
    say(f"{name}: answers of at most {room - prompt} tokens, not {longest}: the model has {room} positions")
    return room - prompt


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of this package, of Python and of what is installed of `packages`."""
    others = {name: version for name in packages if (version := installed(name))}
    return {"poweropd_lite": poweropd_lite.__version__, "python": platform.python_version(), **others}


def _output(config: EvalConfig, target: Target, wanted: dict[str, Any], problems: dict[str, dict]) -> Path:
    output = config.output
    if output is not None:
        check_writable(Path(output), "--output")
        if not (Path(output) / SETTINGS).exists():
            refuse_full(Path(output), "--output", "holds no evaluation")
        return Path(output)
    if target.run_folder is None or config.problems_of is not None:  # others' problems are no score of a run's own
        path = Path(target.name)
        name = path.resolve().name if path.is_dir() else path.name
        return folder_for(Path("evaluations"), name or "model", wanted, problems, kl_apart=True)
    try:
        name = f"step_{int(read_json(target.run_folder / 'summary.json')['steps']):06}"
    except (OSError, ValueError, KeyError, TypeError):  # no summary, or a damaged one: its steps are not known
        name = "final"
    return folder_for(target.run_folder / "eval", name, wanted, problems)
