"""verl 0.9.1 with our rewards: its own loss has our gradient on real models, its own parts take our configs and our mask."""

import asyncio
import functools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, _agent_loop_registry
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env
from verl.trainer.distillation import distillation_ppo_loss
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.import_utils import load_extern_object
from verl.utils.tensordict_utils import assign_non_tensor
from verl.utils.torch_functional import logprobs_from_logits
from verl.workers.rollout.replica import TokenOutput
from verl.workers.utils.padding import response_from_nested

import poweropd_lite.verl
from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.method.batch import Stops
from poweropd_lite.method.loss import divide_gradients
from poweropd_lite.method.rollout import Rollout
from poweropd_lite.method.update import Objective, accumulate
from poweropd_lite.models.student import Student
from poweropd_lite.models.teacher import Teacher
from poweropd_lite.problems.rows import Source, rows
from poweropd_lite.verl.rewards import REWARDS, SETTINGS, settings_of

ROOT = Path(__file__).parents[2]
TINY, DATA = ROOT / "poweropd_lite" / "tiny", ROOT / "tests" / "problems.jsonl"


@functools.cache
def composed(name: str, *overrides: str):
    """The config that verl's own command makes of ours, resolved, as its processes get it."""
    where = ["--config-dir", str(ROOT / "examples" / "verl"), "--config-name", name]
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *where, "--cfg", "job", "--resolve"]
    files = ["data.train_files=train.parquet", "data.val_files=test.parquet"]
    done = subprocess.run([*command, *files, *overrides], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return OmegaConf.create(done.stdout)


def of_the_bundled_pair():
    model, teacher = "actor_rollout_ref.model.path", "distillation.teacher_models.teacher_model"
    pair = [f"{model}={TINY / 'student'}", f"{teacher}.model_path={TINY / 'teacher'}"]
    return composed("one_node", *pair, "data.max_prompt_length=128", "data.max_response_length=384")


def looped(tokenizer, messages: list[dict], completion: tuple[int, ...]):
    """What the agent loop that our config names makes of a completion; the server, which wants a card, only hands it over."""

    async def generate(**_):
        return TokenOutput(token_ids=list(completion))

    async def run():
        config = of_the_bundled_pair()
        loop = instantiate(
            _agent_loop_registry[config.actor_rollout_ref.rollout.agent.default_agent_loop],
            trainer_config=DictConfigWrap(config=config),
            server_manager=SimpleNamespace(generate=generate),
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=None,
            data_config=DictConfigWrap(config=config.data),
        )
        return await loop.run({}, raw_prompt=messages)

    return asyncio.run(run())


@pytest.fixture
def learnt_from(rollouts, prompts, pair):
    """Rollouts as we have them, and as verl has them: some end by a stop token, one is truncated, one is a stop token alone."""
    questions = [row["problem"] for _, row in rows(Source(str(DATA)))]
    stop = next(iter(pair.stop_ids))
    ours = [*rollouts[:5], Rollout(prompts[5].ids, tuple(range(40, 60)), (0.0,) * 20, "length")]
    theirs = [
        looped(pair.tokenizer, [{"role": "user", "content": question}], rollout.completion_ids)
        for question, rollout in zip(questions, ours, strict=False)
    ]
    assert [tuple(each.prompt_ids) for each in theirs] == [rollout.prompt_ids for rollout in ours]
    assert stop not in ours[5].completion_ids
    return ours, theirs


def token_logprobs(model, ids: list[int]) -> torch.Tensor:
    """log p of ids[i + 1] at i, and something at the last place: [T], by verl's own function."""
    labels = torch.tensor(ids).roll(-1)
    return logprobs_from_logits(model(torch.tensor([ids])).logits[0], labels)


def batch(outputs, teacher) -> TensorDict:
    """What verl's actor is handed of some outputs of an agent loop, which the teacher's server has scored."""
    for each in outputs:
        with torch.no_grad():
            scored = token_logprobs(teacher, each.prompt_ids + each.response_ids)
        each.extra_fields |= {"teacher_logprobs": scored[:, None], "teacher_ids": scored[:, None].int()}
    found = [each.as_dict() for each in outputs]
    names = ["prompts", "responses", "response_mask", "teacher_logprobs"]
    nested = {name: torch.nested.as_nested_tensor([x[name] for x in found], layout=torch.jagged) for name in names}
    return TensorDict(nested, batch_size=len(found))


@pytest.mark.parametrize("name", ["power", "log_ratio", "clip", "tanh"])
def test_verls_loss_has_our_gradient_in_every_weight(name, learnt_from, student_model, teacher_model, pair):
    """The rollouts as two micro-batches of verl's, against one step of ours; float64."""
    student, (ours, theirs) = Student(student_model.double(), torch.device("cpu"), torch.float64), learnt_from
    parameters = student.trainable()
    stops = Stops("mask", pair.teacher_stop)
    settings = {setting: SETTINGS[setting] for setting in REWARDS[name].settings}
    step = accumulate(student, Teacher(teacher_model), ours, Objective(name, settings, stops=stops), 4096)
    divide_gradients(parameters.values(), step.count)
    wanted = {place: parameter.grad.clone() for place, parameter in parameters.items()}
    assert all(grad.norm() > 0 for grad in wanted.values())

    config = of_the_bundled_pair().copy()
    config.distillation.distillation_loss.loss_mode = name
    actor, distillation = (omega_conf_to_dataclass(x) for x in (config.actor_rollout_ref.actor, config.distillation))
    halves = [batch(theirs[:2], teacher_model), batch(theirs[2:], teacher_model)]
    count = sum(int(half["response_mask"].values().sum()) for half in halves)
    assert count == step.count < sum(len(rollout.completion_ids) for rollout in ours)
    student_model.zero_grad()
    total, logged = 0.0, {}
    for half, outputs in zip(halves, (theirs[:2], theirs[2:]), strict=True):
        lines = [token_logprobs(student_model, each.prompt_ids + each.response_ids) for each in outputs]
        log_probs = torch.nested.as_nested_tensor(lines, layout=torch.jagged)
        half["old_log_probs"] = response_from_nested(log_probs.detach(), half["response_mask"])
        half["advantages"] = torch.ones_like(half["old_log_probs"])
        assign_non_tensor(half, dp_size=1, batch_num_tokens=count, global_batch_size=len(theirs))
        loss, logged = distillation_ppo_loss(actor, distillation, {"log_probs": log_probs}, half)
        loss.backward()
        total += loss.item()
    paid = step.tokens.reward
    assert total == pytest.approx(-paid.mean().item(), rel=1e-6)  # verl's score is a ratio of probabilities, 1 here
    for place, grad in wanted.items():
        assert (parameters[place].grad - grad).norm() < 1e-6 * grad.norm(), place
    of_half = paid[-sum(sum(each.response_mask) for each in theirs[2:]) :]
    assert logged["distillation/reward"].aggregate() == pytest.approx(of_half.mean().item(), rel=1e-6)
    assert {setting: logged[f"distillation/{setting}"] for setting in settings} == settings


def test_the_rewards_of_one_token_alone_are_there_and_no_other():
    assert {*REWARDS} == {"power", "log_ratio", "clip", "tanh"}
    assert SETTINGS == {"alpha": 10.0, "clip_limit": 1.0, "tau": 5.0}  # as docs/verl.md and train have them


def test_a_reward_that_would_be_differentiated_is_refused():
    config = of_the_bundled_pair().copy()
    config.distillation.distillation_loss.use_policy_gradient = False
    with pytest.raises(UserError, match="use_policy_gradient=True"):
        poweropd_lite.verl.rewards.token_losses(None, omega_conf_to_dataclass(config.distillation), {}, {})


def test_a_setting_of_the_environment_is_checked():
    assert settings_of({"POWEROPD_ALPHA": "2", "POWEROPD_TEACHER_KEY": "x", "HOME": "/"})["alpha"] == 2.0
    with pytest.raises(UserError, match="POWEROPD_ALFA, which no reward here reads; did you mean 'POWEROPD_ALPHA'"):
        settings_of({"POWEROPD_ALFA": "2"})
    with pytest.raises(UserError, match="alpha: found '-1', but it should be greater than 0"):
        settings_of({"POWEROPD_ALPHA": "-1"})


def test_a_process_of_the_run_loads_the_reward_and_alpha_by_the_config(tmp_path):
    """Ray's own worker, sent what verl sends: p 0.5, q 0.25 and alpha 2 are worth p^2 - q^2 = 0.25 - 0.0625."""
    config = composed("one_node", "ray_kwargs.ray_init.runtime_env.env_vars.POWEROPD_ALPHA='2'")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config))
    code = """if True:
        import ray
        from omegaconf import OmegaConf
        from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

        @ray.remote
        def losses():
            import torch, verl
            from tensordict import TensorDict
            from types import SimpleNamespace
            from verl.trainer.distillation.losses import get_distillation_loss_fn

            def nested(values):
                return torch.nested.as_nested_tensor([torch.tensor(values)], layout=torch.jagged)

            scored = {"teacher_logprobs": nested([[0.5], [1.0]]).log(), "response_mask": nested([1])}
            data = TensorDict({"prompts": nested([7]), "responses": nested([8]), **scored}, batch_size=1)
            config = SimpleNamespace(distillation_loss=SimpleNamespace(loss_mode="power", use_policy_gradient=True))
            return get_distillation_loss_fn("power")(None, config, {"log_probs": nested([0.25, 1.0]).log()}, data)[0]

        config = OmegaConf.load("config.yaml")
        sent = OmegaConf.merge(get_ppo_ray_runtime_env(config), config.ray_kwargs.ray_init.runtime_env)
        ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 << 20, runtime_env=OmegaConf.to_container(sent))
        print("LOSSES", ray.get(losses.remote()).tolist())
        ray.shutdown()
    """
    given = os.environ | {"RAY_AUTH_MODE": "disabled"}  # which writes a token into the home folder
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=given, capture_output=True, text=True, timeout=300
    )
    assert "LOSSES [[-0.1875]]" in done.stdout, done.stderr


