"""Files that would run code of their own if they were trusted: each tries to make a file named it-ran."""

import json
from pathlib import Path
from typing import Any

from refusing import EVALUATE, TRAIN, Case, files
from table_models import adapter, instead, model, pickle, pickled_adapter, setting, text

MAKES = "open('it-ran','w')"
MODULE = f"{MAKES}\nclass Own: pass\n"
TAGS = {
    "apply": "alpha: !!python/object/apply:os.system ['touch it-ran']",
    "new": "alpha: !!python/object/new:os.system ['touch it-ran']",
    "name": "alpha: !!python/name:os.system",
    "module": "alpha: !!python/module:own",
}
TEMPLATES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['__builtins__']['exec'](\"" + MAKES + '") }}',
    "an import": "{{ cycler.__init__.__globals__.os.popen('touch it-ran').read() }}",
    "a format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "an attribute by name": "{{ (messages|attr('__class__')).__mro__ }}",
}


def own_module(folder: Path, **settings: Any) -> None:
    """Lays own.py beside a model's files, and names it in one of them."""
    (folder / "own.py").write_text(MODULE)
    (folder.parent / "own.py").write_text(MODULE)
    for name, more in settings.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))


def damaged_state(folder: Path) -> None:
    """Pickles where a checkpoint of other programs has them; ours reads none."""
    for path in (folder / "run" / "checkpoints").iterdir():
        for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt"):
            (path / name).write_bytes(pickle(MAKES))


def cases() -> list[Case]:
    """Returns every way that was thought of; some are refused, and some work without their code."""
    found = [
        Case(f"YAML: {n}", "train --config bad.yaml", ("is not YAML",), files(bad__yaml=t)) for n, t in TAGS.items()
    ]
    for name, template in TEMPLATES.items():
        found.append(
            Case(f"template: {name}", f"{TRAIN} --student m", ("chat template",), text("chat_template.jinja", template))
        )
    by_class = {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    by_tokenizer = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    megatron = adapter(own_module, megatron_config={"a": 1}, megatron_core="own")
    parent = adapter(own_module, auto_mapping={"base_model_class": "Own", "parent_library": "own"})
    code = "\\boxed{__import__('os').system('touch it-ran')}"
    answers = json.dumps({"problem": "Compute 1 + 1.", "answer": code})
    return [
        *found,
        Case("pickle: weights", f"{TRAIN} --student m", ("m",), instead("pytorch_model.bin", pickle(MAKES))),
        Case("pickle: a teacher's weights", f"{TRAIN} --teacher m", ("m",), instead("pytorch_model.bin", pickle(MAKES))),
        Case("pickle: weights named .pt", f"{EVALUATE} --model m", ("m",), instead("model.pt", pickle(MAKES))),
        Case("pickle: an adapter", f"{EVALUATE} --model a", ("a",), pickled_adapter(pickle(MAKES))),
        Case("pickle: an adapter to be exported", "export a --to merged-16bit --output out", ("a",), pickled_adapter(pickle(MAKES))),
        Case("pickle: problems", TRAIN.replace("problems.jsonl", "a.pkl"), ("a.pkl",), files(a__pkl=pickle(MAKES))),
        Case("pickle: problems in an archive", TRAIN.replace("problems.jsonl", "a.zip"), ("a.zip",), files(a__zip=pickle(MAKES))),
        Case("pickle: beside a checkpoint", "train --resume run --steps 4", (), damaged_state, code=0, needs_run=True),
        Case("auto_map: a model", f"{TRAIN} --student m", ("trust_remote_code",),
             model(lambda f: own_module(f, config={**by_class, "model_type": "own"}))),
        Case("auto_map: a known model", f"{EVALUATE} --model m", (), model(lambda f: own_module(f, config=by_class)), code=0),
        Case("auto_map: a tokenizer", f"{EVALUATE} --model m", (), model(lambda f: own_module(f, tokenizer_config=by_tokenizer)), code=0),
        Case("a script: problems", TRAIN.replace("problems.jsonl", "a.py"), ("a.py",), files(a__py=MODULE)),
        Case("a script: a folder of problems", TRAIN.replace("problems.jsonl", "a"), ("holds no",), files(**{"a/a__py": MODULE})),
        Case("an adapter: megatron_core", f"{EVALUATE} --model a", ("megatron_config",), megatron),
        Case("an adapter: parent_library", f"{EVALUATE} --model a", (), parent, code=0),
        Case("answers: sympy", f"{EVALUATE.replace('problems.jsonl', 'a.jsonl')} --model bundled-student", (), files(a__jsonl=answers), code=0),
        Case("a setting: quantisation", f"{TRAIN} --student m", ("m",),
             setting("config.json", quantization_config={"quant_method": "own", "modules": "own"}), code=0),
    ]  # fmt: skip
