"""The files of a queue's tables."""

from poweropd_lite.reproduce.state import Queue


def write_tables(queue: Queue) -> list[str]:
    return []