@pytest.mark.parametrize(("name", "student", "teacher", "prompts"), [("one_node", 4, 4, 32), ("several_nodes", 16, 8, 128)])  # fmt: skip
def test_verl_takes_the_config(name, student, teacher, prompts):
    config = composed(name)
    validate_config(config, need_reference_policy(config), need_critic(config))
    distillation, actor = (
        omega_conf_to_dataclass(config.distillation),
        omega_conf_to_dataclass(config.actor_rollout_ref.actor),
    )
    loss, (model,) = distillation.distillation_loss, distillation.teacher_models.values()
    assert (loss.loss_mode, loss.use_policy_gradient, loss.use_task_rewards) == ("power", True, False)
    assert loss.loss_max_clamp is None and loss.log_prob_min_clamp is None
    assert (model.model_path, model.num_replicas) == (Config().teacher, teacher)
    assert config.actor_rollout_ref.model.path == Config().student
    assert config.trainer.n_gpus_per_node * config.trainer.nnodes == student
    assert (actor.loss_agg_mode, actor.entropy_coeff, actor.use_kl_loss, actor.ppo_epochs) == (
        "token-mean",
        0,
        False,
        1,
    )
    assert actor.ppo_mini_batch_size == config.data.train_batch_size == prompts  # one update a batch
    full = Config(full_finetune=True)
    assert (actor.optim.lr, actor.optim.clip_grad) == (full.learning_rate, full.max_grad_norm)
    assert (
        config.data.max_prompt_length + config.data.max_response_length == full.max_prompt_tokens + full.max_new_tokens
    )
    sent = OmegaConf.merge(get_ppo_ray_runtime_env(config), config.ray_kwargs.ray_init.runtime_env).env_vars
    assert sent.VERL_USE_EXTERNAL_MODULES == "poweropd_lite.verl" and settings_of(sent) == SETTINGS


