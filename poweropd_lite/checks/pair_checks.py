"""The checks of a pair, from tokenizers and configs alone: each takes the two sides and returns what it found.

Nothing here knows Qwen's names: stop ids are what tokenizers, generation configs and chat templates themselves say.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from poweropd_lite.base.config import BUNDLED, Config
from poweropd_lite.base.errors import Finding
from poweropd_lite.base.teachers import SELF
from poweropd_lite.cli import as_flags
from poweropd_lite.models.shape import layer_kinds
from poweropd_lite.models.whole import no_language_model
from poweropd_lite.problems.apart import is_apart, teacher_options
from poweropd_lite.problems.prompts import Prompt, TemplateFault, end_of_turn, prompt_text, template_options
from poweropd_lite.problems.stored import tokens_used
from poweropd_lite.rewards.table import reward_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PretrainedConfig, PreTrainedTokenizerBase

PROBE = "Let x = 3.14; what is 12 * (7 - x)?\n\n  Give \\boxed{42} — naïve café, 東京, 😀.\tEnd"


@dataclass(frozen=True)
class Side:
    """One of the two models, without its weights."""

    role: str  # "student" or "teacher"
    name: str
    tokenizer: "PreTrainedTokenizerBase"
    config: "PretrainedConfig"
    generation_stops: tuple[int, ...]  # of its generation config, or else of its config
    whole: str | None = None  # the class of the checkpoint, where its language model alone is taken

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    @property
    def rows(self) -> int:
        """Rows of its head, padded ones counted."""
        return self.config.get_text_config().vocab_size

    @property
    def stops(self) -> list[int]:
        """Its stop ids: the tokenizer's, then those of its generation config."""
        own = self.tokenizer.eos_token_id
        return list(dict.fromkeys([*([] if own is None else [own]), *self.generation_stops]))

    def tokens(self, ids: "Sequence[int]") -> str:
        """The tokens of some ids, to be read."""
        known = {i: token for token, i in self.vocabulary.items()}
        return ", ".join(f"{known[i]} ({i})" if i in known else f"id {i}" for i in ids)


def scorable_ids(student: Side, teacher: Side) -> set[int]:
    """Returns the ids that both have, under one token and with a row in both heads."""
    rows = min(student.rows, teacher.rows)
    return {i for token, i in student.vocabulary.items() if teacher.vocabulary.get(token) == i and i < rows}


def check_attention(student: Side) -> Finding:
    """How the rollout loop decodes the student's layers."""
    text = student.config.get_text_config()
    kinds, window = sorted(set(layer_kinds(text))), getattr(text, "sliding_window", None)
    evidence = {"kinds": kinds, "window": window}
    if kinds == ["full_attention"]:
        return Finding("ok", "attention", "every layer of the student has full attention", evidence=evidence)
    found = f"the student has layers of kind {', '.join(kinds)}: the rollout loop decodes them by transformers' "
    return Finding("ok", "attention", found + "own forward, each with the state that it needs", evidence=evidence)


def check_length(config: Config, *models: Side) -> Finding:
    """The longest rollout against the positions of every model; the teacher reads no evaluation."""
    read = {"student": config.longest_rollout, "teacher": config.max_prompt_tokens + config.max_new_tokens}
    rooms = {side.role: getattr(side.config.get_text_config(), "max_position_embeddings", None) for side in models}
    evidence = {"longest": {role: read[role] for role in rooms}, "positions": rooms}
    names = {side.role: f"the {side.role} {side.name}" for side in models}
    short = {role: room for role, room in rooms.items() if room is not None and read[role] > room}
    if short:
        who: dict[int, list[str]] = {}
        for role, room in short.items():
            who.setdefault(read[role], []).append(f"{names[role]} has {room} positions")
        found = "; ".join(
            f"a rollout may be {longest} tokens long ({config.max_prompt_tokens} prompt + "
            f"{longest - config.max_prompt_tokens} new), but {' and '.join(those)}"
            for longest, those in who.items()
        )
        flags = _lengths_within(config, {role: read[role] - room for role, room in short.items()}, short)
        return Finding("refusal", "context", found, f"type {flags}", evidence)
    has = ", ".join(
        f"{names[role]} has {f'{n:,} positions' if n else 'no limit in its config'}" for role, n in rooms.items()
    )
    return Finding("ok", "context", f"the longest rollout has {max(read.values()):,} tokens; {has}", evidence=evidence)


