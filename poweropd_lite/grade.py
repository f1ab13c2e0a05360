"""Whether a completion's answer is right: exact match of the last boxed answer."""


def boxed_answer(text: str) -> str | None:
    r"""Returns what stands in the last balanced `\boxed{...}` of `text`, stripped, or None if there is none."""
    end = len(text)
    while (start := text.rfind("\\boxed{", 0, end)) >= 0:
        depth = 0
        for i in range(start + len("\\boxed"), len(text)):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                return text[start + len("\\boxed{") : i].strip()
        end = start
    return None


def is_correct(completion: str, gold: str) -> bool:
    """Returns whether the last boxed answer of `completion` is `gold`, to the letter."""
    return boxed_answer(completion) == gold.strip()
