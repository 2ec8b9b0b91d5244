"""Training teachers and students: one loop, on accelerate, for one process or many.

All arms of a (pair, method, seed) train side by side: each batch is augmented once, goes through the
teacher once, and then through every student. Arms see the same initial weights, batches and
augmentation, so they differ in the teacher's hint layers only.
"""

from ..faults import Stopped
from .device import accelerator_for_this_process, autocast, resolve_precision
from .fitting import check_shares
from .objective import FrozenTeacher, Objective, TeacherOutput, build_objective, seeded_model
from .runs import (
    distill,
    load_teacher,
    metrics_file,
    teacher_weights,
    train_teacher,
    trained_elsewhere,
    write_manifest_entry,
)
from .trainee import Training, answers, evaluate, gradient_ratio
