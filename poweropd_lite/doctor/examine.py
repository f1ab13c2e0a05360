"""Everything that the doctor looks at, in order: the pair, the prompts, the machine. No weights are loaded.

The checks are those that train makes (checks/), on more of the data, and some that only a person asks for.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from poweropd_lite.base.config import BUNDLED, Config
from poweropd_lite.base.errors import Finding, NotDownloaded, UserError
from poweropd_lite.base.teachers import files_of
from poweropd_lite.checks.grader import check_grader
from poweropd_lite.checks.machine import check_machine, check_tracker, compute_dtype
from poweropd_lite.checks.modules import check_experts, check_modules
from poweropd_lite.checks.pair import Pair, examine_pair, read_sides, settle_pair
from poweropd_lite.checks.pair_checks import PROBE, check_prompt_tokens
from poweropd_lite.checks.reward import check_reward
from poweropd_lite.doctor.driver import check_driver
from poweropd_lite.doctor.packages import check_versions
from poweropd_lite.engines.choose import choose_engine, choose_loader
from poweropd_lite.models.loading import is_missing_folder
from poweropd_lite.models.saved import settle_adapter
from poweropd_lite.models.served import connect
from poweropd_lite.problems.apart import is_apart
from poweropd_lite.problems.benchmarks import find_benchmarks, load_problems
from poweropd_lite.problems.bundled import problems
from poweropd_lite.problems.files import SUFFIXES, shards
from poweropd_lite.problems.prompts import Prompt, TemplateFault, prompt_text, template_options
from poweropd_lite.problems.reading import hold_out, load_prompts
from poweropd_lite.problems.rows import Source, rows

SOLUTIONS = ("solution", "completion", "response", "answer")  # columns of a data set that hold worked answers
UNREAD = "models"  # the check that stands for all of them where they can't be read
RENDERED = 100  # prompts that are put in the teacher's own form, too


def examine(
    config: Config, count: int, say: Callable[[str], None], of_card: list[Finding] | None = None
) -> list[Finding]:
    """Returns what was found of a run's models, of the first `count` rows of its data, and of this machine.

    `of_card` is what was found of a card that is not here, and stands in this machine's place. Raises UserError for
    models that can't be read; beside `of_card`, which needs none, that is a refusal, or a warning where only the hub could tell.
    """
    try:
        config = settle_adapter(config, say)
        findings = _examine_models(config, count, say)
    except UserError as error:
        if of_card is None:
            raise
        findings = [Finding("refusal", UNREAD, str(error))]
        if isinstance(error, NotDownloaded):
            mend = "ask again where the hub can be reached"
            findings = [Finding("warning", UNREAD, f"not looked at: {error.found}", mend), *_not_here(config)]
    if of_card is not None:
        return [*findings, *of_card, *check_tracker(config), check_versions()]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [*findings, *check_machine(config, device), *check_driver(), check_versions(), _backends(config, device)]


def _not_here(config: Config) -> list[Finding]:
    """What can be refused where the hub can't be asked: folders and files that should be here, and are not."""
    found = []
    for role in ("student", "teacher"):
        if is_missing_folder(name := files_of(config, role)):
            mend = f"--{role} with a folder that save_pretrained wrote"
            found.append(Finding("refusal", role, f"there is no folder {name}", mend))
    try:
        if (path := Path(config.data)).suffix.lower() in SUFFIXES:
            shards(path)
    except UserError as error:
        found.append(Finding("refusal", "prompts", str(error)))
    return found


def _examine_models(config: Config, count: int, say: Callable[[str], None]) -> list[Finding]:
    say(f"reading tokenizers and configs of {config.pair}")
    student, teacher = read_sides(config)
    findings = examine_pair(config, student, teacher)
    findings.append(_two_models(config))
    if config.served:
        findings.append(_server(config))
    if all(f.level != "refusal" for f in findings if f.check in ("vocabulary", "stop tokens", "chat template")):
        pair = settle_pair(config, student, teacher, findings)
        say(f"reading up to {count:,} rows of {config.data}")
        findings += check_data(config, pair, count) + _reward(config) + _held_out(config, pair)
    return [*findings, check_modules(config, student), *check_experts(config, student, teacher)]


