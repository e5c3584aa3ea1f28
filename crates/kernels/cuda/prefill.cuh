// Attention of prompts: rows that follow one another in one sequence, each seeing the positions up to its own. A block takes a tile
// of at most 64 (row, head) pairs under one key head, sixteen per warp, and goes over the sequence's cache blocks from the first:
// 64 keys and values at a time in shared memory, the next on their way while the last are used. A pair's sum has one order,
// whatever tile it is in, so a prompt may be cut into chunks anywhere.
//
// Rows of 16 bytes units in shared memory: unit u of row r stands at u ^ 4 (r % 2), so that the eight lanes that read two rows
// at once touch every bank once.
//
// Floors on an H100, Llama-3-8B, one prompt of 512: 32 heads x 4 x 128 x 512 x 513 / 2 = 2.2 GFLOP a layer, 2.7 us at 798
// TFLOP/s; 4.2 MB of queries and output, 2.1 MB of cache, 2.1 us. Prediction, not a measurement: a third of the operations' rate, as
// mma.m16n8k16 without wgmma reaches at best 60 % of it on this chip.
#pragma once

#include "attention.cuh"

constexpr int PREFILL_WARPS = 4;
constexpr int PREFILL_THREADS = PREFILL_WARPS * 32;
constexpr int PREFILL_PAIRS = PREFILL_WARPS * 16;

/// Mirrors `Prefill` in src/cuda/params.rs.
struct Prefill {
    Cache cache;
    /// [rows, heads, dim] in `T`
    const void* queries;
    /// [rows, heads, dim] in `T`
    void* out;
    /// [tiles, 2]: the first row, and how many; at most PREFILL_PAIRS / group.
    const uint32_t* tiles;
    float scale_log2;
    int32_t rows;
};

template <class T, int DIM> DEVICE void prefill(const Prefill& p) {
    DYNAMIC_SHARED(shared);
    constexpr int PLANE = BLOCK * DIM * 2;
    const Cache& c = p.cache;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int group = c.heads / c.kv_heads, kv_head = blockIdx.y;
    wait_for_previous();
    let_next_start();
    int first = p.tiles[2 * blockIdx.x], count = p.tiles[2 * blockIdx.x + 1];
    // The rows of a tile follow one another in one sequence.
    int start = int(c.positions[first]), last = start + count - 1;

    Sweep<T, DIM, true, Crosswise> sweep;
    sweep.start();
    /// How many positions rows g and g + 8 of this warp see; none where the tile has no such pair.
    int sees[2];
    size_t at[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int pair = warp * 16 + r * 8 + g, row = pair / group;
        sees[r] = row < count ? start + row + 1 : 0;
        at[r] = (size_t(first + row) * c.heads + kv_head * group + pair % group) * DIM;
#pragma unroll
        for (int chunk = 0; chunk < DIM / 32; chunk++) {
            uint4 q = no_bits();
            if (sees[r] > 0) q = load<uint4>(static_cast<const char*>(p.queries) + at[r] * 2 + chunk * 64 + t * 16);
            for (int i = 0; i < 4; i++) sweep.queries[r][chunk][i] = word(q, i);
        }
    }
    auto fetch = [&](int block, int buffer) {
        size_t from = cache_block(c, first, block * BLOCK, kv_head) * 2;
        char* keys = shared + buffer * 2 * PLANE;
        for (int i = threadIdx.x; i < PLANE / 16; i += PREFILL_THREADS) {
            int key_row = i / (DIM / 8), key_unit = i % (DIM / 8);
            copy_async(keys + key_row * (DIM * 2) + (key_unit ^ key_row % 2 * 4) * 16, static_cast<const char*>(c.keys) + from + size_t(i) * 16);
            int row = i / (BLOCK / 8), unit = i % (BLOCK / 8);
            copy_async(keys + PLANE + row * (BLOCK * 2) + (unit ^ row % 2 * 4) * 16, static_cast<const char*>(c.values) + from + size_t(i) * 16);
        }
    };
    auto use = [&](int block, int buffer) {
        const char* keys = shared + buffer * 2 * PLANE;
        const char* values = keys + PLANE;
#pragma unroll 1
        for (int half = 0; half < BLOCK; half += STEP) {
            int from = block * BLOCK + half;
            if (from > last) break;
            auto key = [&](int position, int chunk) {
                int row = half + position;
                return load<uint4>(keys + row * (DIM * 2) + ((chunk * 4 + t) ^ row % 2 * 4) * 16);
            };
            auto value = [&](int n) {
                int row = n * 8 + g;
                return load<uint4>(values + row * (BLOCK * 2) + ((half / 8 + t) ^ row % 2 * 4) * 16);
            };
            int seen[2] = {sees[0] - from, sees[1] - from};
            sweep.step(key, value, seen, last + 1 - from, p.scale_log2);
        }
    };
    through_shared(last / BLOCK + 1, fetch, use);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float total = sweep.total(r);
        if (sees[r] > 0) sweep.write(r, p.out, at[r], total);
    }
}
