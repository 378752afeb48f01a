"""The Device object that the loop uses: place, compute, wait, measure. No other file asks which device it is on."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ambidex import derivatives
from ambidex.device import cpu as processor
from ambidex.errors import Exit, Problem, Problems
from ambidex.fused.compiler import build, loaded_openmp
from ambidex.fused.operations import Fused
from ambidex.fused.passes import Passes
from ambidex.idling import Crowd, Idling, is_left_to_us
from ambidex.products import Operations, Products, has_onednn_product, onednn_product, using
from ambidex.replay import Learn, Replayed, first_line
from ambidex.text.cache import default_cache

Module = TypeVar("Module", bound=nn.Module)
TORCHS_OWN, COMPILED = "torch's own", "passes"  # what computes between products
ZEN_4 = 25  # family by CPUID; Zen 3 has it too, but no AVX-512
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class LossScale:
    """Keeps fp16 gradients above the smallest fp16 number (Micikevicius et al., 2018); 1 and idle elsewhere."""

    value: float = 1.0
    moves: bool = False
    steps_since_change: int = 0
    growth_interval: int = field(default=2000, repr=False)

    def finite_step(self) -> None:
        self.steps_since_change += 1
        if self.moves and self.steps_since_change >= self.growth_interval:
            self.value, self.steps_since_change = self.value * 2, 0

    def can_shrink(self) -> bool:
        return self.moves and self.value > 1

    def shrink(self) -> None:
        self.value, self.steps_since_change = max(1.0, self.value / 2), 0


class Device:
    """Where a run computes. ``name`` is cpu, cuda:N or mps; ``precision`` fp32, bf16 or fp16, never auto.

    ``fused``: on a CPU, what stands between products is computed by compiled passes, where a compiler is found.
    """

    def __init__(self, name: str, precision: str, threads: int, *, fused: bool = True) -> None:
        self.name = name
        self.kind = name.split(":", maxsplit=1)[0]
        self.precision = precision
        self.threads = threads
        self.torch_device = torch.device(name)
        torch.set_num_threads(threads)
        self.set_numerics()
        self.fused, self.why_not_fused = fused, ""
        self.products = self._products()
        self.product_rate = 0.0  # operations per second of one product, once `matmul_rate` has measured it
        if self.kind == "cpu":
            keep_pages()
        if threads > 1:
            share_cores(threads)

    def set_numerics(self) -> None:
        """Set this device's switches; call it again after another Device was made in the same process."""
        _set_numerics(self.kind)

    def _products(self) -> Products | None:
        """By rule, never by a stopwatch, so that a run's numbers do not depend on how busy the machine was."""
        if self.kind != "cpu" or self.precision == "fp16":
            return None
        low = PRECISIONS[self.precision] if self.precision != "fp32" else None
        operations, self.why_not_fused = fused_operations() if self.fused else (derivatives, "as asked")
        onednn = exact_products() == "oneDNN"
        return Products(low, onednn, operations, weights_by_default=onednn and processor.family() == ZEN_4)

    def compute_by_bf16_code(self) -> None:
        """Take the functions of a bf16 step with fp32 numbers: what is wrong in that code then shows undrowned."""
        if self.products is not None:
            self.products = replace(self.products, low=torch.float32, onednn=False)

    def between_products(self) -> str:
        """Who computes what stands between products: torch, or which compiled passes."""
        operations = None if self.products is None else self.products.operations
        return f"{COMPILED} {operations.passes.digest}" if isinstance(operations, Fused) else TORCHS_OWN

    def place(self, module: Module) -> Module:
        return module.to(self.torch_device)

    def tensor(self, array: NDArray[np.int64] | NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(array).to(self.torch_device)

    def compiled(
        self, module: nn.Module, trial: Callable[[Callable[[Tensor], Tensor]], None] | None = None
    ) -> tuple[Callable[[Tensor], Tensor], str]:
        """The module compiled, or as it is where that cannot be done, and a line that says which.

        ``trial`` computes something by it, as only then the compiler is called.
        """
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if self.kind == "cpu" and shutil.which(compiler) is None:
            return (
                module,
                f"no: torch.compile needs {compiler}, which is not installed; training goes on without",
            )
        own, self.products = self.products, None  # the compiler makes its own
        torch.use_deterministic_algorithms(True, warn_only=self.kind == "mps")
        forward = torch.compile(module)
        started = time.perf_counter()
        try:
            if trial is not None:
                trial(forward)
        # No Triton, a compiler without its headers, a bug.
        except (RuntimeError, ImportError, OSError) as error:
            if _is_out_of_memory(error):
                raise
            self.products = own
            why = first_line(error)
            return module, f"no: torch.compile fails here; training goes on without ({why})"
        return forward, f"yes, in {time.perf_counter() - started:.0f} s"

    def gains_by_compiling(self) -> bool:
        """Whether a preset's wish to compile is followed: on a CPU the passes and products here are faster."""
        return self.kind == "cuda"

    def replayed(self, learn: Learn, weights: Sequence[Tensor]) -> Learn:
        """``learn``, which adds to the gradients of ``weights``, in the form that costs the host least."""
        return Replayed(learn, weights) if self.kind == "cuda" else learn

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of products, and on a CPU who does them, for what is computed inside."""
        if self.products is not None:
            return using(self.products)
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.kind, dtype=PRECISIONS[self.precision])

    def muon_precision(self) -> torch.dtype:
        """bf16 where the model's products are, as Muon's authors have it; else fp32."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def muon_operations(self) -> Fused | None:
        """What Muon computes around its products, where it is compiled."""
        operations = None if self.products is None else self.products.operations
        return operations if isinstance(operations, Fused) else None

    def norms_at_once(self) -> bool:
        """Whether torch's norms of many tensors in one kernel are right here and save something."""
        return self.kind == "cuda"

    def loss_scale(self) -> LossScale:
        return LossScale(2.0**16, moves=True) if self.precision == "fp16" else LossScale()

    def synchronize(self) -> None:
        """Wait until everything asked for is done, so that a clock read afterwards means something."""
        if self.kind == "cuda":
            torch.cuda.synchronize(self.torch_device)
        elif self.kind == "mps":
            torch.mps.synchronize()

    def free_bytes(self) -> int | None:
        """Memory that a run may still take, or None where nobody says."""
        if self.kind == "cuda":
            return int(torch.cuda.mem_get_info(self.torch_device)[0])
        return available_bytes()

    def peak_bytes(self) -> int | None:
        """The most that this process has held so far, or None where nobody says."""
        if self.kind == "cuda":
            return int(torch.cuda.max_memory_allocated(self.torch_device))
        return _peak_resident_bytes()

    def matmul_rate(self, rows: int, inner: int, columns: int, seconds: float = 0.25) -> float:
        """Floating-point operations per second of one product at this precision: measured, median of a few."""
        a, b = (
            unlike_numbers(count, inner).to(self.torch_device, PRECISIONS[self.precision])
            for count in (rows, columns)
        )
        exact = self.products is not None and self.products.low is None and self.products.onednn
        multiply = onednn_product if exact else F.linear
        times: list[float] = []
        stop = time.perf_counter() + seconds
        while len(times) < 4 or time.perf_counter() < stop:
            started = time.perf_counter()
            multiply(a, b)
            self.synchronize()
            times.append(time.perf_counter() - started)
        self.product_rate = 2.0 * rows * inner * columns / sorted(times[1:])[len(times[1:]) // 2]
        return self.product_rate

    @contextmanager
    def memory_errors_in_words(self, less_memory: str) -> Iterator[None]:
        """An allocation that fails ends in a sentence with what to type, ``less_memory``, and exit code 6."""
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _out_of_memory(error, less_memory) from None
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise _out_of_memory(error, less_memory) from None


def unlike_numbers(rows: int, columns: int) -> Tensor:
    """(rows, columns) fp32 within 1, as unlike each other as a model's. Equal ones switch fewer transistors, so a chip that
    is held back by its power multiplies them faster than anything that is trained."""
    return torch.arange(rows * columns, dtype=torch.float32).sin_().view(rows, columns)


_NO_MEMORY = ("not enough memory", "can't allocate memory", "Cannot allocate memory", "std::bad_alloc",
              "could not create a memory", "out of memory")  # fmt: skip


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


def _out_of_memory(error: BaseException, less_memory: str) -> Problems:
    return Problems(
        Problem("Out of memory.", found=str(error).splitlines()[0] if str(error) else "the allocation failed",
                wanted="a step that fits; ambidex train --dry-run shows what takes the memory", fix=less_memory),
        Exit.OUT_OF_MEMORY,
    )  # fmt: skip


def _set_numerics(kind: str) -> None:
    """Same inputs, same bytes. Recorded in card.json by ``numerics``."""
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # cuBLAS is only deterministic with a fixed workspace
    # What torch.use_deterministic_algorithms does, without its import of the whole compiler, which costs a second at
    # every start (torch 2.13: it sets a switch of inductor's, which only matters to compiled code; see `compiled`).
    # Only Apple's GPUs are merely warned: on CUDA a mere warning leaves attention's backward pass as it is, in an order
    # that changes from run to run, also where a deterministic one is there (seen on an H100, torch 2.11).
    torch._C._set_deterministic_algorithms(True, warn_only=kind == "mps")
    if kind == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN's attention is the one that has none by default
    # Deterministic mode also fills fresh memory with NaN, which costs a sixth of a step and hides nothing we do.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def numerics() -> dict[str, object]:
    """Every switch that changes a result in its last bits or more."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cuda_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "fp32_products": _spelled_products(),
        "mkldnn": bool(torch.backends.mkldnn.enabled),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def exact_products() -> str:
    """Which library multiplies fp32 matrices on the CPU: oneDNN, or torch's default, by rule.

    On AMD, MKL, torch's default on x86, leaves AVX-512 idle: on one Zen 5 oneDNN gave 2.3 times as much, on one Zen 4
    1.2 to 1.6 times; without AVX-512 it gave no more. A weight's gradient, whose both factors it must transpose, is the
    exception on Zen 4: 0.75 to 0.99 times, the head's alone 1.1 (docs/experiments.md).
    """
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "oneDNN" if wide and "AMD" in processor.look().name and has_onednn_product() else "torch's default"


def _spelled_products() -> str:
    also = ", torch's default for the gradients of weights" if processor.family() == ZEN_4 else ""
    return exact_products() + (also if exact_products() == "oneDNN" else "")


@cache
def fused_operations() -> tuple[Operations, str]:
    """What computes between products, compiled where it can be; else torch's own, and why."""
    try:
        # Never in AMBIDEX_CACHE: text may be shared with others, what is executed may not.
        place = default_cache({name: value for name, value in os.environ.items() if name != "AMBIDEX_CACHE"})
    except Problems:
        place = None  # a user without a home: compiled anew at every start
    why = ""
    for _ in range(2):  # what was damaged is made anew, once
        built = build(place, processor.identity(), os.environ)
        if built.path is None:
            return derivatives, built.why_not
        try:
            return Fused(Passes(built.path, remove=built.folder)), ""
        except OSError as error:
            why = f"what was compiled does not load: {error}"
            with suppress(OSError):
                built.path.unlink()
    return derivatives, why


def keep_pages() -> bool:
    """Ask glibc to keep freed memory instead of giving it back to the kernel, and say whether it could be asked.

    Every large block is otherwise mapped, faulted in page by page and unmapped once a step: a third of the time of a
    plain loop (docs/experiments.md). mallopt(3): M_MMAP_MAX -4, M_TRIM_THRESHOLD -1, M_TOP_PAD -2.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False  # musl has none, and keeps pages in its own way
    return bool(mallopt(-4, 0) and mallopt(-1, 2**31 - 1) and mallopt(-2, 64 << 20))


def share_cores(threads: int) -> None:
    """See to it that idle threads of those that compute wait as long as they should (`idling.py`), where that is ours to say."""
    if (idling := _idling()) is not None:
        idling.computing = threads


@cache  # one for the process, which has one libgomp
def _idling() -> Idling | None:
    libgomp = loaded_openmp()
    if libgomp is None or not is_left_to_us(os.environ, libgomp):
        return None
    try:
        idling = Idling(Crowd(libgomp), computing=1)
        idling.start()
    except (OSError, AttributeError, RuntimeError):
        return None  # steps take longer beside other work, no more
    return idling


def available_bytes() -> int | None:
    """What this process may still take: the machine's available memory, or less where a limit is nearer."""
    found = [n for n in (_meminfo_available(), _cgroup_left(), _address_space_left()) if n is not None]
    return min(found) if found else None


def _address_space_left() -> int | None:
    """What `ulimit -v` leaves, None where it is not set."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        with open("/proc/self/statm", encoding="ascii") as pages:  # noqa: PTH123
            taken = int(pages.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return None  # Windows, macOS
    return None if limit == resource.RLIM_INFINITY else max(0, limit - taken)


def _meminfo_available() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _cgroup_left() -> int | None:
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            with open(limit, encoding="ascii") as most, open(used, encoding="ascii") as now:  # noqa: PTH123
                allowed, taken = int(most.read()), int(now.read())
        except (OSError, ValueError):
            continue  # "max", or no such group
        if allowed < 1 << 60:  # cgroup v1 writes a huge number for "no limit"
            return max(0, allowed - taken)
    return None


def _peak_resident_bytes() -> int | None:
    try:
        import resource
    except ImportError:
        return None  # Windows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
