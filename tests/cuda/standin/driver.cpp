// A stand-in for the NVIDIA driver (libcuda.so.1) on a machine without a GPU. See README.md.
//
// It has the part of the driver interface that CubeCL uses. "Device memory" is memory of this process, every stream
// runs at once and in order, and a kernel is either only counted or executed on the CPU (its "PTX" is then the path of
// a shared object that compiler.cpp built). When kernels are only counted no copy is made either but for those of a page or
// less: device memory is address space without pages behind it, and what the host reads from it is zero.
#include "launch.h"

#include <atomic>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// CUresult of cuda.h.
enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
};

std::string setting(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value && *value ? value : otherwise;
}

// What the environment says, read once.
struct Settings {
    bool run = setting("STANDIN_MODE", "count") == "run";
    int major = 0, minor = 0;
    size_t memory = size_t(atof(setting("STANDIN_MEMORY_GIB", run ? "2" : "139").c_str()) * 1024) << 20;
    int processors = atoi(setting("STANDIN_SMS", run ? "8" : "132").c_str());
    std::string report = setting("STANDIN_REPORT", "");   // the JSON line goes here, or to stderr
    std::string syncs = setting("STANDIN_SYNCS", "");     // one JSON line for each wait of the host, with running totals
    std::string trace = setting("STANDIN_TRACE", "");     // one line for each launch and allocation
    // Kernels that are only counted: those with which CubeCL measures the device's speed. They write nothing of use.
    std::string skip = setting("STANDIN_SKIP", "throughput launch_overhead");

    std::string name;

    Settings() {
        std::string capability = setting("STANDIN_CAPABILITY", run ? "6.1" : "9.0");
        sscanf(capability.c_str(), "%d.%d", &major, &minor);
        name = setting("STANDIN_NAME", ("stand-in " + capability).c_str());
    }

    bool skips(const std::string& kernel) const {
        std::istringstream words(skip);
        for (std::string word; words >> word;)
            if (kernel.find(word) != std::string::npos) return true;
        return false;
    }

    // Shared memory that one block may ask for, from the CUDA programming guide's table of compute capabilities.
    int shared_per_block() const {
        switch (major * 10 + minor) {
            case 70: return 96 << 10;
            case 75: return 64 << 10;
            case 80: case 87: return 163 << 10;
            case 86: case 89: case 120: return 99 << 10;
            case 90: case 100: return 227 << 10;
            default: return 48 << 10;
        }
    }
};

struct Copies {
    uint64_t count = 0, bytes = 0;
    void add(size_t size) { count++, bytes += size; }
};

struct Function {
    std::string name;
    LaunchFunction code;   // null when kernels are only counted
    unsigned allowed_shared = 48 << 10;
    uint64_t launches = 0;
    double seconds = 0;
};

struct Module {
    void* library;
};

struct Event {
    double recorded;
};

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// Everything that is counted. One lock guards it: a real driver's calls may come from several threads.
struct Driver {
    Settings settings;
    std::recursive_mutex lock;
    std::map<std::string, Function> functions;
    std::map<uintptr_t, size_t> allocations, pinned;
    uint64_t launches = 0, modules = 0, allocation_calls = 0, free_calls = 0, waits = 0, pinned_bytes = 0, pinned_peak = 0;
    size_t allocated = 0, peak = 0;
    Copies to_device, to_host, on_device;
    char *shared = nullptr, *stacks = nullptr;
    FILE *syncs = nullptr, *trace = nullptr;
    std::atomic<bool> asked{false};
    double started = now();

    Driver() {
        if (!settings.syncs.empty()) syncs = fopen(settings.syncs.c_str(), "w");
        if (!settings.trace.empty()) trace = fopen(settings.trace.c_str(), "w");
    }
    ~Driver() { report(); }

    std::string totals() const {
        char line[768];
        snprintf(line, sizeof line,
                 "\"seconds\": %.3f, \"launches\": %lu, \"kernels\": %lu, \"device_bytes\": %zu, \"device_peak_bytes\": %zu, "
                 "\"allocations\": %lu, \"frees\": %lu, \"pinned_bytes\": %lu, \"pinned_peak_bytes\": %lu, "
                 "\"to_device\": {\"count\": %lu, \"bytes\": %lu}, \"to_host\": {\"count\": %lu, \"bytes\": %lu}, "
                 "\"on_device\": {\"count\": %lu, \"bytes\": %lu}, \"host_waits\": %lu",
                 now() - started, launches, modules, allocated, peak, allocation_calls, free_calls, pinned_bytes,
                 pinned_peak, to_device.count, to_device.bytes, to_host.count, to_host.bytes, on_device.count,
                 on_device.bytes, waits);
        return line;
    }

