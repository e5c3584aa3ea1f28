// What is done to rows between the products: the token's embedding, and for more rows than a product norms itself, norm, RoPE and
// SiLU on their own. All of them move each value once and compute next to nothing.
//
// Floors on an H100 at 3.0 TB/s, Llama-3-8B in bf16, 2048 rows: embed 16.8 + 33.6 MB 16.8 us; norm 33.6 + 16.8 MB 16.8 us; place
// 25.2 + 25.2 MB 16.8 us; swiglu 117 + 59 MB 58.7 us; unpack of a layer's gate+up from Q4_0 66 + 235 MB 100 us. One row: the ramp
// of a launch, 2 us. Prediction, not a measurement: 80 % of the bandwidth, but 50 % for place, whose values go out crosswise.
#pragma once

#include "cache.cuh"
#include "norm.cuh"
#include "weight.cuh"

constexpr int ROW_THREADS = 256;

/// Mirrors `Embed` in src/cuda/params.rs.
struct Embed {
    Weight table;
    /// [rows]: what a row says, unless `from` says otherwise.
    const uint32_t* tokens;
    /// [rows]: the row of the last step whose choice this row says, or NOBODY.
    const uint32_t* from;
    /// [rows of the last step]
    const uint32_t* chosen;
    /// f32 [rows, k]
    float* stream;
    int32_t rows;
    int32_t k;
};

/// Row `row` of a packed matrix, eight values at a time: `write(k, pairs)` with f32 factors in place.
template <class T, template <class> class F, class Write> DEVICE void unpack_row(const Weight& w, int row, int k, Write write) {
    using W = F<T>;
    for (int i = threadIdx.x; i < w.groups * 4; i += ROW_THREADS) {
        int group = i / 4, t = i % 4;
        typename W::Read r = W::read(w, row, group, t);
        float whole = row_scale<W>(w, row);
        for (int chunk = 0; chunk < W::CHUNKS; chunk++) {
            int at = (group * W::CHUNKS + chunk) * 32 + t * 8;
            if (at >= k) break;
            uint32_t pairs[4];
            W::unpack(r, chunk, pairs);
            float scale = whole, offset = 0.0f;
            if constexpr (W::BLOCK_SCALES) {
                scale = W::scale(r, chunk);
                offset = W::offset(r, chunk);
            }
            float v[8];
            for (int j = 0; j < 4; j++) {
                v[2 * j] = fmaf(T::low(pairs[j]), scale, offset);
                v[2 * j + 1] = fmaf(T::high(pairs[j]), scale, offset);
            }
            write(at, v);
        }
    }
}

template <class T, template <class> class F> DEVICE void embed(const Embed& p) {
    int row = blockIdx.x;
    let_next_start();
    wait_for_previous();
    uint32_t from = p.from[row], token = from == NOBODY ? p.tokens[row] : p.chosen[from];
    // A row whose logits were broken chose no token; nobody reads what comes of it.
    token = token < uint32_t(p.table.rows) ? token : 0;
    float* stream = p.stream + size_t(row) * p.k;
    unpack_row<T, F>(p.table, int(token), p.k, [&](int at, const float(&v)[8]) {
        *reinterpret_cast<float4*>(stream + at) = float4{v[0], v[1], v[2], v[3]};
        *reinterpret_cast<float4*>(stream + at + 4) = float4{v[4], v[5], v[6], v[7]};
    });
}

/// A weight as plain row-major `T`, for a library's product: rows `first ..` of it, one per block. Mirrors `Unpack`.
struct Unpack {
    Weight weight;
    void* to;
    int32_t first;
    int32_t k;
};

template <class T, template <class> class F> DEVICE void unpack(const Unpack& p) {
    int row = blockIdx.x;
    wait_for_previous();
    char* to = static_cast<char*>(p.to) + size_t(row) * p.k * 2;
    unpack_row<T, F>(p.weight, p.first + row, p.k, [&](int at, const float(&v)[8]) {
        *reinterpret_cast<uint4*>(to + at * 2) = uint4{T::pack(v[0], v[1]), T::pack(v[2], v[3]), T::pack(v[4], v[5]), T::pack(v[6], v[7])};
    });
}

/// y[row] = norm(x[from[row]]): all rows, or those whose logits are wanted. Mirrors `Norm`.
struct Norm {
    /// f32 [.., k]
    const float* x;
    const float* gamma;
    /// [rows], or none: row by row.
    const uint32_t* from;
    /// `T` [rows, k]
    void* y;
    float eps;
    int32_t k;
};

template <class T> DEVICE void norm(const Norm& p) {
    __shared__ float sums[NORM_THREADS / 32];
    let_next_start();
    wait_for_previous();
    int row = blockIdx.x;
    const float* x = p.x + size_t(p.from ? p.from[row] : uint32_t(row)) * p.k;
    float sum = warp_sum(square_sum_share(x, p.k));
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    float factor = norm_factor(sums, 1, p.k, p.eps);
    norm_write<T>(x, p.gamma, factor, p.k, p.k, static_cast<char*>(p.y) + size_t(row) * p.k * 2);
}

/// Turned queries, and keys and values into the cache, from a product's rows `T` [rows, (heads + 2 kv_heads) dim]. Mirrors `Place`.
struct Place {
    Cache cache;
    const float* rope;
    const void* y;
    void* queries;
};

template <class T> DEVICE void place(const Place& p) {
    const Cache& c = p.cache;
    int row = blockIdx.x, half = c.dim / 2, heads = c.heads + 2 * c.kv_heads;
    let_next_start();
    wait_for_previous();
    for (int i = threadIdx.x; i < heads * half; i += ROW_THREADS) {
        size_t at = (size_t(row) * heads + i / half) * c.dim + i % half;
        place_pair<T>(c, p.rope, p.queries, row, i / half, i % half, get<T>(p.y, at), get<T>(p.y, at + half));
    }
}

/// hidden = SiLU(gate) * up, from rows of `ff` gates and `ff` ups in `T`; ff a multiple of 2. Mirrors `Swiglu`.
struct Swiglu {
    const void* gate_up;
    void* hidden;
    int32_t ff;
    int32_t rows;
};

template <class T> DEVICE void swiglu(const Swiglu& p) {
    int row = blockIdx.y, i = blockIdx.x * ROW_THREADS + threadIdx.x, pairs = p.ff / 2;
    let_next_start();
    wait_for_previous();
    if (i >= pairs) return;
    const uint32_t* gate = static_cast<const uint32_t*>(p.gate_up) + size_t(row) * p.ff;
    uint32_t g = gate[i], u = gate[pairs + i];
    auto one = [](float gate, float up) { return gate / (1.0f + __expf(-gate)) * up; };
    static_cast<uint32_t*>(p.hidden)[size_t(row) * pairs + i] = T::pack(one(T::low(g), T::low(u)), one(T::high(g), T::high(u)));
}
