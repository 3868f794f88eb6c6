// A stand-in for cuDNN (libcudnn.so.9) beside the stand-in driver: attention by its graph interface. See README.md.
//
// It has the functions, descriptors and operations that kiln uses. A plan computes its graph operation by operation, from
// what the descriptors say and nothing else: every stride, type, order of axes and number counts. As cuDNN on a 9.0 card,
// it refuses a backward pass that is one operation, unless STANDIN_CUDNN has the word `node`. With the word `refuse` it
// refuses all graphs, with `fail` all runs.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Of the stand-in driver.
extern "C" {
int standin_runs();
int standin_inside(uint64_t address, size_t size);
void standin_launched(const char* name);
}

namespace {

// cudnnStatus_t, by its classes.
enum Status { SUCCESS = 0, BAD_PARAM = 2000, NOT_SUPPORTED = 3000, EXECUTION_FAILED = 5000 };
// cudnnBackendDescriptorType_t.
enum Kind { POINTWISE, CONFIG = 3, HEURISTICS, PLAN, POINTWISE_OP = 13, GRAPH = 15, PACK, TENSOR, MATMUL, MATMUL_OP,
            REDUCTION = 21, REDUCTION_OP, RESHAPE_OP = 31, FORWARD_OP = 41, BACKWARD_OP = 43 };
// cudnnBackendAttributeType_t, and the bytes of each.
enum Type { HANDLE, DATA_TYPE, BOOLEAN, INT64, VOID_PTR = 6, HEUR_MODE = 8, POINTWISE_MODE = 14, DESCRIPTOR, REDUCTION_OPERATOR = 18 };
const std::map<int, size_t> SIZES = {{HANDLE, 8}, {DATA_TYPE, 4}, {BOOLEAN, 1}, {INT64, 8}, {VOID_PTR, 8},
                                     {HEUR_MODE, 4}, {POINTWISE_MODE, 4}, {DESCRIPTOR, 8}, {REDUCTION_OPERATOR, 4}};

constexpr int64_t WORKSPACE = 300;
std::string last_error;
Status complain(Status status, const std::string& what) { return last_error = what, status; }
bool asked_for(const char* word) {
    const char* words = getenv("STANDIN_CUDNN");
    return words && strstr(words, word);
}

struct Descriptor {
    explicit Descriptor(int kind) : kind(kind) {}
    int kind;
    bool finalized = false;
    std::map<int, std::vector<char>> values;
    std::map<int, std::vector<std::shared_ptr<Descriptor>>> children;

    template <class T> std::vector<T> all(int attribute) const {
        auto found = values.find(attribute);
        if (found == values.end()) throw std::runtime_error("attribute " + std::to_string(attribute) + " is missing");
        std::vector<T> all(found->second.size() / sizeof(T));
        memcpy(all.data(), found->second.data(), all.size() * sizeof(T));
        return all;
    }
    template <class T> T one(int attribute) const { return all<T>(attribute).at(0); }
    bool flag(int attribute) const { return values.count(attribute) && one<char>(attribute); }
    const Descriptor& child(int attribute) const {
        auto found = children.find(attribute);
        if (found == children.end()) throw std::runtime_error("descriptor " + std::to_string(attribute) + " is missing");
        return *found->second.at(0);
    }
};
using Shared = std::shared_ptr<Descriptor>;

// ---- tensors --------------------------------------------------------------------------------------------------------

float widen(uint16_t bits, int type) {
    if (type == 2) { _Float16 h; memcpy(&h, &bits, 2); return float(h); }
    uint32_t wide = uint32_t(bits) << 16;
    float f; memcpy(&f, &wide, 4); return f;
}
uint16_t narrow(float f, int type) {
    uint16_t bits;
    if (type == 2) { _Float16 h = _Float16(f); memcpy(&bits, &h, 2); return bits; }
    uint32_t wide; memcpy(&wide, &f, 4);
    if (std::isnan(f)) return 0x7fff;
    return uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
}

// Four axes in memory of one of cuDNN's types: f32 (0), f16 (2), bf16 (9).
struct Tensor {
    int64_t id, shape[4], strides[4];
    int type;
    bool is_virtual, by_value;

