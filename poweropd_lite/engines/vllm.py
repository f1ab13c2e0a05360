"""Rollouts from vLLM, in this process: its own copy of the base weights, or Unsloth's shared ones, and our adapter.

Every `sync` writes the adapter out and names it afresh, with a fresh number too: under an old number vLLM serves the
weights it read first, and its prefix cache is keyed by the name. The log-probs that come back are of temperature 1,
untruncated (`raw_logprobs`), which is what the trainer's can be compared with.

Left out: full fine-tuning and modules trained whole (vLLM holds the base; only an adapter is sent), and more than one card.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from poweropd_lite.base.ending import end_soon, within
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import whole_folder
from poweropd_lite.base.unix import fcntl
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import Draws, Rollout
from poweropd_lite.models.shape import (
    BESIDE_WEIGHTS,
    GIB,
    Served,
    cache_bytes,
    layer_kinds,
    lora_rank_limit,
    memory_share,
    read_shape,
)
from poweropd_lite.models.student import Student

MOST_FORBIDDEN = 1024  # logit biases a request, in vLLM's CUDA runner
ALONE_LINES = 256  # answers at once of a vLLM that has the machine to itself
CLOSING = 6.0  # seconds that its end may take
GRAPHS = {"cudagraph_specialize_lora": False}  # none beside for requests without an adapter, which never come
ALONE_CACHE = 4 * GIB  # its keys and values, on a CPU
LOCK = ".lock"  # in a folder of adapters


class VllmEngine:
    """Samples with vLLM. One a process: a closed one leaves traces that a second may stumble over."""

    name = "vllm"

    def __init__(self, student: Student, served: Served, stop_ids: frozenset[int]) -> None:
        self.stop_ids = sorted(stop_ids)
        self.model: Any = student.model
        end_soon()
        theirs = getattr(self.model, "vllm_engine", None)  # Unsloth's fast inference
        self.shared = theirs is not None
        self.llm: Any = theirs
        if not self.shared:
            self.llm = _start(served, student.device, student.dtype, adapted(student.trainable()))
        self.dtype: torch.dtype = self.llm.llm_engine.model_config.dtype
        room = 4 * sum(p.numel() * p.element_size() for p in student.trainable().values())
        self.temporary = _adapter_folder(room)  # removed when the process ends, however it ends but by SIGKILL
        self.folder = Path(self.temporary.name)
        self.number, self.asleep = 0, False
        self.request: Any = None  # vLLM's LoRARequest of `sent`
        self.sent: Path | None = None  # the adapter that is being served
        self.sent_before: Path | None = None  # the one before it, by which the guard knows a stale one
        self.can_sleep = not self.shared and student.device.type == "cuda"

    def sync(self) -> None:
        """Sends the adapter as it is now."""
        from vllm.lora.request import LoRARequest

        if self.asleep:
            self.llm.wake_up()
            self.asleep = False
        self.number += 1
        name = f"step-{os.getpid()}-{self.number}"
        folder = self.folder / name
        with whole_folder(folder) as beside:
            # "auto" would ask the hub whether the embedding was resized.
            self.model.save_pretrained(beside, save_embedding_layers=False)
        if self.sent_before is not None:
            shutil.rmtree(self.sent_before, ignore_errors=True)  # gone already, it is no reason to end a run
        self.sent, self.sent_before = folder, self.sent
        if self.shared:
            self.request = self.model.load_lora(str(folder), load_tensors=False)
        else:
            self.request = LoRARequest(name, self.number, str(folder))

    def sample(
        self, prompts: Sequence[tuple[int, ...]], draws: Draws, sampling: Sampling, longest: int
    ) -> list[Rollout]:
        """Returns one rollout a prompt, in order."""
        biases = self._biases(sampling)
        params = [self._params(sampling, longest, biases, seed) for seed in draws.request_seeds()]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        generate = self.model.fast_generate if self.shared else self.llm.generate
        try:
            outputs = generate(inputs, sampling_params=params, use_tqdm=False, lora_request=self.request)
        except Exception as error:  # a dead engine's are of a dozen kinds
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UserError(
                f"vLLM failed in the middle of its work: {reason}\nWhat was saved stands, and --resume goes on from it; add "
                "--engine loop if it fails again"
            ) from error
        return [self._rollout(prompt, out) for prompt, out in zip(prompts, outputs, strict=False)]

    def _biases(self, sampling: Sampling) -> dict[int, float] | None:
        """Returns what keeps the forbidden ids from being sampled."""
        forbidden = [] if sampling.forbidden is None else sampling.forbidden.tolist()
        if len(forbidden) > MOST_FORBIDDEN:
            raise UserError(
                f"{len(forbidden):,} ids of the student must never be sampled, and vLLM can leave out {MOST_FORBIDDEN:,} at "
                "most; type --engine loop"
            )
        return dict.fromkeys(forbidden, -1e9) or None

    def _params(self, sampling: Sampling, longest: int, biases: dict[int, float] | None, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=0.0 if sampling.top_k == 1 else sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            max_tokens=longest,
            seed=seed,
            logprobs=0,  # of the sampled token alone
            stop_token_ids=self.stop_ids,
            ignore_eos=True,  # the stop ids are ours
            logit_bias=biases,
            detokenize=False,
        )

    def _rollout(self, prompt: tuple[int, ...], out: Any) -> Rollout:
        if tuple(out.prompt_token_ids) != tuple(prompt):
            raise UserError(
                f"vLLM answered another prompt than it was given ({len(out.prompt_token_ids)} ids for {len(prompt)}): its "
                "tokenizer or chat template got in between; type --engine loop"
            )
        (done,) = out.outputs
        ids = tuple(done.token_ids)
        logprobs = tuple(step[token].logprob for step, token in zip(done.logprobs, ids, strict=True))
        return Rollout(tuple(prompt), ids, logprobs, "stop" if done.finish_reason == "stop" else "length")

    def release(self) -> None:
        """Puts vLLM to sleep where it can be: weights go to host memory, the KV cache is dropped."""
        if self.can_sleep and not self.asleep:
            self.llm.sleep(level=1)
            self.asleep = True

    def close(self) -> None:
        """Ends vLLM and removes the adapters that were sent; does nothing the second time."""
        if self.llm is None:
            return
        self.temporary.cleanup()
        llm, self.llm = self.llm, None

        def end() -> None:
            with contextlib.suppress(Exception):  # of one that has died
                llm.llm_engine.engine_core.shutdown()

        if not self.shared and not within(CLOSING, end):
            print(f"vLLM has not ended within {CLOSING:.0f} s and is left to end with this process", file=sys.stderr)


class VllmServer(VllmEngine):
    """vLLM of a model whose weights stay as they are: whole, or a base with a saved adapter."""

    def __init__(
        self, served: Served, device: torch.device, dtype: torch.dtype, stop_ids: frozenset[int], adapter: Path | None,
        names: Iterable[str] = (),
    ) -> None:  # fmt: skip
        """`names` are those of the adapter's weights."""
        end_soon()
        self.stop_ids, self.shared, self.can_sleep, self.asleep = sorted(stop_ids), False, False, False
        self.llm = _start(served, device, dtype, adapted(names), alone=True)
        self.dtype = self.llm.llm_engine.model_config.dtype
        self.sent, self.sent_before, self.request = adapter, None, None
        self.temporary = tempfile.TemporaryDirectory()

    def sync(self) -> None:
        """Names the adapter; there is nothing to send."""
        from vllm.lora.request import LoRARequest

        if self.sent is not None:
            self.request = LoRARequest("evaluated", 1, str(self.sent.resolve()))


