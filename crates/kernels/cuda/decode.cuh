// Attention of rows with one query each: out[row] = softmax(scale q K^T) V over the row's positions 0..=position. After
// Flash-Decoding (Dao et al. 2023): the positions are split over blocks, and the queries of a group that share a key head
// are worked on together, so that keys and values are read once.
//
// A row of n positions has ceil(n / s) segments of s = 64 ceil(n / 2048) positions, at most 32: a function of its own length, so
// that its bits do not hang on the batch. A block of two warps takes segments of one row and key head (and of eight heads of
// the group); whichever block ends last adds the segments up, in their order.
//
// Floors on an H100, Llama-3-8B (8 key heads of 128, 4 queries each), one row, bf16: 4 kB per position, 2.1 MB and 0.7 us at 512
// positions, 33.6 MB and 11.2 us at 8192; 16 kFLOP per position in the tensor cores, half of them on padding: nothing.
// Prediction, not a measurement: 3 us at 512, where latency rules, and 80 % of the bandwidth from 8192 or 16 rows on.
#pragma once

#include "attention.cuh"

constexpr int DECODE_WARPS = 2;
constexpr int DECODE_THREADS = DECODE_WARPS * 32;
constexpr int MOST_SEGMENTS = 32;
/// Queries worked on together.
constexpr int DECODE_HEADS = 8;

/// Mirrors `Decode` in src/cuda/params.rs.
struct Decode {
    Cache cache;
    /// [rows, heads, dim] in `T`
    const void* queries;
    /// [rows, heads, dim] in `T`
    void* out;
    /// [rows, heads, MOST_SEGMENTS, dim + 2]: a segment's sums, then its maximum and its total.
    float* partial;
    /// [rows, kv_heads * parts]: segments that are done; 0 between launches.
    uint32_t* done;
    float scale_log2;
    int32_t rows;
};

DEVICE float read_others(const float* at) {
#ifndef PINION_EMULATE
    return __ldcg(at);
#else
    return *at;
#endif
}

template <class T, int DIM> DEVICE void decode(const Decode& p) {
    __shared__ float other[DECODE_HEADS][DIM];
    __shared__ float other_most[DECODE_HEADS], other_sum[DECODE_HEADS];
    __shared__ float factors[DECODE_HEADS][MOST_SEGMENTS];
    __shared__ bool is_last;
    const Cache& c = p.cache;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int group = c.heads / c.kv_heads, parts = (group + DECODE_HEADS - 1) / DECODE_HEADS;
    int row = blockIdx.z, kv_head = blockIdx.y / parts, part = blockIdx.y % parts;
    int first_head = kv_head * group + part * DECODE_HEADS, heads = min(DECODE_HEADS, group - part * DECODE_HEADS);
    let_next_start();
    wait_for_previous();

    uint32_t position = c.positions[row];
    size_t out = (size_t(row) * c.heads + first_head) * DIM;
    if (position == NOBODY) {
        if (blockIdx.x == 0) for (int i = threadIdx.x; i < heads * DIM; i += DECODE_THREADS) put<T>(p.out, out + i, 0.0f);
        return;
    }
    int length = int(position) + 1;
    int segment_length = (length + MOST_SEGMENTS * BLOCK - 1) / (MOST_SEGMENTS * BLOCK) * BLOCK;
    int segments = (length + segment_length - 1) / segment_length;

    Sweep<T, DIM, false, Crosswise> sweep;
#pragma unroll
    for (int chunk = 0; chunk < DIM / 32; chunk++) {
        uint4 q = no_bits();
        if (g < heads) q = load<uint4>(static_cast<const char*>(p.queries) + (out + g * DIM) * 2 + chunk * 64 + t * 16);
        for (int i = 0; i < 4; i++) sweep.queries[0][chunk][i] = word(q, i);
    }
    for (int segment = blockIdx.x; segment < segments; segment += gridDim.x) {
        int end = min(length, (segment + 1) * segment_length);
        sweep.start();
        for (int at = segment * segment_length + warp * STEP; at < end; at += DECODE_WARPS * STEP) {
            size_t block = cache_block(c, row, at, kv_head);
            const char* keys = static_cast<const char*>(c.keys) + (block + size_t(at % BLOCK) * DIM) * 2 + t * 16;
            const char* values = static_cast<const char*>(c.values) + (block + at % BLOCK) * 2 + t * 16;
            auto key = [&](int position, int chunk) { return load<uint4>(keys + position * (DIM * 2) + chunk * 64); };
            auto value = [&](int n) { return load<uint4>(values + (n * 8 + g) * (BLOCK * 2)); };
            int seen[1] = {end - at};
            sweep.step(key, value, seen, end - at, p.scale_log2);
        }
        // The second warp's share comes to the first.
        float most = sweep.most[0], sum = sweep.total(0);
        if (warp == 1) {
            for (int n = 0; n < DIM / 8; n++) for (int i = 0; i < 2; i++) other[g][n * 8 + 2 * t + i] = sweep.out[n][i];
            if (t == 0) { other_most[g] = most; other_sum[g] = sum; }
        }
        __syncthreads();
        // [row, head, segment]
        size_t partial = ((size_t(row) * c.heads + first_head) * MOST_SEGMENTS + segment) * (DIM + 2);
        if (warp == 0) {
            float both = fmaxf(most, other_most[g]);
            float mine = exp2f(most - both), others = exp2f(other_most[g] - both);
            sum = sum * mine + other_sum[g] * others;
            if (g < heads) {
                float* to = p.partial + partial + size_t(g) * MOST_SEGMENTS * (DIM + 2);
                for (int n = 0; n < DIM / 8; n++) {
                    for (int i = 0; i < 2; i++) {
                        int d = n * 8 + 2 * t + i;
                        float v = sweep.out[n][i] * mine + other[g][d] * others;
                        if (segments == 1) put<T>(p.out, out + g * DIM + d, v / sum);
                        else to[d] = v;
                    }
                }
                if (segments > 1 && t == 0) { to[DIM] = both; to[DIM + 1] = sum; }
            }
        }
        if (segments == 1) return;
        // Everybody's part is visible before this block says that it is done.
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t* done = p.done + size_t(row) * c.kv_heads * parts + blockIdx.y;
            is_last = atomicAdd(done, 1u) == uint32_t(segments - 1);
            // For the next launch.
            if (is_last) *done = 0;
        }
        __syncthreads();
        if (!is_last) continue;
        __threadfence();
        const float* from = p.partial + size_t(row * c.heads + first_head) * MOST_SEGMENTS * (DIM + 2);
        for (int head = threadIdx.x; head < heads; head += DECODE_THREADS) {
            const float* of = from + size_t(head) * MOST_SEGMENTS * (DIM + 2) + DIM;
            float largest = NOTHING, total = 0.0f;
            for (int s = 0; s < segments; s++) largest = fmaxf(largest, read_others(of + s * (DIM + 2)));
            for (int s = 0; s < segments; s++) {
                float factor = exp2f(read_others(of + s * (DIM + 2)) - largest);
                factors[head][s] = factor;
                total += factor * read_others(of + s * (DIM + 2) + 1);
            }
            for (int s = 0; s < segments; s++) factors[head][s] /= total;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < heads * DIM; i += DECODE_THREADS) {
            const float* of = from + size_t(i / DIM) * MOST_SEGMENTS * (DIM + 2) + i % DIM;
            float v = 0.0f;
            for (int s = 0; s < segments; s++) v = fmaf(factors[i / DIM][s], read_others(of + s * (DIM + 2)), v);
            put<T>(p.out, out + i, v);
        }
    }
}
