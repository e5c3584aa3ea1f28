// Attention of images and texts: every row of a part of the batch over the keys and values of its part, all of them or those up to
// its own place, read where a product left them. A block takes 64 rows of one head, sixteen per warp, and goes over the keys
// 64 at a time in shared memory, the next on their way while the last are used. No score leaves the registers.
//
// Rows of DIM values in shared memory: unit u (16 bytes) of key row r stands at u ^ 4 (r % 2), as eight lanes read two rows at
// once; of value row r at u ^ (r % 8), as eight lanes read one unit of eight rows. Each touches every bank once.
//
// Floors on an H100, SDXL at 1024 x 1024, two images, heads of 64: 4096 rows of 10 heads 2 x 4 x 640 x 4096^2 = 85.9 GFLOP, 108 us at
// 798 TFLOP/s; 1024 rows of 20 heads 10.7 GFLOP, 13 us; 4096 rows over 77 tokens 1.6 GFLOP, 21 MB of rows, 7 us at 3.0 TB/s.
// Prediction, not a measurement: 30 % of the operations' rate. mma.m16n8k16 without wgmma reaches at best 60 % of it on this
// chip, and sixteen rows per warp read shared memory, 128 bytes a clock, for 25 % longer than they multiply.
#pragma once

#include "attention.cuh"

constexpr int ATTEND_WARPS = 4;
constexpr int ATTEND_THREADS = ATTEND_WARPS * 32;
constexpr int ATTEND_ROWS = ATTEND_WARPS * 16;

/// Mirrors `Attend` in src/cuda/params.rs. A head is DIM neighbouring values of a row.
struct Attend {
    /// [parts * rows] rows of `T`, `query_stride` values apart
    const void* queries;
    /// [parts * seen] rows of `T`
    const void* keys;
    const void* values;
    /// [parts * rows, heads * DIM] in `T`
    void* out;
    int32_t query_stride;
    int32_t key_stride;
    int32_t value_stride;
    int32_t rows;
    int32_t seen;
    /// Row r of a part sees positions 0 .. r + ahead - 1, as far as there are any.
    int32_t ahead;
    float scale_log2;
    int32_t heads;
};

template <class T, int DIM> DEVICE void attend(const Attend& p) {
    DYNAMIC_SHARED(shared);
    constexpr int UNITS = DIM / 8, LINE = DIM * 2, PLANE = BLOCK * LINE;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int first = blockIdx.x * ATTEND_ROWS, head = blockIdx.y, part = blockIdx.z;
    let_next_start();
    wait_for_previous();
    const char* queries = static_cast<const char*>(p.queries) + (size_t(part) * p.rows * p.query_stride + head * DIM) * 2;
    const char* all_keys = static_cast<const char*>(p.keys) + (size_t(part) * p.seen * p.key_stride + head * DIM) * 2;
    const char* all_values = static_cast<const char*>(p.values) + (size_t(part) * p.seen * p.value_stride + head * DIM) * 2;

    Sweep<T, DIM, true, Straight> sweep;
    sweep.start();
    /// How many positions rows g and g + 8 of this warp see; none behind the last row.
    int sees[2];
    auto row_of = [&](int r) { return first + warp * 16 + r * 8 + g; };
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = row_of(r);
        sees[r] = row < p.rows ? min(p.seen, row + p.ahead) : 0;
#pragma unroll
        for (int chunk = 0; chunk < DIM / 32; chunk++) {
            uint4 q = no_bits();
            if (sees[r] > 0) q = load<uint4>(queries + size_t(row) * p.query_stride * 2 + chunk * 64 + t * 16);
            for (int i = 0; i < 4; i++) sweep.queries[r][chunk][i] = word(q, i);
        }
    }
    // Of the whole block: the last row sees most.
    int most = min(p.seen, min(first + ATTEND_ROWS, p.rows) - 1 + p.ahead);
    auto fetch = [&](int block, int buffer) {
        char* keys = shared + buffer * 2 * PLANE;
        char* values = keys + PLANE;
        for (int i = threadIdx.x; i < BLOCK * UNITS; i += ATTEND_THREADS) {
            int row = i / UNITS, unit = i % UNITS, position = block * BLOCK + row;
            char* key = keys + row * LINE + (unit ^ row % 2 * 4) * 16;
            char* value = values + row * LINE + (unit ^ row % 8) * 16;
            if (position < p.seen) {
                copy_async(key, all_keys + size_t(position) * p.key_stride * 2 + unit * 16);
                copy_async(value, all_values + size_t(position) * p.value_stride * 2 + unit * 16);
            } else {
                // A weight of 0 times whatever lay here might be NaN.
                *reinterpret_cast<uint4*>(key) = no_bits();
                *reinterpret_cast<uint4*>(value) = no_bits();
            }
        }
    };
    auto use = [&](int block, int buffer) {
        const char* keys = shared + buffer * 2 * PLANE;
        const char* values = keys + PLANE;
#pragma unroll 1
        for (int half = 0; half < BLOCK; half += STEP) {
            int from = block * BLOCK + half;
            if (from >= most) break;
            auto key = [&](int position, int chunk) {
                int row = half + position;
                return load<uint4>(keys + row * LINE + ((chunk * 4 + t) ^ row % 2 * 4) * 16);
            };
            auto value = [&](int n) {
                int row = half + lane;
                return load_turned(values + row * LINE + (n ^ row % 8) * 16);
            };
            int seen[2] = {sees[0] - from, sees[1] - from};
            sweep.step(key, value, seen, STEP, p.scale_log2);
        }
    };
    through_shared((most + BLOCK - 1) / BLOCK, fetch, use);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float total = sweep.total(r);
        size_t at = (size_t(part) * p.rows + row_of(r)) * p.heads * DIM + head * DIM;
        if (sees[r] > 0) sweep.write(r, p.out, at, total);
    }
}
