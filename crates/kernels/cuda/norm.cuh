// RMS norm of a row by a block of 256 threads: y = x / sqrt(mean(x^2) + eps) * gamma. One order of the sum for everybody
// who norms (alone or inside a product), so that a row's bits do not hang on how many rows there are.
#pragma once

#include "common.cuh"

constexpr int NORM_THREADS = 256;

/// This thread's share of the sum of squares of a row of `k` floats, k a multiple of 4.
DEVICE float square_sum_share(const float* x, int k) {
    float sum = 0.0f;
    for (int i = threadIdx.x * 4; i < k; i += NORM_THREADS * 4) {
        float4 v = load<float4>(x + i);
        sum = fmaf(v.x, v.x, sum);
        sum = fmaf(v.y, v.y, sum);
        sum = fmaf(v.z, v.z, sum);
        sum = fmaf(v.w, v.w, sum);
    }
    return sum;
}

/// The factor of a row from the sums of its eight warps, `apart` floats from one another.
DEVICE float norm_factor(const float* sums, int apart, int k, float eps) {
    float sum = 0.0f;
    for (int w = 0; w < NORM_THREADS / 32; w++) sum += sums[w * apart];
    return 1.0f / sqrtf(sum / float(k) + eps);
}

/// Writes the normed row as `T`, `padded` values of it: zeros behind `k`.
template <class T> DEVICE void norm_write(const float* x, const float* gamma, float factor, int k, int padded, char* y) {
    for (int i = threadIdx.x * 4; i < padded; i += NORM_THREADS * 4) {
        uint2 pairs = {0, 0};
        if (i < k) {
            float4 v = load<float4>(x + i), g = load<float4>(gamma + i);
            pairs.x = T::pack(v.x * factor * g.x, v.y * factor * g.y);
            pairs.y = T::pack(v.z * factor * g.z, v.w * factor * g.w);
        }
        *reinterpret_cast<uint2*>(y + i * 2) = pairs;
    }
}
