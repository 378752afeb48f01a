"""Known errors of what stands around torch: containers, the system's libraries, companions, the GPU itself.

Two parts, since `fingerprints` goes from the root to the symptom: what keeps a program from starting at all comes before
torch's own errors, what a running program meets after them.
"""

from __future__ import annotations

from ambidex.device.fingerprint import Fingerprint

BEFORE: tuple[Fingerprint, ...] = (
    Fingerprint(
        "container_requirement",
        r"unsatisfied condition: ([^\n]{1,60}?), please update your driver",
        "The image asks for a newer driver than the host has ({0}).",
        "update the NVIDIA driver on the host, or use an image for an older CUDA",
        "DRIVER_OLD",
    ),
    Fingerprint(
        "container_driver",
        r"nvidia-container-cli: (?:initialization|detection) error[^\n]{0,120}?(?:driver not loaded|libnvidia-ml|nvml error)",
        "The container runtime finds no working NVIDIA driver on the host.",
        "install or load the driver on the host until nvidia-smi works there (under WSL: the driver of Windows, then "
        "wsl --update), and start the container again",
        "CONTAINER_NO_GPU",
    ),
    Fingerprint(
        "container_cdi",
        r"unresolvable CDI devices? ?([\w./=:-]*)",
        "The host has no CDI file that describes the GPU ({0}).",
        "on the host: sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml, then start the container again",
        "CONTAINER_NO_GPU",
    ),
    Fingerprint(
        "driver_new",
        r"supported through the NVIDIA (\d{3})\.xx Legacy drivers",
        "The driver is too new for this GPU and passes it over: {0} is the last branch that drives it.",
        "install a driver of the branch that the message names in place of the present one (on Ubuntu: sudo apt install "
        "nvidia-driver-580), and restart",
        "NO_GPU",
    ),
    Fingerprint(
        "glibc",
        r"version .GLIBC_([\d.]+). not found",
        "This Linux is older than the one that the library was built for: it lacks glibc {0}.",
        "a newer Linux, or a container with one; or an older torch",
        "TORCH_BROKEN",
    ),
    Fingerprint(
        "libstdcxx",
        r"version .((?:GLIBCXX|CXXABI)_[\d.]+). not found",
        "An older libstdc++ was loaded than the one that the library was built with: it lacks {0}.",
        "take the folder of the old libstdc++, which the message names, out of LD_LIBRARY_PATH; in a conda environment: "
        "conda install -c conda-forge libstdcxx-ng; else a newer Linux",
        "TORCH_BROKEN",
    ),
    Fingerprint(
        "shadowed",
        r"partially initialized module 'torch' has no attribute"
        r"|module 'torch' has no attribute '(?:__version__|cuda|nn|tensor|Tensor|device)'",
        "What Python imported as torch is not torch: a file torch.py or a folder torch of your own comes before it, or "
        "an uninstall left its folder behind.",
        'see which one it is with python -c "import torch; print(torch)", rename or delete it, and install torch again '
        "where it was torch's own folder",
        "TORCH_BROKEN",
    ),
    Fingerprint(
        "companion",
        r"operator torchvision::\w+ does not exist|PyTorch and torch(?:vision|audio) were compiled with different CUDA"
        r"|Could not run 'torchvision::\w+' with arguments from the 'CUDA' backend",
        "torchvision or torchaudio was made for another torch, or for another CUDA, than the torch that is installed.",
        "uninstall torch, torchvision and torchaudio, and install them again in one command from one --index-url",
    ),
)

