"""What a run hands over: its adapter, in PEFT's format, or the whole model, and what the student says of fixed texts."""

from dataclasses import replace

import torch

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import read_json, whole_folder, write_json, write_manifest
from poweropd_lite.models.loading import save_tokenizer
from poweropd_lite.models.probe import Probe, probe, probe_texts
from poweropd_lite.run.folder import RunFolder
from poweropd_lite.run.session import Session


def hand_over(run: RunFolder, session: Session) -> str:
    """Writes adapter/ in PEFT's format, or model/ after full fine-tuning, with the tokenizer; returns which.

    Its manifest holds a digest of every file but the README, by which evaluate and export know them again.
    """
    from transformers import GenerationConfig

    name = "model" if session.config.full_finetune else "adapter"
    pair = session.ready.pair
    with whole_folder(run.path / name) as beside:
        session.student.model.save_pretrained(str(beside))
        if (settings := beside / "adapter_config.json").is_file():  # PEFT writes sets, in another order each time
            saved, sets = read_json(settings), ("target_modules", "exclude_modules")
            write_json(settings, saved | {key: sorted(saved[key]) for key in sets if isinstance(saved.get(key), list)})
        save_tokenizer(pair.tokenizer, beside)
        # Whoever samples from it stops where training did: at the student's stops and the teacher's.
        GenerationConfig(eos_token_id=sorted(pair.stop_ids)).save_pretrained(beside)
        try:
            what_it_says(session).write(beside)
        except (UserError, RuntimeError) as error:  # no memory left, say: the weights are worth having without it
            print(f"no reference.json beside the weights: {error}; export will not know them again by it")
        write_manifest(beside, [file for file in beside.iterdir() if file.is_file() and file.suffix != ".md"])
    return name


def what_it_says(session: Session) -> Probe:
    """Returns the live student's log-probs on fixed texts, by which export knows the weights again."""
    student, config = session.student, session.config
    own_kernels = student.loader == "unsloth" and student.device.type == "cuda"
    arithmetic = student.compute() if own_kernels else None
    said = probe(student.model, probe_texts(session.ready.pair.tokenizer), arithmetic=arithmetic)
    base = torch.float32 if config.full_finetune else student.dtype
    return replace(said, base_bits=config.student_bits, base_dtype=str(base).removeprefix("torch."))
