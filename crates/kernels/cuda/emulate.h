// Runs the kernels of this folder on a CPU, so that their source can be tested where there is no GPU. Knows blocks, warps,
// barriers and the warp-wide instructions; refuses to know any kernel.
//
// A thread of a block is a fibre. It runs until it meets a barrier or a warp-wide instruction; then another one runs. The
// order is shuffled at every turn, in half of the blocks one warp runs as far ahead as barriers let it, and shared memory
// starts as NaN, so a kernel that forgets a barrier gives wrong numbers. What cannot come together (a barrier that some
// threads miss, a shuffle with half a warp) is an error. An asynchronous copy lands at once or only when it is waited for.
//
// Only what the kernels use is here: full warps, one-dimensional blocks.
#pragma once

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __restrict__

struct uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct float2 { float x, y; };
struct Dim3 { uint32_t x, y, z; };

namespace emulate {

constexpr int WARP = 32;
constexpr int MOST_THREADS = 1024;
constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t SHARED_BYTES = 228 << 10;
/// The widest value a lane hands to its warp.
constexpr size_t EXCHANGE_BYTES = 64;

struct Copy { void* to; const void* from; uint32_t bytes; };

struct Fibre {
    ucontext_t first;
    jmp_buf at;
    bool started = false, done = false;
    char* stack = nullptr;
    uint32_t thread = 0, turn = 0;
    /// What it waits for: a generation of its block's or its warp's barrier.
    const uint64_t* barrier = nullptr;
    uint64_t generation = 0;
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
};

struct Warp {
    uint64_t generation = 0;
    int arrived = 0;
    const char* what = nullptr;
    char values[2][WARP][EXCHANGE_BYTES];
};

struct Machine {
    std::vector<Fibre> fibres;
    Warp warps[MOST_THREADS / WARP];
    uint64_t generation = 0;
    int arrived = 0, alive = 0;
    jmp_buf scheduler;
    Fibre* now = nullptr;
    uint64_t random = 1;
    Dim3 grid, block, at;
    alignas(128) char shared[SHARED_BYTES];
    void (*body)(const void*) = nullptr;
    const void* params = nullptr;
    std::string error;
};

inline Machine& machine() {
    static thread_local Machine* m = new Machine();
    return *m;
}

inline void leave(const char* what) {
    Machine& m = machine();
    char text[256];
    snprintf(text, sizeof text, "%s (thread %u of block %u,%u,%u)", what, m.now->thread, m.at.x, m.at.y, m.at.z);
    if (m.error.empty()) m.error = text;
    _longjmp(m.scheduler, 2);
}

inline void pause_until(const uint64_t* barrier, uint64_t generation) {
    Machine& m = machine();
    m.now->barrier = barrier;
    m.now->generation = generation;
    if (_setjmp(m.now->at) == 0) _longjmp(m.scheduler, 1);
}

inline void block_barrier() {
    Machine& m = machine();
    uint64_t want = m.generation + 1;
    if (++m.arrived == m.alive) { m.arrived = 0; m.generation = want; }
    pause_until(&m.generation, want);
}

/// Every lane gives a value and reads those of its warp: what a shuffle is.
template <class V> struct Exchange {
    char (*values)[EXCHANGE_BYTES];
    Exchange(const char* what, const V& mine) {
        static_assert(sizeof(V) <= EXCHANGE_BYTES, "too wide");
        Machine& m = machine();
        Fibre* f = m.now;
        Warp& warp = m.warps[f->thread / WARP];
        if (warp.arrived == 0) warp.what = what;
        else if (warp.what != what) leave("lanes of one warp meet at different instructions");
        values = warp.values[f->turn++ & 1];
        memcpy(values[f->thread % WARP], &mine, sizeof(V));
        uint64_t want = warp.generation + 1;
        if (++warp.arrived == WARP) { warp.arrived = 0; warp.generation = want; }
        pause_until(&warp.generation, want);
    }
    V operator[](int lane) const {
        V v;
        memcpy(&v, values[lane], sizeof(V));
        return v;
    }
};

inline int lane() { return machine().now->thread % WARP; }

inline void fibre_main() {
    Machine& m = machine();
    for (;;) {
        m.body(m.params);
        Fibre* f = m.now;
        f->open.clear();
        f->groups.clear();
        f->done = true;
        m.alive--;
        // Those who wait for the block wait no longer for this one.
        if (m.alive > 0 && m.arrived == m.alive) { m.arrived = 0; m.generation++; }
        if (_setjmp(f->at) == 0) _longjmp(m.scheduler, 1);
    }
}

inline uint32_t random_below(uint32_t n) {
    uint64_t& r = machine().random;
    r ^= r << 13; r ^= r >> 7; r ^= r << 17;
    return uint32_t(r >> 33) % n;
}

template <class V> inline void shuffle(std::vector<V>& v, size_t from, size_t to) {
    for (size_t i = to; i > from + 1; i--) std::swap(v[i - 1], v[from + random_below(uint32_t(i - from))]);
}

inline void run_block(uint32_t threads, size_t shared_bytes) {
    Machine& m = machine();
    memset(m.shared, 0xff, shared_bytes);
    m.generation = 0;
    m.arrived = 0;
    m.alive = int(threads);
    for (uint32_t w = 0; w < threads / WARP; w++) { m.warps[w].generation = 0; m.warps[w].arrived = 0; }
    // Either all threads take turns, or, by chance, one warp runs as far ahead of the others as barriers let it.
    bool in_order = random_below(2) == 0;
    std::vector<uint32_t> order(threads);
    for (uint32_t t = 0; t < threads; t++) {
        Fibre& f = m.fibres[t];
        f.thread = t; f.turn = 0; f.done = false; f.barrier = nullptr;
        order[t] = t;
    }
    for (uint32_t w = 0; w < threads / WARP; w++) {
        uint32_t with = random_below(threads / WARP) * WARP;
        if (with == w * WARP) continue;
        std::swap_ranges(order.begin() + w * WARP, order.begin() + (w + 1) * WARP, order.begin() + with);
    }
    while (m.alive > 0) {
        // volatile: this frame is left and entered by longjmp.
        volatile bool moved = false;
        if (in_order) for (uint32_t w = 0; w < threads; w += WARP) shuffle(order, w, w + WARP);
        else shuffle(order, 0, threads);
        for (volatile uint32_t i = 0; i < threads; i = i + 1) {
            if (in_order && moved && i % WARP == 0) break;
            Fibre& f = m.fibres[order[i]];
            if (f.done || (f.barrier && *f.barrier < f.generation)) continue;
            moved = true;
            m.now = &f;
            int why = _setjmp(m.scheduler);
            if (why == 2) return;
            if (why != 0) continue;
            if (f.started) _longjmp(f.at, 1);
            f.started = true;
            setcontext(&f.first);
        }
        if (!moved) {
            for (Fibre& f : m.fibres) if (f.thread < threads && !f.done) { m.now = &f; break; }
            m.error = "some threads wait for others that never come: a barrier or a warp instruction in a branch";
            return;
        }
    }
}

struct Kernel { uint32_t threads; size_t params_bytes; void (*body)(const void*); };

inline std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

struct Register {
    Register(const char* name, uint32_t threads, size_t bytes, void (*body)(const void*)) { kernels()[name] = Kernel{threads, bytes, body}; }
};

inline const char* launch(const char* name, Dim3 grid, uint32_t threads, size_t shared, const void* params, size_t bytes, uint64_t seed) {
    Machine& m = machine();
    m.error.clear();
    auto found = kernels().find(name);
    if (found == kernels().end()) m.error = std::string("no kernel is called ") + name;
    else if (found->second.threads != threads) m.error = "the kernel has " + std::to_string(found->second.threads) + " threads, not " + std::to_string(threads);
    else if (found->second.params_bytes != bytes) m.error = "the parameters are " + std::to_string(found->second.params_bytes) + " bytes, not " + std::to_string(bytes);
    else if (shared > SHARED_BYTES) m.error = std::to_string(shared) + " bytes of shared memory";
    if (!m.error.empty()) return m.error.c_str();
    // Fibres of a launch that broke off are in the middle of something: all start anew.
    if (m.fibres.size() < MOST_THREADS) m.fibres.resize(MOST_THREADS);
    for (uint32_t t = 0; t < threads; t++) {
        Fibre& f = m.fibres[t];
        if (!f.stack) f.stack = static_cast<char*>(malloc(STACK_BYTES));
        getcontext(&f.first);
        f.first.uc_stack.ss_sp = f.stack;
        f.first.uc_stack.ss_size = STACK_BYTES;
        f.first.uc_link = nullptr;
        makecontext(&f.first, fibre_main, 0);
        f.started = false;
        f.open.clear();
        f.groups.clear();
    }
    m.random = seed | 1;
    m.grid = grid;
    m.block = Dim3{threads, 1, 1};
    m.body = found->second.body;
    m.params = params;
    std::vector<uint64_t> blocks(size_t(grid.x) * grid.y * grid.z);
    for (size_t i = 0; i < blocks.size(); i++) blocks[i] = i;
    shuffle(blocks, 0, blocks.size());
    for (uint64_t b : blocks) {
        m.at = Dim3{uint32_t(b % grid.x), uint32_t(b / grid.x % grid.y), uint32_t(b / grid.x / grid.y)};
        // One allocation of the most there is: static and dynamic shared memory of the kernels are both in here.
        run_block(threads, shared);
        if (!m.error.empty()) return m.error.c_str();
    }
    return nullptr;
}

/// A copy lands at once, or when its group is waited for: chance says.
inline void copy_async(void* to, const void* from, uint32_t bytes) {
    if (random_below(2)) memcpy(to, from, bytes);
    else machine().now->open.push_back(Copy{to, from, bytes});
}
inline void close_copies() {
    Fibre* f = machine().now;
    f->groups.push_back(std::move(f->open));
    f->open.clear();
}
inline void wait_for_copies(size_t open) {
    Fibre* f = machine().now;
    while (f->groups.size() > open) {
        for (const Copy& c : f->groups.front()) memcpy(c.to, c.from, c.bytes);
        f->groups.erase(f->groups.begin());
    }
}

inline float half_to_float(uint32_t half) {
    uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
    float sign = half & 0x8000u ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * ldexpf(float(fraction), -24);
    return sign * ldexpf(float(1024 + fraction), int(exponent) - 25);
}

/// Ties to even; too large is infinity.
inline uint32_t float_to_half(float v) {
    uint32_t sign = std::signbit(v) ? 0x8000u : 0;
    float a = fabsf(v);
    if (v != v) return 0x7e00u;
    if (a >= 65520.0f) return sign | 0x7c00u;
    // nearbyint rounds ties to even; in units of the last place this is a whole number below 2^11.
    if (a < 0x1p-14f) return sign | uint32_t(nearbyintf(a * 0x1p24f));
    int exponent = ilogbf(a);
    uint32_t units = uint32_t(nearbyintf(ldexpf(a, 10 - exponent)));
    return sign | ((uint32_t(exponent + 14) << 10) + units);
}

}  // namespace emulate

