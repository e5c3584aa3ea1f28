// Few rows of activations times a weight matrix: y[n][m] = sum over k of w[m][k] x[n][k], n up to 8; batch.cuh takes more. At so few
// rows the time is that of reading the weights once, so everything else is arranged round that stream.
//
// A block of eight warps takes tiles of 16 weight rows, one after the other (the grid is as large as the machine holds at
// once). The warps share out k in eight slices; within a slice the tensor cores add up in rising k; slices 0 to 3 are added up in
// order, then 4 to 7, then the two. This order hangs on the matrix alone, and batch.cuh keeps it: a row of the result has the same
// bits at 1 and at 256 rows, whatever is in the other rows and however large the grid is. Weights come in 16-byte loads straight
// into the operand registers, up to eight of them in flight per thread, the next while the last are multiplied, and the first
// before the previous kernel has ended. The matrix instruction takes eight columns whether there are one or eight rows: few rows
// cost what one costs.
//
// What stands before and behind the sum is fused: the RMS norm of x, and an `Op`: RoPE and the write to the cache, SiLU(gate) * up,
// the residual. The two weight rows that such an epilogue needs together are rows g and g + 8 of one tile, so they meet in
// one thread.
//
// Floors on an H100 (3.0 TB/s; 2 m k n operations at 798 TFLOP/s in bf16), Llama-3-8B, one row, bf16 / Q8_0 / Q4_0:
//   qkv      6144 x 4096    50 /  27 /  14 MB   16.8 / 8.9 / 4.7 us     0.06 us
//   o        4096 x 4096    34 /  18 /   9 MB   11.2 / 5.9 / 3.1 us     0.04 us
//   gate+up 28672 x 4096   235 / 125 /  66 MB   78.3 / 41.6 / 22.0 us   0.29 us
//   down     4096 x 14336  117 /  62 /  33 MB   39.1 / 20.8 / 11.0 us   0.15 us
//   head   128256 x 4096  1051 / 558 / 295 MB  350.2 / 186.0 / 98.5 us  1.3 us
// Prediction, not a measurement: 90 % of the bandwidth for bf16, 80 % for the small packed ones, as the ramp of a launch is about
// 2 us. Eight normed rows read 128 kB of x per block from the L2 cache, 34 MB a launch: 6 us, partly hidden.
#pragma once

#include "cache.cuh"
#include "norm.cuh"
#include "weight.cuh"

constexpr int PRODUCT_WARPS = 8;
constexpr int PRODUCT_THREADS = PRODUCT_WARPS * 32;
static_assert(PRODUCT_THREADS == NORM_THREADS, "a product's block norms rows");
/// Blocks that a multiprocessor holds at once, so at most 128 registers a thread.
constexpr int PRODUCT_BLOCKS = 2;

/// What every product is told. Mirrors `Product` in src/cuda/params.rs.
struct Product {
    Weight weight;
    /// [rows, k]: f32, to be normed, or `T`.
    const void* x;
    /// [k], or none.
    const float* gamma;
    float eps;
    int32_t rows;
    int32_t k;
    /// From one normed row in shared memory to the next, in bytes.
    int32_t row_bytes;
};