    void report() {
        std::string line = "{" + totals() + ", \"by_kernel\": {";
        const char* comma = "";
        for (auto& [name, function] : functions) {
            char entry[64];
            snprintf(entry, sizeof entry, "\": [%lu, %.3f]", function.launches, function.seconds);
            line += comma + ("\"" + name) + entry;
            comma = ", ";
        }
        line += "}}\n";
        FILE* out = settings.report.empty() ? stderr : fopen(settings.report.c_str(), "a");
        if (!out) return;
        fputs(line.c_str(), out);
        if (out != stderr) fclose(out);
    }

    // Whether a copy of so many bytes is made.
    bool makes(size_t size) const { return settings.run || size <= 4096; }

    void wait() {
        waits++;
        if (syncs) fprintf(syncs, "{%s}\n", totals().c_str()), fflush(syncs);
    }
};

Driver& driver() {
    static Driver* one = [] {
        static Driver driver;   // its destructor prints the report at exit
        signal(SIGUSR1, [](int) { one->asked = true; });
        return &driver;
    }();
    if (one->asked.exchange(false)) one->report();
    return *one;
}

using Guard = std::lock_guard<std::recursive_mutex>;

// Address space of its own for each allocation: untouched pages cost nothing, and the page before and the page after
// belong to nobody, so that a kernel that leaves the memory ends with a segmentation fault. The memory ends where its last
// page does, but for ALIGNMENT.
constexpr size_t PAGE = 4096, ALIGNMENT = 512;

size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

char* reserve(size_t size) {
    size_t whole = round_up(size, PAGE);
    char* start = (char*)mmap(nullptr, whole + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED || mprotect(start + PAGE, whole, PROT_READ | PROT_WRITE)) return nullptr;
    return start + PAGE + whole - round_up(size, ALIGNMENT);
}

void release(uintptr_t address, size_t size) {
    munmap((char*)(address / PAGE * PAGE - PAGE), round_up(size, PAGE) + 2 * PAGE);
}

Result allocate(uint64_t* address, size_t size) {
    Driver& d = driver();
    Guard guard(d.lock);
    if (size == 0) return INVALID_VALUE;
    if (d.allocated + size > d.settings.memory) return OUT_OF_MEMORY;
    char* memory = reserve(size);
    if (!memory) return OUT_OF_MEMORY;
    if (d.settings.run) memset(memory, 0xff, size);   // NaN in every float type: what is read before it is written shows
    d.allocations[(uintptr_t)memory] = size;
    d.allocation_calls++;
    d.allocated += size;
    d.peak = d.allocated > d.peak ? d.allocated : d.peak;
    if (d.trace) fprintf(d.trace, "allocate %zu, now %zu\n", size, d.allocated), fflush(d.trace);
    *address = (uint64_t)memory;
    return SUCCESS;
}

Result deallocate(uint64_t address) {
    Driver& d = driver();
    Guard guard(d.lock);
    auto found = d.allocations.find(address);
    if (found == d.allocations.end()) return INVALID_VALUE;
    release(found->first, found->second);
    d.free_calls++;
    d.allocated -= found->second;
    d.allocations.erase(found);
    return SUCCESS;
}

// Whether `size` bytes from `address` lie in one allocation.
bool inside(uint64_t address, size_t size) {
    Driver& d = driver();
    auto after = d.allocations.upper_bound(address);
    if (after == d.allocations.begin()) return false;
    --after;
    return address + size <= after->first + after->second;
}

Result complain(Result result, const char* format, ...) __attribute__((format(printf, 2, 3)));
Result complain(Result result, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "stand-in driver: ");
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    return result;
}

}   // namespace

// ---- the device -----------------------------------------------------------------------------------------------------

EXPORT int cuInit(unsigned) { return driver(), SUCCESS; }
EXPORT int cuDriverGetVersion(int* version) { return *version = 13050, SUCCESS; } // as new as the newest NVRTC
EXPORT int cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
EXPORT int cuDeviceGet(int* device, int number) { return number ? INVALID_DEVICE : (*device = 0, SUCCESS); }
EXPORT int cuDeviceGetName(char* name, int size, int) {
    return snprintf(name, size_t(size), "%s", driver().settings.name.c_str()), SUCCESS;
}
EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = driver().settings.memory, SUCCESS; }
EXPORT int cuDeviceGetUuid_v2(char* uuid, int) { return memset(uuid, 7, 16), SUCCESS; }
EXPORT int cuDeviceGetUuid(char* uuid, int) { return memset(uuid, 7, 16), SUCCESS; }

EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
    const Settings& s = driver().settings;
    switch (attribute) {   // CUdevice_attribute of cuda.h
        case 1: *value = 1024; break;                       // threads of a block
        case 2: case 3: *value = 1024; break;               // block x, y
        case 4: *value = 64; break;                         // block z
        case 5: *value = 0x7fffffff; break;                 // grid x
        case 6: case 7: *value = 65535; break;              // grid y, z
        case 8: *value = 48 << 10; break;                   // shared memory of a block without asking
        case 9: *value = 64 << 10; break;                   // constant memory
        case 10: *value = 32; break;                        // threads of a warp
        case 12: *value = 65536; break;                     // registers of a block
        case 13: *value = 1980000; break;                   // clock in kHz
        case 16: *value = s.processors; break;
        case 36: *value = 2619000; break;                   // memory clock in kHz
        case 37: *value = 6144; break;                      // memory bus in bits
        case 38: *value = 50 << 20; break;                  // L2 cache
        case 39: *value = 2048; break;                      // threads of a multiprocessor
        case 75: *value = s.major; break;
        case 76: *value = s.minor; break;
        case 81: *value = 228 << 10; break;                 // shared memory of a multiprocessor
        case 97: *value = s.shared_per_block(); break;
        case 115: *value = 1; break;                        // memory pools
        default: *value = 0;
    }
    return SUCCESS;
}

// ---- the context, streams and events --------------------------------------------------------------------------------

EXPORT int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &driver(), SUCCESS; }
EXPORT int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
EXPORT int cuDevicePrimaryCtxRelease(int) { return SUCCESS; }
EXPORT int cuCtxSetCurrent(void*) { return SUCCESS; }
EXPORT int cuCtxGetCurrent(void** context) { return *context = &driver(), SUCCESS; }
EXPORT int cuCtxSynchronize() { return driver().wait(), SUCCESS; }
EXPORT int cuCtxGetStreamPriorityRange(int* least, int* greatest) { return *least = 0, *greatest = -5, SUCCESS; }

EXPORT int cuStreamCreate(void** stream, unsigned) { return *stream = malloc(1), SUCCESS; }
EXPORT int cuStreamCreateWithPriority(void** stream, unsigned, int) { return *stream = malloc(1), SUCCESS; }
EXPORT int cuStreamDestroy_v2(void* stream) { return free(stream), SUCCESS; }
EXPORT int cuStreamWaitEvent(void*, void*, unsigned) { return SUCCESS; }
EXPORT int cuStreamGetCtx(void*, void** context) { return *context = &driver(), SUCCESS; }
EXPORT int cuStreamQuery(void*) { return SUCCESS; }
EXPORT int cuStreamSynchronize(void*) {
    Guard guard(driver().lock);
    return driver().wait(), SUCCESS;
}

EXPORT int cuEventCreate(void** event, unsigned) { return *event = new Event{now()}, SUCCESS; }
EXPORT int cuEventRecord(void* event, void*) { return ((Event*)event)->recorded = now(), SUCCESS; }
EXPORT int cuEventQuery(void*) { return SUCCESS; }
EXPORT int cuEventDestroy_v2(void* event) { return delete (Event*)event, SUCCESS; }
EXPORT int cuEventSynchronize(void*) {
    Guard guard(driver().lock);
    return driver().wait(), SUCCESS;
}
EXPORT int cuEventElapsedTime(float* milliseconds, void* start, void* end) {
    return *milliseconds = float(1e3 * (((Event*)end)->recorded - ((Event*)start)->recorded)), SUCCESS;
}
EXPORT int cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    return cuEventElapsedTime(milliseconds, start, end);
}

// ---- memory ---------------------------------------------------------------------------------------------------------

EXPORT int cuMemAlloc_v2(uint64_t* address, size_t size) { return allocate(address, size); }
EXPORT int cuMemAllocAsync(uint64_t* address, size_t size, void*) { return allocate(address, size); }
EXPORT int cuMemFree_v2(uint64_t address) { return deallocate(address); }
EXPORT int cuMemFreeAsync(uint64_t address, void*) { return deallocate(address); }
EXPORT int cuMemGetInfo_v2(size_t* available, size_t* total) {
    Driver& d = driver();
    return *total = d.settings.memory, *available = d.settings.memory - d.allocated, SUCCESS;
}