def _adapter_folder(room: int) -> tempfile.TemporaryDirectory:
    """Makes a folder in memory, where there are `room` bytes of it, and clears up after processes that were killed."""
    ram = Path("/dev/shm")
    fits = os.access(ram, os.W_OK) and shutil.disk_usage(ram).free > room
    place = ram if fits else Path(tempfile.gettempdir())
    for old in place.glob("poweropd-adapters-*"):
        # Containers may share the place and not their processes' numbers: a lock alone tells who lives.
        with contextlib.suppress(OSError), open(old / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old, ignore_errors=True)
    folder = tempfile.TemporaryDirectory(prefix=f"poweropd-adapters-{os.getpid()}-", dir=place)
    beside = Path(folder.name, f"{LOCK}.tmp")
    handle = os.open(beside, os.O_RDWR | os.O_CREAT, 0o600)  # never closed: the lock goes with the process
    with contextlib.suppress(OSError):  # of a disk without locks, where whoever comes later finds none and leaves it be
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        beside.rename(beside.with_name(LOCK))  # taken before anyone can see it
    return folder


def adapted(names: Iterable[str]) -> list[str]:
    """Returns the last part of the name of every module that an adapter's weights, by their names, are of."""
    return sorted({name.split(".lora_A.")[0].rsplit(".", 1)[-1] for name in names if ".lora_A." in name})


