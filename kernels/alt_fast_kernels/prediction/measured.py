"""One call of an op on a GPU, timed."""

import statistics

import torch

from alt_fast_kernels.prediction.cases import Case

CALLS, REPLAYS = 20, 15


def measured(case: Case) -> float:
    """Seconds of one call on this GPU: the median over replays of a CUDA graph, so that the host is not measured.

    Everything runs on the stream that is captured, the forward pass of a backward one too: autograd runs a backward on
    the stream of its forward, and a capture may not wait for another stream.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # what cases hold was made there
    with torch.cuda.stream(stream):
        prepared = case.prepare()
        for _ in range(3):  # compiles the kernels, and lets libraries allocate
            case.call(prepared)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(CALLS):
            case.call(prepared)
    seconds = []
    with torch.cuda.stream(stream):
        graph.replay()
        for _ in range(REPLAYS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(stream)
            graph.replay()
            end.record(stream)
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3 / CALLS)
    return statistics.median(seconds)
