// A stand-in for NVIDIA's run-time compiler (libnvrtc.so): CUDA C++ to machine code of this CPU, by g++. See README.md.
//
// What nvrtcGetPTX returns is the path of a shared object, which the stand-in driver opens. It lies in a cache folder
// under a name made from the source, so that a kernel is compiled once. When kernels are only counted
// (STANDIN_MODE=count) nothing is compiled.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <sys/stat.h>
#include <unistd.h>
#include <unordered_map>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum Result { SUCCESS = 0, COMPILATION = 6 };   // nvrtcResult of nvrtc.h

struct Program {
    std::string source, log, output;
};

std::string setting(const char* name, const std::string& otherwise) {
    const char* value = getenv(name);
    return value && *value ? value : otherwise;
}

// The folder of this library; device.h and its precompiled form lie beside it.
std::string home() {
    Dl_info info;
    dladdr((void*)home, &info);
    std::string path = info.dli_fname;
    return path.substr(0, path.rfind('/'));
}

std::string read(const std::string& path) {
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

uint64_t hash(const std::string& text) {   // FNV-1a
    uint64_t h = 14695981039346656037ull;
    for (unsigned char c : text) h = (h ^ c) * 1099511628211ull;
    return h;
}

// CubeCL numbers its temporaries through all kernels of a process; numbered from 0 the same kernel has the same text.
std::string renumber(const std::string& source) {
    static const std::string PREFIX = "_tmp_";
    std::unordered_map<std::string, std::string> names;
    std::string out;
    for (size_t at = 0;;) {
        size_t found = source.find(PREFIX, at);
        out += source.substr(at, found - at);
        if (found == std::string::npos) return out;
        size_t end = found + PREFIX.size();
        while (end < source.size() && isdigit((unsigned char)source[end])) end++;
        std::string number = source.substr(found, end - found);
        out += names.try_emplace(number, PREFIX + std::to_string(names.size())).first->second;
        at = end;
    }
}

// CubeCL writes its vector types in no fixed order: sorted, the same kernel has the same text.
std::string sort_types(const std::string& source) {
    static const std::regex TYPE("struct __align__\\([0-9]+\\) \\w+ \\{[^}]*\\};");
    std::set<std::string> types;
    for (std::sregex_iterator at(source.begin(), source.end(), TYPE), end; at != end; ++at) types.insert(at->str());
    if (types.empty()) return source;
    std::string sorted;
    for (auto& type : types) sorted += type + "\n";
    size_t first = source.find(*types.begin());
    for (auto& type : types) first = std::min(first, source.find(type));
    std::string rest = std::regex_replace(source, TYPE, "");
    return rest.substr(0, first) + sorted + rest.substr(first);
}

// Inline PTX as calls of the `ptx` of matrix.h.
std::string replace_assembly(std::string source) {
    static const std::string ASM = "asm volatile(";
    static const std::regex STRINGS("^(?:\\s*\"(?:[^\"\\\\]|\\\\.)*\")+"), OPERAND("\"([=+]?)\\w\"\\(([^()]*)\\)");
    for (size_t at; (at = source.find(ASM)) != std::string::npos;) {
        size_t start = at + ASM.size(), end = source.find(");", start);
        std::string statement = source.substr(start, end - start);
        std::smatch strings;
        if (!std::regex_search(statement, strings, STRINGS)) return "";
        std::string call = "standin::ptx(" + strings.str() + ")", operands = strings.suffix();
        for (std::sregex_iterator i(operands.begin(), operands.end(), OPERAND), none; i != none; ++i)
            call += ((*i)[1].length() ? ".out(" : ".in(") + (*i)[2].str() + ")";
        source.replace(at, end + 1 - at, call + ".run()");
    }
    return source;
}

bool contains(const std::string& text, const char* word) { return text.find(word) != std::string::npos; }

// The kernel as C++ for g++, with the function that the driver calls. Empty if it is no kernel of CubeCL's form.
std::string translate(const std::string& source) {
    static const std::regex INCLUDE("#include[^\n]*\n"), SHARED("extern __shared__[^;]*\\bdynamic_shared_mem\\[\\];");
    static const std::regex NAME("__global__ void __launch_bounds__\\([0-9]+\\)\\s*(?:__cluster_dims__\\([^)]*\\)\\s*)?(\\w+)\\s*\\(");
    std::smatch name;
    if (!std::regex_search(source, name, NAME)) return "";
    std::string kernel = name[1];
    std::string text = replace_assembly(std::regex_replace(source, INCLUDE, ""));
    text = std::regex_replace(text, SHARED, "unsigned char* const dynamic_shared_mem = (unsigned char*)standin::shared();");
    bool meeting = contains(source, "__sync") || contains(source, "_sync(") || contains(source, "cuda::barrier") ||
                   contains(source, "asm volatile");
    return "#include \"device.h\"\n" + text + "\nextern \"C\" int launch(Launch* l) { return standin::launch<" +
           (meeting ? "true" : "false") + ", " + kernel + ">(l); }\n";
}

Result compile(Program& program) {
    if (setting("STANDIN_MODE", "count") != "run") return program.output = "counted", SUCCESS;
    std::string text = translate(sort_types(renumber(program.source)));
    if (text.empty()) return program.log = "no kernel was found", COMPILATION;
    std::string flags = setting("STANDIN_CFLAGS", "");
    std::string folder = setting("STANDIN_CACHE", "/tmp/standin-" + std::to_string(getuid()));
    std::string here = home();
    static const std::string HEADERS = read(here + "/device.h") + read(here + "/matrix.h") + read(here + "/launch.h");
    char name[32];
    snprintf(name, sizeof name, "/%016lx", hash(text + flags + HEADERS));
    std::string base = folder + name, library = base + ".so", unfinished = base + "." + std::to_string(getpid());
    if (access(library.c_str(), R_OK) != 0) {
        mkdir(folder.c_str(), 0777);
        std::ofstream(base + ".cpp") << text;
        // The flags are those of the precompiled header (build.sh), or it is not used.
        std::string command = "env -u LD_LIBRARY_PATH -u LD_PRELOAD g++ " + read(here + "/flags") + " " + flags + " -I" +
                              here + " -shared " + base + ".cpp -o " + unfinished + " > " + base + ".log 2>&1 && mv " +
                              unfinished + " " + library;
        if (system(command.c_str()) != 0) {
            fprintf(stderr, "stand-in compiler: a kernel does not compile, see %s.log\n", base.c_str());
            return program.log = read(base + ".log").substr(0, 4000), COMPILATION;
        }
    }
    return program.output = library, SUCCESS;
}

}   // namespace

EXPORT int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, SUCCESS; }
EXPORT const char* nvrtcGetErrorString(int error) { return error ? "NVRTC_ERROR_COMPILATION" : "NVRTC_SUCCESS"; }
EXPORT int nvrtcCreateProgram(Program** program, const char* source, const char*, int, const char* const*, const char* const*) {
    return *program = new Program{source, "", ""}, SUCCESS;
}
EXPORT int nvrtcDestroyProgram(Program** program) { return delete *program, *program = nullptr, SUCCESS; }
EXPORT int nvrtcCompileProgram(Program* program, int, const char* const*) { return compile(*program); }
EXPORT int nvrtcGetProgramLogSize(Program* program, size_t* size) { return *size = program->log.size() + 1, SUCCESS; }
EXPORT int nvrtcGetProgramLog(Program* program, char* log) { return strcpy(log, program->log.c_str()), SUCCESS; }
EXPORT int nvrtcGetPTXSize(Program* program, size_t* size) { return *size = program->output.size() + 1, SUCCESS; }
EXPORT int nvrtcGetPTX(Program* program, char* out) { return strcpy(out, program->output.c_str()), SUCCESS; }
