"""The other side of serve.py: the same model under LitServe, as its documentation suggests.

    python benchmarks/litserve_side.py BUNDLE PORT eager|same --batch 8 --wait 0.002 --workers 1

`eager`: torch in channels_last, in bf16 or fp32, whichever is measured to be faster; PIL and timm's
transform. `same`: our runtime and decode. Both decode a batch in two threads, and take the file as
a form, which is the least work for LitServe (base64 in JSON costs more).
"""

import argparse
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import File
from litserve import LitAPI, LitServer
from machine import forward_rates

from ns_ray.compute import cpus

TOP_K = 5


class Api(LitAPI):  # type: ignore[misc]  # LitServe has no types
    """One model; bytes in, classes out."""

    def __init__(self, bundle: str, kind: str, threads: int, **options: Any) -> None:
        super().__init__(**options)
        self.bundle, self.kind, self.threads = bundle, kind, threads

    def setup(self, device: str) -> None:
        """Load the model."""
        import timm
        import torch

        from ns_ray.config import PredictConfig
        from ns_ray.data import smooth_pixels
        from ns_ray.model import Predictor

        torch.set_num_threads(self.threads)
        self.pool = ThreadPoolExecutor(2)
        if self.kind == "same":
            self.predictor = Predictor(
                self.bundle, config=PredictConfig(runtime="openvino"), threads=self.threads
            )
            self.predictor.forward(smooth_pixels(16, self.predictor.preprocess.size))
            self.classes = self.predictor.classes
            return
        model = timm.create_model(f"local-dir:{self.bundle}", pretrained=True).eval()
        self.model = model.to(memory_format=torch.channels_last)
        rates = forward_rates(self.model)
        self.half = rates["bf16"] > rates["fp32"]
        self.transform = timm.data.create_transform(
            **timm.data.resolve_model_data_config(model), is_training=False
        )
        self.classes = model.pretrained_cfg["label_names"]

    def decode_request(self, request: Annotated[bytes, File()]) -> bytes:
        """The file."""
        return request

    def predict(self, x: Any) -> Any:
        """Classes of one file or of a batch of them."""
        files = [x] if isinstance(x, bytes) else x
        decode = self.predictor.pixels if self.kind == "same" else self._tensor
        images = list(self.pool.map(decode, files)) if len(files) > 1 else [decode(files[0])]
        probs = self._probs(images)
        answers = [
            [{"label": self.classes[i], "score": float(row[i])} for i in np.argsort(-row)[:TOP_K]]
            for row in probs
        ]
        return answers[0] if isinstance(x, bytes) else answers

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """Leave the files as they are: `predict` decodes them."""
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        """One answer per file."""
        return output

    def _tensor(self, data: bytes) -> Any:
        from PIL import Image

        return self.transform(Image.open(io.BytesIO(data)).convert("RGB"))

    def _probs(self, images: list[Any]) -> Any:
        import torch

        if self.kind == "same":
            return self.predictor.forward(np.stack(images))
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            batch = torch.stack(images).to(memory_format=torch.channels_last)
            return self.model(batch).float().softmax(dim=1).numpy()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle")
    parser.add_argument("port", type=int)
    parser.add_argument("kind", choices=["eager", "same"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--wait", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    threads = max(cpus() // options.workers, 1)
    api = Api(
        options.bundle,
        options.kind,
        threads,
        max_batch_size=options.batch,
        batch_timeout=options.wait,
    )
    server = LitServer(api, accelerator="cpu", workers_per_device=options.workers, fast_queue=True)
    print("litserve", litserve.__version__, flush=True)
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="error")


if __name__ == "__main__":
    main()
