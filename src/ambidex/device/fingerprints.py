"""What an error's own words betray: each known sentence with its cause and what to do.

Sources: the PyTorch and NVIDIA threads gathered for this project, CUDA's error list, and torch's own sources.
The order is from the root to the symptom: where a text holds several, the first one is the cause.
"""

from __future__ import annotations

import re

from ambidex.device.fingerprint import Fingerprint
from ambidex.device.fingerprints_beside import AFTER, BEFORE

__all__ = ["KNOWN", "Fingerprint", "cause_of", "matches"]

# CUDA itself speaks English; programs and forums translate what it said.
_KERNEL_IMAGE = (
    r"(?:内核|核心)(?:映像|镜像|图像|映射)|カーネル ?イメージ|커널 이미지|образ[а-я]* ядра|kernel-?image[^\n]{0,40}verfügbar"
    r"|imagen del? kernel|image (?:de |du )?noyau|imagem d[eo] kernel|immagine del kernel"
)
# The loader speaks the system's language; the names around its words are the same in all.
_SYMBOL = (
    r"(?:undefined symbol|未定义(?:的)?符号|未定義(?:的)?符號|未定義シンボル|nicht definiertes Symbol|symbole (?:indéfini|non défini)"
    r"|símbolo (?:no|não) definido|simbolo non definito|неопредел[её]нный символ) ?[:：] ?"
)

