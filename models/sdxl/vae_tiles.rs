//! A large image in tiles that overlap by a quarter and fade into each other, so that memory does not grow with the image.
//! Tiles, overlaps and weights are those of diffusers' `enable_vae_tiling`: a tile sees nothing beyond its edge, so the
//! result differs a little from that of the whole image, and not from diffusers'. Refuses to know what is done to a tile.

use candle_core::{Result, Tensor};

/// Sides of a tile before and after.
#[derive(Clone, Copy, Debug)]
pub struct Tiles {
    pub from: usize,
    pub to: usize,
}

/// One finished tile: `[height, width, channels]`.
struct Tile {
    values: Vec<f32>,
    height: usize,
    width: usize,
    channels: usize,
}

/// `x` is `[1, height, width, channels]`, and so is the result.
pub fn tiled(x: &Tensor, tiles: &Tiles, apply: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let (_, height, width, _) = x.dims4()?;
    let step = (tiles.from * 3 / 4).max(1);
    let fade = tiles.to / 4;
    // What of a tile is kept; the rest fades into the next one.
    let kept = tiles.to - fade;
    let mut above: Vec<Tile> = Vec::new();
    let mut bands: Vec<Tile> = Vec::new();
    for top in (0..height).step_by(step) {
        let mut row: Vec<Tile> = Vec::new();
        for left in (0..width).step_by(step) {
            let part = x.narrow(1, top, tiles.from.min(height - top))?.narrow(2, left, tiles.from.min(width - left))?;
            let mut tile = Tile::of(&apply(&part.contiguous()?)?)?;
            if let Some(above) = above.get(row.len()) {
                tile.fade_down(above, fade);
            }
            if let Some(before) = row.last() {
                tile.fade_right(before, fade);
            }
            row.push(tile);
        }
        bands.push(beside(&row, kept));
        above = row;
    }
    let (width, channels) = bands.first().map_or((0, 0), |band| (band.width, band.channels));
    let height = bands.iter().map(|band| band.height).sum::<usize>();
    let values = bands.into_iter().flat_map(|band| band.values).collect::<Vec<_>>();
    Tensor::from_vec(values, (1, height, width, channels), x.device())
}

/// The kept parts of a row of tiles.
fn beside(row: &[Tile], kept: usize) -> Tile {
    let height = row.first().map_or(0, |tile| tile.height.min(kept));
    let width = row.iter().map(|tile| tile.width.min(kept)).sum();
    let channels = row.first().map_or(0, |tile| tile.channels);
    let lines = (0..height).flat_map(|y| row.iter().map(move |tile| &tile.line(y)[..tile.width.min(kept) * channels]));
    Tile { values: lines.collect::<Vec<_>>().concat(), height, width, channels }
}

impl Tile {
    fn of(x: &Tensor) -> Result<Tile> {
        let (_, height, width, channels) = x.dims4()?;
        Ok(Tile { values: x.flatten_all()?.to_vec1()?, height, width, channels })
    }

    fn line(&self, y: usize) -> &[f32] {
        &self.values[y * self.width * self.channels..][..self.width * self.channels]
    }

    /// Its first lines come out of the last ones of the tile above.
    fn fade_down(&mut self, above: &Tile, most: usize) {
        let fade = most.min(above.height).min(self.height);
        let width = self.width * self.channels;
        for y in 0..fade {
            let from = above.line(above.height - fade + y);
            mix(&mut self.values[y * width..][..width], from, y as f32 / fade as f32);
        }
    }

    /// Its first columns come out of the last ones of the tile before.
    fn fade_right(&mut self, before: &Tile, most: usize) {
        let fade = most.min(before.width).min(self.width);
        let (width, channels) = (self.width * self.channels, self.channels);
        for y in 0..self.height {
            for x in 0..fade {
                let from = &before.line(y)[(before.width - fade + x) * channels..][..channels];
                mix(&mut self.values[y * width + x * channels..][..channels], from, x as f32 / fade as f32);
            }
        }
    }
}

/// `from * (1 - share) + to * share`.
fn mix(to: &mut [f32], from: &[f32], share: f32) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from * (1.0 - share) + *to * share);
}
