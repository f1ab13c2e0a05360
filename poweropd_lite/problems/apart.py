"""The prompt that the teacher reads, where that is another than the student's: other template arguments, or more in its text.

Its completion is the student's, id for id; only what stands before it differs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.teachers import SELF
from poweropd_lite.problems.files import decoded
from poweropd_lite.problems.prompts import Rendered, Skipped, TemplateFault, prompt_text, template_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Apart:
    """How the teacher is asked."""

    tokenizer: "PreTrainedTokenizerBase"  # whose chat template it is
    options: dict[str, Any]  # of the chat template
    prompt: str  # the last user message with {prompt} and columns of the row to be filled in; "": the student's own
    longest: int  # tokens

    @property
    def columns(self) -> set[str]:
        """The columns of a row that are put into its prompt."""
        return {name for name in _PLACE.findall(self.prompt) if name != "prompt"}

    def render(self, rendered: Rendered, row: dict[str, Any]) -> str | Skipped:
        """Returns the text of a problem for the teacher, or why there is none."""
        messages = [{"role": role, "content": content} for role, content in rendered.messages]
        if self.prompt:
            values = {name: decoded(row.get(name)) for name in self.columns}
            for name, value in values.items():
                if not isinstance(value, str | int | float) or not str(value).strip():
                    return Skipped(f"'{name}', which teacher_prompt wants, is not there or holds no text")
            values["prompt"] = messages[-1]["content"]
            messages[-1]["content"] = _PLACE.sub(lambda found: str(values[found[1]]), self.prompt)
        try:
            text = prompt_text(messages, self.tokenizer, self.options)
            text.encode()
        except (TemplateFault, UnicodeEncodeError) as error:
            return Skipped(f"the teacher's prompt can't be made: {error}")
        return text

    def tokenize(self, texts: Sequence[str | Skipped]) -> list[tuple[int, ...] | Skipped]:
        """Returns the ids of each text, or why they can't be used."""
        whole = [text for text in texts if isinstance(text, str)]
        rows = iter(self.tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"] if whole else ())
        return [text if isinstance(text, Skipped) else self._within(tuple(next(rows))) for text in texts]

    def _within(self, ids: tuple[int, ...]) -> tuple[int, ...] | Skipped:
        if len(ids) <= self.longest:
            return ids
        found = f"the teacher's prompt has {len(ids)} tokens, more than max_prompt_tokens {self.longest}"
        return Skipped(found, too_long=True)


def is_apart(config: Any) -> bool:
    """Whether the teacher reads prompts of its own."""
    return any(
        (config.teacher_enable_thinking is not None, config.teacher_template_kwargs is not None, config.teacher_prompt)
    )


def teacher_options(config: Any) -> dict[str, Any]:
    """Returns what the teacher's chat template is told: its own, and where that is not given the student's."""
    thinking, more = config.teacher_enable_thinking, config.teacher_template_kwargs
    own = template_options(config)["enable_thinking"] if thinking is None else thinking
    return {"enable_thinking": own, **(config.template_kwargs if more is None else more)}


def asked_apart(config: Any, student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase") -> Apart | None:
    """Returns how the teacher of a run is asked, by its own chat template if it has one; None if as the student is."""
    if not is_apart(config):
        return None
    own = teacher if teacher.chat_template and config.teacher != SELF else student
    return Apart(own, teacher_options(config), config.teacher_prompt, config.max_prompt_tokens)
