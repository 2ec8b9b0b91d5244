"""Every test works in folders of its own."""

import pytest
import torch


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Data, work and results of a test lie under its temporary folder."""
    for name in ("data", "work", "results"):
        monkeypatch.setenv(f"PURSUHINT_{name.upper()}", str(tmp_path / name))
    torch.set_num_threads(1)
