"""Ways to run a model's forward pass, and the choice between them.

Eager torch is the reference and always there. On CPUs OpenVINO is up to three times faster, but
takes seconds to convert a model; so `choose` measures the first batch, converts when the job is
long enough to earn it back, compares the answers on real images, and keeps what is faster and
agrees. What was chosen and what was measured goes into the record of the job. Knows nothing about
files, Ray or HTTP.
"""

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ns_ray.data import Normalize, Preprocess
from ns_ray.errors import first_line
from ns_ray.model.networks import Precision, cpu_has_bf16, precision_for

Runtime = Literal["auto", "torch", "openvino"]
Forward = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
"""uint8 pixels [n, size, size, 3] -> float32 probabilities [n, classes], with one more column where
the model is `Known`."""
Finish = Callable[[], np.ndarray[Any, Any]]
"""Waits for a forward pass that was begun, and returns its probabilities."""

CONVERSION_SECONDS = 6.0
"""What converting and compiling a model takes at most for the models of the recipes (measured: 2 to
5 s, docs/performance.md). Shorter jobs stay with eager torch."""

COMPILE_SECONDS = 600.0
"""torch.compile takes 25 to 60 s and gains a tenth to a third: worth it above this."""

CHUNKS = (8, 64)
"""Images that OpenVINO takes at a time. Few keep a large model's activations in the CPU's cache (a
sixth more images/s for tf_efficientnet_lite0 in fp32), many spare a small model calls; measured."""

FEW = 16
"""Images of that batch which eager torch takes on a CPU, to be measured and compared with: more
would keep the first answers waiting, up to a second for 32 of them."""

TOLERANCE = {"fp32": 2e-3, "bf16": 0.1}
"""Largest difference of any probability of a batch to fp32 torch that a runtime may show. Measured:
1e-6 for fp32; for bf16 0.006 with OpenVINO and 0.04 with torch itself."""


@dataclass(frozen=True)
class Choice:
    """A forward pass, and why it is this one.

    Attributes:
        runtime, precision: what runs.
        difference: largest difference of a probability to fp32 torch on the images compared, None
            where nothing was compared.
        agreement: share of those images with the same top-1.
        rates: images/s on that batch by runtime.
        note: one line for people; empty for short jobs, which take torch as it is.
    """

    forward: Forward
    runtime: str
    precision: str
    difference: float | None
    agreement: float | None
    rates: dict[str, float]
    note: str

    def start(self, pixels: np.ndarray[Any, Any]) -> Finish:
        """Begin a forward pass. On a GPU this returns while it runs."""
        if isinstance(self.forward, TorchForward):
            return self.forward.start(pixels)
        probs = self.forward(pixels)
        return lambda: probs

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "runtime": self.runtime,
            "precision": self.precision,
            "difference_to_torch_fp32": self.difference,
            "top1_agreement": self.agreement,
            "images_per_second_alone": self.rates,
            "note": self.note,
        }


def choose(
    model: nn.Module,
    preprocess: Preprocess,
    device: torch.device,
    pixels: np.ndarray[Any, Any],
    *,
    threads: int,
    batch_size: int,
    images: int | None,
    runtime: Runtime = "auto",
    precision: Precision = "auto",
) -> Choice:
    """The forward pass for a job.

    Args:
        model, preprocess: a timm model in eval mode, on the CPU, and how its images are made.
        device: where to run.
        pixels: a batch of real images, uint8 [n, size, size, 3], to measure and compare with.
        threads: CPU threads.
        batch_size: images in the batches to come; `pixels` may be fewer.
        images: how many the job has; None if there is no end to them.
        runtime: auto, or the one to use whatever it costs.
        precision: auto (bf16 where the runtime is faster with it on this hardware), fp32, or bf16.
    """
    name = precision_for(precision, model, device)
    torch_bf16 = name == "bf16"
    precision = ("bf16" if cpu_has_bf16() else "fp32") if precision == "auto" else precision
    eager = TorchForward(model, preprocess, device, torch_bf16)
    exact = TorchForward(model, preprocess, device, bf16=False) if torch_bf16 else eager
    few = pixels[:FEW] if device.type == "cpu" else pixels
    rate = _rate(eager, few) if images is None or images > len(pixels) else 0.0
    rates = {"torch": round(rate, 1)} if rate else {}
    seconds = float("inf") if images is None else images / rate if rate else 0.0

    def torch_choice(why: str, forward: Forward = eager) -> Choice:
        compared: tuple[float | None, float | None] = (None, None)
        if torch_bf16:
            compared = _compare(exact(pixels), forward(pixels))
        return Choice(forward, "torch", name, *compared, rates, why)

    if runtime == "torch":
        return torch_choice("torch, as asked for")
    if device.type != "cpu":
        if seconds > COMPILE_SECONDS:
            compiled = TorchForward(model, preprocess, device, torch_bf16, compiled_for=batch_size)
            return torch_choice(f"torch, compiled: {seconds:.0f} s of work pay for it", compiled)
        return torch_choice("")
    if runtime == "auto" and seconds < 2 * CONVERSION_SECONDS:
        return torch_choice("")
    try:
        choice = _on_openvino(model, preprocess, threads, precision, pixels, rates, exact)
    except Exception as error:  # a missing package, an operator it lacks, a graph it can't trace
        if runtime == "openvino":
            raise
        return torch_choice(f"torch: OpenVINO cannot take this model ({first_line(error)})")
    if choice.difference is not None and choice.difference > TOLERANCE[precision]:
        return torch_choice(f"torch: OpenVINO's probabilities differ by {choice.difference:.2g}")
    if runtime == "auto" and rates["openvino"] < rate:
        return torch_choice("torch: it is faster than OpenVINO here")
    return choice


