import pytest
import torch
from transformers.utils import logging


@pytest.fixture(autouse=True, scope="session")
def one_thread_and_no_bars() -> None:
    torch.set_num_threads(1)  # tiny models are slower with more
    logging.disable_progress_bar()