    explicit Tensor(const Descriptor& d) {
        auto dims = d.all<int64_t>(902), steps = d.all<int64_t>(903);
        if (d.kind != TENSOR || dims.size() != 4 || steps.size() != 4) throw std::runtime_error("a tensor of 4 axes is needed");
        memcpy(shape, dims.data(), sizeof shape), memcpy(strides, steps.data(), sizeof strides);
        id = d.one<int64_t>(906), type = d.one<int>(901), is_virtual = d.flag(907), by_value = d.flag(908);
        if (type != 0 && type != 2 && type != 9) throw std::runtime_error("a tensor of another type");
        if (d.one<int64_t>(900) != 16) throw std::runtime_error("an alignment other than 16");
        for (int axis = 0; axis < 4; axis++) {
            if (shape[axis] < 1 || strides[axis] < 1) throw std::runtime_error("a size or stride below 1");
            // What a GPU reads at once is 16 bytes.
            bool inner = strides[axis] == 1 || shape[axis] == 1;
            if (!is_virtual && type != 0 && !inner && strides[axis] % 8) throw std::runtime_error("rows that are not aligned");
        }
    }
    size_t count() const { return size_t(shape[0] * shape[1] * shape[2] * shape[3]); }
};

// The numbers of all tensors of a graph while it runs. A tensor that is only virtual has memory here, laid out by its
// strides, as a reshape reads the memory of one tensor by the strides of another.
struct Memory {
    struct Place { void* data; int type; };
    std::map<int64_t, Place> places;
    std::map<int64_t, std::vector<float>> between;
    std::set<int64_t> written;

    static size_t extent(const Tensor& t) {
        size_t last = 0;
        for (int axis = 0; axis < 4; axis++) last += size_t((t.shape[axis] - 1) * t.strides[axis]);
        return last + 1;
    }
    Place place(const Tensor& t) {
        if (t.is_virtual && !places.count(t.id)) {
            auto& memory = between[t.id];
            memory.assign(extent(t), NAN);
            places[t.id] = {memory.data(), 0};
        }
        auto found = places.find(t.id);
        if (found == places.end()) throw std::runtime_error("tensor " + std::to_string(t.id) + " has no address");
        if (!t.is_virtual && !t.by_value && (uintptr_t)found->second.data % 16) throw std::runtime_error("an address that is not aligned");
        return found->second;
    }
    template <class F> static void each(const Tensor& t, F f) {
        size_t i = 0;
        for (int64_t a = 0; a < t.shape[0]; a++)
            for (int64_t b = 0; b < t.shape[1]; b++)
                for (int64_t c = 0; c < t.shape[2]; c++)
                    for (int64_t d = 0; d < t.shape[3]; d++)
                        f(i++, size_t(a * t.strides[0] + b * t.strides[1] + c * t.strides[2] + d * t.strides[3]));
    }
    // In the order of the axes.
    std::vector<float> read(const Tensor& t) {
        Place from = place(t);
        std::vector<float> all(t.count());
        each(t, [&](size_t i, size_t at) {
            all[i] = from.type ? widen(((uint16_t*)from.data)[at], from.type) : ((float*)from.data)[at];
        });
        return all;
    }
    void write(const Tensor& t, const std::vector<float>& all) {
        Place to = place(t);
        each(t, [&](size_t i, size_t at) {
            if (to.type) ((uint16_t*)to.data)[at] = narrow(all[i], to.type);
            else ((float*)to.data)[at] = t.type ? widen(narrow(all[i], t.type), t.type) : all[i];
        });
    }
};

// ---- operations -----------------------------------------------------------------------------------------------------

// c = a·b for each of `batch` matrices.
std::vector<float> product(const float* a, const float* b, size_t batch, size_t rows, size_t inner, size_t columns) {
    std::vector<float> c(batch * rows * columns, 0.0f);
    for (size_t n = 0; n < batch; n++)
        for (size_t i = 0; i < rows; i++)
            for (size_t k = 0; k < inner; k++) {
                float factor = a[(n * rows + i) * inner + k];
                const float* row = b + (n * inner + k) * columns;
                float* sum = &c[(n * rows + i) * columns];
                for (size_t j = 0; j < columns; j++) sum[j] += factor * row[j];
            }
    return c;
}
std::vector<float> transposed(const std::vector<float>& a, size_t batch, size_t rows, size_t columns) {
    std::vector<float> t(a.size());
    for (size_t n = 0; n < batch; n++)
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < columns; j++) t[(n * columns + j) * rows + i] = a[(n * rows + i) * columns + j];
    return t;
}
void same(bool shapes) { if (!shapes) throw std::runtime_error("shapes do not fit together"); }

