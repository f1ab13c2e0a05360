"""A reward that can't be paid is refused before anything loads, with what to type instead."""

import sys

import pytest
import torch

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import UserError
from poweropd_lite.checks.reward import check_reward, reward_settings
from poweropd_lite.report.groups import differing_settings, label_of
from poweropd_lite.rewards.table import REWARDS, passes, reads_rows

FUNCTIONS = """
import torch

def pay(log_p, log_q, *, b=1.0):
    return (b * (log_p - log_q)).tanh().detach()

def carries(log_p, log_q):
    return log_p - log_q

def infinite(log_p, log_q):
    return ((log_p - log_q).exp().exp()).detach()

def scalar(log_p, log_q):
    return (log_p - log_q).mean().detach()

def needs(log_p, log_q, entropy):
    return entropy
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_rewards", None)


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_passes_its_own_check(name):
    config = load_config("bundled", reward=name)
    assert check_reward(config) is REWARDS[name]
    assert config.reward_label == name + " 10" * (name in ("power", "full_power"))


def test_a_function_of_ones_own_is_paid_with_its_settings(own):
    config = load_config("bundled", reward="own_rewards:pay", reward_settings={"b": 2})
    entry = check_reward(config)
    paid = entry.pay(torch.tensor([-1.0]), torch.tensor([-2.0]), **reward_settings(config))
    assert paid.item() == pytest.approx(0.9640276)  # tanh 2
    assert config.reward_label == "own_rewards:pay b=2"


def test_a_file_that_was_edited_is_read_anew(own, tmp_path):
    config = load_config("bundled", reward="own_rewards:pay")
    assert check_reward(config).pay(torch.tensor([-1.0]), torch.tensor([-2.0])).item() == pytest.approx(0.7615942)
    (tmp_path / "own_rewards.py").write_text(FUNCTIONS.replace(".tanh()", ".mul(10)"))
    assert check_reward(config).pay(torch.tensor([-1.0]), torch.tensor([-2.0])).item() == 10.0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_rewards:carries", r"carries a gradient.*\.detach\(\)"),
        ("own_rewards:infinite", "it gives inf at log p -0.1 and log q -40|it gives inf at log p"),
        ("own_rewards:scalar", r"a tensor of shape \[\] for log-probs of shape \[6, 6\]"),
        ("own_rewards:needs", "can't be paid: TypeError.*entropy"),
        ("own_rewards:gone", "has no function gone; it has pay, carries"),
        ("no_such_module:pay", "there is no module no_such_module"),
    ],
)
def test_what_is_wrong_with_a_function_is_said(own, name, said):
    with pytest.raises(UserError, match=said):
        check_reward(load_config("bundled", reward=name))


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("relaxed", {"lam": 1}, "lam is 1, and has to be above 0 and below 1"),
        ("relaxed", {"lam": 0}, "lam is 0"),
        ("f_fkl", {"cap": -3}, "cap is -3, and has to be above 0"),
        ("full_jsd", {"beta": 1.0}, "beta is 1.*at either end the loss is 0"),
        ("top_k", {"k": 1}, "k is 1, and has to be a whole number from 2 on"),
        ("top_k", {"k": 2.7}, "k is 2.7"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_anything_loads(name, settings, said):
    with pytest.raises(UserError, match=f"reward {name} can't be paid.*{said}.*--reward-settings"):
        check_reward(load_config("bundled", reward=name, reward_settings=settings))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"reward": "f_jds"}, "no reward named 'f_jds'; did you mean 'f_jsd'"),
        ({"reward": "my rewards:pay"}, "a function is named module:function"),
        ({"reward": "relaxed", "reward_settings": {"lan": 1}}, "reward relaxed has no lan; it has lam"),
        ({"reward": "f_tv", "reward_settings": {"lam": 1}}, "reward f_tv has no lam of that kind; leave it out"),
        ({"reward": "power", "reward_settings": {"alpha": 1}}, "reward power has no alpha; type --alpha"),
        ({"reward": "relaxed", "reward_settings": {"lam": "x"}}, "lam should be a number"),
        ({"reward": "extrapolated", "full_finetune": True}, "without its adapter, which full_finetune changes"),
        ({"reward": "extrapolated", "baseline": "own"}, "is known of the sampled tokens alone; leave it out"),
        ({"reward": "top_k", "baseline": "own"}, "pays no single token; leave it out"),
        ({"reward": "top_k", "importance_cap": 2.0}, "top_k has no reward to weigh"),
        ({"baseline": "own", "teacher": "http://h:1", "teacher_name": "t"}, "a mean over whole distributions"),
        ({"reward": "full_jsd", "teacher": "http://h:1", "teacher_name": "t"}, "full_jsd compares whole distributions"),
        ({"reward": "f_jds"}, "did you mean 'f_jsd'"),
        ({"keep": "some"}, "keep: found 'some'"),
        ({"keep_share": 0.0}, "keep_share: found 0.0"),
    ],
)
def test_what_can_not_work_is_refused_before_torch(values, said):
    with pytest.raises(UserError, match=said):
        load_config("bundled", **values)


def test_what_each_objective_costs():
    """Forwards of the student an update, and whether both models' rows are read."""
    costs = {
        "power": {},
        "zscore": {},
        "extrapolated": {},
        "dial": {"keep": "dial"},
        "random": {"keep": "random"},
        "remaining": {"weight": "remaining"},
        "horizon": {"weight": "horizon"},
        "own": {"baseline": "own"},
        "full_power": {},
    }
    found = {}
    for name, values in costs.items():
        config = load_config("bundled", **(values or {"reward": name}))
        found[name] = (passes(config), reads_rows(config))
    assert found == {
        "power": (1, False), "zscore": (2, False), "extrapolated": (2, False), "dial": (2, False), "random": (1, False),
        "remaining": (2, False), "horizon": (1, False), "own": (1, True), "full_power": (1, True),
    }  # fmt: skip


def test_reports_name_what_stands_beside_a_reward_once():
    configs = [
        load_config("bundled", reward="log_ratio"),
        load_config("bundled", reward="log_ratio", keep="dial", keep_share=0.2),
        load_config("bundled", reward="relaxed", reward_settings={"lam": 0.3}),
        load_config("bundled", reward="log_ratio", keep="dial", keep_share=0.3),
        load_config("bundled", reward="log_ratio", weight="horizon", horizon=9),
    ]
    differing = differing_settings(configs)
    names = [name for name in differing if name not in ("reward", "reward_settings", "baseline", "keep", "weight")]
    assert [label_of(config, True, names) for config in configs] == [
        "log_ratio",
        "log_ratio keep dial, keep_share 0.2",
        "relaxed lam=0.3",
        "log_ratio keep dial, keep_share 0.3",
        "log_ratio weight horizon",
    ]
