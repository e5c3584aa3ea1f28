// Where keys and values lie, and how a head's pair turns by its position. Refuses to know who computed them.
//
// The cache of a layer is blocks of 64 positions: keys [blocks, kv_heads, 64, dim], values [blocks, kv_heads, dim, 64]. Values
// lie crosswise so that attention reads both as rows of its inner dimension. Position p of a row is at place p % 64 of the block
// in entry p / 64 of the row's table.
#pragma once

#include "common.cuh"

/// Mirrors `Cache` in src/cuda/params.rs.
struct Cache {
    void* keys;
    void* values;
    /// [rows, table_blocks]
    const uint32_t* tables;
    /// [rows]; NOBODY where a row is not in use.
    const uint32_t* positions;
    int32_t table_blocks;
    int32_t heads;
    int32_t kv_heads;
    int32_t dim;
};

DEVICE size_t cache_block(const Cache& c, int row, uint32_t position, int kv_head) {
    size_t block = c.tables[size_t(row) * c.table_blocks + position / BLOCK];
    return (block * c.kv_heads + kv_head) * size_t(BLOCK) * c.dim;
}

/// Values i and i + dim/2 of head `head` (queries, then keys, then values) of a row: turned, and put where they belong.
/// `rope` is [positions, dim]: dim/2 cosines, then dim/2 sines. `queries` is [rows, heads, dim] in `T`.
template <class T>
DEVICE void place_pair(const Cache& c, const float* rope, void* queries, int row, int head, int i, float a, float b) {
    uint32_t position = c.positions[row];
    if (position == NOBODY) return;
    int half = c.dim / 2, kv_head = head - c.heads, place = position % BLOCK;
    if (kv_head >= c.kv_heads) {
        kv_head -= c.kv_heads;
        size_t at = cache_block(c, row, position, kv_head) + place;
        put<T>(c.values, at + size_t(i) * BLOCK, a);
        put<T>(c.values, at + size_t(i + half) * BLOCK, b);
        return;
    }
    const float* angles = rope + size_t(position) * c.dim;
    float cos = angles[i], sin = angles[half + i];
    float x = fmaf(a, cos, -(b * sin)), y = fmaf(b, cos, a * sin);
    if (kv_head < 0) {
        size_t at = (size_t(row) * c.heads + head) * c.dim;
        put<T>(queries, at + i, x);
        put<T>(queries, at + half + i, y);
    } else {
        size_t at = cache_block(c, row, position, kv_head) + size_t(place) * c.dim;
        put<T>(c.keys, at + i, x);
        put<T>(c.keys, at + half + i, y);
    }
}