/// One chunk of 32 values into the sums of a tile: two weight rows' pairs and a row of x.
template <class T, class W>
DEVICE void multiply_chunk(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], const typename W::Read& read_a,
                           const typename W::Read& read_b, int chunk, uint4 x) {
    if constexpr (W::BLOCK_SCALES) {
        // Whole numbers into the tensor cores; the block's scale in f32 behind them.
        float block[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        multiply_add<T>(block, a[0], b[0], a[1], b[1], x.x, x.y);
        multiply_add<T>(block, a[2], b[2], a[3], b[3], x.z, x.w);
        float scale_a = W::scale(read_a, chunk), scale_b = W::scale(read_b, chunk);
        sum[0] = fmaf(scale_a, block[0], sum[0]);
        sum[1] = fmaf(scale_a, block[1], sum[1]);
        sum[2] = fmaf(scale_b, block[2], sum[2]);
        sum[3] = fmaf(scale_b, block[3], sum[3]);
        if constexpr (W::BLOCK_OFFSETS) {
            // The offset meets the sum of x: a product with ones.
            float all[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            uint32_t one = T::pack(1.0f, 1.0f);
            multiply_add<T>(all, one, one, one, one, x.x, x.y);
            multiply_add<T>(all, one, one, one, one, x.z, x.w);
            float offset_a = W::offset(read_a, chunk), offset_b = W::offset(read_b, chunk);
            sum[0] = fmaf(offset_a, all[0], sum[0]);
            sum[1] = fmaf(offset_a, all[1], sum[1]);
            sum[2] = fmaf(offset_b, all[2], sum[2]);
            sum[3] = fmaf(offset_b, all[3], sum[3]);
        }
    } else {
        multiply_add<T>(sum, a[0], b[0], a[1], b[1], x.x, x.y);
        multiply_add<T>(sum, a[2], b[2], a[3], b[3], x.z, x.w);
    }
}

/// The operands of x for one chunk of 32 values: lane 4g + t has the eight values 8t.. of row g.
template <class T, bool NORM> DEVICE uint4 x_of(const Product& p, const char* normed, int row, int chunk, int t) {
    if (row >= p.rows) return no_bits();
    if constexpr (NORM) return load<uint4>(normed + size_t(row) * p.row_bytes + chunk * 64 + t * 16);
    if (chunk * 32 >= p.k) return no_bits();
    return load<uint4>(static_cast<const char*>(p.x) + size_t(row) * p.k * 2 + chunk * 64 + t * 16);
}

/// Where slice `slice` of k begins, in groups.
DEVICE int slice_start(const Weight& w, int slice) { return slice * w.groups / PRODUCT_WARPS; }

/// The sums of a pair of weight rows and a row of x, scaled, go where the `Op` puts them.
template <class W, class Op> DEVICE void finish(const typename Op::Params& params, int tile, int g, int n, float a, float b) {
    if constexpr (W::ROW_SCALES) {
        a *= row_scale<W>(params.product.weight, Op::row_a(params, tile, g));
        b *= row_scale<W>(params.product.weight, Op::row_b(params, tile, g));
    }
    Op::store(params, tile, g, n, a, b);
}

/// `Op` says which weight rows make a tile (`row_a(p, tile, g)`, `row_b`) and what becomes of their sums
/// (`store(p, tile, g, n, a, b)`, called once per pair). At most 8 rows of x: f32 to be normed with `NORM`, else `T`.
template <class T, template <class> class F, class Op, bool NORM> DEVICE void product(const typename Op::Params& params) {
    using W = F<T>;
    constexpr int AHEAD = W::AHEAD;
    DYNAMIC_SHARED(normed);
    __shared__ float parts[2][PRODUCT_WARPS][8][16];
    const Product& p = params.product;
    const Weight& w = p.weight;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int first = slice_start(w, warp), end = slice_start(w, warp + 1);
    int tiles = Op::tiles(params);

    typename W::Read next_a[AHEAD], next_b[AHEAD];
    auto fetch = [&](int tile, int group) {
        int a = Op::row_a(params, tile, g), b = Op::row_b(params, tile, g);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (group + i < end) {
                next_a[i] = W::read(w, a, group + i, t);
                next_b[i] = W::read(w, b, group + i, t);
            }
        }
    };
    int tile = blockIdx.x;
    if (tile < tiles) fetch(tile, first);
    let_next_start();
    wait_for_previous();

    if constexpr (NORM) {
        __shared__ float sums[PRODUCT_WARPS][8];
        const float* x = static_cast<const float*>(p.x);
        for (int row = 0; row < p.rows; row++) {
            float sum = warp_sum(square_sum_share(x + size_t(row) * p.k, p.k));
            if (lane == 0) sums[warp][row] = sum;
        }
        __syncthreads();
        int padded = w.groups * W::CHUNKS * 32;
        for (int row = 0; row < p.rows; row++) {
            float factor = norm_factor(&sums[0][row], 8, p.k, p.eps);
            norm_write<T>(x + size_t(row) * p.k, p.gamma, factor, p.k, padded, normed + size_t(row) * p.row_bytes);
        }
        __syncthreads();
    }

    for (int turn = 0; tile < tiles; tile += gridDim.x, turn ^= 1) {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int group = first; group < end; group += AHEAD) {
            typename W::Read now_a[AHEAD], now_b[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                now_a[i] = next_a[i];
                now_b[i] = next_b[i];
            }
            bool last = group + AHEAD >= end;
            int next_tile = last ? tile + int(gridDim.x) : tile;
            if (next_tile < tiles) fetch(next_tile, last ? first : group + AHEAD);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (group + i >= end) break;
#pragma unroll
                for (int c = 0; c < W::CHUNKS; c++) {
                    uint32_t a[4], b[4];
                    W::unpack(now_a[i], c, a);
                    W::unpack(now_b[i], c, b);
                    uint4 x = x_of<T, NORM>(p, normed, g, (group + i) * W::CHUNKS + c, t);
                    multiply_chunk<T, W>(sum, a, b, now_a[i], now_b[i], c, x);
                }
            }
        }
        // Two buffers in turn: whoever still reads the last tile's sums is not overtaken, with one barrier per tile.
        for (int i = 0; i < 4; i++) parts[turn][warp][2 * t + (i & 1)][g + 8 * (i >> 1)] = sum[i];
        __syncthreads();
        int n = threadIdx.x / 8, row = threadIdx.x % 8;
        if (n >= p.rows) continue;
        float a[2] = {0.0f, 0.0f}, b[2] = {0.0f, 0.0f};
        for (int from = 0; from < PRODUCT_WARPS; from++) {
            a[from / 4] += parts[turn][from][n][row];
            b[from / 4] += parts[turn][from][n][row + 8];
        }
        finish<W, Op>(params, tile, row, n, a[0] + a[1], b[0] + b[1]);
    }
}

