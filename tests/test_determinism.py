"""What the setting ``deterministic`` promises: the same bits whatever the number of cores; and what holds
without it.
"""

from dataclasses import replace

import pytest
import torch
from trainings import ARMS, TEACHER, same, settings, weights

from pursuhint_lib import training
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.training.device import bitwise


def again(train, threads: int):
    """Records of a training on so many cores, from nothing."""
    for record in StudyPaths("test").records.glob("*.json"):
        record.unlink()
    torch.set_num_threads(threads)
    return train()


@pytest.mark.parametrize("threads", [2, 3])
def test_a_teacher_and_a_lone_student_do_not_depend_on_the_number_of_cores(threads):
    teacher = replace(TEACHER, deterministic=True)
    cell = settings(teacher=teacher, arms=ARMS[:1], deterministic=True)
    outcomes = []
    for cores in (1, threads):
        records = again(lambda: [training.train_teacher(teacher), *training.distill(cell)], cores)
        assert torch.get_num_threads() == cores, "the setting lasts as long as the training"
        outcomes.append([(record.history, weights(record)) for record in records])
    for (history, expected), (other, found) in zip(*outcomes, strict=True):
        assert history == other
        assert same(expected, found)
    assert records[0].settings["deterministic"] is True


def test_what_was_set_before_is_set_again():
    torch.set_num_threads(2)
    with pytest.raises(KeyboardInterrupt), bitwise(True):
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
