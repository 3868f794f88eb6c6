// The part of the driver interface that cuDNN uses while it makes plans: the kernels it compiles are taken and forgotten.
#define EXPORT extern "C" __attribute__((visibility("default")))

static int something;   // what handles point to

EXPORT int cuLibraryLoadData(void** library, const void*, int*, void**, unsigned, int*, void**, unsigned) {
    return *library = &something, 0;
}
EXPORT int cuLibraryUnload(void*) { return 0; }
EXPORT int cuLibraryGetKernel(void** kernel, void*, const char*) { return *kernel = &something, 0; }
EXPORT int cuKernelGetFunction(void** function, void*) { return *function = &something, 0; }
EXPORT int cuKernelSetAttribute(int, int, void*, int) { return 0; }
EXPORT int cuKernelGetAttribute(int* value, int, void*, int) { return *value = 0, 0; }

// Looked up, and not needed for a plan.
#define NEVER(name) EXPORT int name() { return 801; }
NEVER(cuCtxGetLimit) NEVER(cuCtxPopCurrent) NEVER(cuCtxPushCurrent) NEVER(cuLinkCreate) NEVER(cuLinkAddData)
NEVER(cuLinkComplete) NEVER(cuLinkDestroy) NEVER(cuLaunchCooperativeKernel) NEVER(cuLibraryLoadFromFile)
NEVER(cuOccupancyMaxPotentialClusterSize) NEVER(cuLaunchKernelEx)
