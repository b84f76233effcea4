import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tables of 45 numbers are slower on two threads than on one."""
    torch.set_num_threads(1)
