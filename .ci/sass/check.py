"""Compiles the Hopper kernels to machine code on a machine that has no GPU.

The tests run the kernels in an interpreter, which does not model registers or the assembly of
`wgmma`. The assembler, ptxas, needs no GPU. Its log reports two faults that make a kernel several
times slower: registers spilled to memory, and serialized `wgmma` instructions, each of which waits
for the previous one. This program compiles all `KERNELS` and fails if it finds such a fault.

    lower   JAX lowers the operator for CUDA. The kernel is an attribute of a call in the result.
    compile The CUDA plugin compiles the attribute with ptxas, for the GPU that the driver reports.
            `libcuda_stub.c` replaces the driver and reports a Hopper GPU.

Run it with `make kernels-sass`, which installs the extra `sass` of pyproject.toml.
"""

import argparse
import ctypes
import dataclasses
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxlib.mlir import ir

from replk_jax.ops.depthwise import shapes
from replk_jax.ops.depthwise.convolution import Convolution
from replk_jax.ops.depthwise.mosaic_gpu.forward import forward
from replk_jax.ops.depthwise.mosaic_gpu.kernel_gradient import (
    kernel_gradient,
    unsupported_gradient_reason,
)
from replk_jax.ops.depthwise.mosaic_gpu.plan import unsupported_reason

# Each operator with its `unsupported_reason`. The input gradient uses the forward kernel.
OPERATORS = {
    "forward": (forward, unsupported_reason),
    "kernel_gradient": (kernel_gradient, unsupported_gradient_reason),
}