#define threadIdx (Dim3{emulate::machine().now->thread, 0, 0})
#define blockIdx (emulate::machine().at)
#define blockDim (emulate::machine().block)
#define gridDim (emulate::machine().grid)
#define __syncthreads() emulate::block_barrier()
#define __syncwarp() emulate::Exchange<int>("__syncwarp", 0)

template <class V> inline V __shfl_xor_sync(uint32_t, V v, int mask) {
    emulate::Exchange<V> all("__shfl_xor_sync", v);
    return all[emulate::lane() ^ mask];
}
template <class V> inline V __shfl_sync(uint32_t, V v, int lane) {
    emulate::Exchange<V> all("__shfl_sync", v);
    return all[lane & 31];
}
template <class V> inline V __shfl_up_sync(uint32_t, V v, int delta) {
    emulate::Exchange<V> all("__shfl_up_sync", v);
    int from = emulate::lane() - delta;
    return from < 0 ? v : all[from];
}
inline uint32_t __ballot_sync(uint32_t, bool yes) {
    emulate::Exchange<int> all("__ballot_sync", yes);
    uint32_t bits = 0;
    for (int i = 0; i < 32; i++) bits |= uint32_t(all[i] != 0) << i;
    return bits;
}
inline bool __all_sync(uint32_t mask, bool yes) { return __ballot_sync(mask, yes) == 0xffffffffu; }
template <class V> inline V atomicAdd(V* at, V v) { V old = *at; *at = old + v; return old; }
template <class V> inline V atomicMax(V* at, V v) { V old = *at; if (v > old) *at = v; return old; }
inline void __threadfence() {}
inline int __popc(uint32_t v) { return __builtin_popcount(v); }
inline int __ffs(uint32_t v) { return __builtin_ffs(int(v)); }
inline float __uint_as_float(uint32_t v) { float f; memcpy(&f, &v, 4); return f; }
inline uint32_t __float_as_uint(float f) { uint32_t v; memcpy(&v, &f, 4); return v; }
inline float __expf(float x) { return expf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
template <class V> inline V min(V a, V b) { return b < a ? b : a; }
template <class V> inline V max(V a, V b) { return a < b ? b : a; }