EXPORT int cuMemAllocHost_v2(void** address, size_t size) {
    Driver& d = driver();
    Guard guard(d.lock);
    *address = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*address == MAP_FAILED) return OUT_OF_MEMORY;
    d.pinned[(uintptr_t)*address] = size;
    d.pinned_bytes += size;
    d.pinned_peak = d.pinned_bytes > d.pinned_peak ? d.pinned_bytes : d.pinned_peak;
    return SUCCESS;
}
EXPORT int cuMemFreeHost(void* address) {
    Driver& d = driver();
    Guard guard(d.lock);
    auto found = d.pinned.find((uintptr_t)address);
    if (found == d.pinned.end()) return INVALID_VALUE;
    munmap(address, found->second);
    d.pinned_bytes -= found->second;
    d.pinned.erase(found);
    return SUCCESS;
}

EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t size, void*) {
    Driver& d = driver();
    Guard guard(d.lock);
    if (!inside(to, size)) return complain(INVALID_VALUE, "a copy of %zu bytes leaves its memory on the device", size);
    d.to_device.add(size);
    if (d.makes(size)) memcpy((void*)to, from, size);
    return SUCCESS;
}
EXPORT int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t size) { return cuMemcpyHtoDAsync_v2(to, from, size, nullptr); }
EXPORT int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t size, void*) {
    Driver& d = driver();
    Guard guard(d.lock);
    if (!inside(from, size)) return complain(INVALID_VALUE, "a copy of %zu bytes leaves its memory on the device", size);
    d.to_host.add(size);
    if (d.makes(size)) memcpy(to, (void*)from, size);
    else memset(to, 0, size);
    return SUCCESS;
}
EXPORT int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t size) { return cuMemcpyDtoHAsync_v2(to, from, size, nullptr); }
EXPORT int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, void*) {
    Driver& d = driver();
    Guard guard(d.lock);
    if (!inside(from, size) || !inside(to, size)) return complain(INVALID_VALUE, "a copy on the device leaves its memory");
    d.on_device.add(size);
    if (d.makes(size)) memmove((void*)to, (void*)from, size);
    return SUCCESS;
}
EXPORT int cuMemsetD8Async(uint64_t to, unsigned char value, size_t size, void*) {
    Guard guard(driver().lock);
    if (!inside(to, size)) return complain(INVALID_VALUE, "a fill leaves its memory");
    if (driver().settings.run) memset((void*)to, value, size);
    return SUCCESS;
}

// CUDA_MEMCPY2D of cuda.h; a memory type of 1 is the host, of 2 the device.
struct Copy2D {
    size_t from_x, from_y;
    unsigned from_type;
    const char* from_host;
    uint64_t from_device;
    void* from_array;
    size_t from_pitch, to_x, to_y;
    unsigned to_type;
    char* to_host;
    uint64_t to_device;
    void* to_array;
    size_t to_pitch, width, height;
};

EXPORT int cuMemcpy2DAsync_v2(const Copy2D* c, void*) {
    Driver& d = driver();
    Guard guard(d.lock);
    if (c->width > c->from_pitch || c->width > c->to_pitch || c->from_pitch > 0x7fffffff || c->to_pitch > 0x7fffffff)
        return complain(INVALID_VALUE, "a 2-d copy of %zu bytes a row has pitches %zu and %zu", c->width, c->from_pitch,
                        c->to_pitch);
    bool up = c->from_type == 1 && c->to_type == 2;
    const char* from = c->from_type == 1 ? c->from_host : (const char*)c->from_device;
    char* to = c->to_type == 1 ? c->to_host : (char*)c->to_device;
    size_t bytes = c->width * c->height, rows = c->height ? c->height - 1 : 0;
    if (c->from_type == 2 && !inside((uint64_t)from, rows * c->from_pitch + c->width))
        return complain(INVALID_VALUE, "a 2-d copy reads outside of its memory");
    if (c->to_type == 2 && !inside((uint64_t)to, rows * c->to_pitch + c->width))
        return complain(INVALID_VALUE, "a 2-d copy writes outside of its memory");
    (up ? d.to_device : c->to_type == 1 ? d.to_host : d.on_device).add(bytes);
    for (size_t y = 0; y < c->height; y++) {
        if (d.settings.run) memcpy(to + y * c->to_pitch, from + y * c->from_pitch, c->width);
        else if (c->to_type == 1) memset(to + y * c->to_pitch, 0, c->width);
    }
    return SUCCESS;
}

