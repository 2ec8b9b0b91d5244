"""Training teachers and students: one loop, on accelerate, for one process or many.

All arms of a (pair, method, seed) train side by side: each batch is augmented once, goes through the
teacher once, and then through every student. Arms see the same initial weights, batches and
augmentation, so they differ in the teacher's hint points only.
"""

from .fitting import check_shares
from .lanes import accelerator_for_this_process, answers, autocast, evaluate, resolve_precision
from .learners import FrozenTeacher, Learner, TeacherOutput, build_learner, seeded_model
from .pauses import Stopped
from .runs import distill, load_teacher, metrics_file, teacher_weights, train_teacher, write_manifest_entry

__all__ = [
    "FrozenTeacher", "Learner", "Stopped", "TeacherOutput", "accelerator_for_this_process", "answers", "autocast",
    "build_learner", "check_shares", "distill", "evaluate", "load_teacher", "metrics_file", "resolve_precision",
    "seeded_model", "teacher_weights", "train_teacher", "write_manifest_entry",
]  # fmt: skip
