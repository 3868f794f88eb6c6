// What CUDA C++ offers a kernel, for a kernel compiled by g++ and run on the CPU. See README.md.
//
// It covers what CubeCL's CUDA compiler writes (cubecl-cpp): no more. Arithmetic follows the GPU's rules where they can
// be seen in a result: f16 and bf16 round to nearest even after every operation, `min` and `max` ignore a NaN.
#pragma once
#include "launch.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <math.h>
#include <stdlib.h>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 { unsigned x, y, z; };
using dim3 = uint3;
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

// The thread that is running. One thread runs at a time, so these are plain variables.
static uint3 threadIdx, blockIdx, blockDim, gridDim;
static constexpr unsigned warpSize = 32;

// ---- threads of a block ---------------------------------------------------------------------------------------------
//
// A kernel whose threads never meet runs as a loop over its threads. Otherwise each thread has a stack of its own and
// hands the processor to the next one when it waits.

namespace standin {

// Saves the stack pointer of the running thread in `*from` and goes on with the one at `to` (System V ABI, x86-64).
__attribute__((naked, noinline)) static void switch_stack(void** /*from*/, void* /*to*/) {
    asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
}

// A place where threads wait for each other.
struct Meeting {
    unsigned live, arrived, round;

    bool complete() {
        if (arrived < live || live == 0) return false;
        arrived = 0, round++;
        return true;
    }
};

struct Thread {
    void* stack;
    uint3 index;
    bool ended;
    unsigned turn;   // warp operations so far: two buffers alternate
};

static Thread threads[1024];
static Meeting whole, warps[32];
alignas(16) static char words[2][1024][16];   // what each thread shows the others of its warp
static unsigned current, count, idle;
static bool stuck;
static void* host_stack;
static void (*body)();
static Launch* running;

inline char* shared() { return running->shared; }

// Lets the next thread run. When every one has had its turn and none got further, they wait for each other for ever.
static void next_thread() {
    if (++idle > 2 * count + 2) {
        stuck = true;
        void* unused;
        switch_stack(&unused, host_stack);
    }
    unsigned from = current;
    do current = current + 1 == count ? 0 : current + 1;
    while (threads[current].ended);
    if (current != from) switch_stack(&threads[from].stack, threads[current].stack);
    threadIdx = threads[current].index;
}

__attribute__((noinline)) static void meet(Meeting& meeting) {
    unsigned round = meeting.round;
    meeting.arrived++;
    if (meeting.complete()) {
        idle = 0;
        return;
    }
    do next_thread();
    while (meeting.round == round);
    idle = 0;
}

static void thread_main() {
    threadIdx = threads[current].index;
    body();
    threads[current].ended = true;
    idle = 0;
    Meeting& warp = warps[current / 32];
    whole.live--, warp.live--;
    whole.complete(), warp.complete();
    void* unused;
    if (whole.live == 0) switch_stack(&unused, host_stack);
    next_thread();
    __builtin_unreachable();
}

static void run_block() {
    count = blockDim.x * blockDim.y * blockDim.z;
    whole = {count, 0, 0};
    for (unsigned w = 0; w < 32; w++) warps[w] = {w * 32 >= count ? 0 : count - w * 32 < 32 ? count - w * 32 : 32, 0, 0};
    for (unsigned i = 0; i < count; i++) {
        // The first switch to a thread pops six registers and returns into thread_main, as if it had been called: with the
        // stack 8 bytes off a multiple of 16.
        void** top = (void**)(running->stacks + (i + 1) * running->stack_bytes - 56);
        top[0] = nullptr;
        *--top = (void*)thread_main;
        for (int r = 0; r < 6; r++) *--top = nullptr;
        threads[i] = {top, {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)}, false, 0};
    }
    current = idle = 0;
    switch_stack(&host_stack, threads[0].stack);
}

template <class... P, size_t... I>
static void call(void (*kernel)(P...), std::index_sequence<I...>) {
    kernel(*(std::remove_cv_t<std::remove_reference_t<P>>*)running->arguments[I]...);
}

template <auto kernel, class... P>
static void call_with(void (*)(P...)) {
    call(kernel, std::index_sequence_for<P...>());
}