def _start(served: Served, device: torch.device, dtype: torch.dtype, targets: list[str], alone: bool = False) -> Any:
    """Returns a vLLM, sized for what it is to hold; raises UserError with the numbers if it does not fit.

    It makes room for the adapter on modules named as in `targets` alone: else on a mixture's experts too.
    `alone`, with nothing to be trained beside it, it takes most of the card and queues what does not fit.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # Neither is used, and a start is slower with it: a sampler that takes no seeds, compiled on the spot where its library is
    # installed, and reports of usage to vLLM's makers, which ask a program of its own for the machine's name.
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    cuda = device.type == "cuda"
    if not cuda:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the trainer's threads stay as they are
    from vllm import LLM

    shape = read_shape(served.model, "student", served.remote_code)
    weights, cache = shape.weight_bytes(8 * dtype.itemsize), cache_bytes(shape, served, dtype)
    share, lines = memory_share(served, device, dtype) if cuda and not alone else 0.5, served.most_lines
    if alone:
        share, lines = 0.9 if cuda else 0.5, min(lines, ALONE_LINES)
        cache = min(cache, max(ALONE_CACHE, cache // served.lines))
    lora: dict[str, Any] = {}
    if served.lora_rank is not None:
        lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_rank_limit(served.lora_rank)}
        lora |= {"lora_target_modules": targets, "compilation_config": GRAPHS}
    try:
        return LLM(
            model=served.model,
            dtype=str(dtype).removeprefix("torch."),
            trust_remote_code=served.remote_code,
            skip_tokenizer_init=True,  # ids go in and ids come out
            max_model_len=served.longest,
            max_num_seqs=lines,
            kv_cache_memory_bytes=None if alone and cuda else cache,
            gpu_memory_utilization=share,
            **lora,
            enable_prefix_caching="linear_attention" not in layer_kinds(shape.config),  # whose states cost pages more
            enable_sleep_mode=cuda,
            enforce_eager=not cuda,
            logprobs_mode="raw_logprobs",
            max_logprobs=0,
            generation_config="vllm",  # sampling is as our config says, not as the model's generation config does
            disable_log_stats=True,
            seed=served.seed,
        )
    except (ValueError, RuntimeError, MemoryError, AssertionError) as error:
        reason = " ".join(str(error).split())[:400]
        raise UserError(
            f"vLLM did not start: {reason}\nAs to memory, it needs about {weights / GIB:.1f} GiB for the student's weights, "
            f"{cache / GIB:.1f} GiB for keys and values ({served.lines} completions of {served.longest:,} tokens) and "
            f"{BESIDE_WEIGHTS / GIB:.0f} GiB beside them{_free(device)}; lower --batch-size, --max-new-tokens or "
            "--max-prompt-tokens, or type --engine loop"
        ) from error


def _free(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    return f"; {free / GIB:.1f} of the card's {total / GIB:.1f} GiB are free"