void pointwise(const Descriptor& op, Memory& memory) {
    Tensor x(op.child(751)), y(op.child(753));
    auto a = memory.read(x);
    int mode = op.child(750).one<int>(0);
    same(!memcmp(x.shape, y.shape, sizeof x.shape));
    if (mode == 1 || mode == 9) {
        Tensor b(op.child(752));
        auto spread = b;
        for (int axis = 0; axis < 4; axis++) {
            same(b.shape[axis] == x.shape[axis] || b.shape[axis] == 1);
            if (b.shape[axis] == 1) spread.shape[axis] = x.shape[axis], spread.strides[axis] = 0;
        }
        auto other = memory.read(spread);
        for (size_t i = 0; i < a.size(); i++) a[i] = mode == 1 ? a[i] * other[i] : a[i] - other[i];
    } else if (mode == 13) {
        for (float& value : a) value = expf(value);
    } else if (mode != 21) {
        throw std::runtime_error("another pointwise mode");
    }
    memory.write(y, a);
}

void matmul(const Descriptor& op, Memory& memory) {
    Tensor a(op.child(1520)), b(op.child(1521)), c(op.child(1522));
    for (int axis = 0; axis < 2; axis++) same(a.shape[axis] == b.shape[axis] && a.shape[axis] == c.shape[axis]);
    same(a.shape[2] == c.shape[2] && a.shape[3] == b.shape[2] && b.shape[3] == c.shape[3]);
    auto left = memory.read(a), right = memory.read(b);
    memory.write(c, product(left.data(), right.data(), a.shape[0] * a.shape[1], a.shape[2], a.shape[3], c.shape[3]));
}

void reduction(const Descriptor& op, Memory& memory) {
    Tensor x(op.child(1610)), y(op.child(1611));
    same(x.shape[0] == y.shape[0] && x.shape[1] == y.shape[1] && x.shape[2] == y.shape[2] && y.shape[3] == 1);
    auto all = memory.read(x);
    std::vector<float> sums(y.count(), 0.0f);
    for (size_t i = 0; i < all.size(); i++) sums[i / x.shape[3]] += all[i];
    memory.write(y, sums);
}

// The same memory, read by other strides.
void reshape(const Descriptor& op, Memory& memory) {
    Tensor x(op.child(2200)), y(op.child(2201));
    same(x.count() == y.count() && Memory::extent(x) == Memory::extent(y));
    Tensor by = y;
    by.id = x.id, by.is_virtual = x.is_virtual;
    memory.write(y, memory.read(by));
}

// p = softmax(q·kᵀ·scale) of each head.
struct Attention {
    size_t batch, queries, keys, width;
    float scale;
    std::vector<float> q, k, v, p, log_sums;

    Attention(const Descriptor& op, int first, int scale_name, Memory& memory) {
        Tensor tq(op.child(first)), tk(op.child(first + 1)), tv(op.child(first + 2));
        batch = size_t(tq.shape[0] * tq.shape[1]), queries = tq.shape[2], keys = tk.shape[2], width = tq.shape[3];
        same(batch == size_t(tk.shape[0] * tk.shape[1]) && !memcmp(tk.shape, tv.shape, sizeof tk.shape) && tk.shape[3] == int64_t(width));
        scale = memory.read(Tensor(op.child(scale_name))).at(0);
        q = memory.read(tq), k = memory.read(tk), v = memory.read(tv);
        p = product(q.data(), transposed(k, batch, keys, width).data(), batch, queries, width, keys);
        for (size_t row = 0; row < batch * queries; row++) {
            float *scores = &p[row * keys], most = -INFINITY, total = 0;
            for (size_t j = 0; j < keys; j++) most = fmaxf(most, scores[j] *= scale);
            for (size_t j = 0; j < keys; j++) total += expf(scores[j] - most);
            log_sums.push_back(most + logf(total));
            for (size_t j = 0; j < keys; j++) scores[j] = expf(scores[j] - log_sums.back());
        }
    }
};

