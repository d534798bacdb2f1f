"""Numbers with fewer bits where the device gains from them, while the weights stay float32.

Under autocast matrix products and convolutions run in 16 bits and sums in 32. bfloat16 has float32's range; the
small gradients of float16 vanish unless the loss is scaled up before the backward pass and the gradients scaled
down after it (Micikevicius et al. 2018). "auto" asks the device once: the answer is recorded, and a resumed
training uses it again, since another precision would be another result.
"""

from typing import Literal

import torch

Precision = Literal["float32", "bfloat16", "float16"]

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def resolve_precision(asked: Literal["auto"] | Precision, device: torch.device) -> Precision:
    """What `asked` means on this device: "auto" is bfloat16 on GPUs that have it in hardware, else float32."""
    if asked != "auto":
        return asked
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bfloat16 else "float32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which a model runs at `precision`; it changes nothing for float32."""
    enabled = precision != "float32"
    return torch.autocast(device.type, dtype=DTYPES[precision] if enabled else None, enabled=enabled)


def gradient_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """A scaler of losses and gradients; it passes everything through unless the precision is float16."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")
