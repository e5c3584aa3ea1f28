// Attention: the arithmetic of one step, sixteen queries by 32 positions, that every kernel of it shares. After FlashAttention-2
// (Dao 2023): scores and weights stay in registers, with a running maximum and sum.
//
// Scores s = q k^T come out of the tensor cores as lane 4g + t holding queries g and g + 8, columns 2t and 2t + 1 of four tiles
// j. They are the operand of the second product, out = weights v, as they are: nothing moves between lanes. Which position a column
// stands for is free, and follows from how values lie (`Crosswise`, `Straight`); keys come with 16-byte loads either way.
#pragma once

#include "cache.cuh"

/// Positions of one step.
constexpr int STEP = 32;
constexpr float NOTHING = -INFINITY;

/// Values of the paged cache, [dim, positions]: column n of tile j is position 8 (n / 2) + 2j + n % 2, so that lane t holds the
/// eight neighbouring positions 8t .. 8t + 7, 16 bytes of a value row.
struct Crosswise {
    DEVICE static int position(int tile, int column) { return column / 2 * 8 + 2 * tile + column % 2; }
};
/// Values as a product leaves them, [positions, dim]: columns are positions one after the other, and shared memory turns the values.
struct Straight {
    DEVICE static int position(int tile, int column) { return 8 * tile + column; }
};

/// The first `n` of eight values; zeros behind. What lies behind may be anything, and 0 * NaN is NaN.
DEVICE uint4 keep_first(uint4 v, int n) {
    auto masked = [&](uint32_t pair, int i) { return n >= 2 * i + 2 ? pair : n == 2 * i + 1 ? pair & 0xffffu : 0u; };
    uint4 kept = {masked(v.x, 0), masked(v.y, 1), masked(v.z, 2), masked(v.w, 3)};
    return kept;
}

/// Sixteen queries on their way over the positions; `HIGH` where rows g + 8 are queries too.
template <class T, int DIM, bool HIGH, class Order> struct Sweep {
    static constexpr int ROWS = HIGH ? 2 : 1;
    /// Rows g and g + 8: of every 32 values the eight of this lane, as pairs.
    uint32_t queries[ROWS][DIM / 32][4];
    /// Of out, columns 8n + 2t and 8n + 2t + 1 of rows g, then g + 8; relative to `most`.
    float out[DIM / 8][4];
    /// The largest score so far, times log2 e. The same in the four lanes of a row.
    float most[ROWS];
    /// Of the weights this lane has seen.
    float sum[ROWS];

    DEVICE void start() {
        for (int n = 0; n < DIM / 8; n++) for (int i = 0; i < 4; i++) out[n][i] = 0.0f;
        for (int r = 0; r < ROWS; r++) { most[r] = NOTHING; sum[r] = 0.0f; }
    }

    /// `key(position, chunk)` gives this lane's 16 bytes of a key's chunk of 32 values; `value(n)` those of columns 8n .. 8n + 7 of
    /// the 32 values: crosswise, column 8n + g at positions 8t .. 8t + 7. `seen[r]` positions of the step are visible to row
    /// r; `written` of them have been written at all, which crosswise need not be all.
    template <class Key, class Value> DEVICE void step(Key key, Value value, const int* seen, int written, float scale_log2) {
        int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        float s[4][4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            for (int i = 0; i < 4; i++) s[j][i] = 0.0f;
#pragma unroll
            for (int c = 0; c < DIM / 32; c++) {
                uint4 k = key(Order::position(j, g), c);
                const uint32_t* a = queries[0][c];
                const uint32_t* b = queries[ROWS - 1][c];
                multiply_add<T>(s[j], a[0], HIGH ? b[0] : 0u, a[1], HIGH ? b[1] : 0u, k.x, k.y);
                multiply_add<T>(s[j], a[2], HIGH ? b[2] : 0u, a[3], HIGH ? b[3] : 0u, k.z, k.w);
            }
        }
        uint32_t weights[2][4] = {};
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float largest = most[r];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                for (int i = 0; i < 2; i++) {
                    float& score = s[j][2 * r + i];
                    score = Order::position(j, 2 * t + i) < seen[r] ? score * scale_log2 : NOTHING;
                    largest = fmaxf(largest, score);
                }
            }
            largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, 2));
            // A row that has seen nothing yet has weights of 0, not e^(-inf + inf).
            float base = largest == NOTHING ? 0.0f : largest;
            float factor = exp2f(most[r] - base);
            most[r] = largest;
            sum[r] *= factor;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float low = exp2f(s[j][2 * r] - base), high = exp2f(s[j][2 * r + 1] - base);
                sum[r] += low + high;
                weights[r][j] = T::pack(low, high);
            }
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                out[n][2 * r] *= factor;
                out[n][2 * r + 1] *= factor;
            }
        }
        const uint32_t* a = weights[0];
        const uint32_t* b = weights[1];
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) {
            uint4 v = value(n);
            if (written < STEP) v = keep_first(v, written - 8 * t);
            multiply_add<T>(out[n], a[0], b[0], a[1], b[1], v.x, v.y);
            multiply_add<T>(out[n], a[2], b[2], a[3], b[3], v.z, v.w);
        }
    }

    /// Writes row r as `T`, at this value of `to`.
    DEVICE void write(int r, void* to, size_t at, float total) const {
        int t = threadIdx.x % 4;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) {
            uint32_t pair = T::pack(out[n][2 * r] / total, out[n][2 * r + 1] / total);
            reinterpret_cast<uint32_t*>(to)[(at + n * 8 + 2 * t) / 2] = pair;
        }
    }

    /// The sum of a whole row.
    DEVICE float total(int r) const {
        float all = sum[r];
        all += __shfl_xor_sync(FULL, all, 1);
        return all + __shfl_xor_sync(FULL, all, 2);
    }
};

/// Blocks of 64 positions one after the other through two halves of shared memory, the next on its way while the last is used:
/// `fetch(block, half)` begins its copies, `use(block, half)` reads them.
template <class Fetch, class Use> DEVICE void through_shared(int blocks, Fetch fetch, Use use) {
    fetch(0, 0);
    close_copies();
    for (int block = 0; block < blocks; block++) {
        if (block + 1 < blocks) fetch(block + 1, (block + 1) % 2);
        close_copies();
        wait_for_copies<1>();
        __syncthreads();
        use(block, block % 2);
        __syncthreads();
    }
}