def test_a_final_stop_token_is_masked_and_no_other(pair):
    """Of either model; a truncated completion, and one that is nothing but a stop token, stay whole."""
    for stop in pair.stop_ids:
        said = [{"role": "user", "content": "1 + 1?"}]
        assert looped(pair.tokenizer, said, (40, 41, stop)).response_mask == [1, 1, 0]
        assert looped(pair.tokenizer, said, (40, stop, 41)).response_mask == [1, 1, 1]
        assert looped(pair.tokenizer, said, (stop,)).response_mask == [1]


def test_verl_scores_a_completion_by_our_grader():
    where = composed("one_node").reward.custom_reward_function
    score = load_extern_object(module_path=where.path, object_name=where.name)
    assert score("math", r"so it is \boxed{\frac{1}{2}}", "0.5", extra_info={}) == 1.0
    assert score("math", r"so it is \boxed{2}", "0.5", extra_info={}) == 0.0
    said = "48 + 24 = 72\n#### 72"  # GSM8K's way, which evaluate takes of it alone
    assert [score(name, said, "72") for name in ("openai/GSM8K", "gsm8k.jsonl", "math")] == [1.0, 1.0, 0.0]
    assert score("openai/gsm8k", said, "24") == 0.0


def test_verl_reads_the_problems_that_the_example_writes(tmp_path, pair):
    script = str(ROOT / "examples" / "verl" / "prompts.py")
    half = tmp_path / "half.jsonl"
    half.write_text('{"problem": "2 + 2?", "answer": 4}\n{"problem": "no answer"}\n')
    command = [sys.executable, script, "--train", str(DATA), "--test", str(half)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("test.parquet: 1 problems") and "left out 1 without" in done.stdout
    read = [
        RLHFDataset(str(tmp_path / name), pair.tokenizer, of_the_bundled_pair().data)
        for name in ("train.parquet", "test.parquet")
    ]
    assert [len(each) for each in read] == [256, 1]
    assert read[0][0]["raw_prompt"] == [{"role": "user", "content": "Compute 59 - 5 - 35 + 53."}]
    assert read[0][0]["reward_model"]["ground_truth"] == "72" and read[1][0]["reward_model"]["ground_truth"] == "4"
