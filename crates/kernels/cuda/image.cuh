// What image networks do between products, on pixels and rows whose channels lie side by side: group norm with SiLU, layer norm, and
// what follows a product (bias, residual, a shift per image, GELU, GEGLU), all in one pass each; and the windows of a convolution
// side by side for a library's product. Sums are f32 in one order: the same bits on every run.
//
// Floors on an H100 at 3.0 TB/s, SDXL at 1024 x 1024, two images, 16 bits: group norm of 128 x 128 x 320, 21 MB read twice and written
// once, 21 us, or 14 us as the second time finds it in the L2 cache; of 32 x 32 x 1280 5.2 MB, 5 us. Layer norm of 8192 x 640 21 MB, 7 us.
// Bias and residual on 8192 x 640 31 MB, 10.5 us; GEGLU of 8192 x 5120 84 + 42 MB, 42 us. Windows of 3 x 3 x 320 at 128 x 128 21 + 189 MB,
// 70 us. Prediction, not a measurement: 80 % of the bandwidth where more than 20 MB move; the ramps of launches, 2 us each, below.
#pragma once

#include "common.cuh"

constexpr int IMAGE_THREADS = 256;
/// Values of a layer norm's row at most: they stay in registers.
constexpr int MOST_WIDTH = 2048;

/// How 256 threads share out pixels of so many units of eight channels: columns first, 256 at a time.
struct Spread {
    int width, rows, row, unit;
    DEVICE Spread(int units, int chunk) {
        width = min(units - chunk, IMAGE_THREADS);
        rows = IMAGE_THREADS / width;
        row = threadIdx.x / width;
        unit = chunk + threadIdx.x % width;
    }
    /// The last threads may have no row.
    DEVICE bool works() const { return row < rows; }
};

/// Mean and squared distances of each group in each run of an image's pixels. Mirrors `GroupSums` in src/cuda/params.rs.
struct GroupSums {
    /// `T` [images, pixels, channels]
    const void* x;
    /// [images, runs, groups, 2]
    float* partial;
    int32_t pixels;
    int32_t channels;
    int32_t groups;
    /// Pixels of a run.
    int32_t run;
};

/// Each channel's distances from the image's first pixel are summed, so that nothing is lost where the mean is large; the channels
/// of a group come together after Chan, Golub and LeVeque (1979).
template <class T> DEVICE void group_sums(const GroupSums& p) {
    DYNAMIC_SHARED(shared);
    /// [16, threads]: eight sums, eight sums of squares.
    float* shares = reinterpret_cast<float*>(shared);
    /// [channels, 2]: the mean and the squared distances from it.
    float* channel = shares + 16 * IMAGE_THREADS;
    int first = blockIdx.x * p.run, count = min(p.run, p.pixels - first), image = blockIdx.y;
    let_next_start();
    wait_for_previous();
    for (int chunk = 0; chunk < p.channels / 8; chunk += IMAGE_THREADS) {
        Spread spread(p.channels / 8, chunk);
        size_t at = size_t(image) * p.pixels * p.channels + spread.unit * 8;
        float pivot[8], sum[8] = {}, squares[8] = {};
        Eight<T>::get(p.x, at, pivot);
        if (spread.works()) {
#pragma unroll 4
            for (int i = spread.row; i < count; i += spread.rows) {
                float v[8];
                Eight<T>::get(p.x, at + size_t(first + i) * p.channels, v);
                for (int j = 0; j < 8; j++) {
                    float d = v[j] - pivot[j];
                    sum[j] += d;
                    squares[j] = fmaf(d, d, squares[j]);
                }
            }
        }
        for (int j = 0; j < 8; j++) {
            shares[j * IMAGE_THREADS + threadIdx.x] = sum[j];
            shares[(8 + j) * IMAGE_THREADS + threadIdx.x] = squares[j];
            if (spread.row == 0) channel[(spread.unit * 8 + j) * 2] = pivot[j];
        }
        __syncthreads();
        for (int c = threadIdx.x; c < spread.width * 8; c += IMAGE_THREADS) {
            float s = 0.0f, q = 0.0f;
            for (int row = 0; row < spread.rows; row++) {
                int thread = row * spread.width + c / 8;
                s += shares[c % 8 * IMAGE_THREADS + thread];
                q += shares[(8 + c % 8) * IMAGE_THREADS + thread];
            }
            float* to = channel + (chunk * 8 + c) * 2;
            to[0] += s / float(count);
            to[1] = fmaxf(q - s * (s / float(count)), 0.0f);
        }
        __syncthreads();
    }
    int each = p.channels / p.groups;
    for (int group = threadIdx.x; group < p.groups; group += IMAGE_THREADS) {
        const float* of = channel + group * each * 2;
        float mean = 0.0f, squares = 0.0f;
        for (int c = 0; c < each; c++) mean += of[2 * c];
        mean /= float(each);
        for (int c = 0; c < each; c++) {
            float d = of[2 * c] - mean;
            squares += of[2 * c + 1] + float(count) * d * d;
        }
        float* to = p.partial + ((size_t(image) * gridDim.x + blockIdx.x) * p.groups + group) * 2;
        to[0] = mean;
        to[1] = squares;
    }
}

