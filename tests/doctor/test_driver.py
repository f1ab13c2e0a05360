"""A card's driver against torch's CUDA: NVIDIA's least drivers, and what to type where the two don't go together."""

import pytest
import torch

from poweropd_lite.doctor.driver import Driven, check_driver, judge, wanted

CU126, CU130 = (f"pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu{n}" for n in (126, 130))
NEWER = "a driver 580.65.06 or newer"


@pytest.mark.parametrize(
    ("name", "driver", "capability", "cuda", "level", "words"),
    [
        ("Tesla T4", "550.54.15", 7.5, "13.0", "warning", CU126),  # Colab's of 2025
        ("NVIDIA L4", "550.54.15", 8.9, "13.0", "warning", CU126),
        ("Tesla T4", "580.82.07", 7.5, "13.0", "ok", "which wants 580.65.06 or newer"),  # Colab's of 2026
        ("Tesla T4", "580.82.07", 7.5, "12.8", "ok", "which wants 525.60.13 or newer"),
        ("NVIDIA L4", "550.54.15", 8.9, "12.8", "ok", "which wants 525.60.13 or newer"),
        ("NVIDIA L4", "525.60.11", 8.9, "12.8", "warning", NEWER),
        ("NVIDIA L4", "470.199.02", None, "12.6", "warning", NEWER),
        ("NVIDIA L4", "580.82.07", 8.9, None, "warning", CU130),
        ("NVIDIA L4", "550.54.15", 8.9, None, "warning", CU126),
        ("Tesla P100-PCIE-16GB", "580.82.07", 6.0, "13.0", "warning", CU126),
        ("NVIDIA B200", "580.82.07", 10.0, "12.6", "warning", CU130),
        ("Tesla P100-PCIE-16GB", "580.82.07", 6.0, "12.8", "warning", CU126),  # whose builds begin with Volta
        ("NVIDIA B200", "570.133.20", 10.0, "13.0", "warning", NEWER),
        ("NVIDIA B200", "570.133.20", 10.0, "12.8", "ok", "570.133.20"),
    ],
)
def test_a_driver_and_a_build_of_torch(name, driver, capability, cuda, level, words):
    finding = judge(Driven(name, driver, capability), "2.13.0", cuda)
    assert finding.level == level and words in (finding.found if level == "ok" else finding.mend)
    assert name in finding.found and driver in finding.found


def test_torch_that_finds_the_card_is_right():
    """NVIDIA's compatibility libraries run a newer CUDA on an older driver."""
    assert judge(Driven("NVIDIA L4", "550.54.15", 8.9), "2.13.0", "13.0", found_card=True).level == "ok"


def test_what_a_card_that_is_not_here_wants_of_its_driver():
    assert wanted(7.5) == (
        "580.65.06 or newer for torch's build for CUDA 13.0, 525.60.13 or newer for torch's build for CUDA 12.6"
    )
    assert wanted(6.0) == "525.60.13 or newer for torch's build for CUDA 12.6"
    assert wanted(12.0) == "580.65.06 or newer for torch's build for CUDA 13.0"


def test_the_driver_of_this_machine_is_asked(tmp_path, monkeypatch):
    """By a stand-in for nvidia-smi: of two cards the first, one that fails, and none."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_driver() == []
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'Tesla T4, 550.54.15, 7.5'\necho 'NVIDIA L4, 580.82.07, 8.9'\n")
    smi.chmod(0o755)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (finding,) = check_driver()
    assert (finding.level, finding.evidence["driver"], finding.evidence["cuda"]) == ("warning", "550.54.15", "13.0")
    assert "wants driver 580.65.06 or newer, and here is Tesla T4 with driver 550.54.15: torch" in finding.found
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not talk to the driver.'\nexit 9\n")
    (finding,) = check_driver()
    assert finding.level == "warning" and "NVIDIA-SMI has failed" in finding.found
