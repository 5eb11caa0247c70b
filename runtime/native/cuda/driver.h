/* driver.h: the part of NVIDIA's driver API that the runtime uses, declared here so that no toolkit is needed. Names and
 * numbers are those of the CUDA Driver API reference. */
#ifndef COIL_DRIVER_H
#define COIL_DRIVER_H

#include <stddef.h>
#include <stdint.h>

typedef int CUresult, CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;

typedef struct CUlaunchAttribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        int flag;
        unsigned cluster[3];
    } value;
} CUlaunchAttribute;

typedef struct CUlaunchConfig {
    unsigned grid[3], block[3], shared_bytes;
    CUstream stream;
    CUlaunchAttribute *attributes;
    unsigned attribute_count;
} CUlaunchConfig;

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_ECC_UNCORRECTABLE = 214,
    CUDA_ERROR_NVLINK_UNCORRECTABLE = 220,
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_LAUNCH_TIMEOUT = 702,
    CUDA_ERROR_CONTEXT_IS_DESTROYED = 709,
    CUDA_ERROR_ASSERT = 710,
    CUDA_ERROR_HARDWARE_STACK_ERROR = 714,
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CU_DEVICE_ATTRIBUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_CAPABILITY_MINOR = 76,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_BYTES_OPTIN = 97,
    CU_FUNC_ATTRIBUTE_SHARED_BYTES = 1,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_BYTES = 8,
    CU_POINTER_ATTRIBUTE_MEMORY_TYPE = 2,
    CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9,
    CU_MEMORYTYPE_HOST = 1,
    CU_MEMORYTYPE_DEVICE = 2,
    CU_STREAM_NON_BLOCKING = 1,
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
    CU_EVENT_DISABLE_TIMING = 2,
    CU_LAUNCH_ATTRIBUTE_COOPERATIVE = 2,
    CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION = 4,
    CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6,
};

/* Every function: the name in `driver`, the symbol, the parameters. */
#define DRIVER_FUNCTIONS(F)                                                                                            \
    F(init, cuInit, (unsigned))                                                                                        \
    F(version, cuDriverGetVersion, (int *))                                                                            \
    F(error_name, cuGetErrorName, (CUresult, const char **))                                                           \
    F(error_string, cuGetErrorString, (CUresult, const char **))                                                       \
    F(device_count, cuDeviceGetCount, (int *))                                                                         \
    F(device_get, cuDeviceGet, (CUdevice *, int))                                                                      \
    F(device_name, cuDeviceGetName, (char *, int, CUdevice))                                                           \
    F(device_attribute, cuDeviceGetAttribute, (int *, int, CUdevice))                                                  \
    F(context_retain, cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice))                                               \
    F(context_release, cuDevicePrimaryCtxRelease_v2, (CUdevice))                                                       \
    F(context_push, cuCtxPushCurrent_v2, (CUcontext))                                                                  \
    F(context_pop, cuCtxPopCurrent_v2, (CUcontext *))                                                                  \
    F(module_load, cuModuleLoadData, (CUmodule *, const void *))                                                       \
    F(module_unload, cuModuleUnload, (CUmodule))                                                                       \
    F(module_function, cuModuleGetFunction, (CUfunction *, CUmodule, const char *))                                    \
    F(function_attribute, cuFuncGetAttribute, (int *, int, CUfunction))                                                \
    F(set_function_attribute, cuFuncSetAttribute, (CUfunction, int, int))                                              \
    F(memory_info, cuMemGetInfo_v2, (size_t *, size_t *))                                                              \
    F(allocate, cuMemAlloc_v2, (CUdeviceptr *, size_t))                                                                \
    F(free, cuMemFree_v2, (CUdeviceptr))                                                                               \
    F(allocate_host, cuMemHostAlloc, (void **, size_t, unsigned))                                                      \
    F(free_host, cuMemFreeHost, (void *))                                                                              \
    F(pointer_attributes, cuPointerGetAttributes, (unsigned, int *, void **, CUdeviceptr))                             \
    F(to_device, cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void *, size_t, CUstream))                                  \
    F(to_host, cuMemcpyDtoHAsync_v2, (void *, CUdeviceptr, size_t, CUstream))                                          \
    F(within, cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                                      \
    F(set_bytes, cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))                                      \
    F(stream_create, cuStreamCreate, (CUstream *, unsigned))                                                           \
    F(stream_destroy, cuStreamDestroy_v2, (CUstream))                                                                  \
    F(stream_wait, cuStreamSynchronize, (CUstream))                                                                    \
    F(stream_after, cuStreamWaitEvent, (CUstream, CUevent, unsigned))                                                  \
    F(event_create, cuEventCreate, (CUevent *, unsigned))                                                              \
    F(event_record, cuEventRecord, (CUevent, CUstream))                                                                \
    F(event_wait, cuEventSynchronize, (CUevent))                                                                       \
    F(event_destroy, cuEventDestroy_v2, (CUevent))                                                                     \
    F(capture_begin, cuStreamBeginCapture_v2, (CUstream, int))                                                         \
    F(capture_end, cuStreamEndCapture, (CUstream, CUgraph *))                                                          \
    F(graph_instantiate, cuGraphInstantiateWithFlags, (CUgraphExec *, CUgraph, unsigned long long))                    \
    F(graph_launch, cuGraphLaunch, (CUgraphExec, CUstream))                                                            \
    F(graph_destroy, cuGraphDestroy, (CUgraph))                                                                        \
    F(graph_exec_destroy, cuGraphExecDestroy, (CUgraphExec))                                                           \
    F(launch, cuLaunchKernel,                                                                                          \
      (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void **, void **)) \
    F(launch_with, cuLaunchKernelEx, (const CUlaunchConfig *, CUfunction, void **, void **))                           \
    F(describe_tensor, cuTensorMapEncodeTiled,                                                                         \
      (void *, int, uint32_t, CUdeviceptr, const uint64_t *, const uint64_t *, const uint32_t *, const uint32_t *,     \
       int, int, int, int))

#define DRIVER_FIELD(name, symbol, parameters) CUresult(*name) parameters;
typedef struct driver {
    DRIVER_FUNCTIONS(DRIVER_FIELD)
} driver;
#undef DRIVER_FIELD

/* Find every function. COIL_DEVICE: there is no driver, or one that lacks some. */
int coil_driver_load(driver *driver);

#endif