/// y = (x - mean) / sqrt(variance + eps) * weight + bias, then SiLU if wanted. Mirrors `GroupApply`.
struct GroupApply {
    const void* x;
    /// f32 [channels]
    const float* weight;
    const float* bias;
    /// Of `GroupSums`.
    const float* partial;
    void* y;
    int32_t pixels;
    int32_t channels;
    int32_t groups;
    int32_t runs;
    int32_t run;
    /// Pixels of a block.
    int32_t share;
    int32_t silu;
    float eps;
};

/// Over the eight lanes of a group.
DEVICE float eight_sum(float v) {
    for (int distance = 4; distance > 0; distance /= 2) v += __shfl_xor_sync(FULL, v, distance);
    return v;
}

template <class T> DEVICE void group_apply(const GroupApply& p) {
    DYNAMIC_SHARED(shared);
    /// [groups, 2]: the mean, and what the distance from it is multiplied by.
    float* stats = reinterpret_cast<float*>(shared);
    int image = blockIdx.y, each = p.channels / p.groups, lane = threadIdx.x % 8;
    let_next_start();
    wait_for_previous();
    for (int from = 0; from < p.groups; from += IMAGE_THREADS / 8) {
        int group = from + threadIdx.x / 8;
        const float* partial = p.partial + (size_t(image) * p.runs * p.groups + group) * 2;
        auto over_runs = [&](auto value) {
            float sum = 0.0f;
            if (group < p.groups) {
                for (int run = lane; run < p.runs; run += 8) {
                    const float* of = partial + size_t(run) * p.groups * 2;
                    sum += value(float(min(p.run, p.pixels - run * p.run)), of[0], of[1]);
                }
            }
            return eight_sum(sum);
        };
        float mean = over_runs([](float pixels, float mean, float) { return pixels * mean; }) / float(p.pixels);
        float squares = over_runs([&](float pixels, float of_run, float squares) {
            float d = of_run - mean;
            return squares + pixels * float(each) * d * d;
        });
        if (lane == 0 && group < p.groups) {
            stats[2 * group] = mean;
            stats[2 * group + 1] = 1.0f / sqrtf(squares / (float(p.pixels) * float(each)) + p.eps);
        }
    }
    __syncthreads();
    int first = blockIdx.x * p.share, count = min(p.share, p.pixels - first);
    for (int chunk = 0; chunk < p.channels / 8; chunk += IMAGE_THREADS) {
        Spread spread(p.channels / 8, chunk);
        if (!spread.works()) continue;
        float mean[8], scale[8], bias[8];
        Eight<F32>::get(p.weight, spread.unit * 8, scale);
        Eight<F32>::get(p.bias, spread.unit * 8, bias);
        for (int j = 0; j < 8; j++) {
            const float* of = stats + (spread.unit * 8 + j) / each * 2;
            mean[j] = of[0];
            scale[j] *= of[1];
        }
        size_t at = (size_t(image) * p.pixels + first) * p.channels + spread.unit * 8;
#pragma unroll 2
        for (int i = spread.row; i < count; i += spread.rows) {
            float v[8];
            Eight<T>::get(p.x, at + size_t(i) * p.channels, v);
            for (int j = 0; j < 8; j++) {
                v[j] = fmaf(v[j] - mean[j], scale[j], bias[j]);
                if (p.silu) v[j] = v[j] / (1.0f + __expf(-v[j]));
            }
            Eight<T>::put(p.y, at + size_t(i) * p.channels, v);
        }
    }
}

/// y = (x - mean) / sqrt(variance + eps) * weight + bias of every row, one warp a row. Mirrors `LayerNorm`.
struct LayerNorm {
    /// `T`, rows `stride` values apart
    const void* x;
    /// f32 [width]
    const float* weight;
    const float* bias;
    /// `T` [rows, width]
    void* y;
    int32_t rows;
    int32_t width;
    int32_t stride;
    float eps;
};

template <class T> DEVICE void layer_norm(const LayerNorm& p) {
    constexpr int MOST = MOST_WIDTH / 256;
    int row = blockIdx.x * (IMAGE_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32, units = p.width / 8;
    let_next_start();
    wait_for_previous();
    // A whole warp at a time.
    if (row >= p.rows) return;
    float v[MOST][8], sum = 0.0f;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        if (i * 32 + lane >= units) continue;
        Eight<T>::get(p.x, size_t(row) * p.stride + (i * 32 + lane) * 8, v[i]);
        for (int j = 0; j < 8; j++) sum += v[i][j];
    }
    float mean = warp_sum(sum) / float(p.width), squares = 0.0f;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        if (i * 32 + lane >= units) continue;
        for (int j = 0; j < 8; j++) {
            v[i][j] -= mean;
            squares = fmaf(v[i][j], v[i][j], squares);
        }
    }
    float factor = 1.0f / sqrtf(warp_sum(squares) / float(p.width) + p.eps);
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        if (i * 32 + lane >= units) continue;
        float weight[8], bias[8];
        Eight<F32>::get(p.weight, (i * 32 + lane) * 8, weight);
        Eight<F32>::get(p.bias, (i * 32 + lane) * 8, bias);
        for (int j = 0; j < 8; j++) v[i][j] = fmaf(v[i][j] * factor, weight[j], bias[j]);
        Eight<T>::put(p.y, size_t(row) * p.width + (i * 32 + lane) * 8, v[i]);
    }
}