def _on_openvino(
    model: nn.Module,
    preprocess: Preprocess,
    threads: int,
    precision: str,
    pixels: np.ndarray[Any, Any],
    rates: dict[str, float],
    reference: Forward,
) -> Choice:
    """The model on OpenVINO: measured, which is added to `rates`, and compared with a reference.

    Raises:
        Exception: of many kinds, when the model cannot be converted.
    """
    fast, rates["openvino"] = _converted(model, preprocess, threads, precision, pixels)
    few = pixels[:FEW]
    difference, agreement = _compare(reference(few), fast(few))
    gain = f", {rates['openvino'] / rates['torch']:.1f} times torch" if "torch" in rates else ""
    note = f"OpenVINO {precision}{gain}"
    return Choice(fast, "openvino", precision, difference, agreement, rates, note)


class TorchForward:
    """Eager (or compiled) torch: pixels travel as uint8 and are normalized on the device."""

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        device: torch.device,
        bf16: bool,
        compiled_for: int | None = None,
    ) -> None:
        """
        Args:
            model, preprocess: what runs.
            device: where.
            bf16: whether the forward pass computes in it.
            compiled_for: compile it, for batches of so many images; None: eager.
        """
        self._device, self._bf16, self._rows = device, bf16, compiled_for
        model = model.to(device).to(memory_format=torch.channels_last)
        self._model: Any = torch.compile(model, mode="reduce-overhead") if compiled_for else model
        self._normalize, self._probabilities = Normalize(preprocess, device), Probabilities()

    def __call__(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 [n, size, size, 3] -> float32 probabilities [n, classes]."""
        return self.start(pixels)()

    def start(self, pixels: np.ndarray[Any, Any]) -> Finish:
        """The same in two parts, so that the next batch can be made ready while this one is worked
        on: on CUDA both copies are asynchronous, from and to pinned memory."""
        size = self._rows
        if size is None:
            return self._pass(pixels)
        # One size, whatever comes: another would be compiled again, for minutes.
        parts = [pixels[at : at + size] for at in range(0, len(pixels), size)]
        begun = [self._pass(_filled_up(part, size), len(part)) for part in parts]
        return begun[0] if len(begun) == 1 else lambda: np.concatenate([end() for end in begun])

    def _pass(self, pixels: np.ndarray[Any, Any], rows: int | None = None) -> Finish:
        """One forward pass, of which the first `rows` are answers."""
        cuda = self._device.type == "cuda"
        with torch.inference_mode():
            batch = _tensor(pixels, pinned=cuda)
            images = self._normalize(batch.to(self._device, non_blocking=cuda))
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
                answer = self._model(images)
            probs = self._probabilities(answer)[:rows]
            if not cuda:
                on_cpu: np.ndarray[Any, Any] = probs.numpy()
                return lambda: on_cpu
            there = torch.empty(probs.shape, dtype=probs.dtype, pin_memory=True)
            there.copy_(probs, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(torch.cuda.current_stream(self._device))

        def finish() -> np.ndarray[Any, Any]:
            copied.synchronize()
            return np.asarray(there.numpy())

        return finish


def _tensor(pixels: np.ndarray[Any, Any], pinned: bool) -> torch.Tensor:
    """The pixels for torch; a copy where CUDA fetches them, or where they cannot be written to, as
    those that come from another process."""
    if not pinned and pixels.flags.writeable:
        return torch.from_numpy(pixels)
    copy = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=pinned)
    np.copyto(copy.numpy(), pixels)
    return copy


class Probabilities(nn.Module):
    """Of a model's logits: float32 [n, classes]; and what `Known` (known.py) says beside them as
    one more column, which is never the highest of a row."""

    def forward(self, answer: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        if isinstance(answer, torch.Tensor):
            return answer.float().softmax(dim=1)
        logits, nearness = answer
        return torch.cat([logits.float().softmax(dim=1), nearness.float()], dim=1)


def _filled_up(pixels: np.ndarray[Any, Any], rows: int) -> np.ndarray[Any, Any]:
    """The images, and black ones to make so many rows of them."""
    if len(pixels) == rows:
        return pixels
    black = np.zeros((rows - len(pixels), *pixels.shape[1:]), pixels.dtype)
    return np.concatenate([pixels, black])


class OpenVINOForward:
    """OpenVINO on the CPU, with normalization and softmax in the graph.

    Attributes:
        chunk: images that go through the model at a time.
    """

    chunk = CHUNKS[0]

    def __init__(
        self, model: nn.Module, preprocess: Preprocess, threads: int, precision: str
    ) -> None:
        """
        Raises:
            Exception: of many kinds, when the model cannot be converted.
        """
        core = _core()
        import openvino as ov
        from openvino.preprocess import PrePostProcessor

        size = preprocess.size
        whole = nn.Sequential(model, Probabilities()).eval()
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on tracing, which OpenVINO does
            graph = ov.convert_model(whole, example_input=torch.zeros(2, 3, size, size))
        graph.reshape([-1, 3, size, size])
        steps = PrePostProcessor(graph)
        steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        steps.input().model().set_layout(ov.Layout("NCHW"))
        steps.input().preprocess().convert_element_type(ov.Type.f32).mean(
            [255.0 * v for v in preprocess.mean]
        ).scale([255.0 * v for v in preprocess.std])
        compiled = core.compile_model(
            steps.build(),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",  # one stream over all threads; see performance.md
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            },
        )
        self._request = compiled.create_infer_request()

    def __call__(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 [n, size, size, 3] -> float32 probabilities [n, classes]."""
        probs = []
        for part in np.array_split(pixels, -(-len(pixels) // self.chunk) or 1):
            self._request.infer([part], share_inputs=True)
            probs.append(self._request.get_output_tensor().data.copy())
        return np.concatenate(probs)


@cache
def _core() -> Any:
    """OpenVINO, once for the life of a process. Each Core puts a stack for signals into the thread
    that makes it and unmaps it at its end, be it in use; the next Ctrl-C is a segmentation fault.

    Without the module that is taken away before its import, it is silent: it would tell its makers
    of every conversion, each time from a fork of this process, where torch and Ray run threads.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino as ov

    return ov.Core()


def _converted(
    model: nn.Module,
    preprocess: Preprocess,
    threads: int,
    precision: str,
    pixels: np.ndarray[Any, Any],
) -> tuple[OpenVINOForward, float]:
    """The model for OpenVINO, with the chunk it is fastest with, and its images/s on the pixels."""
    fast = OpenVINOForward(model, preprocess, threads, precision)
    speed = {}
    for fast.chunk in CHUNKS:
        speed[fast.chunk] = _rate(fast, pixels, runs=1)
    fast.chunk = max(speed, key=speed.__getitem__)
    return fast, round(speed[fast.chunk], 1)


def _rate(forward: Forward, pixels: np.ndarray[Any, Any], runs: int = 2) -> float:
    """Images/s: the best of some runs, after one that warms up."""
    times = []
    for _ in range(1 + runs):
        start = time.perf_counter()
        forward(pixels)
        times.append(time.perf_counter() - start)
    return len(pixels) / min(times[1:])


def _compare(reference: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Largest difference of a probability, and the share of rows with the same top-1."""
    same = reference.argmax(axis=1) == other.argmax(axis=1)
    return float(np.abs(reference - other).max()), float(same.mean())
