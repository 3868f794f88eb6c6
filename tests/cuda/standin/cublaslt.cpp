// A stand-in for NVIDIA's library of matrix products (libcublasLt.so.13) beside the stand-in driver. See README.md.
//
// It has the functions that kiln calls, and executes what their descriptors say on the CPU: D = alpha·op(A)·op(B) + beta·C,
// plus a bias, each number added up in f32 in the order of the sum, or the tanh form of GELU of that, with or without what it is of as
// an auxiliary output. It refuses what the real one refuses, and more: matrices
// outside of their memory, addresses that are less aligned than was promised, an algorithm of another problem.
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Of the stand-in driver.
extern "C" {
int standin_runs();
int standin_inside(uint64_t address, size_t size);
void standin_launched(const char* name);
}

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type { F32 = 0, F16 = 2, BF16 = 14 };
constexpr int COMPUTE_32F = 68;
// The default epilogue is 1; the others are sums of these.
enum Epilogue { BIAS = 4, GELU = 32, AUXILIARY = 128 };

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t leading, apart = 0;
    int32_t batch = 1;

    size_t size() const { return type == F32 ? 4 : 2; }
    size_t bytes() const { return (size_t(apart) * (batch - 1) + size_t(leading) * (columns - 1) + rows) * size(); }
    bool sound() const {
        return (type == F32 || type == F16 || type == BF16) && rows && columns && leading >= int64_t(rows) && batch >= 1;
    }
};

struct Operation {
    int compute, scale;
    int32_t transposed[2] = {0, 0};
    int epilogue = 1;
    const void* bias = nullptr;
    char* auxiliary = nullptr;
    int64_t auxiliary_leading = 0;

    bool biased() const { return epilogue & BIAS; }
    bool gelu() const { return epilogue & GELU; }
    bool kept() const { return epilogue & AUXILIARY; }
};

struct Preference {
    uint64_t workspace = 0;
    uint32_t aligned[4] = {256, 256, 256, 256};
};

// What an algorithm remembers of the problem that it is for.
struct Algorithm {
    uint64_t rows, columns, inner, workspace;
    uint32_t aligned[4];
    uint64_t epilogue, batch;
};
static_assert(sizeof(Algorithm) <= 64, "an algorithm has room for eight words");

struct Result {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

int complain(int status, const char* format, ...) __attribute__((format(printf, 2, 3)));
int complain(int status, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "stand-in cuBLASLt: ");
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    return status;
}

float get(const void* from, size_t i, int type) {
    if (type == F32) return ((const float*)from)[i];
    if (type == F16) return float(((const _Float16*)from)[i]);
    uint32_t bits = uint32_t(((const uint16_t*)from)[i]) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

void put(void* to, size_t i, int type, float value) {
    if (type == F32) ((float*)to)[i] = value;
    else if (type == F16) ((_Float16*)to)[i] = _Float16(value);
    else {
        uint32_t bits;
        memcpy(&bits, &value, 4);
        // To the nearest, halves to even; a NaN stays one.
        uint32_t rounded = value == value ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x10000;
        ((uint16_t*)to)[i] = uint16_t(rounded >> 16);
    }
}

// A factor, row after row: [rows, columns], or its transpose.
std::vector<float> factor(const Layout& l, const char* from, bool turned) {
    size_t rows = turned ? l.columns : l.rows, columns = turned ? l.rows : l.columns;
    std::vector<float> numbers(rows * columns);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            numbers[i * columns + j] = get(from, turned ? i * l.leading + j : j * l.leading + i, l.type);
    return numbers;
}

// Whether the four fit each other, and what their sum runs over.
int check(const Operation& o, const Layout& a, const Layout& b, const Layout& c, const Layout& d, uint64_t* inner) {
    for (const Layout* l : {&a, &b, &c, &d})
        if (!l->sound() || l->batch != d.batch) return complain(INVALID_VALUE, "a layout of %lu x %lu, %ld apart", l->rows, l->columns, l->leading);
    uint64_t rows = o.transposed[0] ? a.columns : a.rows, columns = o.transposed[1] ? b.rows : b.columns;
    *inner = o.transposed[0] ? a.rows : a.columns;
    uint64_t other = o.transposed[1] ? b.columns : b.rows;
    if (*inner != other || rows != d.rows || columns != d.columns || c.rows != d.rows || c.columns != d.columns)
        return complain(INVALID_VALUE, "(%lu x %lu)(%lu x %lu) is not %lu x %lu", rows, *inner, other, columns, d.rows, d.columns);
    // The library's table: factors of one type, the output of theirs or of f32, added up in f32.
    bool known = a.type == b.type && c.type == d.type && (d.type == a.type || d.type == F32);
    if (!known || o.compute != COMPUTE_32F || o.scale != F32) return NOT_SUPPORTED;
    if (o.epilogue != 1 && (o.epilogue & ~(BIAS | GELU | AUXILIARY) || (o.kept() && !o.gelu()))) return NOT_SUPPORTED;
    // An auxiliary output has rows of their own distance, of eight numbers each time.
    if (o.kept() && (d.batch != 1 || o.auxiliary_leading % 8 || o.auxiliary_leading < int64_t(d.rows))) return NOT_SUPPORTED;
    return SUCCESS;
}

}   // namespace

