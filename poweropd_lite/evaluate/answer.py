"""The answer of evaluate/ask.py: asked as in training, with the run's own system prompt, suffix and thinking switch.

By the built-in loop, greedily.
"""

from contextlib import closing
from pathlib import Path

import torch

from poweropd_lite.base.config import BUNDLED, load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.checks.machine import compute_dtype
from poweropd_lite.engines.choose import Choice, hush_bitsandbytes, unsloth_fault
from poweropd_lite.evaluate.sampling import as_answer
from poweropd_lite.evaluate.serve import Serving, serve_engine, served_bits
from poweropd_lite.evaluate.settings import load_eval_config
from poweropd_lite.evaluate.target import find_target, load_vocabulary
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import EVALUATION, Draws
from poweropd_lite.problems.prompts import Skipped, make_prompt


def answer(model: str | Path, question: str, max_new_tokens: int | None) -> str:
    """Returns what `ask` promises."""
    config = load_eval_config(model=model, max_new_tokens=max_new_tokens, engine="loop")
    import transformers

    hush_bitsandbytes()
    unsloth_fault()  # imports it if it is installed: a run that begins later in this process wants it first
    transformers.utils.logging.disable_progress_bar()
    target = find_target(config.model)
    as_trained = target.run or load_config(BUNDLED if target.is_bundled else None)
    vocabulary = load_vocabulary(target)
    prompt = make_prompt(question, vocabulary.tokenizer, as_trained, "question")
    if isinstance(prompt, Skipped):
        raise UserError(f"the question can't be asked: {prompt.reason}")
    longest, positions = max_new_tokens or as_trained.max_new_tokens, vocabulary.positions
    if positions is not None and len(prompt.ids) + longest > positions:
        found = f"a prompt of {len(prompt.ids)} and an answer of {longest} tokens are more than the model's {positions}"
        raise UserError(f"{found} positions; ask with max_new_tokens={positions - len(prompt.ids)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, room = compute_dtype(config.dtype, device), len(prompt.ids) + longest
    how = Serving(Choice("loop", "as asked"), device, dtype, served_bits(target, None), room, 1)
    forbidden = torch.tensor(vocabulary.forbidden, dtype=torch.long, device=device)
    with closing(serve_engine(target, how, vocabulary.stop_ids, print)) as engine:
        engine.sync()
        greedy = Sampling(top_k=1, forbidden=forbidden)
        rollout = engine.sample([prompt.ids], Draws(0, EVALUATION, 0, (0,)), greedy, longest)[0]
    return as_answer(rollout, vocabulary.tokenizer).text
