"""Training steps as CUDA graphs. A GPU is done with a small network's operations faster than Python can ask
for them one by one; a graph asks for all operations of a step at once.
"""

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
        self.usual = 0
        self.failed = False

    def __call__(self, batch: Batch) -> None:
        """Train every trainee on a batch."""
        if (
            self.failed
            or self.usual < USUAL_STEPS
            or (self.batch and batch.images.shape != self.batch.images.shape)
        ):
            self.usual += 1
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
                self.asking, self.output = self._capture(lambda: self.ask(fixed), torch.cuda.Stream())
            for step, stream in zip(self.steps, self.streams, strict=True):
                graph, _ = self._capture(lambda step=step: step(fixed, self.output), stream)
                self.graphs.append(graph)
        except RuntimeError as error:
            self.failed, self.asking, self.graphs = True, None, []
            print(
                f"CUDA graphs cannot be used here ({' '.join(str(error).split())[:200]}); training goes on "
                "step by step",
                flush=True,
            )
            return False
        self.batch = fixed
        return True

    @staticmethod
    def _capture(
        work: Callable[[], object], stream: torch.cuda.Stream
    ) -> tuple[torch.cuda.CUDAGraph, object]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            result = work()
        return graph, result

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
