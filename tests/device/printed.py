"""What programs really print when a GPU does not work, and the id of the cause behind each."""

from __future__ import annotations

WARNING = (
    "UserWarning: NVIDIA GeForce RTX 5060 Laptop GPU with CUDA capability sm_120 is not compatible with the "
    "current "
    "PyTorch installation.\nThe current PyTorch install supports CUDA capabilities sm_50 sm_60 sm_70 sm_75 "
    "sm_80 sm_86 sm_90.\n"
)
# What programs print, and the cause behind it (facts E and F14, and torch's and CUDA's own messages).
PRINTED = {
    "RuntimeError: CUDA error: no kernel image is available for execution on the device": "no_kernel_image",
    "torch.AcceleratorError: CUDA error: no kernel image is available for execution": "no_kernel_image",
    "CUDA driver error: CUDA_ERROR_NO_BINARY_FOR_GPU": "no_kernel_image",
    "RuntimeError: HIP error: invalid device function": "invalid_device_function",
    "The NVIDIA driver on your system is too old (found version 11040).": "driver_old",
    "CUDA driver version is insufficient for CUDA runtime version": "driver_insufficient",
    "AssertionError: Torch not compiled with CUDA enabled": "not_compiled",
    'could not select device driver "" with capabilities: [[gpu]]': "container_toolkit",
    'could not select device driver "nvidia" with capabilities: [[gpu]]': "container_toolkit",
    "Error 803: system has unsupported display driver / cuda driver combination": "driver_mismatch",
    "Failed to initialize NVML: Driver/library version mismatch": "driver_mismatch",
    "Error 804: forward compatibility was attempted on non supported HW": "forward_compat",
    "Error 802: system not yet initialized": "not_initialized",
    "CUDA initialization: CUDA unknown error - this may be due to an incorrectly set": "unknown_999",
    "Requirement already satisfied: torch==2.13.0 in /x (2.13.0+cpu)": "no_op_install",
    "Would make no changes": "no_op_install",
    "OSError: libcuda.so.1: cannot open shared object file: No such file or directory": "libcuda_missing",
    "ImportError: libcudnn.so.9: cannot open shared object file": "library_missing",
    "ImportError: libcudart.so.12: cannot open shared object file": "library_missing",
    "undefined symbol: __nvJitLinkAddData_12_1, version libnvJitLink.so.12": "symbol_nvjitlink",
    "libtorch_cpu.so: undefined symbol: iJIT_NotifyEvent": "symbol_mkl",
    "flash_attn.so: undefined symbol: _ZN2at4_ops5zeros4callEN3c108ArrayRef": "symbol_torch",
    "x.so: undefined symbol: foo_bar": "symbol",
    "the provided PTX was compiled with an unsupported toolchain.": "ptx_toolchain",
    "cudaErrorUnsupportedPtxVersion": "ptx_toolchain",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.": "out_of_memory",
    "RuntimeError: Found no NVIDIA driver on your system.": "no_driver",
    "RuntimeError: No CUDA GPUs are available": "no_device",
    "CUDA error: invalid device ordinal": "ordinal",
    "RuntimeError: Attempting to deserialize object on a CUDA device but": "deserialize",
    "CUDA error: device-side assert triggered": "device_assert",
    "A module that was compiled using NumPy 1.x cannot be run in\nNumPy 2.1.0 as it may crash": "numpy_abi",
    "ERROR: No matching distribution found for torch==2.4.0": "no_distribution",
    "ModuleNotFoundError: No module named 'torch'": "no_torch",
    "[WinError 126] The specified module could not be found. Error loading fbgemm.dll": "dll_missing",
    "kernel `fmha_cutlassF_f16_aligned_64x64_rf_sm80` is for sm80-sm100, but was built for sm37": "fmha_arch",
    "ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'": "triton_ptxas",
    "nvcc fatal   : Unsupported gpu architecture 'compute_120'": "nvcc_arch",
    "Failed to initialize NVML: Unknown Error": "nvml_lost",
    "Test CUDA failure common.cu:1000 'CUDA failure 209'": "no_kernel_image",
    "Failed to initialize NVML: Driver Not Loaded": "no_driver",
    "RuntimeError: CUDA driver initialization failed, you might not have a CUDA gpu.": "no_driver",
    "bash: nvidia-smi: command not found": "no_driver",
    "No devices were found": "no_device",
    "docker: Error response from daemon: unknown or invalid runtime name: nvidia.": "container_toolkit",
    "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8, please update your driver to a "
    "newer version, or use an earlier cuda container: unknown.": "container_requirement",
    "nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown.": "container_driver",
    "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot open shared object "
    "file: no such file or directory: unknown.": "container_driver",
    "Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all": "container_cdi",
    "Because there is no version of torch==2.4.0+cu130 and you require torch==2.4.0+cu130": "no_distribution",
    "ERROR: torch-2.5.1+cu121-cp310-cp310-linux_x86_64.whl is not a supported wheel on this platform.": "no_distribution",
    "ImportError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.28' not found (required by /x/libtorch.so)": "glibc",
    "ImportError: /usr/lib/libstdc++.so.6: version `GLIBCXX_3.4.29' not found (required by /x/libtorch.so)": "libstdcxx",
    "AttributeError: partially initialized module 'torch' has no attribute 'cuda' (most likely due to a circular "
    "import)": "shadowed",
    "AttributeError: module 'torch' has no attribute '__version__'": "shadowed",
    "NVRM: The NVIDIA GeForce GTX 1050 GPU installed in this system is supported through the NVIDIA 580.xx Legacy drivers.": "driver_new",
    "RuntimeError: operator torchvision::nms does not exist": "companion",
    "Detected that PyTorch and torchvision were compiled with different CUDA major versions.": "companion",
    "Unable to load any of {libcudnn_graph.so.9.1.0, libcudnn_graph.so.9.1, libcudnn_graph.so.9}": "library_missing",
    "rocBLAS error: Cannot read /opt/rocm/lib/rocblas/library/TensileLibrary.dat: Illegal seek for GPU arch : "
    "gfx1036": "rocm_arch",
    "WARNING[XFORMERS]: xFormers can't load C++/CUDA extensions. xFormers was built for:\n    PyTorch 2.5.1+cu121 with "
    "CUDA 1201 (you have 2.6.0+cpu)": "xformers_torch",
    "RuntimeError: Configured CUDA binary not found at /x/bitsandbytes/libbitsandbytes_cuda130.so": "bitsandbytes",
    "OSError: CUDA_HOME environment variable is not set. Please set it to your CUDA install root.": "cuda_home",
    "RuntimeError: The detected CUDA version (12.8) mismatches the version that was used to compile\nPyTorch (13.0).": "toolkit_mismatch",
    "nvrtc: error: invalid value for --gpu-architecture (-arch)": "nvrtc_arch",
    "Found NVIDIA GeForce GTX 1080 which is too old to be supported by the triton GPU compiler": "triton_gpu",
    "RuntimeError: FlashAttention only supports Ampere GPUs or newer.": "flash_gpu",
    "ValueError: Your setup doesn't support bf16/gpu.": "no_bf16_gpu",
    "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.": "bf16_gpu",
    "RuntimeError: Cannot re-initialize CUDA in forked subprocess.": "forked",
    "RuntimeError: DataLoader worker (pid 123) is killed by signal: Bus error.": "shared_memory",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory": "out_of_host_memory",
    "NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus.": "gpu_lost",
    "CUDA error: all CUDA-capable devices are busy or unavailable": "gpu_busy",
    "CUDA error: uncorrectable ECC error encountered": "gpu_memory_fault",
    "RuntimeError: MPS backend out of memory (MPS allocated: 9.05 GB)": "out_of_memory",
}
