"""Says whether a pair, its data and this machine are sound: `python -m poweropd_lite.doctor --config qwen3-0.6b-4b`.

From tokenizers, configs and data alone, in seconds: no weights are loaded. Each finding is ok, a warning or a refusal,
with what mends it; train refuses what is refused here, but for worked answers, which it does not read. `--gpu t4` asks
about a card that is not here. `--env` says what is installed and what a run would use.
"""

import contextlib
import json
import sys

from poweropd_lite.base.config import BUNDLED, Config
from poweropd_lite.base.config_files import QWEN_CONFIG, checked
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.named import config_to_check, names_models
from poweropd_lite.cli import as_flags, config_parser, given, run_command
from poweropd_lite.doctor.packages import check_versions
from poweropd_lite.doctor.settings import DoctorConfig


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 nothing is refused, 1 something is refused, 2 bad input."""
    parser = config_parser(
        "python -m poweropd_lite.doctor",
        f"{__doc__.splitlines()[0]}\n\n"
        "Any setting of training may follow; without a config that names models it is the bundled pair's, or with --gpu "
        f"{QWEN_CONFIG}'s.",
        DoctorConfig,
        Config,
    )
    parser.add_argument("--env", action="store_true", help="versions, devices, and what a run would use")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON alone")
    args = parser.parse(argv)
    asked, flags = given(args, DoctorConfig), given(args)
    if args.env:
        from poweropd_lite.doctor.environment import environment

        if args.json or args.config or asked or flags:
            raise UserError("--env examines no pair: it takes no other flag; leave them out, or leave out --env")
        print("\n".join(environment()))
        return 0
    doctor, named = checked(DoctorConfig, asked), args.config is None and names_models({}, flags)
    # Two models that are named are taken on top of the defaults; a card that is asked about wants more than the bundled pair.
    base = args.config or (None if named else BUNDLED if doctor.gpu is None else QWEN_CONFIG)
    config, how = config_to_check(base, flags), {**({"config": base} if base else {}), **flags}
    try:
        from poweropd_lite.doctor.card import check_card
        from poweropd_lite.doctor.examine import as_json, examine
        from poweropd_lite.plan.cards import find_card

        of_card = None
        if doctor.gpu is not None:
            plan = f"python -m poweropd_lite.plan {as_flags({**how, 'gpu': doctor.gpu})}"
            of_card = check_card(config, find_card(doctor.gpu), plan)
        with contextlib.redirect_stdout(sys.stderr):
            if of_card and not (args.config or named):
                print(f"no config is named: taking --config {base}")
            findings = examine(config, doctor.rows, lambda text: print(text, flush=True), of_card)
    except ImportError as error:  # of packages that are missing or don't go together
        versions = check_versions()
        fault = f"\n{versions}" if versions.level != "ok" else ""
        raise UserError(f"a package can't be imported: {error}{fault}") from error
    report = as_json(config, findings)
    if args.json:
        print(json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False))
    else:
        print("\n".join(line for finding in findings for line in finding.shown()))
        counts = ", ".join(f"{n} {level}{'s' * (level != 'ok' and n != 1)}" for level, n in report["counts"].items())
        verdict = {True: "sound", False: "refused", None: "nothing refused, models not looked at"}[report["sound"]]
        print(f"{verdict}: {counts}")
        if report["sound"]:
            print(f"next    python -m poweropd_lite.train {as_flags(how)}")
            if config.loads_teacher:
                print(f"        what each reward would pay: python -m poweropd_lite.advise {as_flags(how)}")
    return 1 if report["sound"] is False else 0


if __name__ == "__main__":
    run_command(main)