// ---- What becomes of a product ----

/// f32 [rows, m], a tile for sixteen weight rows as they come: y[n][m], or with `ONTO` what is there takes it in.
template <class T, bool ONTO> struct Whole {
    struct Params {
        Product product;
        float* to;
    };
    DEVICE static int tiles(const Params& p) { return (p.product.weight.rows + 15) / 16; }
    /// A matrix may end within a tile: its last row stands in, and is not stored.
    DEVICE static int row_a(const Params& p, int tile, int g) { return min(tile * 16 + g, p.product.weight.rows - 1); }
    DEVICE static int row_b(const Params& p, int tile, int g) { return min(tile * 16 + 8 + g, p.product.weight.rows - 1); }
    DEVICE static void store(const Params& p, int tile, int g, int n, float a, float b) {
        int rows = p.product.weight.rows, m = tile * 16 + g;
        float* to = p.to + size_t(n) * rows;
        if (m < rows) to[m] = ONTO ? to[m] + a : a;
        if (m + 8 < rows) to[m + 8] = ONTO ? to[m + 8] + b : b;
    }
};
/// The residual stream.
template <class T> using Add = Whole<T, true>;
/// The logits.
template <class T> using Head = Whole<T, false>;

/// h[n][j] = SiLU(gate) * up in `T`, from the stacked matrix of ff gate rows above ff up rows; ff a multiple of 8.
template <class T> struct GateUp {
    struct Params {
        Product product;
        /// [rows, ff]
        void* hidden;
    };
    DEVICE static int half(const Params& p) { return p.product.weight.rows / 2; }
    DEVICE static int tiles(const Params& p) { return half(p) / 8; }
    DEVICE static int row_a(const Params&, int tile, int g) { return tile * 8 + g; }
    DEVICE static int row_b(const Params& p, int tile, int g) { return half(p) + tile * 8 + g; }
    DEVICE static void store(const Params& p, int tile, int g, int n, float gate, float up) {
        put<T>(p.hidden, size_t(n) * half(p) + tile * 8 + g, gate / (1.0f + __expf(-gate)) * up);
    }
};

/// Queries, keys and values of a layer: the heads' rows one below the other, `dim` each, a multiple of 16. A tile is eight pairs
/// of one head.
template <class T> struct Qkv {
    struct Params {
        Product product;
        Cache cache;
        const float* rope;
        void* queries;
    };
    DEVICE static int per_head(const Params& p) { return p.cache.dim / 16; }
    DEVICE static int tiles(const Params& p) { return (p.cache.heads + 2 * p.cache.kv_heads) * per_head(p); }
    DEVICE static int pair(const Params& p, int tile, int g) { return tile % per_head(p) * 8 + g; }
    DEVICE static int row_a(const Params& p, int tile, int g) { return tile / per_head(p) * p.cache.dim + pair(p, tile, g); }
    DEVICE static int row_b(const Params& p, int tile, int g) { return row_a(p, tile, g) + p.cache.dim / 2; }
    DEVICE static void store(const Params& p, int tile, int g, int n, float a, float b) {
        place_pair<T>(p.cache, p.rope, p.queries, n, tile / per_head(p), pair(p, tile, g), a, b);
    }
};
