"""One question to a run, an adapter or a model: `ask("runs/power10-seed0", "Compute 12 + 30 - 7.")`.

To look at a student, not to score it (that is evaluate). Asked as in training: the run's own system prompt, suffix and
thinking switch. By the built-in loop, greedily.
"""

from contextlib import closing
from pathlib import Path

from poweropd_lite.base.config import BUNDLED, load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.evaluate.settings import load_eval_config


def ask(model: str | Path, question: str, *, max_new_tokens: int | None = None) -> str:
    """Returns the greedy answer to a question, without special tokens; of at most `max_new_tokens`, else the run's own setting.

    `model` is what the evaluate command takes: a run folder, an adapter, a model's folder or hub id, bundled-student or
    bundled-teacher. It is loaded anew each time. Raises UserError for a model or a question that can't be used.
    """
    config = load_eval_config(model=model, max_new_tokens=max_new_tokens, engine="loop")
    import torch
    import transformers

    from poweropd_lite.checks.machine import compute_dtype
    from poweropd_lite.engines.choose import hush_bitsandbytes, serve_engine, unsloth_fault
    from poweropd_lite.evaluate.sampling import as_answer
    from poweropd_lite.evaluate.target import engine_config, find_target, load_vocabulary
    from poweropd_lite.method.logprobs import Sampling
    from poweropd_lite.method.rollout import EVALUATION, Draws
    from poweropd_lite.models.loading import model_path
    from poweropd_lite.problems.prompts import Skipped, make_prompt

    hush_bitsandbytes()
    unsloth_fault()  # imports it where it is installed: a run that begins later in this process wants it before the models
    transformers.utils.logging.disable_progress_bar()
    target = find_target(config)
    bundled = target.base in (model_path(BUNDLED, "student"), model_path(BUNDLED, "teacher"))
    as_trained = target.run or load_config(BUNDLED if bundled else None)
    vocabulary = load_vocabulary(target, config)
    prompt = make_prompt(question, vocabulary.tokenizer, as_trained, "question")
    if isinstance(prompt, Skipped):
        raise UserError(f"the question can't be asked: {prompt.reason}")
    longest = max_new_tokens or as_trained.max_new_tokens
    if vocabulary.positions is not None and len(prompt.ids) + longest > vocabulary.positions:
        raise UserError(
            f"a prompt of {len(prompt.ids)} and an answer of {longest} tokens are more than the model's {vocabulary.positions} "
            f"positions; ask with max_new_tokens={vocabulary.positions - len(prompt.ids)}"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = engine_config(target, config, len(prompt.ids) + longest, longest)
    dtype = compute_dtype(settings, device)
    forbidden = torch.tensor(vocabulary.forbidden, dtype=torch.long, device=device)
    with closing(serve_engine(target, settings, device, dtype, vocabulary.stop_ids, print)) as engine:
        engine.sync()
        greedy = Sampling(top_k=1, forbidden=forbidden)
        rollout = engine.sample([prompt.ids], Draws(0, EVALUATION, 0, (0,)), greedy, longest)[0]
    return as_answer(rollout, vocabulary.tokenizer).text