void forward(const Descriptor& op, Memory& memory) {
    Attention a(op, 2800, 2805, memory);
    memory.write(Tensor(op.child(2803)), product(a.p.data(), a.v.data(), a.batch, a.queries, a.keys, a.width));
    if (op.children.count(2804)) memory.write(Tensor(op.child(2804)), a.log_sums);
}

void backward(const Descriptor& op, Memory& memory) {
    Attention a(op, 2851, 2856, memory);
    auto o = memory.read(Tensor(op.child(2854))), g = memory.read(Tensor(op.child(2862)));
    auto log_sums = memory.read(Tensor(op.child(2855)));
    for (size_t i = 0; i < log_sums.size(); i++)
        if (!(fabsf(log_sums[i] - a.log_sums[i]) < 1e-2f * fmaxf(1, fabsf(log_sums[i])))) throw std::runtime_error("other log-sums");
    auto ds = product(g.data(), transposed(a.v, a.batch, a.keys, a.width).data(), a.batch, a.queries, a.width, a.keys);
    for (size_t row = 0; row < a.batch * a.queries; row++) {
        float level = 0;
        for (size_t j = 0; j < a.width; j++) level += g[row * a.width + j] * o[row * a.width + j];
        for (size_t j = 0; j < a.keys; j++) ds[row * a.keys + j] = (ds[row * a.keys + j] - level) * a.p[row * a.keys + j] * a.scale;
    }
    auto by_keys = [&](const std::vector<float>& m) { return transposed(m, a.batch, a.queries, a.keys); };
    memory.write(Tensor(op.child(2859)), product(ds.data(), a.k.data(), a.batch, a.queries, a.keys, a.width));
    memory.write(Tensor(op.child(2860)), product(by_keys(ds).data(), a.q.data(), a.batch, a.keys, a.queries, a.width));
    memory.write(Tensor(op.child(2861)), product(by_keys(a.p).data(), g.data(), a.batch, a.keys, a.queries, a.width));
}

struct Run {
    const Descriptor* graph;
    std::map<int64_t, void*> addresses;
};

void compute(const Run& run) {
    Memory memory;
    for (auto& op : run.graph->children.at(801))
        for (auto& [name, tensors] : op->children)
            if (tensors.at(0)->kind == TENSOR) {
                Tensor t(*tensors[0]);
                if (t.is_virtual) continue;
                auto found = run.addresses.find(t.id);
                if (found == run.addresses.end()) throw std::runtime_error("tensor " + std::to_string(t.id) + " has no address");
                memory.places[t.id] = {found->second, t.type};
                if (!t.by_value && !standin_inside((uint64_t)found->second, Memory::extent(t) * (t.type ? 2 : 4)))
                    throw std::runtime_error("tensor " + std::to_string(t.id) + " leaves its memory");
            }
    if (!standin_runs()) return;
    for (auto& op : run.graph->children.at(801)) switch (op->kind) {
        case POINTWISE_OP: pointwise(*op, memory); break;
        case MATMUL_OP: matmul(*op, memory); break;
        case REDUCTION_OP: reduction(*op, memory); break;
        case RESHAPE_OP: reshape(*op, memory); break;
        case FORWARD_OP: forward(*op, memory); break;
        case BACKWARD_OP: backward(*op, memory); break;
        default: throw std::runtime_error("another operation");
    }
}

struct Handle {
    void* stream = nullptr;
};

}   // namespace

EXPORT size_t cudnnGetVersion() { return 91900; }
EXPORT size_t cudnnGetCudartVersion() { return 13000; }
EXPORT void cudnnGetLastErrorString(char* text, size_t size) { snprintf(text, size, "%s", last_error.c_str()); }
EXPORT int cudnnCreate(void** handle) { return *handle = new Handle, SUCCESS; }
EXPORT int cudnnDestroy(void* handle) { return delete (Handle*)handle, SUCCESS; }
EXPORT int cudnnSetStream(void* handle, void* stream) { return ((Handle*)handle)->stream = stream, SUCCESS; }

