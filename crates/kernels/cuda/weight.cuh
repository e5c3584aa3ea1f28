// How a weight matrix lies in memory and becomes operands of the matrix instruction. Refuses to know what it is multiplied by.
//
// A matrix is [rows, k], cut along k into groups. Of one row, a group is 64 bytes: four lanes load 16 each. Lane t of the four
// holds, of every chunk of 32 values in the group, the values 8t .. 8t+7. So plain 16-bit weights lie as they do in the file
// (a group is one chunk), and packed ones are reordered once at load: 8 bits have two chunks in a group, 4 bits have four. A row
// ends on a whole group; what is over is zero. Scales are in a plane of their own, [rows, groups, chunks].
//
// Within 16 bytes, bytes e of a chunk's eight stand in the order 0 2 1 3 4 6 5 7, and nibbles e in a 32-bit word at bit
// 4 (e / 2) + 16 (e % 2): two masks then give a pair of values in the low bits of the halves of a register.
#pragma once

#include "common.cuh"

/// Mirrors `Weight` in src/cuda/params.rs.
struct Weight {
    const void* quants;
    /// None for plain weights; f32 per row for those scaled by rows.
    const void* scales;
    int32_t rows;
    /// Of one row, counted in 64 bytes.
    int32_t groups;
};

/// What four lanes read of one row, and the scales of it.
template <int CHUNKS> struct Raw {
    uint4 values;
    uint32_t scales[CHUNKS];
};

DEVICE uint4 quants_of(const Weight& w, int row, int group, int t) {
    return load_once(static_cast<const char*>(w.quants) + (size_t(row) * w.groups + group) * 64 + t * 16);
}

/// The same with `WORDS` words of scales behind the group.
template <int WORDS> DEVICE Raw<WORDS> scaled_quants_of(const Weight& w, int row, int group, int t) {
    Raw<WORDS> r;
    r.values = quants_of(w, row, group, t);
    const uint32_t* scales = static_cast<const uint32_t*>(w.scales) + (size_t(row) * w.groups + group) * WORDS;
    if constexpr (WORDS == 1) {
        r.scales[0] = *scales;
    } else if constexpr (WORDS == 2) {
        uint2 s = load<uint2>(scales);
        r.scales[0] = s.x;
        r.scales[1] = s.y;
    } else {
        uint4 s = load<uint4>(scales);
        for (int i = 0; i < WORDS; i++) r.scales[i] = word(s, i);
    }
    return r;
}

/// bf16 or f16 as they are. `AHEAD` groups of two rows are on their way to a thread at once: as many as registers allow.
template <class T> struct Plain {
    static constexpr int CHUNKS = 1, AHEAD = 4;
    static constexpr bool BLOCK_SCALES = false, BLOCK_OFFSETS = false, ROW_SCALES = false;
    using Read = Raw<1>;
    DEVICE static Read read(const Weight& w, int row, int group, int t) {
        Read r;
        r.values = quants_of(w, row, group, t);
        return r;
    }
    /// The eight values of this lane in a chunk, as pairs.
    DEVICE static void unpack(const Read& r, int, uint32_t (&pairs)[4]) {
        for (int i = 0; i < 4; i++) pairs[i] = word(r.values, i);
    }
};

/// Eight bits, two's complement, one f16 scale per 32 values: GGUF's Q8_0.
template <class T> struct Q8_0 {
    static constexpr int CHUNKS = 2, AHEAD = 4;
    static constexpr bool BLOCK_SCALES = true, BLOCK_OFFSETS = false, ROW_SCALES = false;
    using Read = Raw<1>;
    DEVICE static Read read(const Weight& w, int row, int group, int t) { return scaled_quants_of<1>(w, row, group, t); }
    DEVICE static void unpack(const Read& r, int chunk, uint32_t (&pairs)[4]) {
        for (int i = 0; i < 4; i++) pairs[i] = T::from_signed(word(r.values, 2 * chunk + i / 2) >> (i % 2 * 8) & 0x00ff00ffu);
    }
    DEVICE static float scale(const Read& r, int chunk) { return chunk ? F16::high(r.scales[0]) : F16::low(r.scales[0]); }
    DEVICE static float offset(const Read&, int) { return 0.0f; }
};

DEVICE uint32_t nibbles(const uint4& v, int chunk, int pair) { return word(v, chunk) >> (4 * pair) & 0x000f000fu; }

/// Four bits less 8, one f16 scale per 32 values: GGUF's Q4_0.
template <class T> struct Q4_0 {
    static constexpr int CHUNKS = 4, AHEAD = 4;
    static constexpr bool BLOCK_SCALES = true, BLOCK_OFFSETS = false, ROW_SCALES = false;
    using Read = Raw<2>;
    DEVICE static Read read(const Weight& w, int row, int group, int t) { return scaled_quants_of<2>(w, row, group, t); }
    DEVICE static void unpack(const Read& r, int chunk, uint32_t (&pairs)[4]) {
        for (int i = 0; i < 4; i++) pairs[i] = T::from_nibbles(nibbles(r.values, chunk, i), true);
    }
    DEVICE static float scale(const Read& r, int chunk) {
        uint32_t pair = chunk / 2 ? r.scales[1] : r.scales[0];
        return chunk % 2 ? F16::high(pair) : F16::low(pair);
    }
    DEVICE static float offset(const Read&, int) { return 0.0f; }
};

/// Four bits, an f16 scale and an f16 offset per 32 values: GGUF's Q4_1.
template <class T> struct Q4_1 {
    static constexpr int CHUNKS = 4, AHEAD = 2;
    static constexpr bool BLOCK_SCALES = true, BLOCK_OFFSETS = true, ROW_SCALES = false;
    using Read = Raw<4>;
    DEVICE static Read read(const Weight& w, int row, int group, int t) { return scaled_quants_of<4>(w, row, group, t); }
    DEVICE static void unpack(const Read& r, int chunk, uint32_t (&pairs)[4]) {
        for (int i = 0; i < 4; i++) pairs[i] = T::from_nibbles(nibbles(r.values, chunk, i), false);
    }
    DEVICE static float scale(const Read& r, int chunk) { return F16::low(r.scales[chunk]); }
    DEVICE static float offset(const Read& r, int chunk) { return F16::high(r.scales[chunk]); }
};

/// Eight bits, one f32 scale per row: whole numbers or, with `E4M3`, fp8.
template <class T, bool E4M3> struct EightBits {
    static constexpr int CHUNKS = 2, AHEAD = 4;
    static constexpr bool BLOCK_SCALES = false, BLOCK_OFFSETS = false, ROW_SCALES = true;
    using Read = Raw<1>;
    DEVICE static Read read(const Weight& w, int row, int group, int t) {
        Read r;
        r.values = quants_of(w, row, group, t);
        return r;
    }
    DEVICE static void unpack(const Read& r, int chunk, uint32_t (&pairs)[4]) {
        for (int i = 0; i < 4; i++) {
            uint32_t bytes = word(r.values, 2 * chunk + i / 2) >> (i % 2 * 8) & 0x00ff00ffu;
            pairs[i] = E4M3 ? T::from_e4m3(bytes) : T::from_signed(bytes);
        }
    }
};
template <class T> using Int8 = EightBits<T, false>;
template <class T> using Fp8 = EightBits<T, true>;

/// The factor of a whole row, where there is one.
template <class W> DEVICE float row_scale(const Weight& w, int row) {
    if constexpr (W::ROW_SCALES) return static_cast<const float*>(w.scales)[row];
    else return 1.0f;
}
