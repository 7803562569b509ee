"""What tests of Triton's kernels share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmm4rec.nn.triton_support import runs_on

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_kernels = pytest.mark.skipif(not runs_on(DEVICE), reason="neither such a GPU nor the interpreter")


def run_compiling(code: str, cache: Path) -> None:
    """Run Python code where Triton compiles, even if it interprets here."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compile_for(
    capability: int, kernel, sizes: dict, aligned: tuple[str, ...] = (), unit: tuple[str, ...] = (), warps: int = 4
):
    """Compile a kernel for float32 tensors, and a GPU that need not be there.

    Its arguments are pointers (their names end in ``start``), three strides each (``strides``) and numbers. What
    ``aligned`` names is known to be a multiple of 16, for strides the first two; the last stride of ``unit`` to be 1.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    names = kernel.arg_names
    kinds = dict.fromkeys(names, "i32") | dict.fromkeys(sizes, "constexpr")
    kinds |= {name: "*fp32" for name in names if name.endswith("start")}
    kinds |= {
        name: ("i32", "i32", "constexpr" if name in unit else "i32") for name in names if name.endswith("strides")
    }
    constants = sizes | {(names.index(name), 2): 1 for name in unit}
    paths = [(names.index(n), k) if n.endswith("strides") else (names.index(n),) for n in aligned for k in (0, 1)]
    source = ASTSource(kernel, kinds, constants, {path: [["tt.divisibility", 16]] for path in paths})
    options = {"num_warps": warps, "enable_fp_fusion": True}
    compiled = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"].startswith(b"\x7fELF")
    return compiled
