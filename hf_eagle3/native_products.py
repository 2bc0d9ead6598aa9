"""Whether a device multiplies matrices in a dtype by itself, or emulates it.

It decides what a draft tree costs: where a product is emulated, sixteen rows cost about twelve times one row, and
where it is not, less than twice. Knows nothing of models.
"""

from __future__ import annotations

import torch

# What `torch.cpu.get_capabilities` calls the instructions: of x86 processors, and last of ARM's.
_INSTRUCTIONS: dict[torch.dtype, tuple[str, ...]] = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}


def multiplies_natively(dtype: torch.dtype, device: torch.device | str = "cpu") -> bool:
    """Whether `device` has instructions for products in `dtype`.

    A torch that cannot be asked what its CPU has, and devices that are neither CPUs nor CUDA's, count as able: nobody
    is warned of what is not known.
    """
    device = torch.device(device)
    if dtype not in _INSTRUCTIONS:
        return True
    if device.type == "cuda":
        return dtype != torch.bfloat16 or _cuda_has_bf16(device)
    ask = getattr(torch.cpu, "get_capabilities", None)
    if device.type != "cpu" or ask is None:
        return True
    able = ask()
    return any(bool(able.get(name)) for name in _INSTRUCTIONS[dtype])


def usual_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """What a small model runs fastest in: bfloat16 where `device` multiplies in it by itself, else float32."""
    return torch.bfloat16 if multiplies_natively(torch.bfloat16, device) else torch.float32


def has_bf16() -> bool:
    """Whether this machine multiplies in bfloat16 by itself: its GPU where it has one, else its CPU."""
    return multiplies_natively(torch.bfloat16, "cuda" if torch.cuda.is_available() else "cpu")


def _cuda_has_bf16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)