template <bool meeting, auto kernel>
static int launch(Launch* l) {
    running = l;
    gridDim = {l->grid[0], l->grid[1], l->grid[2]};
    blockDim = {l->block[0], l->block[1], l->block[2]};
    body = [] { call_with<kernel>(kernel); };
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) {
                memset(l->shared, 0xff, l->shared_bytes);   // NaN: what is read before it is written shows
                if (meeting) {
                    run_block();
                    if (stuck) {
                        stuck = false;
                        snprintf(l->problem, sizeof l->problem, "block %u %u %u: its threads wait for each other for ever",
                                 blockIdx.x, blockIdx.y, blockIdx.z);
                        return 1;
                    }
                } else {
                    for (threadIdx.z = 0; threadIdx.z < blockDim.z; threadIdx.z++)
                        for (threadIdx.y = 0; threadIdx.y < blockDim.y; threadIdx.y++)
                            for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++) call_with<kernel>(kernel);
                }
            }
    return 0;
}

// Shows `value` to the warp; afterwards `seen<T>(lane)` is what another lane showed.
template <class T>
static unsigned show(T value) {
    static_assert(sizeof(T) <= 16);
    unsigned turn = threads[current].turn++ & 1;
    memcpy(words[turn][current], &value, sizeof value);
    meet(warps[current / 32]);
    return turn;
}
template <class T>
static T seen(unsigned turn, unsigned lane) {
    unsigned thread = current / 32 * 32 + lane;
    T value;
    // Of a lane that took no part, undefined on the GPU: NaN. One that has ended since did take part.
    bool absent = thread < count && threads[thread].ended && (int)(threads[thread].turn - threads[current].turn) < 0;
    if (thread >= count || absent) memset(&value, 0xff, sizeof value);
    else memcpy(&value, words[turn][thread], sizeof value);
    return value;
}

}   // namespace standin

inline void __syncthreads() { standin::meet(standin::whole); }
inline void __syncwarp(unsigned = ~0u) { standin::meet(standin::warps[standin::current / 32]); }
inline void __threadfence() {}
inline unsigned __activemask() {
    unsigned live = standin::warps[standin::current / 32].live;
    return live == 32 ? ~0u : (1u << live) - 1;
}

template <class T> T __shfl_sync(unsigned, T value, unsigned lane) {
    return standin::seen<T>(standin::show(value), lane % 32);
}
template <class T> T __shfl_xor_sync(unsigned, T value, unsigned mask) {
    unsigned lane = (standin::current % 32) ^ mask;
    return standin::seen<T>(standin::show(value), lane % 32);
}
template <class T> T __shfl_up_sync(unsigned, T value, unsigned by) {
    unsigned lane = standin::current % 32, turn = standin::show(value);
    return lane < by ? value : standin::seen<T>(turn, lane - by);
}
template <class T> T __shfl_down_sync(unsigned, T value, unsigned by) {
    unsigned lane = standin::current % 32, turn = standin::show(value);
    return lane + by > 31 ? value : standin::seen<T>(turn, lane + by);
}
inline unsigned __ballot_sync(unsigned, int value) {
    unsigned turn = standin::show(value), ballot = 0, first = standin::current / 32 * 32;
    for (unsigned lane = 0; lane < 32; lane++)
        if (first + lane < standin::count && !standin::threads[first + lane].ended && standin::seen<int>(turn, lane))
            ballot |= 1u << lane;
    return ballot;
}
inline bool __any_sync(unsigned mask, int value) { return __ballot_sync(mask, value) != 0; }
inline bool __all_sync(unsigned mask, int value) { return __ballot_sync(mask, !value) == 0; }

// ---- 16-bit floats --------------------------------------------------------------------------------------------------

