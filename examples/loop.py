"""On-policy distillation with the power reward, whole, on the pieces that `poweropd train` is made of.

    python examples/loop.py

The student samples, the teacher scores the sampled tokens, the student learns: in 40 steps and less than a minute of one
CPU core the bundled student goes from about 35% to over 80% of held-out problems. Left out: checkpoints, metrics files,
out-of-memory handling, the guard against stale weights, float16, Unsloth and vLLM; all of that is `poweropd train`.
"""

import argparse

import torch
import transformers

from poweropd_lite.base.config import load_config
from poweropd_lite.checks.pair import load_pair
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.evaluate.sampling import evaluate_student
from poweropd_lite.method.batch import Stops
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import TRAINING, Draws
from poweropd_lite.method.update import Objective, accumulate, take_step
from poweropd_lite.models.student import load_student
from poweropd_lite.models.teacher import load_teacher
from poweropd_lite.problems.benchmarks import find_benchmarks, load_problems
from poweropd_lite.problems.prompts import step_indices
from poweropd_lite.problems.reading import load_prompts


def main(steps: int, problems: int) -> float:
    """Trains the bundled pair for `steps` steps; returns Avg@k on the first `problems` held-out problems, 0 to 1."""
    config = load_config("bundled", steps=steps, eval_problems=problems)
    device, dtype = torch.device("cpu"), torch.float32
    torch.set_num_threads(1)  # the faster at this size
    transformers.utils.logging.disable_progress_bar()

    # The pair: one vocabulary, which ids are never sampled, where a completion ends. Then prompts and problems.
    pair = load_pair(config)
    prompts, _ = load_prompts(config, pair.tokenizer)
    (benchmark,) = find_benchmarks("bundled")
    held_out = load_problems(benchmark, pair.tokenizer, config, problems, (None, None), print)

    # A LoRA student, what samples from it, a frozen 4-bit teacher, and what is to be learnt.
    student, teacher = load_student(config, device, dtype), load_teacher("bundled", 4, device, dtype)
    engine = LoopEngine(student, pair.stop_ids, print)
    sampling = Sampling(temperature=1.0, forbidden=torch.tensor(pair.forbidden))
    objective = Objective("power", {"alpha": 10.0}, sampling, stops=Stops("mask", pair.teacher_stop))
    optimizer = torch.optim.AdamW(student.trainable().values(), config.learning_rate, weight_decay=0.0, fused=True)

    def accuracy() -> float:
        engine.sync()
        done = evaluate_student(engine, [held_out], pair, config, device)
        assert done is not None  # only a stop request ends it early
        return done[0].summary()["avg"]

    print(f"step 0: {accuracy():.1%} of {problems} held-out problems")
    for step in range(steps):
        # The student samples: one rollout of each of the step's prompts.
        indices = step_indices(len(prompts), config.batch_size, config.seed, step)
        draws = Draws(config.seed, TRAINING, step, tuple(range(config.batch_size)))
        engine.sync()
        rollouts = engine.sample([prompts[i].ids for i in indices], draws, sampling, config.max_new_tokens)

        # The teacher scores every sampled token, the student's forward gives log q, reward p^alpha - q^alpha and loss.
        gradient = accumulate(student, teacher, rollouts, objective, config.tokens_at_once)

        # 1/N, the clip, AdamW.
        metrics = take_step(student, optimizer, gradient, config.max_grad_norm)
        if (step + 1) % 10 == 0:
            reward, norm = gradient.tokens.reward.mean().item(), metrics["optim/grad_norm"]
            print(f"step {step + 1}: loss {metrics['loss']:+.4f}, mean reward {reward:+.3f}, gradient norm {norm:.3f}")
    after = accuracy()
    print(f"step {steps}: {after:.1%} of {problems} held-out problems")
    return after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--problems", type=int, default=128)
    args = parser.parse_args()
    main(args.steps, args.problems)
