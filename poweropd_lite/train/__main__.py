"""Trains a student by on-policy distillation: `python -m poweropd_lite.train --alpha 10`."""

from typing import Any

from poweropd_lite.base.config import BUNDLED, Config, load_config, marked
from poweropd_lite.base.config_files import QWEN_CONFIG, config_path, read_yaml
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.named import names_models
from poweropd_lite.cli import config_parser, given, run_command
from poweropd_lite.train import train


def choose_config(config: str | None, flags: dict[str, Any]) -> Config:
    """Returns the config that was asked for, on top of the bundled pair's or, with CUDA, of that of Qwen3 0.6B <- 4B.

    A file or flags that name a model of their own are taken as they are, on top of the defaults.
    """
    values = {} if config is None else read_yaml(config_path(config))
    if names_models(values, flags):
        return load_config(config, **flags)
    flags = {**values, **flags}
    faults = []
    for name in (BUNDLED, QWEN_CONFIG):  # what suits neither is refused before torch is imported
        try:
            load_config(name, **flags)
        except UserError as error:
            faults.append(error)
    if len(faults) == 2:
        raise faults[0]
    import torch

    if torch.cuda.is_available():
        print(f"CUDA found: training Qwen3-0.6B-Base <- Qwen3-4B (--config {BUNDLED} takes the small bundled pair)")
        return load_config(QWEN_CONFIG, **flags)
    print(
        "no CUDA: training the small bundled pair; for Qwen3 on a GPU: python -m poweropd_lite.train --config "
        f"{QWEN_CONFIG}"
    )
    return load_config(BUNDLED, **flags)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 given up, 2 bad input, 130, 143 (a signal) or 141 (nobody reads its output) stopped and saved."""
    parser = config_parser(
        "python -m poweropd_lite.train",
        f"{__doc__.splitlines()[0]}\n\nDefaults below are those of a config that names its own models. A run that "
        "names none takes the\nbundled pair's settings (configs/bundled.yaml) or, with CUDA, those of configs/qwen3-0.6b-4b.yaml.",
        Config,
    )
    parser.add_argument("--resume", metavar="DIR", help="go on with the run in DIR, bit for bit")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="with --resume: go on although data or models are other than before",
    )
    args = parser.parse(argv)
    flags = given(args)
    if args.accept_changes and args.resume is None:
        raise UserError("--accept-changes is for --resume; leave it out")
    if args.resume is not None:
        others = sorted({*flags, *(["config"] if args.config else [])} - marked("resume"))
        if others:
            names = ", ".join("--" + name.replace("_", "-") for name in others)
            raise UserError(f"--resume goes on with the run's own settings, so {names} can't change; leave it out")
        results = train(resume=args.resume, accept_changes=args.accept_changes, **flags)
    else:
        results = train(choose_config(args.config, flags))
    return 0 if results.finished else 1 if results.summary["gave_up"] else 128 + results.signal


if __name__ == "__main__":
    run_command(main)
