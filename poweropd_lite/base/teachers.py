"""What models are called, and a teacher that another program serves: its address, its name, and where its tokenizer is."""

from typing import Any
from urllib.parse import urlsplit

from poweropd_lite.rewards.table import reads_rows

BUNDLED = "bundled"  # as a model or data name: what is shipped inside the package
SELF = "self"  # as a teacher's name: the student's base
KEY = "POWEROPD_TEACHER_KEY"  # the environment variable with a server's key, which stands in no setting and no file


def full_name(name: str, role: str) -> str:
    """Returns a model's name for a reader: what "bundled" stands for hangs on the role."""
    return f"{BUNDLED}-{role}" if name == BUNDLED else name


def is_address(teacher: str) -> bool:
    """Whether a teacher is named by where it is served."""
    return teacher.lower().startswith(("http://", "https://"))


def moved(before: str, now: str) -> bool:
    """Whether a run's teacher is served at another address than before, which is all that may change of it."""
    return before != now and is_address(before) and is_address(now)


def files_of(config: Any, role: str) -> str:
    """Returns the hub id or folder of a model's tokenizer and config: a served teacher's are by its name, unless said otherwise."""
    if role == "teacher" and config.served:
        return config.teacher_tokenizer or config.teacher_name
    return getattr(config, role)


def files_role(config: Any) -> str:
    """Returns the role by which a teacher's tokenizer and config are read, which is the flag that names them."""
    return "teacher-tokenizer" if config.served else "teacher"


def name_of(config: Any, role: str) -> str:
    """Returns a model's name as it was typed: no address."""
    return config.teacher_name if role == "teacher" and config.served else getattr(config, role)


def called(config: Any, role: str) -> str:
    """Returns a model's full name for a reader."""
    return full_name(name_of(config, role), role)


def how_kept(config: Any) -> str:
    """Returns in what form a teacher is there, for a reader, such as "4-bit"."""
    if config.teacher == SELF:
        return "the own base, adapter off"
    return "served" if config.served else f"{config.teacher_bits}-bit"


def address_fault(teacher: str) -> str | None:
    """Returns what is wrong with a server's address, never quoting a password; None if nothing."""
    try:
        parts = urlsplit(teacher)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "teacher: the address has a host or port that can't be; type it as http://localhost:8000"
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        return (
            "teacher: the address holds a user name or password, which would stand in config.yaml; leave it out, and put the "
            f"server's key into the environment: export {KEY}=..."
        )
    if not host or parts.query or parts.fragment or any(letter.isspace() for letter in teacher):
        return "teacher: an address is a scheme, a host and a port, nothing more; type it as http://localhost:8000"
    return None


def teacher_faults(config: Any) -> list[str]:
    """Returns what can't work in a config's settings of a served teacher, a sentence each."""
    if not config.served:
        named = [n for n in ("teacher_name", "teacher_tokenizer") if getattr(config, n) is not None]
        return [
            f"{name} is of a served teacher, and {config.teacher} is none; leave it out, or type --teacher with an address "
            "such as http://localhost:8000"
            for name in named
        ]
    faults = [fault] if (fault := address_fault(config.teacher)) else []
    if config.teacher_name is None:
        faults.append(
            "a served teacher needs teacher_name; type --teacher-name with what its server calls it (the model that it was "
            "started with, or --served-model-name)"
        )
    if reads_rows(config):
        what = "baseline own takes a mean over" if config.baseline == "own" else f"{config.reward} compares"
        faults.append(
            f"{what} whole distributions, and a served teacher gives the log-probs of sampled tokens alone; choose "
            "another reward or no baseline, or type --teacher with a hub id or folder"
        )
    return faults