SHARED_MEMORY = 227 * 1024
"""Bytes that a thread block can have on Hopper."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An operator at one shape: `size` x `size` pixels, a square kernel of `taps`, SAME."""

    operator: str
    size: int
    channels: int
    taps: int
    batch: int = 64
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        return (
            f"{self.operator:15} {self.size}x{self.size} C{self.channels} K{self.taps} "
            f"N{self.batch} {self.dtype}"
        )

    @property
    def convolution(self) -> Convolution:
        sides = (self.taps // 2, self.taps // 2)
        return Convolution((self.size,) * 2, (self.taps,) * 2, padding=(sides, sides))

    @property
    def unsupported(self) -> str | None:
        _, unsupported_reason = OPERATORS[self.operator]
        return unsupported_reason(
            self.convolution, self.batch, self.channels, jnp.dtype(self.dtype)
        )

    def lower(self):
        """The operator's StableHLO module for CUDA."""
        operator, _ = OPERATORS[self.operator]
        images = (self.batch, self.size, self.size, self.channels)
        other = (self.taps, self.taps, 1, self.channels) if operator is forward else images
        arguments = [jax.ShapeDtypeStruct(shape, self.dtype) for shape in (images, other)]
        traced = jax.jit(lambda x, y: operator(x, y, self.convolution)).trace(*arguments)
        return traced.lower(lowering_platforms=("cuda",)).compiler_ir("stablehlo")


# The stages of RepLKNet-31 at 224 and at 384 pixels, without the one of 7 x 7.
LAYERS = tuple(
    (shape.size[0], shape.channels, shape.kernel_size[0])
    for shape in (*shapes.REPLKNET_224[:3], *shapes.REPLKNET_384)
)
KERNELS = tuple(
    kernel
    for operator in OPERATORS
    for kernel in (
        *(Kernel(operator, *layer) for layer in LAYERS),
        Kernel(operator, *LAYERS[0], batch=16),
        Kernel(operator, *LAYERS[0], batch=128),
        Kernel(operator, *LAYERS[0], dtype="float32"),
    )
)


def compile_kernel(kernel: Kernel) -> None:
    """Compiles a kernel; ptxas and the stub of the driver report on standard output.

    Raises:
      RuntimeError: the operator calls no kernel, or the plugin returns no result.
    """
    from jax_plugins import xla_cuda13

    compile_module = ctypes.CDLL(xla_cuda13._get_library_path()).MosaicGpuCompile
    compile_module.argtypes = [ctypes.c_char_p, ctypes.c_int]
    compile_module.restype = ctypes.c_void_p
    modules = mosaic_gpu_modules(kernel.lower())
    if not modules:
        raise RuntimeError("The operator calls no Mosaic GPU kernel.")
    for module in modules:
        if not compile_module(module, len(module)):
            raise RuntimeError("MosaicGpuCompile returned no compiled kernel.")


def mosaic_gpu_modules(lowered) -> list[bytes]:
    """The serialized kernels that a StableHLO module calls."""
    modules = []

    def visit(operation):
        attributes = operation.attributes
        if (
            operation.name == "stablehlo.custom_call"
            and ir.StringAttr(attributes["call_target_name"]).value == "mosaic_gpu_v2"
        ):
            config = ir.DictAttr(attributes["mhlo.backend_config"])
            modules.append(ir.StringAttr(config["module"]).value_bytes)
        return ir.WalkResult.ADVANCE

    lowered.operation.walk(visit)
    return modules


@dataclasses.dataclass(frozen=True)
class Report:
    """The report of compiling one kernel.

    Attributes:
      registers: of one thread.
      spilled: bytes of registers stored to or loaded from memory.
      shared_memory: bytes of one thread block.
      remarks: numbers of the remarks of ptxas on `wgmma`.
      faults: descriptions of the faults; empty for a good kernel.
    """

    registers: int = 0
    spilled: int = 0
    shared_memory: int = 0
    remarks: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @classmethod
    def read(cls, log: str) -> "Report":
        """Reads the output of `compile_kernel`."""
        registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
        spilled = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", log)]
        shared_memory = [int(n) for n in re.findall(r"dynamic shared memory: (\d+)", log)]
        if not (registers and spilled and shared_memory):
            return cls(faults=(f"The log lacks the report of ptxas or of the driver:\n{log}",))
        faults = [line.strip() for line in log.splitlines() if "serialized" in line]
        if any(spilled):
            faults.append("Registers are spilled.")
        if max(shared_memory) > SHARED_MEMORY:
            faults.append(f"The kernel needs more than {SHARED_MEMORY} bytes of shared memory.")
        return cls(
            registers=max(registers),
            spilled=max(spilled),
            shared_memory=max(shared_memory),
            remarks=tuple(sorted(set(re.findall(r"\((C75\d\d)\)", log)))),
            faults=tuple(dict.fromkeys(faults)),
        )


def build_stub(folder: Path) -> None:
    """Builds the stub of the driver as `folder`/libcuda.so.1, the name that the plugin loads."""
    source = Path(__file__).with_name("libcuda_stub.c")
    command = ["cc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        sys.exit("A C compiler is needed, as the command cc: apt-get install gcc libc6-dev")
    except subprocess.CalledProcessError:
        sys.exit(f"The C compiler cc could not build {source}.")


def report(kernel: Kernel, stub: Path) -> Report:
    """Compiles a kernel in a separate process, since the plugin may abort it."""
    tools = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",  # the stub cannot run programs
        "LD_LIBRARY_PATH": str(stub),
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",  # this ptxas before any other
        "MOSAIC_GPU_DUMP_PTXAS": "1",  # its log to standard output
    }
    process = subprocess.run(
        [sys.executable, __file__, "--compile", str(KERNELS.index(kernel))],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if process.returncode:
        return Report(faults=(f"Compiling failed:\n{process.stdout}",))
    return Report.read(process.stdout)


def check(kernels) -> int:
    """Prints a line per kernel, then all faults; returns the number of faulty kernels."""
    compiled = [kernel for kernel in kernels if kernel.unsupported is None]
    faulty = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        build_stub(Path(folder))
        print(f"{'':52} registers  shared memory  spilled  remarks")
        reports = pool.map(lambda kernel: report(kernel, Path(folder)), compiled)
        for kernel in kernels:
            if kernel.unsupported:
                print(f"{kernel!s:52} unsupported: {kernel.unsupported}")
                continue
            result = next(reports)
            if result.faults:
                faulty[kernel] = result.faults
            print(
                f"{kernel!s:52} {result.registers:9} {result.shared_memory:14,} "
                f"{result.spilled:8}  {' '.join(result.remarks)}{'  FAULTY' * bool(result.faults)}",
                flush=True,
            )
    for kernel, faults in faulty.items():
        print(f"\n{kernel}", *faults, sep="\n")
    return len(faulty)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", type=int, metavar="I", help="only compile KERNELS[I]")
    arguments = parser.parse_args()
    if arguments.compile is not None:
        return compile_kernel(KERNELS[arguments.compile])
    failed = check(KERNELS)
    if failed:
        sys.exit(f"{failed} of {len(KERNELS)} kernels are faulty.")
    print("No kernel spills registers or serializes its wgmma instructions.")


if __name__ == "__main__":
    main()
