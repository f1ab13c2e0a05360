"""The loss on numbers by hand, its mask and its denominator."""

import pytest
import torch

from poweropd_lite.method import loss


def test_loss_by_hand():
    score = torch.tensor([-1.0, -2.0], requires_grad=True)
    total = loss.policy_gradient_sum(score, torch.tensor([0.5, -0.25]))
    assert total.item() == -(0.5 * -1.0 + -0.25 * -2.0)
    total.backward()
    assert score.grad.tolist() == [-0.5, 0.25]


def test_no_token_gives_an_exact_differentiable_zero():
    score = torch.zeros(0, requires_grad=True)
    total = loss.policy_gradient_sum(score, torch.zeros(0))
    total.backward()
    assert total.item() == 0.0


def test_reward_gets_no_gradient():
    score, reward = torch.tensor([-1.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    loss.policy_gradient_sum(score, reward).backward()
    assert reward.grad is None


def test_gradients_are_divided_by_n_once():
    with_grad, without = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    with_grad.grad = torch.tensor([8.0, -4.0])
    loss.divide_gradients([with_grad, without], 4)
    assert with_grad.grad.tolist() == [2.0, -1.0]
    assert without.grad is None
    with pytest.raises(ValueError, match="N = 0"):
        loss.divide_gradients([with_grad], 0)
