// What all kernels share: element types, 16-byte loads, the matrix instruction, sums over a warp. Compiled by nvcc for a GPU
// and by any C++17 compiler, through emulate.h, for the tests. Refuses to know shapes.
#pragma once

#ifdef PINION_EMULATE
#include "emulate.h"
#define DEVICE inline
#define DYNAMIC_SHARED(name) char* name = emulate::machine().shared
#define KERNEL(name, threads, blocks, Params, ...)                                                               \
    static emulate::Register register_##name(#name, threads, sizeof(Params),                                      \
                                             [](const void* p) { __VA_ARGS__(*static_cast<const Params*>(p)); });
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#define DEVICE __device__ __forceinline__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) char name[]
/// A kernel of blocks of `threads`, of which a multiprocessor holds `blocks` at once, on one struct.
#define KERNEL(name, threads, blocks, Params, ...)                                                                     \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params p) { __VA_ARGS__(p); }
#endif

constexpr uint32_t FULL = 0xffffffffu;
/// The position of a row that nobody uses: a batch is padded up to its bucket.
constexpr uint32_t NOBODY = 0xffffffffu;
/// Positions per block of the key/value cache.
constexpr int BLOCK = 64;

// ---- The chain of launches (programmatic dependent launch, sm_90) ----

/// The next kernel may be put on the machine: its blocks load weights while this one's last blocks finish.
DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// Everything the kernels before this one wrote is there. Before it, a kernel may read nothing but weights, and write nothing.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- Loads ----

/// 16 bytes of what no kernel writes, and nobody reads again soon: past the L1 cache, whole lines from memory.
DEVICE uint4 load_once(const void* at) {
#ifndef PINION_EMULATE
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(at));
    return v;
#else
    return *static_cast<const uint4*>(at);
#endif
}

template <class V> DEVICE V load(const void* at) { return *static_cast<const V*>(at); }

DEVICE uint4 no_bits() {
    uint4 zero = {0, 0, 0, 0};
    return zero;
}

/// 16 bytes to shared memory, on their way while the thread goes on; on sm_75 at once.
DEVICE void copy_async(char* to, const void* from) {
#ifdef PINION_EMULATE
    emulate::copy_async(to, from, 16);
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from));
#else
    *reinterpret_cast<uint4*>(to) = load<uint4>(from);
#endif
}
/// Ends a group of copies.
DEVICE void close_copies() {
#ifdef PINION_EMULATE
    emulate::close_copies();
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;");
#endif
}
/// All groups of this thread's copies but the last `OPEN` have landed.
template <int OPEN> DEVICE void wait_for_copies() {
#ifdef PINION_EMULATE
    emulate::wait_for_copies(OPEN);
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory");
#endif
}

/// Four 8 x 8 blocks of two-byte values in shared memory, turned: lane 8b + r says where row r of block b is, 16 bytes. Lane
/// 4g + t gets, of each block, column g of rows 2t and 2t + 1.
DEVICE uint4 load_turned(const char* row) {
#ifdef PINION_EMULATE
    emulate::Exchange<const char*> rows("ldmatrix.x4.trans", row);
    int g = emulate::lane() / 4, t = emulate::lane() % 4;
    auto value = [&](int lane) { return uint32_t(reinterpret_cast<const uint16_t*>(rows[lane])[g]); };
    auto pair = [&](int block) { return value(8 * block + 2 * t) | value(8 * block + 2 * t + 1) << 16; };
    return uint4{pair(0), pair(1), pair(2), pair(3)};
#else
    uint4 v;
    // volatile: it reads what copies and stores before it have written.
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(uint32_t(__cvta_generic_to_shared(row)))
                 : "memory");
    return v;
#endif
}

/// Register `i` of four.
DEVICE uint32_t word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// ---- Element types: a register holds two of them ----