AFTER: tuple[Fingerprint, ...] = (
    Fingerprint(
        "xformers_torch",
        r"xFormers was built for:\s+PyTorch (\S+)[^()\n]{0,40}\(you have (\S+)\)",
        "xformers was built for torch {0}, and {1} is installed: its kernels are not used.",
        "install the xformers that was built for the installed torch, or the torch that this one asks for; in either case "
        "both in one command from one --index-url",
    ),
    Fingerprint(
        "bitsandbytes",
        r"Configured (?:CUDA|ROCm) binary not found at|CUDA Setup failed despite (?:GPU|CUDA) being available",
        "bitsandbytes has no library for the CUDA of this torch.",
        "python -m pip install --upgrade bitsandbytes; if none has it yet, a torch for an older CUDA",
    ),
    Fingerprint(
        "cuda_home",
        r"CUDA_HOME environment variable is not set",
        "An extension is to be compiled, and no CUDA toolkit (nvcc) is found: torch's wheel brings none.",
        "install a wheel of the extension that is compiled already, or the CUDA toolkit of the version of "
        "torch.version.cuda, and set CUDA_HOME to its folder",
    ),
    Fingerprint(
        "toolkit_mismatch",
        r"detected CUDA version \(([\d.]+)\) mismatches the version that was used to compile\s+PyTorch \(([\d.]+)\)",
        "An extension is to be compiled by CUDA {0}, and this torch was compiled by CUDA {1}.",
        "install the CUDA toolkit of torch's version beside it and set CUDA_HOME to its folder, or take a torch for the "
        "CUDA that is there",
    ),
    Fingerprint(
        "rocm_arch",
        r"hipErrorNoBinaryForGpu|Tensile\w{0,40}\.\w{1,9}[^\n]{0,120}?GPU arch",
        "This ROCm build has no code for this AMD GPU.",
        'see what it has with python -c "import torch; print(torch.cuda.get_arch_list())" and take a ROCm build whose list '
        "names your GPU; the doctor judges NVIDIA's GPUs alone",
    ),
    Fingerprint(
        "nvrtc_arch",
        r"nvrtc: error: invalid value for --gpu-architecture",
        "The CUDA inside this torch does not know this GPU, so it can compile nothing for it.",
        "install a build whose CUDA does: `ambidex doctor` prints one",
        "ARCH_NONE",
    ),
    Fingerprint(
        "triton_gpu",
        r"too old to be supported by the triton GPU compiler",
        "Triton has no code for GPUs older than 7.0 (Volta): torch.compile fails where plain torch runs.",
        "train without torch.compile",
        "EXTENSION_ARCH",
    ),
    Fingerprint(
        "flash_gpu",
        r"FlashAttention only supports Ampere GPUs or newer",
        "flash_attn has no code for GPUs older than 8.0 (Ampere).",
        "use torch's own scaled_dot_product_attention (in transformers: attn_implementation='sdpa')",
        "EXTENSION_ARCH",
    ),
    Fingerprint(
        "bf16_gpu",
        r"bfloat16 is only supported on GPUs with compute capability|Your setup doesn't support bf16/gpu\.[^\n]{0,60}Ampere",
        "This GPU is older than 8.0 (Ampere) and does not compute in bf16.",
        "use fp16 or fp32 there (--precision fp16)",
    ),
    Fingerprint(
        "no_bf16_gpu",  # of transformers, which says the same where torch sees no GPU at all
        r"Your setup doesn't support bf16/gpu",
        "torch sees no GPU that computes in bf16: it is a CPU build, or the driver is too old for it, or the GPU is older than 8.0 (Ampere).",
        "`ambidex doctor` says which",
    ),
    Fingerprint(
        "forked",
        r"Cannot re-initialize CUDA in forked subprocess",
        "A process that had started CUDA was forked, and CUDA does not survive that: a fault of the program.",
        'start workers by "spawn" (multiprocessing.set_start_method("spawn")), or ask nothing of torch.cuda before the fork',
    ),
    Fingerprint(
        "shared_memory",
        r"DataLoader worker[^\n]{0,40}killed by signal: Bus error|might be out of shared memory|workers are out of shared memory"
        r"|unable to (?:open|mmap|allocate) shared memory",
        "The shared memory, /dev/shm, is full: a container has 64 MB of it unless told otherwise.",
        "start the container with --shm-size=1g (in compose: shm_size: 1g), or load data without workers (num_workers=0)",
    ),
    Fingerprint(
        "out_of_host_memory",
        r"DefaultCPUAllocator: (?:can't allocate|not enough) memory",
        "The computer's own memory is full, not the GPU's.",
        "a smaller --micro-batch-size or --context, or close what else holds memory",
    ),
    Fingerprint(
        "gpu_lost",
        r"fallen off the bus|GPU is lost\b|\bXid \([^)\n]{0,40}\): 79\b",
        "The GPU no longer answers on its bus: heat, power, a loose card or a failing one. No software is to blame.",
        "switch the computer off and on again; if it comes back, check power, cooling and the slot",
        "PROBE_FAILED",
    ),
    Fingerprint(
        "gpu_busy",
        r"all CUDA-capable devices are busy or unavailable|cudaErrorDevicesUnavailable",
        "The GPU takes no more programs: another one holds it in exclusive mode, or MIG is on and has no slice to compute on.",
        "see with nvidia-smi which process holds it and whether MIG is on (nvidia-smi mig -lgi lists its slices)",
        "PROBE_FAILED",
    ),
    Fingerprint(
        "gpu_memory_fault",
        r"uncorrectable ECC error|cudaErrorECCUncorrectable",
        "The GPU's memory has an error that it cannot correct.",
        "restart the machine; if it comes back, the card is failing",
        "PROBE_FAILED",
    ),
)