// ---- kernels --------------------------------------------------------------------------------------------------------

EXPORT int cuModuleLoadData(void** module, const void* image) {
    Driver& d = driver();
    Guard guard(d.lock);
    d.modules++;
    void* library = nullptr;
    if (d.settings.run) {
        // The stand-in compiler's "PTX" is the path of the kernel's shared object.
        library = dlopen((const char*)image, RTLD_NOW | RTLD_LOCAL);
        if (!library) return complain(INVALID_IMAGE, "a kernel cannot be loaded: %s", dlerror());
    }
    *module = new Module{library};
    return SUCCESS;
}
EXPORT int cuModuleUnload(void* module) { return delete (Module*)module, SUCCESS; }

EXPORT int cuModuleGetFunction(void** function, void* module, const char* name) {
    Driver& d = driver();
    Guard guard(d.lock);
    void* library = ((Module*)module)->library;
    void* code = library ? dlsym(library, "launch") : nullptr;
    if (d.settings.run && (!code || !dlsym(library, name))) return NOT_FOUND;
    // Two kernels may have one name (the same function at another vector width): they are counted together.
    auto* known = new Function{name, d.settings.skips(name) ? nullptr : (LaunchFunction)code};
    d.functions.try_emplace(name, Function{name, nullptr});
    *function = known;
    return SUCCESS;
}

EXPORT int cuFuncSetAttribute(void* function, int attribute, int value) {
    Driver& d = driver();
    if (attribute != 8) return SUCCESS;   // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    Function& f = *(Function*)function;
    if (value > d.settings.shared_per_block())
        return complain(INVALID_VALUE, "%s wants %d bytes of shared memory", f.name.c_str(), value);
    f.allowed_shared = unsigned(value);
    return SUCCESS;
}
EXPORT int cuFuncGetAttribute(int* value, int, void*) { return *value = 0, SUCCESS; }

EXPORT int cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared_bytes, void*, void** arguments, void**) {
    Driver& d = driver();
    Guard guard(d.lock);
    Function& function = *(Function*)handle;
    const char* name = function.name.c_str();
    if (!gx || !gy || !gz || !bx || !by || !bz || gx > 0x7fffffff || gy > 65535 || gz > 65535)
        return complain(INVALID_VALUE, "%s: a grid of %u x %u x %u blocks", name, gx, gy, gz);
    if (bx > 1024 || by > 1024 || bz > 64 || bx * by * bz > 1024)
        return complain(INVALID_VALUE, "%s: a block of %u x %u x %u threads", name, bx, by, bz);
    if (shared_bytes > function.allowed_shared && shared_bytes > 48 << 10)
        return complain(INVALID_VALUE, "%s: %u bytes of shared memory without asking", name, shared_bytes);
    d.launches++;
    Function& counter = d.functions.at(function.name);
    counter.launches++;
    if (d.trace)
        fprintf(d.trace, "%s grid %u %u %u block %u %u %u shared %u\n", name, gx, gy, gz, bx, by, bz, shared_bytes), fflush(d.trace);
    if (!function.code) return SUCCESS;

    constexpr size_t STACK = 256 << 10;
    if (!d.shared) {
        d.shared = reserve(256 << 10);
        d.stacks = reserve(1024 * STACK);
        if (!d.shared || !d.stacks) return OUT_OF_MEMORY;
    }
    Launch launch{{gx, gy, gz}, {bx, by, bz}, arguments, d.shared, shared_bytes, d.stacks, STACK, ""};
    double start = now();
    int failed = function.code(&launch);
    counter.seconds += now() - start;
    return failed ? complain(LAUNCH_FAILED, "%s: %s", name, launch.problem) : SUCCESS;
}

// ---- tensor maps: the rules that the driver checks, from the documentation of cuTensorMapEncodeTiled ----------------