/// bf16: the upper half of a float.
struct Bf16 {
    DEVICE static float low(uint32_t pair) { return __uint_as_float(pair << 16); }
    DEVICE static float high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
    DEVICE static uint32_t pack(float low, float high) {
#ifndef PINION_EMULATE
        __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
        return *reinterpret_cast<uint32_t*>(&v);
#else
        return round(low) | round(high) << 16;
#endif
    }
    DEVICE static uint32_t subtract(uint32_t a, uint32_t b) {
#ifndef PINION_EMULATE
        __nv_bfloat162 v = __hsub2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
        return *reinterpret_cast<uint32_t*>(&v);
#else
        return pack(low(a) - low(b), high(a) - high(b));
#endif
    }
    DEVICE static uint32_t multiply(uint32_t a, uint32_t b) {
#ifndef PINION_EMULATE
        __nv_bfloat162 v = __hmul2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
        return *reinterpret_cast<uint32_t*>(&v);
#else
        return pack(low(a) * low(b), high(a) * high(b));
#endif
    }
    /// Whole numbers 0..15 in the low bits of each half, less 8 where `centred`. Exact: 128 + q has q in its lowest bits.
    DEVICE static uint32_t from_nibbles(uint32_t pair, bool centred) {
        return subtract(pair | 0x43004300u, centred ? 0x43084308u : 0x43004300u);
    }
    /// Two's complement bytes in the low byte of each half. Exact: (128 + low seven bits) - (128 or, below zero, 256).
    DEVICE static uint32_t from_signed(uint32_t pair) {
        return subtract((pair & 0x007f007fu) | 0x43004300u, (pair & 0x00800080u) | 0x43004300u);
    }
    /// e4m3 bytes in the low byte of each half. Exact: the same bits are 2^-120 of the value.
    DEVICE static uint32_t from_e4m3(uint32_t pair) {
        return multiply((pair & 0x00800080u) << 8 | (pair & 0x007f007fu) << 4, 0x7b807b80u);
    }
#ifdef PINION_EMULATE
    static uint32_t round(float v) {
        uint32_t u = __float_as_uint(v);
        return v != v ? 0x7fc0u : (u + 0x7fffu + (u >> 16 & 1)) >> 16;
    }
#endif
};

/// f16.
struct F16 {
#ifndef PINION_EMULATE
    DEVICE static float low(uint32_t pair) { return __low2float(*reinterpret_cast<__half2*>(&pair)); }
    DEVICE static float high(uint32_t pair) { return __high2float(*reinterpret_cast<__half2*>(&pair)); }
    DEVICE static uint32_t pack(float low, float high) {
        __half2 v = __floats2half2_rn(low, high);
        return *reinterpret_cast<uint32_t*>(&v);
    }
    DEVICE static uint32_t subtract(uint32_t a, uint32_t b) {
        __half2 v = __hsub2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b));
        return *reinterpret_cast<uint32_t*>(&v);
    }
    DEVICE static uint32_t multiply(uint32_t a, uint32_t b) {
        __half2 v = __hmul2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b));
        return *reinterpret_cast<uint32_t*>(&v);
    }
#else
    static float low(uint32_t pair) { return emulate::half_to_float(pair & 0xffffu); }
    static float high(uint32_t pair) { return emulate::half_to_float(pair >> 16); }
    static uint32_t pack(float low, float high) { return emulate::float_to_half(low) | emulate::float_to_half(high) << 16; }
    static uint32_t subtract(uint32_t a, uint32_t b) { return pack(low(a) - low(b), high(a) - high(b)); }
    static uint32_t multiply(uint32_t a, uint32_t b) { return pack(low(a) * low(b), high(a) * high(b)); }
#endif
    /// As in bf16, from 1024 + q.
    DEVICE static uint32_t from_nibbles(uint32_t pair, bool centred) {
        return subtract(pair | 0x64006400u, centred ? 0x64086408u : 0x64006400u);
    }
    DEVICE static uint32_t from_signed(uint32_t pair) {
        return subtract((pair ^ 0x00800080u) | 0x64006400u, 0x64806480u);
    }
    /// The same bits are 2^-8 of the value.
    DEVICE static uint32_t from_e4m3(uint32_t pair) {
        return multiply((pair & 0x00800080u) << 8 | (pair & 0x007f007fu) << 7, 0x5c005c00u);
    }
};