/// What follows a product: y = activation(x + bias + shift of the row's image) + residual. Mirrors `Finish`. y may be x but for GEGLU.
struct Finish {
    /// `T` [rows, width]; for GEGLU [rows, 2 width], the values and then their gates
    const void* x;
    /// f32, as wide as x; or none
    const float* bias;
    /// `T` [rows, width], or none
    const void* residual;
    /// f32 [images, width], rows `shift_stride` apart; or none
    const float* shift;
    void* y;
    int32_t rows;
    int32_t width;
    /// Rows of an image.
    int32_t rows_each;
    int32_t shift_stride;
};

/// By the error function.
DEVICE float gelu(float v) { return 0.5f * v * (1.0f + erff(v * 0.70710678f)); }

enum Activation { NONE, GELU, GEGLU };

template <class T, int KIND> DEVICE void finish(const Finish& p) {
    uint32_t units = p.width / 8, at = blockIdx.x * IMAGE_THREADS + threadIdx.x, row = at / units, column = at % units * 8;
    let_next_start();
    wait_for_previous();
    if (row >= uint32_t(p.rows)) return;
    float v[8], more[8];
    auto add = [&](const float* from) {
        Eight<F32>::get(from, 0, more);
        for (int j = 0; j < 8; j++) v[j] += more[j];
    };
    size_t x_width = size_t(p.width) * (KIND == GEGLU ? 2 : 1);
    Eight<T>::get(p.x, row * x_width + column, v);
    if (p.bias) add(p.bias + column);
    if (p.shift) add(p.shift + size_t(row / p.rows_each) * p.shift_stride + column);
    if (KIND == GELU) for (int j = 0; j < 8; j++) v[j] = gelu(v[j]);
    if (KIND == GEGLU) {
        float gate[8];
        Eight<T>::get(p.x, row * x_width + p.width + column, gate);
        if (p.bias) {
            Eight<F32>::get(p.bias + p.width, column, more);
            for (int j = 0; j < 8; j++) gate[j] += more[j];
        }
        for (int j = 0; j < 8; j++) v[j] *= gelu(gate[j]);
    }
    if (p.residual) {
        Eight<T>::get(p.residual, size_t(row) * p.width + column, more);
        for (int j = 0; j < 8; j++) v[j] += more[j];
    }
    Eight<T>::put(p.y, size_t(row) * p.width + column, v);
}

/// The window of every pixel of a convolution's result, its places one behind the other, zeros outside the image. With a kernel of 1
/// and `doubled`, the image with every pixel four times. Mirrors `Columns`.
struct Columns {
    /// [images, height, width, units] of `Unit`
    const void* x;
    /// [count, kernel * kernel * units] of `Unit`
    void* y;
    int32_t height;
    int32_t width;
    int32_t units;
    int32_t kernel;
    int32_t stride;
    /// Zeros above and left of the image.
    int32_t top;
    int32_t left;
    /// Of the result.
    int32_t rows;
    int32_t columns;
    /// 1: the image is taken as twice as high and wide.
    int32_t doubled;
    /// Pixels of the result: the first one, and how many.
    int32_t first;
    int32_t count;
};

template <class Unit> DEVICE void columns(const Columns& p) {
    uint32_t each = p.kernel * p.kernel * p.units, at = blockIdx.x * IMAGE_THREADS + threadIdx.x;
    uint32_t pixel = at / each, place = at % each / p.units, unit = at % p.units;
    let_next_start();
    wait_for_previous();
    if (pixel >= uint32_t(p.count)) return;
    uint32_t result = p.first + pixel, image = result / (p.rows * p.columns), inside = result % (p.rows * p.columns);
    int y = int(inside / p.columns) * p.stride + int(place) / p.kernel - p.top;
    int x = int(inside % p.columns) * p.stride + int(place) % p.kernel - p.left;
    Unit v = {};
    if (y >= 0 && x >= 0 && y < p.height << p.doubled && x < p.width << p.doubled) {
        size_t from = (size_t(image) * p.height + (y >> p.doubled)) * p.width + (x >> p.doubled);
        v = static_cast<const Unit*>(p.x)[from * p.units + unit];
    }
    static_cast<Unit*>(p.y)[at] = v;
}