static int check_map(unsigned type, unsigned rank, const void* address, const uint64_t* sizes, const uint64_t* strides,
                     unsigned interleave) {
    if (rank < 1 || rank > 5 || (uintptr_t)address % 16 || (interleave && rank < 3))
        return complain(INVALID_VALUE, "tensor map: rank %u or address", rank);
    for (unsigned i = 0; i < rank; i++)
        if (!sizes[i] || sizes[i] > 1ull << 32) return complain(INVALID_VALUE, "tensor map: size %lu", sizes[i]);
    for (unsigned i = 0; i + 1 < rank; i++)
        if (strides[i] % 16 || strides[i] >= 1ull << 40) return complain(INVALID_VALUE, "tensor map: stride %lu", strides[i]);
    return type <= 15 ? SUCCESS : INVALID_VALUE;
}
EXPORT int cuTensorMapEncodeTiled(void* map, unsigned type, unsigned rank, void* address, const uint64_t* sizes,
                                  const uint64_t* strides, const unsigned* box, const unsigned* steps, unsigned interleave,
                                  unsigned swizzle, unsigned, unsigned) {
    static const unsigned BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4, 1, 1, 1};
    if (int problem = check_map(type, rank, address, sizes, strides, interleave)) return problem;
    for (unsigned i = 0; i < rank; i++)
        if (!box[i] || box[i] > 256 || !steps[i] || steps[i] > 8)
            return complain(INVALID_VALUE, "tensor map: box of %u", box[i]);
    unsigned inner = box[0] * BYTES[type], limit = swizzle == 0 ? 1u << 30 : swizzle == 1 ? 32 : swizzle == 2 ? 64 : 128;
    if (!interleave && (inner % 16 || inner > limit))
        return complain(INVALID_VALUE, "tensor map: %u bytes a row of the box", inner);
    return memset(map, 0, 128), SUCCESS;
}
EXPORT int cuTensorMapEncodeIm2col(void* map, unsigned type, unsigned rank, void* address, const uint64_t* sizes,
                                   const uint64_t* strides, const int*, const int*, unsigned channels, unsigned pixels,
                                   const unsigned*, unsigned interleave, unsigned, unsigned, unsigned) {
    if (int problem = check_map(type, rank, address, sizes, strides, interleave)) return problem;
    if (channels > 256 || pixels > 1024) return complain(INVALID_VALUE, "tensor map: %u channels, %u pixels", channels, pixels);
    return memset(map, 0, 128), SUCCESS;
}

// ---- for the stand-ins of NVIDIA's libraries beside this one ---------------------------------------------------------

EXPORT int standin_runs() { return driver().settings.run; }
EXPORT int standin_inside(uint64_t address, size_t size) {
    Guard guard(driver().lock);
    return inside(address, size);
}
EXPORT void standin_launched(const char* name) {
    Driver& d = driver();
    Guard guard(d.lock);
    d.launches++;
    d.functions.try_emplace(name, Function{name, nullptr}).first->second.launches++;
    if (d.trace) fprintf(d.trace, "%s\n", name), fflush(d.trace);
}

// ---- errors, and what is not there ----------------------------------------------------------------------------------

EXPORT int cuGetErrorName(int error, const char** name) {
    switch (error) {
        case SUCCESS: *name = "CUDA_SUCCESS"; break;
        case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
        case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case INVALID_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
        case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
        case LAUNCH_FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
        case NOT_SUPPORTED: *name = "CUDA_ERROR_NOT_SUPPORTED"; break;
        default: *name = "CUDA_ERROR_UNKNOWN";
    }
    return SUCCESS;
}
EXPORT int cuGetErrorString(int error, const char** text) { return cuGetErrorName(error, text); }

// NVIDIA's own compiler asks the driver for an undocumented table, and does without it.
EXPORT int cuGetExportTable(const void** table, const void*) { return *table = nullptr, NOT_FOUND; }

EXPORT int cuStreamBeginCapture_v2(void*, unsigned) { return NOT_SUPPORTED; }
EXPORT int cuStreamEndCapture(void*, void**) { return NOT_SUPPORTED; }
EXPORT int cuGraphInstantiateWithFlags(void**, void*, uint64_t) { return NOT_SUPPORTED; }
EXPORT int cuGraphLaunch(void*, void*) { return NOT_SUPPORTED; }
EXPORT int cuGraphUpload(void*, void*) { return NOT_SUPPORTED; }
EXPORT int cuGraphGetNodes(void*, void*, size_t*) { return NOT_SUPPORTED; }
EXPORT int cuGraphDestroy(void*) { return NOT_SUPPORTED; }
EXPORT int cuGraphExecDestroy(void*) { return NOT_SUPPORTED; }
