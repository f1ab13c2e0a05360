"""Whether the hub answers, asked once: without a network its libraries try again for a minute, a file at a time."""

import functools
import os
import sys
import threading

SECONDS = 6.0  # for the first answer, looking up the name counted


@functools.cache
def settle_hub(seconds: float = SECONDS) -> str | None:
    """Returns None if the hub answers, else why not; what was downloaded before is then taken without asking again."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.is_offline_mode():
        return None  # the user's own choice, which the libraries name
    faults: list[str] = [f"no answer in {seconds:g} s"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=seconds)
            faults.clear()
        except Exception as error:  # of a socket, a proxy, a certificate
            faults[0] = " ".join(str(error).split()) or type(error).__name__

    asking = threading.Thread(target=ask, daemon=True)  # a name is looked up for as long as the system likes
    asking.start()
    asking.join(seconds)
    if not faults:
        return None
    os.environ["HF_HUB_OFFLINE"] = "1"  # for what is imported or started from now on
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return f"{constants.ENDPOINT} can't be reached ({faults[0]})"