def _lengths_within(config: Config, over: dict[str, int], rooms: dict[str, int]) -> str:
    """The flags after which no model has to read more than its room: a shorter prompt, or where that is under a quarter shorter answers too."""
    room = min(rooms.values())
    prompt = max(config.max_prompt_tokens - max(over.values()), min(config.max_prompt_tokens, room // 4))
    lengths = {"max_prompt_tokens": prompt, "max_new_tokens": room - prompt}
    if "student" in rooms:
        lengths["eval_max_new_tokens"] = rooms["student"] - prompt
    return as_flags({name: n for name, n in lengths.items() if (getattr(config, name) or 0) > n})


def examine_pair(config: Config, student: Side, teacher: Side) -> list[Finding]:
    """Returns what every check of a pair found."""
    models = [student, *([teacher] if config.teacher != SELF else [])]
    findings = [
        *(check_part(config, side) for side in models if side.whole or no_language_model(side.config)),
        *check_bits(config, *models),
        *check_bundled(config),
        check_attention(student),
        check_length(config, *models),
    ]
    vocabulary = check_same_ids(student, teacher)
    findings.append(vocabulary)
    if vocabulary.level != "refusal":  # of two languages there is no more to compare
        findings += [*check_rows(student, teacher), *check_stops(config, student, teacher)]
    return findings + check_templates(config, student, teacher)


def check_bundled(config: Config) -> list[Finding]:
    """The shipped student on data of one's own."""
    if config.data == BUNDLED or config.student not in (BUNDLED, f"{BUNDLED}-student"):
        return []
    found = "the bundled pair can do its own kind of sums and nothing else: on other questions it shows that all works, and "
    mend = "--student and --teacher with two models that can answer them"
    return [Finding("warning", "bundled pair", f"{found}learns little", mend, told=True)]


def check_part(config: Config, side: Side) -> Finding:
    """What is taken of a checkpoint of text and images; a served teacher's need not be."""
    check, served = f"{side.role}'s language model", side.role == "teacher" and config.served
    if (fault := no_language_model(side.config)) and not served:
        return Finding("refusal", check, f"the {side.role} {side.name} can't be loaded: {fault}")
    if fault or served:
        return Finding("ok", check, f"its server alone loads {side.name}")
    found = f"of {side.name}, a {side.whole}, the language model alone is loaded: its other parts are neither read nor trained"
    return Finding("ok", check, found, evidence={"class": side.whole}, told=True)


def check_bits(config: Config, *sides: Side) -> list[Finding]:
    """Refuses or tells of a model whose weights are stored quantised in another way than is asked for, which is ignored."""
    findings = []
    for side in sides:
        stored: Any = getattr(side.config, "quantization_config", None)
        if stored is None or (side.role == "teacher" and config.served):
            continue
        stored = stored if isinstance(stored, dict) else stored.to_dict()
        method, asked = str(stored.get("quant_method", "unknown")), getattr(config, f"{side.role}_bits")
        bits = 4 if stored.get("load_in_4bit") else 8 if stored.get("load_in_8bit") else None
        name, flag = f"{side.role}'s bits", f"--{side.role}-bits"
        found = f"the weights of {side.name} are stored {f'in {bits} bits ' if bits else ''}by {method}, "
        if method == "bitsandbytes" and bits != asked:
            typed = f"type {flag} {bits}, or " if bits == 4 or side.role == "teacher" else "type "
            found += f"so {side.role}_bits {asked} would be ignored"
            findings.append(Finding("refusal", name, found, f"{typed}the id of its 16-bit original"))
        elif method != "bitsandbytes" and asked < 16:
            found += f"and can't be quantised once more to {side.role}_bits {asked}"
            findings.append(Finding("refusal", name, found, f"type {flag} 16, or the id of its 16-bit original"))
        elif method != "bitsandbytes":
            findings.append(
                Finding("warning", name, found + f"and are used as they are: {side.role}_bits is ignored", told=True)
            )
    return findings


def check_same_ids(student: Side, teacher: Side) -> Finding:
    """Every token has one number."""
    ours, theirs = student.vocabulary, teacher.vocabulary
    by_id = {i: token for token, i in theirs.items()}
    moved = [(t, i) for t, i in ours.items() if by_id.get(i, t) != t or theirs.get(t, i) != i]
    only = [set(ours) - set(theirs), set(theirs) - set(ours)]
    evidence = {"student": len(ours), "teacher": len(theirs), "moved": len(moved)}
    evidence |= {"only_student": len(only[0]), "only_teacher": len(only[1])}
    if moved:
        token, i = moved[0]
        found = f"{student.name} and {teacher.name} number their tokens differently ({len(moved):,} of {len(ours):,}; "
        found += f"for one, {token!r} is {i} for the student and {theirs.get(token, 'absent')} for the teacher), so "
        found += "the teacher would score other words than the student wrote"
        return Finding("refusal", "vocabulary", found, "choose two models of one family", evidence)
    same = f"{len(ours) - len(only[0]):,} tokens have the same id in both"
    if only[1]:
        same += f"; {len(only[1])} only the teacher has (such as {_few(only[1])}), which the student never writes"
    return Finding("ok", "vocabulary", same, evidence=evidence)


def check_rows(student: Side, teacher: Side) -> list[Finding]:
    """Rows of the student's head that are never sampled: tokens that the teacher has not, and rows of no token."""
    scorable = scorable_ids(student, teacher)
    own = {i for i in student.vocabulary.values() if i < student.rows}
    unscorable, padded = own - scorable, student.rows - len(own)
    rows = {"student_rows": student.rows, "teacher_rows": teacher.rows}
    evidence, findings = rows | {"unscorable": len(unscorable), "padded": padded}, []
    if unscorable:
        named = {token for token, i in student.vocabulary.items() if i in unscorable}
        found = f"{len(unscorable)} tokens that only the student has are never sampled: the teacher can't score them "
        found += f"(such as {_few(named)})"
        findings.append(Finding("warning", "student's own tokens", found, evidence=evidence, told=True))
    if padded:
        first = {"first": min(set(range(student.rows)) - own)}
        found = f"{padded} rows of the student's head that no token has are never sampled"
        findings.append(Finding("ok", "padded rows", found, evidence=evidence | first))
    heads = f"heads of {student.rows:,} (student) and {teacher.rows:,} rows (teacher); {len(scorable):,} ids can be "
    heads += "sampled and scored"
    return [*findings, Finding("ok", "heads", heads, evidence=evidence)]


def template_of(student: Side, teacher: Side) -> "PreTrainedTokenizerBase":
    """Returns the tokenizer whose chat template prompts follow."""
    return student.tokenizer if student.tokenizer.chat_template else teacher.tokenizer


def check_stops(config: Config, student: Side, teacher: Side) -> list[Finding]:
    """Where a completion ends, and what the stop mode does with that token."""
    if not teacher.stops:
        found = f"neither tokenizer nor generation config of {teacher.name} names a stop token; a teacher needs one"
        return [Finding("refusal", "stop tokens", found, "set eos_token_id in its generation_config.json")]
    scorable = scorable_ids(student, teacher)
    evidence = {"student": student.stops, "teacher": teacher.stops}
    if outside := sorted({i for i in (*student.stops, *teacher.stops) if i not in scorable}):
        found = (
            f"stop ids {outside} are not tokens that both {student.name} and {teacher.name} have: no answer could end"
        )
        mend = "mend eos_token_id in the generation_config.json that names them"
        return [Finding("refusal", "stop tokens", found, mend, evidence)]
    sets = f"the student ends with {student.tokens(student.stops) or 'nothing'}, the teacher with "
    sets += f"{teacher.tokens(teacher.stops)}; a completion ends with the first of any"
    findings = [Finding("ok", "stop tokens", sets, evidence=evidence)]
    turn = end_of_turn(template_of(student, teacher))
    if turn is not None and turn not in scorable:
        found = f"the chat template ends a turn with {student.tokens([turn])}, which only one of the two models has: "
        found += "it is never sampled"
        findings.append(Finding("warning", "end of turn", found, evidence={"id": turn}, told=True))
    elif turn is not None and turn not in {*student.stops, *teacher.stops}:
        found = f"the chat template ends a turn with {student.tokens([turn])}, which neither model's tokenizer or "
        found += "generation config names as a stop: without it answers would run on to the length limit, so it is "
        found += "taken as one"
        mend = "add it to eos_token_id in generation_config.json, so that other programs stop there too"
        findings.append(Finding("warning", "end of turn", found, mend, {"id": turn}, told=True))
    return [*findings, _stop_mode(config, student, teacher)]


def teachers_stop(student: Side, teacher: Side) -> int:
    """Returns the id with which the teacher ends a turn: its chat template's, which need not be its tokenizer's eos, or that."""
    turn = end_of_turn(teacher.tokenizer)
    return turn if turn is not None and turn in scorable_ids(student, teacher) else teacher.stops[0]


def _stop_mode(config: Config, student: Side, teacher: Side) -> Finding:
    mode, own = config.stop_mode, teachers_stop(student, teacher)
    differ = bool(student.stops) and student.stops[0] not in (own, teacher.stops[0])
    does = {
        "mask": "the final stop token is left out of the loss",
        "raw": "the final stop token is in the loss as it was sampled",
        "relabel": f"the final stop token counts as the teacher's, {teacher.tokens([own])}, for both",
        "cross_eos": f"the teacher scores its own {teacher.tokens([own])} where the student stopped",
    }[mode]
    if other := own != teacher.stops[0] and mode in ("relabel", "cross_eos"):
        does += f" (with it its chat template ends turns; its tokenizer's eos is {teacher.tokens(teacher.stops[:1])})"
    evidence = {"stop_mode": mode, "differ": differ}
    if differ and mode == "raw":
        why = "the two end differently, and the teacher finds the student's own stop unlikely, so stopping is punished"
        return Finding("warning", "stop mode", f"stop_mode raw: {does}; {why}", "stop_mode: mask", evidence)
    if differ and reward_of(config.reward).pay is None:
        why = f"the two end differently, and under {config.reward} a student that ends its own way need not learn to stop (docs/method.md)"
        return Finding("warning", "stop mode", f"stop_mode {mode}: {does}; {why}", "reward: power", evidence)
    return Finding("ok", "stop mode", f"stop_mode {mode}: {does}", evidence=evidence, told=other)


def check_templates(config: Config, student: Side, teacher: Side) -> list[Finding]:
    """The two chat templates on one question, token by token, and whether both heed the thinking mode."""
    ours, theirs = (bool(side.tokenizer.chat_template) for side in (student, teacher))
    if not ours or not theirs:
        lacking, other = ("student", "teacher") if theirs else ("teacher", "student")
        found = f"the {lacking} has no chat template; prompts follow the {other}'s"
        found = found if ours or theirs else "neither model has a chat template; prompts are plain text"
        return [Finding("warning", "chat template", found, told=True)]
    system = [{"role": "system", "content": config.system_prompt}] if config.system_prompt else []
    question = [*system, {"role": "user", "content": "x" + config.prompt_suffix}]
    texts: list[list[str]] = []
    for side in (student, teacher):
        try:
            told = template_options(config) if side is student else teacher_options(config)
            ways = [told, told | {"enable_thinking": False}, told | {"enable_thinking": True}]
            texts.append([prompt_text(question, side.tokenizer, way) for way in ways])
        except TemplateFault as error:
            # Where all prompts follow the student's, the teacher's is not needed.
            needed = side is student or is_apart(config)
            level: Literal["refusal", "warning"] = "refusal" if needed else "warning"
            found = f"the chat template of the {side.role} {side.name} can't render a question: {error}"
            return [Finding(level, "chat template", found, "mend its chat_template.jinja", told=True)]
    (mine, *own), (other, *theirs_too) = texts
    same = _same_text(student, teacher, mine, other, is_apart(config))
    return [same, _thinking(config, [own, theirs_too])]


def _same_text(student: Side, teacher: Side, mine: str, other: str, apart: bool) -> Finding:
    if mine == other:
        return Finding("ok", "chat template", f"both put a question in the same text: {mine!r}")
    pairs = ((student, mine), (teacher, other))
    ids = [side.tokenizer(text, add_special_tokens=False)["input_ids"] for side, text in pairs]
    at = next((i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), min(map(len, ids)))
    first = [s.tokens(i[at : at + 1]) or "the end" for s, i in zip((student, teacher), ids, strict=True)]
    where = f"(token {at + 1} is the first that differs: {first[0]} and {first[1]})"
    found = f"the chat templates differ, and prompts follow the student's: the teacher scores answers to {mine!r}, "
    found += f"where its own form is {other!r} {where}"
    evidence = {"student_ids": ids[0], "teacher_ids": ids[1], "first_difference": at}
    if apart:
        found = f"the student is asked {mine!r}, the teacher {other!r} {where}"
    return Finding("ok" if apart else "warning", "chat template", found, evidence=evidence, told=True)


def _thinking(config: Config, texts: list[list[str]]) -> Finding:
    heeds = [off != on for off, on in texts]
    mode, evidence = ("on" if config.enable_thinking else "off"), {"student_heeds": heeds[0], "teacher_heeds": heeds[1]}
    if (theirs := teacher_options(config)["enable_thinking"]) != config.enable_thinking:
        text = f"{mode} for the student, {'on' if theirs else 'off'} for the teacher"
        return Finding("ok" if all(heeds) else "warning", "thinking mode", text, evidence=evidence)
    if heeds[0] == heeds[1]:
        text = f"off or on changes the prompt of both; it is {mode}" if heeds[0] else "no template knows such a mode"
        return Finding("ok", "thinking mode", text, evidence=evidence)
    who, not_who = ("student", "teacher") if heeds[0] else ("teacher", "student")
    found = f"the {who}'s chat template heeds enable_thinking and the {not_who}'s does not: with it {mode}, one of "
    found += "them is asked in another mode than it is used to"
    mend = f"enable_thinking: {'false' if config.enable_thinking else 'true'}, if that makes the templates agree"
    return Finding("warning", "thinking mode", found, mend, evidence)


def check_prompt_tokens(
    config: Config, student: Side, teacher: Side, prompts: "Sequence[Prompt]", texts: "Sequence[str]"
) -> list[Finding]:
    """Whether the teacher reads prompts and completions as the student does.

    No prompt may hold an id that who reads it has not; and both tokenizers must cut `texts` into the same tokens. Equal
    vocabularies don't show that: the order of merges, the pre-tokenizer or the normaliser may differ.
    """
    findings = []
    for side in (student, teacher):
        known = {i for i in side.vocabulary.values() if i < side.rows}
        if unknown := sorted(tokens_used(prompts, side.role) - known):
            named = {i: token for s in (student, teacher) for token, i in s.vocabulary.items()}
            names = ", ".join(repr(named.get(i, i)) for i in unknown[:5])
            found = (
                f"the prompts hold tokens that {side.name} does not have ({names}), so it can't score what follows them"
            )
            mend = "choose a teacher of the student's family, or a chat template without them"
            findings.append(
                Finding("refusal", "prompts' tokens", found, mend, {"role": side.role, "ids": unknown[:20]})
            )
    cut = [[s.tokenizer(text, add_special_tokens=False)["input_ids"] for s in (student, teacher)] for text in texts]
    different = [(text, *ids) for text, ids in zip(texts, cut, strict=True) if ids[0] != ids[1]]
    check, evidence = "same text, same tokens", {"texts": len(texts), "different": len(different)}
    if not different:
        found = f"{len(texts):,} texts (of the data, and a built-in line) are cut into the same tokens"
        return [*findings, Finding("ok", check, found, evidence=evidence)]
    text, mine, other = different[0]
    found = f"{student.name} and {teacher.name} cut the same text into different tokens ({len(mine)} and "
    found += f"{len(other)} for {text[:60]!r}), though their vocabularies agree"
    return [*findings, Finding("refusal", check, found, "choose two models of one family", evidence)]


def _few(tokens: set[str]) -> str:
    return ", ".join(map(repr, sorted(tokens)[:3]))
