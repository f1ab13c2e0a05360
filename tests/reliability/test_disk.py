"""A disk that takes no more: what a long form tries at every write (benchmarks/reliability/disk.py)."""

import resource
import subprocess
import sys

import pytest

from poweropd_lite.base.files import append_text


def test_a_line_that_the_disk_takes_half_of_is_not_there(tmp_path):
    """No file may grow beyond 10 bytes: of the third line two go in, and an EFBIG follows."""
    file, before = tmp_path / "lines", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        append_text(file, "abc\n")
        append_text(file, "déf\n", to_disk=True)
        with pytest.raises(OSError, match="File too large"):
            append_text(file, "ghi\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    append_text(file, "jkl\n")
    assert file.read_text(encoding="utf-8") == "abc\ndéf\njkl\n"


def test_no_place_for_temporary_files_is_one_message(tmp_path):
    command = """
import resource, sys
from poweropd_lite.cli import run_command
from poweropd_lite.train.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
run_command(lambda: main(["--config", "bundled", "--steps", "1"]))
"""
    done = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: No usable temporary directory found in ['/tmp', ")
    assert "; make room there, or set TMPDIR to a folder that takes files" in done.stderr
    assert list(tmp_path.iterdir()) == []