EXPORT size_t cublasLtGetVersion() { return 130002; }
EXPORT size_t cublasLtGetCudartVersion() { return 13000; }
EXPORT int cublasLtCreate(void** handle) { return *handle = new int, SUCCESS; }
EXPORT int cublasLtDestroy(void* handle) { return delete (int*)handle, SUCCESS; }

EXPORT int cublasLtMatmulDescCreate(Operation** o, int compute, int scale) { return *o = new Operation{compute, scale}, SUCCESS; }
EXPORT int cublasLtMatmulDescDestroy(Operation* o) { return delete o, SUCCESS; }
EXPORT int cublasLtMatmulDescSetAttribute(Operation* o, int attribute, const void* value, size_t size) {
    switch (attribute) {
        case 3: case 4: return size == 4 ? memcpy(&o->transposed[attribute - 3], value, 4), SUCCESS : INVALID_VALUE;
        case 7: return size == 4 ? memcpy(&o->epilogue, value, 4), SUCCESS : INVALID_VALUE;
        case 8: return size == 8 ? memcpy(&o->bias, value, 8), SUCCESS : INVALID_VALUE;
        case 11: return size == 8 ? memcpy(&o->auxiliary, value, 8), SUCCESS : INVALID_VALUE;
        case 12: return size == 8 ? memcpy(&o->auxiliary_leading, value, 8), SUCCESS : INVALID_VALUE;
        default: return complain(INVALID_VALUE, "attribute %d of an operation", attribute);
    }
}

EXPORT int cublasLtMatrixLayoutCreate(Layout** l, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    return *l = new Layout{type, rows, columns, leading}, SUCCESS;
}
EXPORT int cublasLtMatrixLayoutDestroy(Layout* l) { return delete l, SUCCESS; }
EXPORT int cublasLtMatrixLayoutSetAttribute(Layout* l, int attribute, const void* value, size_t size) {
    switch (attribute) {
        case 5: return size == 4 ? memcpy(&l->batch, value, 4), SUCCESS : INVALID_VALUE;
        case 6: return size == 8 ? memcpy(&l->apart, value, 8), SUCCESS : INVALID_VALUE;
        default: return complain(INVALID_VALUE, "attribute %d of a layout", attribute);
    }
}

EXPORT int cublasLtMatmulPreferenceCreate(Preference** p) { return *p = new Preference, SUCCESS; }
EXPORT int cublasLtMatmulPreferenceDestroy(Preference* p) { return delete p, SUCCESS; }
EXPORT int cublasLtMatmulPreferenceSetAttribute(Preference* p, int attribute, const void* value, size_t size) {
    switch (attribute) {
        case 1: return size == 8 ? memcpy(&p->workspace, value, 8), SUCCESS : INVALID_VALUE;
        case 3: return size == 4 ? SUCCESS : INVALID_VALUE;   // how parts of a sum are added up: here there is one part
        case 5: case 6: case 7: case 8: return size == 4 ? memcpy(&p->aligned[attribute - 5], value, 4), SUCCESS : INVALID_VALUE;
        default: return complain(INVALID_VALUE, "preference %d", attribute);
    }
}

