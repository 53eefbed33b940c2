"""Where time goes: parts add up, and what is taken is not taken twice."""

import time

import pytest
import torch

from tryon.training.clock import Clock, shares


def test_parts_add_up_and_are_taken_once() -> None:
    clock = Clock(torch.device("cpu"))
    for _ in range(2):
        with clock.part("data"):
            time.sleep(0.01)
    with clock.part("forward"):
        pass
    taken = clock.take()
    assert taken.keys() == {"data", "forward"} and taken["data"] >= 0.02 > taken["forward"]
    assert clock.take() == {}


def test_shares_in_words() -> None:
    assert shares({"data": 1.0, "forward": 2.0}, 4.0) == "data 25 %, forward 50 %, rest 25 %"


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_work_that_is_timed_not_its_launch() -> None:
    clock = Clock(torch.device("cuda"))
    matrix = torch.randn(8192, 8192, device="cuda")
    with clock.part("product"):
        started = time.perf_counter()
        matrix @ matrix
        launched = time.perf_counter() - started
    assert clock.take()["product"] > launched
