// Tensor cores and asynchronous copies for kernels on the CPU; part of device.h. See README.md.
//
// A matrix product of 16-bit or tf32 values is exact in f32; sums are taken in f32 in the order of k, which a tensor core
// does not promise.
#pragma once

namespace standin {

inline float round_tf32(float f) {   // 10 bits of mantissa, to nearest with ties away, as cvt.rna.tf32
    if (f != f || isinf(f)) return f;
    return bits_to_float((float_to_bits(f) + 0x1000) & ~0x1fffu);
}

// The operands of the warps' running products, as whole matrices: [turn][warp][row * columns + column].
static float left[2][32][32 * 16], right[2][32][16 * 32];

// ---- inline PTX: compiler.cpp turns `asm volatile("..." : outputs : inputs)` into ptx("...").out(..).in(..).run() ---

struct ptx {
    const char* text;
    uint32_t* outputs[8];
    uint64_t inputs[24];
    unsigned output_count = 0, input_count = 0;

    explicit ptx(const char* text) : text(text) {}
    template <class T> ptx& out(T& to) { return outputs[output_count++] = (uint32_t*)&to, *this; }
    template <class T> ptx& in(T from) {
        inputs[input_count] = 0;
        return memcpy(&inputs[input_count++], &from, sizeof from), *this;
    }

    bool is(const char* word) const { return strstr(text, word) != nullptr; }

    void run() {
        if (is("mma.sync.aligned.m16n8k")) product();
        else if (is("ldmatrix.sync")) load_matrix();
        else if (is("cp.async.c")) copy();
        else if (!is("cp.async.mbarrier.arrive")) {   // copies are made at once: nothing to wait for
            fprintf(stderr, "stand-in: no such instruction: %s\n", text);
            abort();
        }
    }

    // One of the two 16-bit values of a register, or the register as tf32.
    float value(unsigned input, unsigned half) const {
        uint16_t bits = uint16_t(inputs[input] >> (16 * half));
        if (is(".bf16.")) return widen_bfloat(bits);
        if (is(".f16.f16.")) return widen_half(bits);
        return round_tf32(bits_to_float(uint32_t(inputs[input])));
    }

    // d = a b + c of 16 x k, k x 8 and 16 x 8 values; which lane holds what is in the PTX manual, "Matrix fragments for
    // mma.m16n8k4", "k8" and "k16".
    void product() {
        unsigned k = unsigned(atoi(strstr(text, "m16n8k") + 6));
        unsigned lane = current % 32, warp = current / 32, group = lane / 4, member = lane % 4;
        unsigned turn = threads[current].turn++ & 1, a_count = 16 * k / 32, b_count = 8 * k / 32;
        unsigned packed = is("tf32") ? 1 : 2;
        float *a = left[turn][warp], *b = right[turn][warp];
        for (unsigned i = 0; i < a_count; i++) {
            unsigned pair = i / packed, row = group + (pair % 2) * 8;
            unsigned column = packed == 2 ? member * 2 + i % 2 + (pair / 2) * 8 : member + (pair / 2) * 4;
            a[row * k + column] = value(i / packed, i % packed);
        }
        for (unsigned i = 0; i < b_count; i++) {
            unsigned row = packed == 2 ? member * 2 + i % 2 + (i / 2) * 8 : member + i * 4;
            b[row * 8 + group] = value(a_count / packed + i / packed, i % packed);
        }
        meet(warps[warp]);
        for (unsigned i = 0; i < 4; i++) {
            unsigned row = group + (i / 2) * 8, column = member * 2 + i % 2;
            float sum = bits_to_float(uint32_t(inputs[a_count / packed + b_count / packed + i]));
            for (unsigned j = 0; j < k; j++) sum += a[row * k + j] * b[j * 8 + column];
            *outputs[i] = float_to_bits(sum);
        }
    }

    // Lane 8 m + r gives the address of row r of matrix m; each lane receives two neighbours of every matrix.
    void load_matrix() {
        unsigned lane = current % 32, turn = show(uint32_t(inputs[0]));
        for (unsigned m = 0; m < output_count; m++) {
            uint16_t pair[2];
            for (unsigned i = 0; i < 2; i++) {
                unsigned row = is(".trans") ? lane % 4 * 2 + i : lane / 4, column = is(".trans") ? lane / 4 : lane % 4 * 2 + i;
                memcpy(&pair[i], shared() + seen<uint32_t>(turn, m * 8 + row) + 2 * column, 2);
            }
            memcpy(outputs[m], pair, 4);
        }
    }

    void copy() {
        size_t size = inputs[2], given = input_count > 3 ? uint32_t(inputs[3]) : size;
        char* to = shared() + uint32_t(inputs[0]);
        memcpy(to, (const void*)inputs[1], given < size ? given : size);
        if (given < size) memset(to + given, 0, size - given);
    }
};

}   // namespace standin

inline uint32_t __cvta_generic_to_shared(const void* p) { return uint32_t((const char*)p - standin::shared()); }