EXPORT int cudnnBackendCreateDescriptor(int kind, void** descriptor) {
    return *descriptor = new Shared(new Descriptor(kind)), SUCCESS;
}
EXPORT int cudnnBackendDestroyDescriptor(void* descriptor) { return delete (Shared*)descriptor, SUCCESS; }

EXPORT int cudnnBackendSetAttribute(void* descriptor, int name, int type, int64_t count, const void* values) {
    Descriptor& d = **(Shared*)descriptor;
    if (d.finalized) return complain(BAD_PARAM, "it is finalized");
    auto size = SIZES.find(type);
    if (size == SIZES.end()) return complain(BAD_PARAM, "another type of attribute");
    d.values[name].assign((const char*)values, (const char*)values + count * size->second);
    d.children.erase(name);
    for (int64_t i = 0; type == DESCRIPTOR && i < count; i++) {
        Shared& child = *((Shared* const*)values)[i];
        if (!child->finalized) return complain(BAD_PARAM, "a descriptor that is not finalized");
        d.children[name].push_back(child);
    }
    return SUCCESS;
}

EXPORT int cudnnBackendFinalize(void* descriptor) {
    Descriptor& d = **(Shared*)descriptor;
    try {
        if (d.kind == TENSOR) Tensor check(d);
        if (d.kind == POINTWISE_OP || d.kind == MATMUL_OP || d.kind == REDUCTION_OP)
            if (d.child(d.kind == POINTWISE_OP ? 750 : d.kind == MATMUL_OP ? 1523 : 1612).kind != d.kind - (d.kind == POINTWISE_OP ? 13 : 1))
                return complain(BAD_PARAM, "an operation of another kind");
        if (d.kind == GRAPH) {
            d.one<void*>(800);
            for (auto& op : d.children.at(801))
                if (asked_for("refuse") || (op->kind == BACKWARD_OP && !asked_for("node"))) return complain(NOT_SUPPORTED, "no engine for this graph");
        }
        if (d.kind == HEURISTICS) d.one<int>(200), d.child(201);
        if (d.kind == PLAN) d.one<void*>(400), d.child(401).child(0);
        if (d.kind == PACK && d.all<int64_t>(1000).size() != d.all<void*>(1001).size()) return complain(BAD_PARAM, "ids without addresses");
    } catch (const std::exception& e) {
        return complain(BAD_PARAM, e.what());
    }
    return d.finalized = true, SUCCESS;
}

// The configurations that heuristics have found (one), and what a plan needs to work in.
EXPORT int cudnnBackendGetAttribute(void* descriptor, int name, int, int64_t asked, int64_t* count, void* values) {
    Descriptor& d = **(Shared*)descriptor;
    if (!d.finalized) return complain(BAD_PARAM, "it is not finalized");
    *count = 1;
    if (d.kind == HEURISTICS && name == 202) {
        if (asked < 1) return SUCCESS;
        Shared& config = **(Shared**)values;
        config->children[0] = d.children.at(201);
        return config->finalized = true, SUCCESS;
    }
    if (d.kind == PLAN && name == 402) return *(int64_t*)values = WORKSPACE, SUCCESS;
    return complain(BAD_PARAM, "another attribute");
}

EXPORT int cudnnBackendExecute(void* handle, void* plan, void* pack) {
    const Descriptor &p = **(Shared*)plan, &v = **(Shared*)pack;
    if (!p.finalized || !v.finalized || !((Handle*)handle)->stream) return complain(BAD_PARAM, "something is not made");
    if (asked_for("fail")) return complain(EXECUTION_FAILED, "the run fails");
    try {
        Run run{&p.child(401).child(0), {}};
        auto ids = v.all<int64_t>(1000);
        auto addresses = v.all<void*>(1001);
        for (size_t i = 0; i < ids.size(); i++) run.addresses[ids[i]] = addresses[i];
        if (!standin_inside(v.one<uint64_t>(1003), WORKSPACE)) return complain(BAD_PARAM, "no memory to work in");
        compute(run);
        bool is_forward = run.graph->children.at(801).at(0)->kind == FORWARD_OP;
        standin_launched(is_forward ? "cudnn_attention" : "cudnn_attention_backward");
    } catch (const std::exception& e) {
        return complain(EXECUTION_FAILED, e.what());
    }
    return SUCCESS;
}
