//! Rows to lanes: what lies piece after piece in each row comes to lie row beside row for each piece. Refuses to know what
//! the pieces are.

/// Of every row, so many bytes are turned before the next ones: a cache line is read once.
const LINE_BYTES: usize = 64;

/// What a tile takes of each row, and gives for each piece.
const TILE_BYTES: usize = 16;

/// Piece `i` of row `r`, `SIZE` bytes (2 or 4), goes to `to[i * pitch + r * SIZE..]`. The rows are equally long.
pub fn turn<const SIZE: usize>(rows: &[&[u8]], to: &mut [u8], pitch: usize) {
    let side = TILE_BYTES / SIZE;
    let bytes = rows.first().map_or(0, |row| row.len());
    for line in (0..bytes).step_by(LINE_BYTES) {
        let end = bytes.min(line + LINE_BYTES);
        for (group, rows) in rows.chunks(side).enumerate() {
            let mut at = line;
            if rows.len() == side {
                while at + TILE_BYTES <= end {
                    tile::<SIZE>(rows, at, &mut to[at / SIZE * pitch + group * TILE_BYTES..], pitch);
                    at += TILE_BYTES;
                }
            }
            pieces::<SIZE>(rows, at..end, &mut to[group * TILE_BYTES..], pitch);
        }
    }
}

/// One by one.
fn pieces<const SIZE: usize>(rows: &[&[u8]], bytes: std::ops::Range<usize>, to: &mut [u8], pitch: usize) {
    for at in bytes.step_by(SIZE) {
        for (row, to) in rows.iter().zip(to[at / SIZE * pitch..].chunks_exact_mut(SIZE)) {
            to.copy_from_slice(&row[at..at + SIZE]);
        }
    }
}

/// The 16 bytes at `at` of as many rows as they are pieces.
#[cfg(not(target_arch = "x86_64"))]
fn tile<const SIZE: usize>(rows: &[&[u8]], at: usize, to: &mut [u8], pitch: usize) {
    let rows: Vec<&[u8]> = rows.iter().map(|row| &row[at..at + TILE_BYTES]).collect();
    pieces::<SIZE>(&rows, 0..TILE_BYTES, to, pitch);
}

/// The 16 bytes at `at` of as many rows as they are pieces, in registers that every x86-64 has: neighbouring rows are
/// interleaved by pieces, then by pairs of them, until a register has one piece of all rows.
#[cfg(target_arch = "x86_64")]
fn tile<const SIZE: usize>(rows: &[&[u8]], at: usize, to: &mut [u8], pitch: usize) {
    use std::arch::x86_64::{
        __m128i, _mm_loadu_si128, _mm_storeu_si128, _mm_unpackhi_epi16 as high_2, _mm_unpackhi_epi32 as high_4,
        _mm_unpackhi_epi64 as high_8, _mm_unpacklo_epi16 as low_2, _mm_unpacklo_epi32 as low_4,
        _mm_unpacklo_epi64 as low_8,
    };
    let row = |r: usize| {
        let bytes = &rows[r][at..at + TILE_BYTES];
        // SAFETY: as many bytes as are loaded.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast::<__m128i>()) }
    };
    let mut store = |piece: usize, bytes: __m128i| {
        let to = &mut to[piece * pitch..][..TILE_BYTES];
        // SAFETY: as many bytes as are stored.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast::<__m128i>(), bytes) };
    };
    // SAFETY: SSE2 is part of x86-64.
    unsafe {
        // From four registers of pairs of pieces, two rows each where those are pieces of four bytes: see below.
        let mut quarters = |first: usize, [a, b, c, d]: [__m128i; 4]| {
            let (ab, cd) = ([low_4(a, b), high_4(a, b)], [low_4(c, d), high_4(c, d)]);
            for half in 0..2 {
                store(first + 2 * half, low_8(ab[half], cd[half]));
                store(first + 2 * half + 1, high_8(ab[half], cd[half]));
            }
        };
        match SIZE {
            2 => {
                let pairs = |r: usize| (low_2(row(r), row(r + 1)), high_2(row(r), row(r + 1)));
                let (a, b, c, d) = (pairs(0), pairs(2), pairs(4), pairs(6));
                quarters(0, [a.0, b.0, c.0, d.0]);
                quarters(4, [a.1, b.1, c.1, d.1]);
            }
            _ => quarters(0, [row(0), row(1), row(2), row(3)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::turn;
    use crate::testing::Random;

    fn every_piece_is_where_it_belongs<const SIZE: usize>(lanes: usize, count: usize, pitch: usize) {
        let mut random = Random::fresh();
        let of_byte = |value: f32| (value * 64.0) as i32 as u8;
        let bytes: Vec<u8> = random.normal(lanes * count * SIZE).into_iter().map(of_byte).collect();
        let rows: Vec<&[u8]> = bytes.chunks(count * SIZE).collect();
        let mut to = vec![0; count * pitch];
        turn::<SIZE>(&rows, &mut to, pitch);
        for (lane, row) in rows.iter().enumerate() {
            for (piece, value) in row.chunks(SIZE).enumerate() {
                let at = piece * pitch + lane * SIZE;
                let seed = random.seed;
                assert_eq!(to[at..at + SIZE], *value, "{SIZE} bytes, piece {piece}, lane {lane}; seed {seed}");
            }
        }
        let rest = to.chunks(pitch).flat_map(|piece| &piece[lanes * SIZE..]);
        assert!(rest.copied().all(|byte| byte == 0), "beside the lanes nothing is written");
    }

    #[test]
    fn every_piece_of_every_row_is_where_it_belongs_whole_tiles_or_not() {
        for (lanes, count) in [(64, 96), (16, 8), (16, 4), (13, 37), (1, 1), (64, 33), (8, 64), (5, 8)] {
            every_piece_is_where_it_belongs::<2>(lanes, count, 130);
            every_piece_is_where_it_belongs::<4>(lanes, count, 260);
        }
    }
}