def _two_models(config: Config) -> Finding:
    if config.loads_teacher and config.teacher == config.student != BUNDLED and not is_apart(config):
        found = f"student and teacher are both {config.student}: every reward begins at the teacher's rounding alone"
        return Finding("warning", "two models", found, "teacher: a larger model of the family")
    return Finding("ok", "two models", config.pair)


def _server(config: Config) -> Finding:
    """Whether the teacher's server answers as it should."""
    try:
        teacher = connect(config, lambda line: None)
    except UserError as error:
        return Finding("refusal", "teacher's server", str(error))
    mean = sum(teacher.said) / len(teacher.said)
    found = f"{teacher.name} answers at {teacher.address}; known texts have the tokenizer's ids there, and log p {mean:.2f} a token"
    return Finding("ok", "teacher's server", found, evidence={"logprob": mean, "tokens": len(teacher.said)})


def check_data(config: Config, pair: Pair, count: int) -> list[Finding]:
    """Returns what is found of the first `count` prompts: how many can be used, how long, how both models read them."""
    try:
        prompts, skipped = load_prompts(config, pair.tokenizer, count, teacher=pair.apart)
    except UserError as error:
        return [Finding("refusal", "prompts", str(error))]
    lengths = sorted(len(prompt.ids) for prompt in prompts)
    longest, middle = lengths[-1], lengths[len(lengths) // 2]
    used, out = len(prompts), sum(row.count for row in skipped)
    found = f"{used:,} read; {middle} tokens in the middle, {longest} in the longest"
    found += f", of {config.max_prompt_tokens} allowed"
    evidence = {"used": used, "skipped": out, "longest": longest, "middle": middle}
    findings = [Finding("ok", "prompts", found, evidence=evidence)]
    if skipped:
        long = sum(row.count for row in skipped if row.too_long)
        found = f"{out:,} of {out + used:,} rows can't be used and are left out ({long:,} for their length)"
        found += f", such as {skipped[0]}"
        mend = "a larger max_prompt_tokens" if long else "mend the rows, or choose prompt_column"
        findings.append(Finding("warning", "rows left out", found, mend, {"skipped": out, "too_long": long}))
    if config.hold_out and used < count:  # all rows were read
        try:
            used = len(hold_out(prompts, config.hold_out, config.data)[0])
        except UserError as error:
            return [*findings, Finding("refusal", "held out", str(error))]
    if count > used < config.batch_size:
        found = f"{used} prompts, fewer than the batch of {config.batch_size}: each is used several times a step"
        findings.append(
            Finding("warning", "few prompts", found, "a smaller batch_size, or more data", {"prompts": used})
        )
    texts = [PROBE, *(str(pair.tokenizer.decode(list(prompt.ids))) for prompt in prompts)]
    # Half of a character (a lone surrogate) is no text: no tokenizer takes it.
    answers = [a for a in islice(_worked_answers(config), count) if a == a.encode("utf-8", "replace").decode()]
    findings += check_prompt_tokens(config, *pair.sides, prompts, texts + answers)
    if pair.apart is not None:
        findings.append(_shown_apart(pair, prompts))
    elif pair.teacher_tokenizer.chat_template:
        findings.append(_template_on_prompts(config, pair, prompts[:RENDERED]))
    return findings


def _reward(config: Config) -> list[Finding]:
    try:
        check_reward(config)
    except UserError as error:
        return [Finding("refusal", "reward", str(error))]
    return [Finding("ok", "reward", config.reward_label)] if ":" in config.reward else []


def _held_out(config: Config, pair: Pair) -> list[Finding]:
    if config.eval_benchmarks is None and config.eval_grader is None:
        return []
    said: list[str] = []
    try:
        if config.eval_grader is not None:
            said.append(f"scored by {check_grader(config.eval_grader, '--eval-grader').name}")
        columns, by_row = (config.eval_prompt_column, config.eval_answer_column), bool(config.eval_grader)
        named = config.eval_benchmarks
        for benchmark in find_benchmarks(named, flag="--eval-benchmarks") if named else []:
            found = load_problems(
                benchmark, pair.tokenizer, config, config.eval_problems, columns, said.append, pair.apart, by_row
            )
            said.append(f"{len(found.prompts):,} problems of {benchmark.name}")
    except UserError as error:
        return [Finding("refusal", "evaluation's problems", str(error))]
    return [Finding("ok", "evaluation's problems", "; ".join(said))]


def _worked_answers(config: Config) -> Iterator[str]:
    """Worked answers of the data, which look as completions do; the bundled problems have their own."""
    if config.data == BUNDLED:
        yield from (problem.solution for problem in problems(0, 1000, False))
        return
    for _, row in rows(Source(config.data, config.data_subset, config.data_split)):
        if isinstance(row, dict):
            yield from islice((row[c] for c in SOLUTIONS if isinstance(row.get(c), str)), 1)


def _template_on_prompts(config: Config, pair: Pair, prompts: Sequence[Prompt]) -> Finding:
    """How many real prompts the teacher's own template would put in other tokens."""
    teacher, different = pair.teacher_tokenizer, 0
    for prompt in prompts:
        messages = [{"role": role, "content": content} for role, content in prompt.messages]
        try:
            text = prompt_text(messages, teacher, template_options(config))
        except TemplateFault:
            different += 1
        else:
            different += tuple(teacher(text, add_special_tokens=False)["input_ids"]) != prompt.ids
    count, check = len(prompts), "prompts in the teacher's form"
    evidence = {"prompts": count, "different": different}
    if not different:
        return Finding("ok", check, f"the first {count} prompts have the same tokens in it", evidence=evidence)
    found = f"{different} of the first {count} prompts have other tokens in the teacher's own form"
    return Finding("warning", check, found, "a teacher with the student's template, or the reverse", evidence)


def _shown_apart(pair: Pair, prompts: Sequence[Prompt]) -> Finding:
    """What the teacher reads where the student reads another prompt, on the first that differs."""
    different = [prompt for prompt in prompts if prompt.teacher_ids != prompt.ids]
    count, check = len(prompts), "the teacher's prompts"
    evidence = {"prompts": count, "different": len(different)}
    if not different:
        return Finding("ok", check, f"all {count} are the student's, token for token", evidence=evidence)
    mine, other = (str(pair.tokenizer.decode(list(ids))) for ids in (different[0].ids, different[0].teacher_ids))
    found = f"{len(different)} of {count} are other than the student's: where it reads {mine!r}, the teacher reads {other!r}"
    return Finding("ok", check, found, evidence=evidence)


def _backends(config: Config, device: torch.device) -> Finding:
    try:
        loader = choose_loader(config)
        engine = choose_engine(config, device, compute_dtype(config.dtype, device), loader.name)
    except UserError as error:
        return Finding("refusal", "loader and engine", str(error))
    found = f"student by {loader.name} ({loader.why}); rollouts by {engine.name} ({engine.why})"
    return Finding("ok", "loader and engine", found)


def as_json(config: Config, findings: list[Finding]) -> dict[str, Any]:
    """Returns the findings as JSON; `sound` is null where nothing was refused and the models could not be looked at."""
    unread = any(f.check == UNREAD for f in findings)
    counts = {level: sum(f.level == level for f in findings) for level in ("ok", "warning", "refusal")}
    about = {name: getattr(config, name) for name in ("student", "teacher", "data")}
    return about | {
        "sound": False if counts["refusal"] else None if unread else True,
        "counts": counts,
        "findings": [finding.as_json() for finding in findings],
    }
