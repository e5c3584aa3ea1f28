// The product of product.cuh for any number of rows, 64 at a time, in the same order of every sum.
//
// A block takes 64 weight rows (a warp 16 of them) and 64 rows of x. Two halves of four warps share out the eight slices of k. The
// weights still go from memory straight into operand registers, each byte once, and x comes through shared memory, 128 values of
// each row at a time, the next while the last are used. Blocks that read the same weights for other rows of x are neighbours in
// the grid, so that memory is read once.
//
// Why not cuBLAS, which is faster from 128 rows on: its sums hang on the number of rows, so a batch would change what a prediction
// says; it takes no packed weights; and it knows nothing of RoPE, cache and SiLU. Prompts, where nobody decodes beside them, may
// take it (`Kernels::product`).
//
// Floors on an H100, Llama-3-8B, bf16, 64 rows: the bytes of one row (a layer 145 us) against 2 x 64 x 218M = 28 GFLOP, 35 us.
// x adds as many bytes as the weights from the L2 cache (436 MB a layer and 64 rows, 80 us at 5.5 TB/s, beside them); its reads
// from shared memory bound the tensor cores to about 400 TFLOP/s. Prediction, not a measurement: 75 % of the bandwidth up to 64
// rows; at 256 rows 280 us a layer, half the machine's arithmetic.
#pragma once

#include "product.cuh"

/// Of x, and of weights in tiles of 16.
constexpr int BATCH_ROWS = 64;
constexpr int BATCH_TILES = 4;
constexpr int BATCH_THREADS = 256;
/// Values of k that are in shared memory together.
constexpr int STAGE = 128;
constexpr int STAGE_UNITS = STAGE * 2 / 16;
constexpr int STAGE_BYTES = BATCH_ROWS * STAGE * 2;

/// A stretch of a slice of k, in groups.
struct Stretch {
    int slice;
    int group;
    int end;
};

template <class T, template <class> class F, class Op> DEVICE void batch(const typename Op::Params& params) {
    using W = F<T>;
    constexpr int GROUPS = STAGE / (W::CHUNKS * 32), SLICES = PRODUCT_WARPS / 2;
    DYNAMIC_SHARED(shared);
    const Product& p = params.product;
    const Weight& w = p.weight;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int half = warp / BATCH_TILES, tiles = Op::tiles(params), own = blockIdx.y * BATCH_TILES + warp % BATCH_TILES;
    // A warp without a tile of its own goes along with the last one, and stores nothing.
    int tile = min(own, tiles - 1), a = Op::row_a(params, tile, g), b = Op::row_b(params, tile, g);
    int first_row = blockIdx.x * BATCH_ROWS, rows = min(BATCH_ROWS, p.rows - first_row);

    int last_slice = (half + 1) * SLICES;
    auto settle = [&](Stretch& s) {
        while (s.slice < last_slice && s.group >= s.end) {
            s.slice++;
            s.end = slice_start(w, s.slice + 1);
        }
    };
    Stretch next = {half * SLICES, slice_start(w, half * SLICES), slice_start(w, half * SLICES + 1)};
    settle(next);
    // Both halves go round equally often: they meet at barriers.
    int turns = 0;
    for (int h = 0; h < 2; h++) {
        int count = 0;
        for (int s = h * SLICES; s < (h + 1) * SLICES; s++) count += (slice_start(w, s + 1) - slice_start(w, s) + GROUPS - 1) / GROUPS;
        turns = max(turns, count);
    }

    typename W::Read next_a[GROUPS], next_b[GROUPS];
    auto fetch = [&](const Stretch& s) {
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            if (s.group + i < s.end) {
                next_a[i] = W::read(w, a, s.group + i, t);
                next_b[i] = W::read(w, b, s.group + i, t);
            }
        }
    };
    auto stage = [&](const Stretch& s, int buffer) {
        char* to = shared + (buffer * 2 + half) * STAGE_BYTES;
        int k = s.group * W::CHUNKS * 32;
        for (int i = threadIdx.x % (BATCH_THREADS / 2); i < rows * STAGE_UNITS; i += BATCH_THREADS / 2) {
            int row = i / STAGE_UNITS, unit = i % STAGE_UNITS;
            char* at = to + row * (STAGE * 2) + (unit ^ row % 2 * 4) * 16;
            // Behind k there are weights of zero, and anything times zero must be zero.
            if (k + unit * 8 < p.k) copy_async(at, static_cast<const char*>(p.x) + (size_t(first_row + row) * p.k + k + unit * 8) * 2);
            else *reinterpret_cast<uint4*>(at) = no_bits();
        }
    };
    if (next.slice < last_slice) fetch(next);
    let_next_start();
    wait_for_previous();
    if (next.slice < last_slice) stage(next, 0);
    close_copies();

    /// Of the slice at hand, and of the slices before it.
    float sum[BATCH_ROWS / 8][4], total[BATCH_ROWS / 8][4];
