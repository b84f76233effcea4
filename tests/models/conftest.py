import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Models of 32 hidden units are slower on two threads than on one."""
    torch.set_num_threads(1)
