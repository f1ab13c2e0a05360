"""The step as it is usually written, the yardstick of ours: padded, on float32 logits of the whole batch."""

import torch
from shapes import ALPHA, device

from poweropd_lite.method.rollout import Rollout
from poweropd_lite.models.loading import final_hidden


def plain_step(student, teacher, optimizer, rollouts: list[Rollout], phases) -> dict[str, float]:
    """The same step on float32 logits of the whole batch, as such code is usually written."""
    width = max(map(len, rollouts))
    ids = torch.zeros(len(rollouts), width, dtype=torch.long)
    mask = torch.zeros(len(rollouts), width - 1, dtype=torch.bool)
    for i, r in enumerate(rollouts):
        ids[i, : len(r)] = torch.tensor(r.prompt_ids + r.completion_ids)
        mask[i, len(r.prompt_ids) - 1 : len(r) - 1] = True
    ids, mask = ids.to(device()), mask.to(device())

    def logprobs(hidden, head):
        logits = (hidden[:, :-1] @ head.to(hidden.dtype).T).float()
        return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)

    with torch.no_grad():
        log_p = logprobs(teacher.hidden(ids), teacher.head.weight)
    phases.end("teacher")
    student.model.train()
    with student.compute():
        hidden = final_hidden(student.model, ids)
    log_q = logprobs(hidden, student.head.weight)
    reward = ((ALPHA * log_p).exp() - (ALPHA * log_q).exp()).detach()
    (-(reward * log_q * mask).sum() / mask.sum()).backward()
    phases.end("student")
    norm = torch.nn.utils.clip_grad_norm_(list(student.trainable().values()), 1.0).item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    phases.end("optimizer")
    return {"optim/grad_norm": norm}
