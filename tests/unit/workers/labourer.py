"""Honest work inside the jail, on several threads: entries for `workers.child.Child`."""

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.lifeline import Lifeline
from workers.pipe import Read

THREADS = 3


def tensors() -> Tensor:
    """Large enough that torch shares each of them out."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    x = torch.randn(8, 16, 32, 32, requires_grad=True)
    y = F.conv2d(x, torch.randn(32, 16, 3, 3), padding=1).relu().mean((2, 3))
    y = F.scaled_dot_product_attention(y[None], y[None], y[None])[0] @ torch.randn(32, 400) @ torch.randn(400, 400)
    (slope,) = torch.autograd.grad(y.square().mean(), x)
    singular = torch.linalg.svdvals(torch.randn(200, 200, dtype=torch.float64))
    return torch.stack([slope.double().norm(), singular.sum(), torch.randn(300_000).sort().values[7].double()])


def compute() -> list[float]:
    return [float(value) for value in tensors()]


def table() -> int:
    """Write Parquet, read it with pyarrow's threads, and count."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_cpu_count(THREADS)
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: list(range(5000)) for name in "abcdef"}), buffer, row_group_size=500)
    return sum(pq.read_table(io.BytesIO(buffer.getvalue()), use_threads=True)["f"].to_pylist())


def pictures() -> int:
    """Encode and decode one picture in each form."""
    import numpy as np
    from PIL import Image

    pixels, size = np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3), 0
    for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
        Image.fromarray(pixels).save(buffer := io.BytesIO(), form)
        size += np.asarray(Image.open(io.BytesIO(buffer.getvalue())).resize((24, 24)).convert("RGB")).size
    return size


WORK: dict[str, Callable[[], Any]] = {"tensors": compute, "table": table, "pictures": pictures}


def labour(name: str, lifeline: Lifeline) -> None:
    """Do one kind of work and tell its result."""
    lifeline.channel.send(Read(facts={name: WORK[name]()}))


def read_archive(order: str, lifeline: Lifeline) -> None:
    """Read an exported network and compute with it: {"archive": path, "x": path of an array}."""
    import numpy as np

    from workers.formats.pt2_reader import read_pt2
    from workers.graph.lifting import lift

    told = json.loads(order)
    network = lift(read_pt2(Path(told["archive"])))
    with torch.no_grad():
        y = network(torch.from_numpy(np.load(told["x"])))
    lifeline.channel.send(Read(facts={"y": y.tolist()}))


def threads_and_files(order: str, lifeline: Lifeline) -> None:
    """Tell, from a second thread, which files are open, and which of some can be opened."""
    import concurrent.futures

    def look() -> dict[str, Any]:
        environment = Path("/proc/self/environ").read_text()
        return {"secrets": "STILLHOUSE" in environment, "opens": [opens(Path(path)) for path in json.loads(order)]}

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        lifeline.channel.send(Read(facts=pool.submit(look).result()))


def opens(path: Path) -> bool:
    try:
        path.open("rb").close()
    except PermissionError:
        return False
    return True


def unpickle(path: str, lifeline: Lifeline) -> None:
    """Do what no reader does: load a pickle, with all that it asks for; tell how that ended."""
    try:
        answer = pickle.loads(Path(path).read_bytes())
    except OSError as error:
        lifeline.channel.send(Read(facts={"ended": type(error).__name__}))
    else:
        lifeline.channel.send(Read(facts={"ended": str(answer)}))