#pragma unroll
    for (int n = 0; n < BATCH_ROWS / 8; n++) {
        for (int i = 0; i < 4; i++) sum[n][i] = total[n][i] = 0.0f;
    }
    for (int turn = 0; turn < turns; turn++) {
        Stretch now = next;
        bool some = now.slice < last_slice;
        typename W::Read now_a[GROUPS], now_b[GROUPS];
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            now_a[i] = next_a[i];
            now_b[i] = next_b[i];
        }
        next.group += GROUPS;
        if (next.group > next.end) next.group = next.end;
        settle(next);
        bool more = next.slice < last_slice;
        if (more) fetch(next);
        wait_for_copies<0>();
        // This stage is there, and nobody reads the one before any longer.
        __syncthreads();
        if (more) stage(next, (turn + 1) % 2);
        close_copies();
        if (!some) continue;
        const char* x = shared + (turn % 2 * 2 + half) * STAGE_BYTES;
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            if (now.group + i >= now.end) break;
#pragma unroll
            for (int c = 0; c < W::CHUNKS; c++) {
                uint32_t pairs_a[4], pairs_b[4];
                W::unpack(now_a[i], c, pairs_a);
                W::unpack(now_b[i], c, pairs_b);
#pragma unroll
                for (int n = 0; n < BATCH_ROWS / 8; n++) {
                    if (n * 8 >= rows) break;
                    int row = n * 8 + g, unit = (i * W::CHUNKS + c) * 4 + t;
                    uint4 v = load<uint4>(x + row * (STAGE * 2) + (unit ^ row % 2 * 4) * 16);
                    multiply_chunk<T, W>(sum[n], pairs_a, pairs_b, now_a[i], now_b[i], c, v);
                }
            }
        }
        if (now.group + GROUPS < now.end) continue;
#pragma unroll
        for (int n = 0; n < BATCH_ROWS / 8; n++) {
            for (int i = 0; i < 4; i++) {
                total[n][i] += sum[n][i];
                sum[n][i] = 0.0f;
            }
        }
    }
    __syncthreads();
    // The second half's sums come to the first.
    float* parts = reinterpret_cast<float*>(shared) + (warp % BATCH_TILES) * (BATCH_ROWS / 8) * 4 * 32;
    if (half == 1) {
#pragma unroll
        for (int n = 0; n < BATCH_ROWS / 8; n++) {
            for (int i = 0; i < 4; i++) parts[(n * 4 + i) * 32 + lane] = total[n][i];
        }
    }
    __syncthreads();
    if (half == 1 || own >= tiles) return;
#pragma unroll
    for (int n = 0; n < BATCH_ROWS / 8; n++) {
        for (int i = 0; i < 2; i++) {
            int row = n * 8 + 2 * t + i;
            if (row >= rows) continue;
            float of_a = total[n][i] + parts[(n * 4 + i) * 32 + lane], of_b = total[n][i + 2] + parts[(n * 4 + i + 2) * 32 + lane];
            finish<W, Op>(params, tile, g, first_row + row, of_a, of_b);
        }
    }
}
