"""Run folders as train leaves them, with the numbers that a test wants."""

import json


def planted(folder, evaluations, trained=(), **settings):
    """A run folder with the given Avg@8 by step and step lines."""
    folder.mkdir(parents=True)
    config = {"student": "bundled", "teacher": "bundled", "data": "bundled", "eval_benchmarks": "bundled", "steps": 100}
    (folder / "config.yaml").write_text(
        json.dumps(config | {"max_prompt_tokens": 128, "max_new_tokens": 112} | settings)
    )
    lines = [{"step": s, "tokens/loss": 10, "time/step": 1.0, **more} for s, more in trained]
    named = {"eval/pass@8": 1.0, "eval/greedy": 0.5, "eval/length": 40.0, "eval/stop_share": 1.0}
    lines += [{"step": s, "eval/avg@8": avg, **named, "time/evaluate": 2.0} for s, avg in evaluations.items()]
    lines.sort(key=lambda line: line["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