KNOWN: tuple[Fingerprint, ...] = (
    *BEFORE,
    Fingerprint(
        "container_toolkit",
        r"could not select device driver \\?\"[^\"]{0,40}\\?\" with capabilities: \[\["
        r"|unknown or invalid runtime name: nvidia|Unknown runtime specified nvidia",
        "Docker was asked for a GPU and has no way to give one: the NVIDIA Container Toolkit is missing on "
        "the host, or "
        "Docker is not configured for it.",
        "on the host, install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure "
        "--runtime=docker && "
        "sudo systemctl restart docker (Docker installed by snap cannot do this); on a host without a GPU, "
        "leave the "
        "GPU request out",
        "CONTAINER_NO_GPU",
    ),
    Fingerprint(
        "no_op_install",
        r"Requirement already satisfied: torch(?![\w-])|Would make no changes",
        "The install command changed nothing: pip and uv take torch==X for satisfied by any installed X, "
        "whatever its "
        "+cpu or +cuNNN tag.",
        "uninstall first, or pin the tag too, as in torch==2.11.0+cu128 with its --index-url; `ambidex "
        "doctor` prints "
        "the whole command for this machine",
    ),
    Fingerprint(
        "no_distribution",
        r"(?:No matching distribution found for|Could not find a version that satisfies the requirement) "
        r"torch(?![\w-])"
        r"[^\s()]*"
        r"|there (?:is|are) no (?:version of|wheels for) torch(?![\w-])[^\s()]*|torch==\S{1,80} has no wheels with a matching"
        r"|Distribution `torch==[^`\n]*` can't be installed|\btorch-[\w.+%-]{1,120}\.whl is not a supported wheel"
        r"|Unable to find installation candidates for torch(?![\w-])",
        "The index asked has no such torch for this Python, system and machine.",
        "see which exist with `ambidex variants`; `ambidex doctor` prints the newest that fits this Python",
    ),
    Fingerprint(
        "numpy_abi",
        r"compiled using NumPy 1\.x cannot be run in\s+NumPy 2",
        "This torch was built for NumPy 1 and NumPy 2 is installed. The GPU has nothing to do with it.",
        'python -m pip install "numpy<2", or a newer torch',
    ),
    Fingerprint(
        "symbol_nvjitlink",
        _SYMBOL + r"(_*nvJitLink\w*)",
        "A library of the wheel found another CUDA's libnvJitLink first ({0}): LD_LIBRARY_PATH leads to a "
        "CUDA toolkit of "
        "another version.",
        "run it with LD_LIBRARY_PATH unset: the wheel brings its own CUDA libraries",
        "TORCH_BROKEN",
    ),
    Fingerprint(
        "symbol_mkl",
        _SYMBOL + r"(iJIT_\w+)",
        "torch from conda found an MKL that it was not built for ({0}).",
        'conda install "mkl<2024.1"',
        "TORCH_BROKEN",
    ),
    Fingerprint(
        "symbol_torch",
        _SYMBOL + r"(\w*(?:c10|torch|at\d|ATen)\w*)",
        "An extension library was built against another torch than the one installed: it asks for {0}, "
        "which this torch "
        "has not.",
        "reinstall that extension for the installed torch (build it from source where its maker has no "
        "wheel for it)",
        "TORCH_BROKEN",
    ),
    Fingerprint(
        "symbol",
        _SYMBOL + r"(\w+)",
        "Two libraries that were not built for each other were loaded together: {0} is asked for and is in "
        "neither.",
        "reinstall the package whose file the message names, in the same environment as torch",
        "TORCH_BROKEN",
    ),
    Fingerprint(
        "libcuda_missing",
        r"libcuda\.so(?:\.1)?:? cannot open shared object|(?:OSError|ImportError): libcuda\.so(?:\.1)?:|(?:could not|failed to|unable to|cannot) "
        r"(?:load|find|open|"
        r"locate)[^\n]{0,40}\b(?:libcuda|nvcuda\.dll)|cannot find -lcuda\b",
        "The driver's library, libcuda, is not here: there is no NVIDIA driver, or the container was "
        "started without the "
        "`compute` capability of its driver.",
        "in a container: start it with --gpus all (and NVIDIA_DRIVER_CAPABILITIES=compute,utility); "
        "elsewhere: install the "
        "NVIDIA driver",
        "NO_GPU",
    ),
    Fingerprint(
        "library_missing",
        r"(lib(?:cudart|cublas\w*|cudnn\w*|cufft|curand|cusparse\w*|cusolver|nccl|nvrtc|nvJitLink|nvToolsExt|cupti|"
        r"cufile|nvshmem\w*|c10\w*|torch\w*)[\w.-]*): cannot open shared object"
        r"|(?:OSError|ImportError): (lib(?!cuda\.so)(?:cu|nv|nccl|c10|torch)[\w-]*\.so[\w.]*): (?!undefined|version)"
        r"|Unable to load any of \{(libcudnn[\w.]*)|failed to open (libnvrtc-builtins[\w.]*)",
        "{0} is not found: the installation is incomplete, or its nvidia-* packages belong to another CUDA.",
        "reinstall torch with its dependencies, uninstalling it first; `ambidex doctor` prints the command",
        "TORCH_BROKEN",
    ),
    Fingerprint(
        "dll_missing",
        r"\[WinError (?:126|127|1114|193)\][^\n]*|DLL load failed while importing [^\n]*",
        "Windows could not load one of torch's DLLs or something that it needs: {0}",
        "install the Microsoft Visual C++ redistributable (x64), then reinstall torch, uninstalling it first",
        "TORCH_BROKEN",
    ),
    Fingerprint(
        "no_torch",
        r"No module named '?torch'?(?![\w.])",
        "The Python that ran has no torch.",
        "install it into that same Python: `ambidex doctor` prints the command",
        "TORCH_MISSING",
    ),
    Fingerprint(
        "forward_compat",
        r"forward compatibility was attempt|\berror "
        r"804\b|cudaErrorCompatNotSupportedOnDevice",
        "Error 804: a `compat` libcuda inside the image shadows the host's, and forward compatibility is "
        "for datacentre "
        "GPUs only.",
        "remove /usr/local/cuda/compat from LD_LIBRARY_PATH (or the cuda-compat package from the image), or "
        "use an image "
        "whose CUDA the host's driver knows",
    ),
    Fingerprint(
        "driver_mismatch",
        r"unsupported display driver / cuda driver combination|\berror 803\b|cudaErrorSystemDriverMismatch|"
        r"Driver/library version mismatch",
        "Error 803: the driver in the kernel and its library are of different versions, as after an update.",
        "restart the machine (in a container: restart it too, so that it gets the host's new library)",
    ),
    Fingerprint(
        "not_initialized",
        r"system not yet initialized|\berror 802\b|cudaErrorSystemNotReady",
        "Error 802: the system is not ready; on machines with NVSwitch the fabric manager must run, in the "
        "driver's version.",
        "start nvidia-fabricmanager, of the same version as the driver",
    ),
    Fingerprint(
        "driver_old",
        r"NVIDIA driver on your system is too old(?: \(found version (\d+)\))?",
        "The driver is older than this torch's CUDA asks for{0}.",
        "update the driver, or install a torch for an older CUDA: `ambidex doctor` prints which",
        "DRIVER_OLD",
    ),
    Fingerprint(
        "driver_insufficient",
        r"CUDA driver version is insufficient|cudaErrorInsufficientDriver",
        "The driver is older than this program's CUDA asks for.",
        "update the driver, or install a torch for an older CUDA: `ambidex doctor` prints which",
        "DRIVER_OLD",
    ),
    Fingerprint(
        "ptx_toolchain",
        r"PTX was (?:compiled|generated) (?:with an unsupported toolchain|by a compiler "
        r"newer)|cudaErrorUnsupportedPtxVersion|"
        r"CUDA_ERROR_UNSUPPORTED_PTX_VERSION|unsupported toolchain",
        "Error 222: the build has only PTX for this GPU, made by a CUDA that is newer than the driver's, "
        "which therefore "
        "cannot compile it.",
        "update the driver, or install a build with machine code for this GPU: `ambidex doctor` prints one",
        "DRIVER_OLD",
    ),
    Fingerprint(
        "fmha_arch",
        r"kernel `?(fmha_\w{1,80}?|\w{0,80}cutlass\w{0,80})`? is for (sm\d+(?:-sm\d+)?),? but was built for (sm\d+)",
        "An attention kernel was compiled from PTX of {2}, which lacks what it needs ({1}): PTX that old "
        "runs, but not all "
        "of it works.",
        "install a build with machine code for this GPU: `ambidex doctor` prints one",
        "ARCH_NONE",
    ),
    Fingerprint(
        "not_compatible",
        r"is not compatible with the current PyTorch installation|CUDA capability sm_\d{2,3} is not|supports CUDA capabilities "
        r"(?:sm_|compute_)|PyTorch no longer supports this GPU|cuda capability supported by this (?:library|version)|"
        r"which is of compute capability \(CC\)|not compatible with the current CUDA capabilit|不支持\s?(?:RTX\s?)?50\s?系",
        "torch's own start-up check says that this build has no code for this GPU.",
        "install a build that has: `ambidex doctor` prints the command",
        "ARCH_NONE",
    ),
    Fingerprint(
        "cudnn_arch",
        r"CUDNN_STATUS_(?:NOT_SUPPORTED_)?ARCH_MISMATCH",
        "cuDNN has no code for this GPU: from 9.11 on it has none for GPUs older than 7.5 (Turing).",
        "install a cu126 build of torch, which keeps to cuDNN 9.10",
        "EXTENSION_ARCH",
    ),
    Fingerprint(
        "triton_ptxas",
        r"Value '(sm_\w+)' is not defined for option 'gpu-name'",
        "Triton's own ptxas is too old for this GPU ({0}): torch.compile fails where plain torch runs.",
        "use a torch whose triton knows it (3.6 or newer for sm_121a), or train without torch.compile",
        "EXTENSION_ARCH",
    ),
    Fingerprint(
        "nvcc_arch",
        r"Unsupported gpu architecture '(\w+)'",
        "The CUDA toolkit that compiles here has no {0}: too old for a new GPU, or (from 13.0) too new for "
        "one before 7.5.",
        "compile with a toolkit that has it: 12.8 or newer for sm_100 and sm_120, 12.9 or older for "
        "anything below sm_75",
    ),
    Fingerprint(
        "no_kernel_image",
        r"no kernel image is av|cudaErrorNoKernelImageForDevice|CUDA_ERROR_NO_BINARY_FOR_GPU|"
        r"\bCUDA (?:error|failure)(?: code)?:? 209\b|device kernel image is invalid|" + _KERNEL_IMAGE,
        "The library that ran has no code for this GPU: torch, or an extension of it.",
        "`ambidex doctor` says which of them, and prints a build that has code for this GPU",
        "ARCH_NONE",
    ),
    Fingerprint(
        "invalid_device_function",
        r"(?:CUDA|HIP) error: invalid device function|cudaErrorInvalidDeviceFunction",
        "A kernel was asked for that the library does not hold for this GPU: torch, or an extension of it.",
        "`ambidex doctor` says which of them, and prints a build that has code for this GPU; of an AMD GPU it knows "
        "nothing: take a ROCm build whose torch.cuda.get_arch_list() names it",
        "ARCH_NONE",
    ),
    Fingerprint(
        "not_compiled",
        r"Torch not compiled with CUDA|PyTorch was compiled without CUDA|not compiled with CUDA "
        r"support",
        "This torch is a CPU build. On Windows and macOS that is what plain `pip install torch` brings.",
        "train on the CPU with --device cpu, or install a CUDA build: `ambidex doctor` prints the command",
        "CPU_BUILD",
    ),
    Fingerprint(
        "deserialize",
        r"Attempting to deserialize object on a CUDA device",
        "A checkpoint saved on a GPU is being loaded where torch sees none.",
        'torch.load(..., map_location="cpu")',
    ),
    Fingerprint(
        "no_driver",
        r"Found no NVIDIA driver|NVIDIA-SMI has failed because it couldn't communicate|couldn't find libnvidia-ml"
        r"|Failed to initialize NVML: Driver Not Loaded|CUDA driver initialization failed, you might not have"
        r"|nvidia-smi: (?:command )?not found|'nvidia-smi' is not recognized",
        "No NVIDIA driver answers: none is installed, it is not loaded, or the container was started "
        "without the GPU.",
        "install or load the driver; in a container: start it with --gpus all; or train on the CPU: "
        "--device cpu",
        "NO_GPU",
    ),
    Fingerprint(
        "no_device",
        r"no CUDA-capable device is detected|cudaErrorNoDevice|No (?:CUDA|HIP) GPUs are available|no NVIDIA GPU "
        r"detected|^[ \t]*No devices were found\.?\s*$",
        "The driver is there and shows this process no GPU: CUDA_VISIBLE_DEVICES hides it, or the container "
        "was given none.",
        "look at CUDA_VISIBLE_DEVICES and at how the container was started: `ambidex doctor` does both",
        "HIDDEN_BY_ENV",
    ),
    Fingerprint(
        "ordinal",
        r"CUDA error: invalid device ordinal|cudaErrorInvalidDevice\b|Invalid device id",
        "The program asked for a GPU number that this process does not have. After CUDA_VISIBLE_DEVICES the "
        "count starts at "
        "0 again.",
        "ask for a number below torch.cuda.device_count()",
        "HIDDEN_BY_ENV",
    ),
    Fingerprint(
        "unknown_999",
        r"CUDA unknown error|\berror 999\b|cudaErrorUnknown",
        "Error 999: the driver failed without a reason; often after suspend, when nvidia-uvm is not loaded, "
        "or when "
        "CUDA_VISIBLE_DEVICES was changed after CUDA had started.",
        "sudo modprobe -r nvidia_uvm && sudo modprobe nvidia_uvm, or restart the machine",
        "PROBE_FAILED",
    ),
    Fingerprint(
        "nvml_lost",
        r"Failed to initialize NVML: Unknown Error",
        "NVML cannot reach the GPU; in a container that had it, the host took its device permissions away "
        "(a reload of systemd "
        "does that).",
        "restart the container",
        "CONTAINER_NO_GPU",
    ),
    Fingerprint(
        "out_of_memory",
        r"(?:CUDA|MPS backend) out of memory|torch(?:\.cuda)?\.OutOfMemoryError|CUDA error: out of "
        r"memory|cudaErrorMemoryAllocation|"
        r"HIP out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDA_ERROR_OUT_OF_MEMORY",
        "The GPU's memory is full. The build is not to blame.",
        "a smaller --micro-batch-size or --context; and see with nvidia-smi whether another process holds "
        "the memory",
    ),
    Fingerprint(
        "device_assert",
        r"device-side assert triggered|an illegal memory access was encountered",
        "A kernel ran and met wrong data, most often an index outside its table: a fault of the program, "
        "not of the build.",
        "run it once on the CPU (--device cpu), where the same fault names its line",
    ),
    *AFTER,
    Fingerprint(
        "guard",
        r"tried to (?:start|initialise|initialize) CUDA, but the CPU is forced",
        "Ambidex's own guard: the CPU is forced, and a line of code asked for CUDA all the same.",
        "change that line to the device that the run was given, or do not force the CPU",
    ),
)


def cause_of(text: str) -> str:
    """The id of the first known fingerprint in the text, empty where there is none."""
    found = matches(text)
    return found[0][0].id if found else ""


def matches(text: str) -> list[tuple[Fingerprint, re.Match[str]]]:
    """Every fingerprint in the text, the root first."""
    hits = ((known, re.search(known.pattern, text, re.IGNORECASE | re.MULTILINE)) for known in KNOWN)
    return [(known, hit) for known, hit in hits if hit is not None]