EXPORT int cublasLtMatmulAlgoGetHeuristic(void* handle, const Operation* o, const Layout* a, const Layout* b, const Layout* c,
                                          const Layout* d, const Preference* p, int wanted, Result* results, int* found) {
    if (!handle || wanted < 1) return INVALID_VALUE;
    *found = 0;
    uint64_t inner;
    if (int problem = check(*o, *a, *b, *c, *d, &inner)) return problem;
    Algorithm algorithm{d->rows, d->columns, inner, p->workspace, {}, uint64_t(o->epilogue), uint64_t(d->batch)};
    memcpy(algorithm.aligned, p->aligned, sizeof algorithm.aligned);
    *results = Result{};
    memcpy(results->algorithm, &algorithm, sizeof algorithm);
    results->workspace = p->workspace;
    *found = 1;
    return SUCCESS;
}

EXPORT int cublasLtMatmul(void* handle, const Operation* o, const float* alpha, const char* a_at, const Layout* a, const char* b_at,
                          const Layout* b, const float* beta, const char* c_at, const Layout* c, char* d_at, const Layout* d,
                          const uint64_t* algo, void* workspace, size_t workspace_bytes, void* stream) {
    uint64_t inner;
    if (!handle || !algo || !stream) return complain(INVALID_VALUE, "a product without handle, algorithm or stream");
    if (int problem = check(*o, *a, *b, *c, *d, &inner)) return problem;
    Algorithm known;
    memcpy(&known, algo, sizeof known);
    if (known.rows != d->rows || known.columns != d->columns || known.inner != inner || known.epilogue != uint64_t(o->epilogue) ||
        known.batch != uint64_t(d->batch))
        return complain(INVALID_VALUE, "an algorithm of another problem");
    if (workspace_bytes < known.workspace || uintptr_t(workspace) % 256 || !standin_inside(uint64_t(workspace), workspace_bytes))
        return complain(INVALID_VALUE, "a workspace of %zu bytes", workspace_bytes);
    struct { const char *at, *name; const Layout* layout; } all[] = {{a_at, "A", a}, {b_at, "B", b}, {c_at, "C", c}, {d_at, "D", d}};
    for (int i = 0; i < 4; i++) {
        if (uintptr_t(all[i].at) % known.aligned[i]) return complain(INVALID_VALUE, "%s is not aligned as promised", all[i].name);
        if (!standin_inside(uint64_t(all[i].at), all[i].layout->bytes()))
            return complain(INVALID_VALUE, "%s leaves its memory", all[i].name);
    }
    if (c_at == d_at && (c->leading != d->leading || c->apart != d->apart)) return complain(INVALID_VALUE, "C in D's place, but not as D lies");
    bool bias = o->biased();
    if (o->kept() && (uintptr_t(o->auxiliary) % 16 || !standin_inside(uint64_t(o->auxiliary), d->bytes())))
        return complain(INVALID_VALUE, "an auxiliary output outside of memory");
    if (bias && !standin_inside(uint64_t(o->bias), d->rows * d->size())) return complain(INVALID_VALUE, "a bias outside of memory");

    standin_launched(o->kept() ? "cublasLtMatmul_gelu_aux" : o->gelu() ? "cublasLtMatmul_gelu" : bias ? "cublasLtMatmul_bias" : *beta != 0 ? "cublasLtMatmul_onto" : "cublasLtMatmul");
    if (!standin_runs()) return SUCCESS;
    for (int32_t item = 0; item < d->batch; item++) {
        auto at = [&](const char* start, const Layout* l) { return start + size_t(item) * l->apart * l->size(); };
        // A row after row and B column after column, so that a sum runs along both.
        std::vector<float> left = factor(*a, at(a_at, a), o->transposed[0]), right = factor(*b, at(b_at, b), !o->transposed[1]);
        for (size_t j = 0; j < d->columns; j++)
            for (size_t i = 0; i < d->rows; i++) {
                float sum = 0;
                for (size_t k = 0; k < inner; k++) sum += left[i * inner + k] * right[j * inner + k];
                sum *= *alpha;
                if (*beta != 0) sum += *beta * get(at(c_at, c), j * c->leading + i, c->type);
                if (bias) sum += get(o->bias, i, d->type);
                if (o->kept()) put(o->auxiliary, j * o->auxiliary_leading + i, d->type, sum);
                if (o->gelu()) sum = 0.5f * sum * (1 + tanhf(0.7978845608f * (sum + 0.044715f * sum * sum * sum)));
                put(d_at + size_t(item) * d->apart * d->size(), j * d->leading + i, d->type, sum);
            }
    }
    return SUCCESS;
}