// ---- nvcuda::wmma ---------------------------------------------------------------------------------------------------

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };
namespace precision { struct tf32; }

inline float __float_to_tf32(float f) { return standin::round_tf32(f); }

template <class T> struct stored { using type = T; };
template <> struct stored<precision::tf32> { using type = float; };

// Lane l holds the elements l n .. (l + 1) n - 1 of the matrix in the order of its rows.
template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
    static constexpr int rows = std::is_same_v<Use, matrix_b> ? K : M, columns = std::is_same_v<Use, matrix_a> ? K : N;
    static constexpr int num_elements = rows * columns / 32;
    typename stored<T>::type x[num_elements];

    static int first() { return int(standin::current % 32) * num_elements; }
    template <class P>
    static P* at(P* memory, int i, unsigned stride, bool by_rows) {
        unsigned row = unsigned(first() + i) / columns, column = unsigned(first() + i) % columns;
        return memory + (by_rows ? row * stride + column : column * stride + row);
    }
};

template <class F, class V> void fill_fragment(F& f, V value) {
    for (auto& x : f.x) x = std::decay_t<decltype(x)>(value);
}
template <class U, int M, int N, int K, class T, class L, class P>
void load_matrix_sync(fragment<U, M, N, K, T, L>& f, const P* from, unsigned stride) {
    for (int i = 0; i < f.num_elements; i++) f.x[i] = *f.at(from, i, stride, std::is_same_v<L, row_major>);
    __syncwarp();
}
template <int M, int N, int K, class T, class P>
void load_matrix_sync(fragment<accumulator, M, N, K, T>& f, const P* from, unsigned stride, layout_t layout) {
    for (int i = 0; i < f.num_elements; i++) f.x[i] = *f.at(from, i, stride, layout == mem_row_major);
    __syncwarp();
}
template <int M, int N, int K, class T, class P>
void store_matrix_sync(P* to, const fragment<accumulator, M, N, K, T>& f, unsigned stride, layout_t layout) {
    for (int i = 0; i < f.num_elements; i++) *f.at(to, i, stride, layout == mem_row_major) = f.x[i];
    __syncwarp();
}
template <int M, int N, int K, class T, class LA, class LB, class D, class C>
void mma_sync(fragment<accumulator, M, N, K, D>& d, const fragment<matrix_a, M, N, K, T, LA>& a,
              const fragment<matrix_b, M, N, K, T, LB>& b, const fragment<accumulator, M, N, K, C>& c) {
    unsigned warp = standin::current / 32, turn = standin::threads[standin::current].turn++ & 1;
    float *left = standin::left[turn][warp], *right = standin::right[turn][warp];
    constexpr bool tf32 = std::is_same_v<T, precision::tf32>;
    for (int i = 0; i < a.num_elements; i++) left[a.first() + i] = tf32 ? standin::round_tf32(float(a.x[i])) : float(a.x[i]);
    for (int i = 0; i < b.num_elements; i++) right[b.first() + i] = tf32 ? standin::round_tf32(float(b.x[i])) : float(b.x[i]);
    standin::meet(standin::warps[warp]);
    for (int i = 0; i < c.num_elements; i++) {
        int row = (c.first() + i) / N, column = (c.first() + i) % N;
        float sum = float(c.x[i]);
        for (int k = 0; k < K; k++) sum += left[row * K + k] * right[k * N + column];
        d.x[i] = D(sum);
    }
}

}   // namespace nvcuda::wmma

// ---- barriers, groups and asynchronous copies (which are made at once) ----------------------------------------------

namespace cuda {
enum thread_scope { thread_scope_block, thread_scope_thread };

template <thread_scope>
struct barrier {   // 8 bytes, as on the GPU: kernels lay barriers out one behind the other
    uint16_t expected, pending;
    unsigned phase;
    using arrival_token = unsigned;

    arrival_token arrive(unsigned times = 1) {
        unsigned token = phase;
        if ((pending = uint16_t(pending - times)) == 0) pending = expected, phase++, standin::idle = 0;
        return token;
    }
    void wait(arrival_token token) const {
        while (*(volatile const unsigned*)&phase == token) standin::next_thread();
    }
    void wait_parity(bool parity) const {
        while ((*(volatile const unsigned*)&phase & 1) == unsigned(parity)) standin::next_thread();
    }
    void arrive_and_wait() { wait(arrive()); }
};
template <thread_scope S> void init(barrier<S>* b, unsigned count) { *b = {uint16_t(count), uint16_t(count), 0}; }
template <thread_scope S> void memcpy_async(void* to, const void* from, size_t size, barrier<S>&) { memcpy(to, from, size); }
template <class G, thread_scope S> void memcpy_async(const G&, void* to, const void* from, size_t size, barrier<S>&) {
    memcpy(to, from, size);
}
namespace device {
template <thread_scope S> auto* barrier_native_handle(barrier<S>& b) { return (unsigned long long*)&b; }
}   // namespace device
}   // namespace cuda

namespace cooperative_groups {
struct thread_block {};
inline thread_block this_thread_block() { return {}; }
}   // namespace cooperative_groups
