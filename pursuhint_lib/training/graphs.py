"""Training steps as CUDA graphs. A GPU is done with a small network's operations faster than Python can ask
for them one by one; a graph asks for all operations of a step at once.
"""

import math
from collections.abc import Callable, Sequence

import torch

from ..data import Batch
from .objective import TeacherOutput

# Steps that run as usual before a graph is recorded: libraries choose their algorithms, and the optimiser
# makes its buffers.
USUAL_STEPS = 3

Ask = Callable[[Batch], TeacherOutput | None]
Step = Callable[[Batch, TeacherOutput | None], None]


class GraphedSteps:
    """The teacher's pass and the steps of several trainees on one GPU, recorded once and replayed for every
    batch of the same shape.

    The teacher's graph writes into fixed memory that the trainees' graphs read; those run at the same time,
    each on a stream of its own. What a recording has fixed must not change: shapes, and the weights of the
    losses (not the learning rate, a tensor), so there is one object per epoch. Batches of another shape, and
    all batches where recording fails, run as usual. A step that draws by chance on the CPU must not be
    recorded, as the draw would be, too.

    **Arguments:** ``ask`` (``None`` without a teacher) and one of ``steps`` per trainee, as the loop calls
    them.
    """

    def __init__(self, ask: Ask | None, steps: Sequence[Step]):
        self.ask, self.steps = ask, steps
        self.streams = [torch.cuda.Stream() for _ in steps]
        self.batch: Batch | None = None
        self.output: TeacherOutput | None = None
        self.asking: torch.cuda.CUDAGraph | None = None
        self.graphs: list[torch.cuda.CUDAGraph] = []
        # Steps that still run as usual.
        self.usual: float = USUAL_STEPS

    def __call__(self, batch: Batch) -> None:
        """Train every trainee on a batch."""
        if self.usual > 0 or (self.batch and batch.images.shape != self.batch.images.shape):
            self.usual -= 1
            output = self.ask(batch) if self.ask else None
            for step in self.steps:
                step(batch, output)
            return
        if self.batch is None and not self._record(batch):
            return self(batch)
        for fixed, new in zip(self.batch, batch, strict=True):
            fixed.copy_(new)
        self._replay()

    def _record(self, batch: Batch) -> bool:
        """Record the teacher and all trainees; nothing is trained by that."""
        fixed = Batch(*(part.clone() for part in batch))
        torch.cuda.synchronize()
        try:
            if self.ask:
                self.asking = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.asking, stream=torch.cuda.Stream()):
                    self.output = self.ask(fixed)
            for step, stream in zip(self.steps, self.streams, strict=True):
                self.graphs.append(torch.cuda.CUDAGraph())
                with torch.cuda.graph(self.graphs[-1], stream=stream):
                    step(fixed, self.output)
        except RuntimeError as error:
            self.usual, self.asking, self.graphs = math.inf, None, []
            print(
                f"CUDA graphs cannot be used here ({' '.join(str(error).split())[:200]}); training goes on "
                "step by step",
                flush=True,
            )
            return False
        self.batch = fixed
        return True

    def _replay(self) -> None:
        now = torch.cuda.current_stream()
        if self.asking:
            self.asking.replay()
        for graph, stream in zip(self.graphs, self.streams, strict=True):
            stream.wait_stream(now)
            with torch.cuda.stream(stream):
                graph.replay()
        for stream in self.streams:
            now.wait_stream(stream)