namespace standin {
inline float bits_to_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
inline uint32_t float_to_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

inline float widen_half(uint16_t bits) { _Float16 h; memcpy(&h, &bits, 2); return float(h); }
inline uint16_t round_half(float f) { _Float16 h = _Float16(f); uint16_t bits; memcpy(&bits, &h, 2); return bits; }
inline float widen_bfloat(uint16_t bits) { return bits_to_float(uint32_t(bits) << 16); }
inline uint16_t round_bfloat(float f) {   // to nearest, ties to even; NaN is the canonical one of the GPU
    if (f != f) return 0x7fff;
    uint32_t bits = float_to_bits(f);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
}   // namespace standin

#define STANDIN_HALF(TYPE, PAIR, WIDEN, ROUND)                                                                          \
    struct __align__(2) TYPE {                                                                                          \
        uint16_t bits;                                                                                                  \
        TYPE() = default;                                                                                               \
        template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>                                           \
        TYPE(T value) : bits(standin::ROUND(float(value))) {}                                                           \
        operator float() const { return standin::WIDEN(bits); }                                                         \
        TYPE& operator+=(TYPE o) { return *this = TYPE(float(*this) + float(o)); }                                      \
        TYPE& operator-=(TYPE o) { return *this = TYPE(float(*this) - float(o)); }                                      \
        TYPE& operator*=(TYPE o) { return *this = TYPE(float(*this) * float(o)); }                                      \
        TYPE& operator/=(TYPE o) { return *this = TYPE(float(*this) / float(o)); }                                      \
    };                                                                                                                  \
    struct __align__(4) PAIR {                                                                                          \
        TYPE x, y;                                                                                                      \
        PAIR() = default;                                                                                               \
        PAIR(TYPE x, TYPE y) : x(x), y(y) {}                                                                            \
        PAIR(TYPE both) : x(both), y(both) {}                                                                           \
        template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>> PAIR(T both) : x(both), y(both) {}        \
        PAIR& operator+=(PAIR o) { return x += o.x, y += o.y, *this; }                                                  \
        PAIR& operator-=(PAIR o) { return x -= o.x, y -= o.y, *this; }                                                  \
        PAIR& operator*=(PAIR o) { return x *= o.x, y *= o.y, *this; }                                                  \
        PAIR& operator/=(PAIR o) { return x /= o.x, y /= o.y, *this; }                                                  \
    };                                                                                                                  \
    inline TYPE operator+(TYPE a, TYPE b) { return a += b; }                                                            \
    inline TYPE operator-(TYPE a, TYPE b) { return a -= b; }                                                            \
    inline TYPE operator*(TYPE a, TYPE b) { return a *= b; }                                                            \
    inline TYPE operator/(TYPE a, TYPE b) { return a /= b; }                                                            \
    inline TYPE operator-(TYPE a) { return a.bits ^= 0x8000, a; }                                                       \
    inline bool operator==(TYPE a, TYPE b) { return float(a) == float(b); }                                             \
    inline bool operator!=(TYPE a, TYPE b) { return float(a) != float(b); }                                             \
    inline bool operator<(TYPE a, TYPE b) { return float(a) < float(b); }                                               \
    inline bool operator>(TYPE a, TYPE b) { return float(a) > float(b); }                                               \
    inline bool operator<=(TYPE a, TYPE b) { return float(a) <= float(b); }                                             \
    inline bool operator>=(TYPE a, TYPE b) { return float(a) >= float(b); }                                             \
    inline PAIR operator+(PAIR a, PAIR b) { return a += b; }                                                            \
    inline PAIR operator-(PAIR a, PAIR b) { return a -= b; }                                                            \
    inline PAIR operator*(PAIR a, PAIR b) { return a *= b; }                                                            \
    inline PAIR operator/(PAIR a, PAIR b) { return a /= b; }                                                            \
    inline PAIR operator-(PAIR a) { return {-a.x, -a.y}; }                                                              \
    inline TYPE fma(TYPE a, TYPE b, TYPE c) { return TYPE(float(double(a) * double(b) + double(c))); }                  \
    inline PAIR fma(PAIR a, PAIR b, PAIR c) { return {fma(a.x, b.x, c.x), fma(a.y, b.y, c.y)}; }                        \
    inline TYPE __hfma(TYPE a, TYPE b, TYPE c) { return fma(a, b, c); }                                                 \
    inline PAIR __hfma2(PAIR a, PAIR b, PAIR c) { return fma(a, b, c); }                                                \
    inline TYPE __hmax(TYPE a, TYPE b) { return TYPE(fmaxf(a, b)); }                                                    \
    inline TYPE __hmin(TYPE a, TYPE b) { return TYPE(fminf(a, b)); }                                                    \
    inline TYPE __habs(TYPE a) { return TYPE(fabsf(a)); }                                                               \
    inline TYPE abs(TYPE a) { return TYPE(fabsf(a)); }                                                                  \
    inline PAIR __hmax2(PAIR a, PAIR b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }                                \
    inline PAIR __hmin2(PAIR a, PAIR b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }                                \
    inline PAIR __habs2(PAIR a) { return {__habs(a.x), __habs(a.y)}; }                                                  \
    inline bool __hisnan(TYPE a) { return isnan(float(a)); }                                                            \
    inline int __hisinf(TYPE a) { return isinf(float(a)); }                                                             \
    inline PAIR __hisnan2(PAIR a) { return {TYPE(__hisnan(a.x)), TYPE(__hisnan(a.y))}; }                                \
    inline TYPE max(TYPE a, TYPE b) { return __hmax(a, b); }                                                            \
    inline TYPE min(TYPE a, TYPE b) { return __hmin(a, b); }

#define STANDIN_HALF_FUNCTION(TYPE, PAIR, NAME, F)                                                                      \
    inline TYPE h##NAME(TYPE a) { return TYPE(float(F(float(a)))); }                                                    \
    inline PAIR h2##NAME(PAIR a) { return {h##NAME(a.x), h##NAME(a.y)}; }

#define STANDIN_HALF_FUNCTIONS(TYPE, PAIR)                                                                              \
    STANDIN_HALF_FUNCTION(TYPE, PAIR, exp, expf)                                                                        \
    STANDIN_HALF_FUNCTION(TYPE, PAIR, log, logf)                                                                        \
    STANDIN_HALF_FUNCTION(TYPE, PAIR, sin, sinf)                                                                        \
    STANDIN_HALF_FUNCTION(TYPE, PAIR, cos, cosf)                                                                        \
    STANDIN_HALF_FUNCTION(TYPE, PAIR, sqrt, sqrtf)                                                                      \
    STANDIN_HALF_FUNCTION(TYPE, PAIR, rsqrt, 1.0f / sqrtf)                                                              \
    STANDIN_HALF_FUNCTION(TYPE, PAIR, rcp, 1.0f /)                                                                      \
    STANDIN_HALF_FUNCTION(TYPE, PAIR, ceil, ceilf)                                                                      \
    STANDIN_HALF_FUNCTION(TYPE, PAIR, floor, floorf)                                                                    \
    STANDIN_HALF_FUNCTION(TYPE, PAIR, trunc, truncf)                                                                    \
    STANDIN_HALF_FUNCTION(TYPE, PAIR, rint, rintf)

STANDIN_HALF(__half, __half2, widen_half, round_half)
STANDIN_HALF(__nv_bfloat16, __nv_bfloat162, widen_bfloat, round_bfloat)
STANDIN_HALF_FUNCTIONS(__half, __half2)
STANDIN_HALF_FUNCTIONS(__nv_bfloat16, __nv_bfloat162)

// ---- vectors, whole numbers, mathematics ----------------------------------------------------------------------------

#define STANDIN_VECTORS(TYPE, NAME)                                                                                     \
    struct __align__(2 * sizeof(TYPE)) NAME##2 { TYPE x, y; };                                                          \
    struct NAME##3 { TYPE x, y, z; };                                                                                   \
    struct __align__(16 < 4 * sizeof(TYPE) ? 16 : 4 * sizeof(TYPE)) NAME##4 { TYPE x, y, z, w; };
STANDIN_VECTORS(float, float)
STANDIN_VECTORS(double, double)
STANDIN_VECTORS(int, int)

#define STANDIN_LARGER(T)                                                                                               \
    inline T max(T a, T b) { return a < b ? b : a; }                                                                    \
    inline T min(T a, T b) { return b < a ? b : a; }
STANDIN_LARGER(int)
STANDIN_LARGER(unsigned)
STANDIN_LARGER(long)
STANDIN_LARGER(unsigned long)
STANDIN_LARGER(long long)
STANDIN_LARGER(unsigned long long)
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
inline unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }

inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rhypotf(float x, float y) { return 1.0f / hypotf(x, y); }
inline double rhypot(double x, double y) { return 1.0 / hypot(x, y); }

// The fast functions of the GPU have a few units in the last place more error: the stand-in has the exact ones.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanhf(x) tanhf(x)
#define __powf(x, y) powf(x, y)
#define __fsqrt_rn(x) sqrtf(x)
#define __frsqrt_rn(x) (1.0f / sqrtf(x))
#define __frcp_rn(x) (1.0f / (x))
#define __fdividef(x, y) ((x) / (y))
#define __fdiv_rn(x, y) ((x) / (y))

inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
    return r;
}

// ---- atomics: one thread runs at a time, so that plain reads and writes are atomic -----------------------------------

#define STANDIN_ATOMIC(NAME, RESULT)                                                                                    \
    template <class T, class U> T NAME(T* at, U with) { T old = *at; *at = RESULT; return old; }
STANDIN_ATOMIC(atomicAdd, T(old + T(with)))
STANDIN_ATOMIC(atomicSub, T(old - T(with)))
STANDIN_ATOMIC(atomicMax, (old < T(with) ? T(with) : old))
STANDIN_ATOMIC(atomicMin, (T(with) < old ? T(with) : old))
STANDIN_ATOMIC(atomicAnd, (old & with))
STANDIN_ATOMIC(atomicOr, (old | with))
STANDIN_ATOMIC(atomicXor, (old ^ with))
STANDIN_ATOMIC(atomicExch, T(with))
template <class T, class U, class V> T atomicCAS(T* at, U expected, V with) {
    T old = *at;
    if (old == T(expected)) *at = T(with);
    return old;
}
inline float2 operator+(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }
inline float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

#include "matrix.h"
