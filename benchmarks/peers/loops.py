"""The loops that are no product: ours as `poweropd train` puts it together, a plain one, and a lean one.

A method is made by `make(case, student, teacher, reward)` and has two parts: `sample()` returns rollouts, `gradient(rollouts)`
leaves the gradient of the mean loss in the student's parameters and returns the loss.
"""

import torch
from cases import ALPHA, CLIP, LEARNING_RATE, Case, config_of, ids_of, rollouts_of
from shapes import SHAPES, device, sampling
from torch import Tensor

from poweropd_lite.checks.reward import reward_settings
from poweropd_lite.engines.loop import LoopEngine
from poweropd_lite.kernels.products import LOGIT_ELEMENTS
from poweropd_lite.method import loss
from poweropd_lite.method.batch import Stops
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import Draws, Rollout
from poweropd_lite.method.update import Objective, accumulate, take_step
from poweropd_lite.models.loading import final_hidden
from poweropd_lite.models.student import Student
from poweropd_lite.models.teacher import Teacher
from poweropd_lite.run.metrics import describe


class Loop:
    """What the loops of this file have in common. `generate` of transformers samples."""

    def __init__(self, case: Case, student: Student, teacher: Teacher, reward: str) -> None:
        self.case, self.student, self.teacher, self.reward = case, student, teacher, reward
        self.prompts = [rollout.prompt_ids for rollout in rollouts_of(case)]
        self.steps = 0
        trained = list(student.trainable().values())
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def sample(self) -> list[Rollout]:
        """Returns one rollout a prompt."""
        model, ids = self.student.model, torch.tensor(self.prompts, device=device())
        model.eval()
        with torch.no_grad(), self.student.compute():
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.case.new, do_sample=True, top_k=0, top_p=1.0,
                temperature=1.0, use_cache=True, pad_token_id=0,
            )  # fmt: skip
        nothing = (0.0,) * self.case.new
        new = whole[:, ids.shape[1] :].tolist()
        return [Rollout(p, tuple(c), nothing, "length") for p, c in zip(self.prompts, new, strict=True)]

    def gradient(self, rollouts: list[Rollout]) -> float:
        """Leaves the gradient of the mean loss over the new tokens in the parameters; returns the loss."""
        ids, total = ids_of(rollouts), 0.0
        count = len(rollouts) * self.case.new
        for lines in ids.split(self.case.micro):
            total += self.add(lines, count)
        return total

    def add(self, ids: Tensor, count: int) -> float:
        """Adds the part of some lines, ids [B, T], to gradient and loss."""
        raise NotImplementedError

    def hidden(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the student's and the teacher's hidden states [B, new, D] that predict the new tokens, and these [B, new]."""
        new = slice(self.case.prompt - 1, -1)
        said = self.teacher.hidden(ids)[:, new]
        self.student.model.train()
        with self.student.compute():
            learnt = final_hidden(self.student.model, ids)[:, new].to(self.student.dtype)
        return learnt, said, ids[:, self.case.prompt :]

    def step(self, rollouts: list[Rollout]) -> float:
        """Takes one optimizer step."""
        value = self.gradient(rollouts)
        torch.nn.utils.clip_grad_norm_(list(self.student.trainable().values()), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value


class Plain(Loop):
    """Float32 logits of the whole batch, as such code is usually written."""

    def add(self, ids: Tensor, count: int) -> float:
        """Adds the part of some lines."""
        hidden, said, target = self.hidden(ids)
        log_q = (hidden @ self.student.head.weight.to(hidden.dtype).T).float().log_softmax(-1)
        with torch.no_grad():
            log_p = (said @ self.teacher.head.weight.to(said.dtype).T).float().log_softmax(-1)
        if self.reward == "full_kl":
            value = (log_q.exp() * (log_q - log_p)).sum() / count
        else:
            q, p = (table.gather(-1, target[..., None]) for table in (log_q, log_p))
            value = -(((ALPHA * p).exp() - (ALPHA * q.detach()).exp()) * q).sum() / count
        value.backward()
        return value.item()


class Lean(Loop):
    """As few passes as the maths needs, and nothing else: a chunk's logits are made once, its gradients at once from them.

    No entropy, no kept mass, no forbidden ids, the power reward and a trained head alone; the largest logit is taken off
    first, for without it a loop is wrong where logits are large.
    """

    @torch.no_grad()
    def log_p(self, said: Tensor, target: Tensor) -> Tensor:
        """Returns the teacher's log-probs [N] of target [N], from hidden states [N, D]."""
        out, head = torch.empty(len(target), device=said.device), self.teacher.head.weight.to(said.dtype)
        for part in torch.arange(len(target)).split(max(1, LOGIT_ELEMENTS // len(head))):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            z = (said[rows] @ head.T).float()
            z -= z.amax(-1, keepdim=True)
            own = z.gather(-1, target[rows, None])[:, 0]
            out[rows] = own - z.exp_().sum(-1).log_()
        return out

    def add(self, ids: Tensor, count: int) -> float:
        """Adds the part of some lines."""
        hidden, said, target = (t.flatten(0, 1) for t in self.hidden(ids))
        log_p, head = self.log_p(said, target), self.student.head.weight
        total, dhidden = 0.0, torch.empty_like(hidden)
        with torch.no_grad():
            matrix, dhead = head.to(hidden.dtype), torch.zeros_like(head)
            for part in torch.arange(len(target)).split(max(1, LOGIT_ELEMENTS // len(head))):
                rows = slice(int(part[0]), int(part[-1]) + 1)
                z = (hidden[rows] @ matrix.T).float()
                z -= z.amax(-1, keepdim=True)
                own = z.gather(-1, target[rows, None])
                mass = z.exp_().sum(-1, keepdim=True)
                log_q = own - mass.log()
                paid = ((ALPHA * log_p[rows, None]).exp() - (ALPHA * log_q).exp()) / count
                total -= (paid * log_q).sum().item()
                z.mul_(paid / mass).scatter_add_(-1, target[rows, None], -paid)
                z = z.to(hidden.dtype)
                dhidden[rows] = z @ matrix
                if dhead.dtype == z.dtype:
                    dhead.addmm_(z.T, hidden[rows])
                else:
                    dhead += z.T @ hidden[rows]
        hidden_grad = dhidden.view(len(ids), -1, dhidden.shape[-1])
        hidden.view_as(hidden_grad).backward(hidden_grad)
        head.grad = dhead if head.grad is None else head.grad.add_(dhead)  # a tied one has its embedding's already
        return total


class Ours(Loop):
    """The pieces of `poweropd train`, in its order: engine, accumulate, take_step, what it writes down of every token."""

    forbidden = False  # whether the 267 rows without a token are taken out, as in every run of Qwen3

    def __init__(self, case: Case, student: Student, teacher: Teacher, reward: str) -> None:
        super().__init__(case, student, teacher, reward)
        self.config = config_of(case, student.has_adapter, reward)
        plain = sampling(SHAPES[case.student]) if self.forbidden else Sampling()
        self.objective = Objective(reward, reward_settings(self.config), plain, self.config.score, Stops("mask", 0))
        self.engine = LoopEngine(student, frozenset(), print) if case.samples else None

    def sample(self) -> list[Rollout]:
        """Returns one rollout a prompt."""
        self.engine.sync()
        self.steps += 1
        draws = Draws(0, 0, self.steps, tuple(range(self.case.lines)))
        rollouts = self.engine.sample(self.prompts, draws, self.objective.sampling, self.case.new)
        self.engine.release()
        return rollouts

    def gradient(self, rollouts: list[Rollout]) -> float:
        """Leaves the gradient of the mean loss in the parameters; returns the loss."""
        done = self.accumulate(rollouts)
        loss.divide_gradients(list(self.student.trainable().values()), done.count)
        return done.loss.item() / done.count

    def accumulate(self, rollouts: list[Rollout]):
        """Returns the summed gradient of a step."""
        return accumulate(self.student, self.teacher, rollouts, self.objective, self.config.tokens_at_once)

    def step(self, rollouts: list[Rollout]) -> float:
        """Takes one optimizer step."""
        done = self.accumulate(rollouts)
        metrics = take_step(self.student, self.optimizer, done, CLIP)
        describe(done.tokens, self.objective, rollouts)
        return metrics["loss"]


class OursForbidden(Ours):
    """The same with the rows that no token has taken out of the sampled distribution."""

    forbidden = True
