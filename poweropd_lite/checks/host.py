"""Whether this machine's memory holds the layers of a teacher that is streamed (teacher_offload), before they are loaded."""

from poweropd_lite.base.config import Config, full_name
from poweropd_lite.base.errors import Finding
from poweropd_lite.models.shape import GIB, read_shape
from poweropd_lite.models.streamed import not_streamable


def check_host(config: Config, free: int | None = None) -> list[Finding]:
    """Returns what is found of an offloaded teacher, nothing of another; `free` bytes of memory, if not given what is here.

    Raises UserError for a teacher whose config can't be read.
    """
    if not config.teacher_offload:
        return []
    if free is None:
        from accelerate.utils import get_max_memory

        free = int(get_max_memory()["cpu"])
    check, name, bits = "teacher's place", full_name(config.teacher, "teacher"), config.teacher_bits
    shape = read_shape(config.teacher, "teacher", config.trust_remote_code)
    if shape.layer is None:
        return [Finding("refusal", check, not_streamable(name))]
    need = shape.offloaded_bytes(bits, 4 if bits == 32 else 2)[1]
    found = f"the layers of {name} in {bits} bits, {need / GIB:.1f} GiB, stay in the host's memory"
    evidence = {"host_bytes": need, "free_bytes": free}
    if need <= free:
        return [Finding("ok", check, f"{found}, of which {free / GIB:.1f} are free", evidence=evidence)]
    found += f", and {free / GIB:.1f} are free there"
    mend = f"type {'--teacher-bits 4, or ' * (bits > 4)}a smaller --teacher, or end what else takes memory"
    return [Finding("refusal", check, found, mend, evidence)]
