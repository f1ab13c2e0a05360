"""Student, teacher, adapter: loading them, and knowing them again."""

import logging

# At its import, which is PEFT's too, bitsandbytes advises an optional CPU kernel that nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