/// f32, where a kernel only moves and adds: the matrix instruction does not take it.
struct F32 {};

/// Eight neighbouring values from `at` on, a multiple of 8, of an array of `T`.
template <class T> struct Eight {
    DEVICE static void get(const void* array, size_t at, float (&v)[8]) {
        uint4 all = load<uint4>(static_cast<const uint16_t*>(array) + at);
        for (int i = 0; i < 4; i++) {
            v[2 * i] = T::low(word(all, i));
            v[2 * i + 1] = T::high(word(all, i));
        }
    }
    DEVICE static void put(void* array, size_t at, const float (&v)[8]) {
        *reinterpret_cast<uint4*>(static_cast<uint16_t*>(array) + at) =
            uint4{T::pack(v[0], v[1]), T::pack(v[2], v[3]), T::pack(v[4], v[5]), T::pack(v[6], v[7])};
    }
};
template <> struct Eight<F32> {
    DEVICE static void get(const void* array, size_t at, float (&v)[8]) {
        float4 low = load<float4>(static_cast<const float*>(array) + at), high = load<float4>(static_cast<const float*>(array) + at + 4);
        v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
        v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    }
    DEVICE static void put(void* array, size_t at, const float (&v)[8]) {
        float4* to = reinterpret_cast<float4*>(static_cast<float*>(array) + at);
        to[0] = float4{v[0], v[1], v[2], v[3]};
        to[1] = float4{v[4], v[5], v[6], v[7]};
    }
};

/// One element of an array of `T`.
template <class T> DEVICE void put(void* array, size_t at, float v) { static_cast<uint16_t*>(array)[at] = uint16_t(T::pack(v, 0.0f)); }
template <class T> DEVICE float get(const void* array, size_t at) { return T::low(static_cast<const uint16_t*>(array)[at]); }

// ---- The matrix instruction: d[16 x 8] += a[16 x 16] b[16 x 8], f32 sums ----
//
// Lane 4g + t holds a0 = a[g][2t, 2t+1], a1 = a[g+8][2t, 2t+1], a2 = a[g][2t+8, 2t+9], a3 = a[g+8][2t+8, 2t+9],
// b0 = b[2t, 2t+1][g], b1 = b[2t+8, 2t+9][g], d[0..1] = d[g][2t, 2t+1], d[2..3] = d[g+8][2t, 2t+1]. A sum does not care which
// sixteen values it is over, as long as a and b agree: every user below gives lane t eight neighbouring values of the inner
// dimension, so that they come with one 16-byte load from row-major memory, and uses them in two instructions.

#ifdef PINION_EMULATE
template <class T> inline void multiply_add(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    struct Held { uint32_t a[4], b[2]; };
    emulate::Exchange<Held> all("mma.m16n8k16", Held{{a0, a1, a2, a3}, {b0, b1}});
    int g = emulate::lane() / 4, t = emulate::lane() % 4;
    auto value = [](uint32_t pair, int k) { return k & 1 ? T::high(pair) : T::low(pair); };
    for (int i = 0; i < 4; i++) {
        int column = 2 * t + (i & 1);
        double sum = d[i];
        for (int k = 0; k < 16; k++) {
            float a = value(all[4 * g + k % 8 / 2].a[(i >> 1) + 2 * (k / 8)], k);
            float b = value(all[4 * column + k % 8 / 2].b[k / 8], k);
            sum += double(a) * b;
        }
        d[i] = float(sum);
    }
}
#else
template <class T> DEVICE void multiply_add(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1);
template <> DEVICE void multiply_add<F16>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    // sm_75 has the same instruction over eight values.
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a2), "r"(a3), "r"(b1));
#endif
}
#ifdef PINION_BF16
template <> DEVICE void multiply_add<Bf16>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif
#endif

// ---- Sums in a fixed order ----

DEVICE float warp_sum(float v) {
    for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(FULL, v, distance);
    return v;
}
