"""What training on all cores loses while another program has one of them busy.

    python benchmarks/busy_machine.py [--seconds 8] [--rounds 3]

tf_efficientnet_lite0 at 96 px, batches of 32, bf16, as many threads as there are CPUs: images/s of
plain steps with libgomp's own way of waiting, and with that of ns_ray's processes (GOMP_SPINCOUNT,
ns_ray/compute/environment.py), alone and beside one or two processes that count for ever. Each is
a process of its own, in turn. Prints a Markdown table of medians and the ratio.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from machine import machine

from ns_ray.compute import WORKER_ENVIRONMENT, cpus

SIZE, BATCH = 96, 32
SPIN = "GOMP_SPINCOUNT"


def steps(seconds: float) -> None:
    """Train for so long, and print images/s."""
    import timm
    import torch

    torch.set_num_threads(cpus())
    network = timm.create_model("tf_efficientnet_lite0", num_classes=10).train()
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters())
    images = torch.randn(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images)
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits.float(), labels))
        optimizer.step()
        optimizer.zero_grad()

    step()
    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        step()
        count += 1
    print(count * BATCH / (time.perf_counter() - start))


def measured(seconds: float, own: bool) -> float:
    """Images/s of a process with our setting or without."""
    environment = {name: value for name, value in os.environ.items() if name != SPIN}
    if own:
        environment[SPIN] = WORKER_ENVIRONMENT[SPIN]
    command = [sys.executable, __file__, "--steps", "--seconds", str(seconds)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", action="store_true")
    args = parser.parse_args()
    if args.steps:
        steps(args.seconds)
        return
    print(machine())
    print("\n| images/s | libgomp's way | ns_ray's | ratio |\n|---|---:|---:|---:|")
    for beside in (0, 1, 2):
        busy = [subprocess.Popen([sys.executable, "-c", "while 1: pass"]) for _ in range(beside)]
        pairs = [[measured(args.seconds, own) for own in (False, True)] for _ in range(args.rounds)]
        for process in busy:
            process.kill()
            process.wait()
        theirs, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"| beside {beside} busy processes | {theirs:.0f} | {ours:.0f} | {ours / theirs:.2f} |"
        )


if __name__ == "__main__":
    main()
