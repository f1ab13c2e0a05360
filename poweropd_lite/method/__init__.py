"""The paper, on tensors. Read in this order: rollout, batch, logprobs, reward, loss, update."""
