//! Where a recording has a voice and where it may be cut, from its loudness alone. Refuses to know words.

use super::config::FRAMES;

/// Frames that are looked at together: 0.1 s.
const SMOOTHED: usize = 10;
/// What the quietest tenth of a recording is exceeded by where somebody speaks: 8 dB, as a decimal logarithm of power.
const ABOVE_FLOOR: f32 = 0.8;
/// Nothing below -60 dB of full scale is a voice.
const QUIETEST_VOICE: f32 = -6.0;
/// Nothing above -30 dB is held for background.
const LOUDEST_FLOOR: f32 = -3.0;
/// Frames before and behind a voice that belong to it: 0.3 s.
const MARGIN: usize = 30;
/// A pause shorter than this is part of speech: 0.6 s.
const SHORT_PAUSE: usize = 60;
/// Of a stretch that has to be cut in the middle of speech: how far before its end the quietest place is looked for, 8 s.
const CUT_WITHIN: usize = 800;

/// Stretches with a voice, in frames, from the loudness of every frame (the decimal logarithm of its mean power).
pub fn voices(loudness: &[f32]) -> Vec<(usize, usize)> {
    let smooth: Vec<f32> = (0..loudness.len()).map(|at| around(loudness, at)).collect();
    let mut sorted = smooth.clone();
    sorted.sort_by(f32::total_cmp);
    let floor = sorted.get(sorted.len() / 10).copied().unwrap_or(0.0).min(LOUDEST_FLOOR - ABOVE_FLOOR);
    let threshold = (floor + ABOVE_FLOOR).max(QUIETEST_VOICE);
    let mut voices: Vec<(usize, usize)> = Vec::new();
    for at in (0..smooth.len()).filter(|&at| smooth[at] > threshold) {
        let (from, to) = (at.saturating_sub(MARGIN), (at + 1 + MARGIN).min(smooth.len()));
        match voices.last_mut() {
            Some((_, end)) if from <= *end + SHORT_PAUSE => *end = to,
            _ => voices.push((from, to)),
        }
    }
    voices
}

/// The mean loudness of neighbouring frames.
fn around(loudness: &[f32], at: usize) -> f32 {
    let part = &loudness[at.saturating_sub(SMOOTHED / 2)..(at + SMOOTHED / 2).min(loudness.len())];
    part.iter().sum::<f32>() / part.len() as f32
}

/// Voices gathered into stretches of a window at most: cut at pauses, or at the quietest place where there is none.
pub fn stretches(loudness: &[f32], end: usize) -> Vec<(usize, usize)> {
    let mut stretches: Vec<(usize, usize)> = Vec::new();
    for (mut from, to) in voices(loudness) {
        let to = to.min(end);
        if let Some((start, last)) = stretches.last_mut()
            && to.saturating_sub(*start) <= FRAMES
        {
            *last = to;
            continue;
        }
        while to.saturating_sub(from) > FRAMES {
            let within = from + FRAMES - CUT_WITHIN..from + FRAMES;
            let quietest = within.min_by(|&a, &b| around(loudness, a).total_cmp(&around(loudness, b)));
            let cut = quietest.unwrap_or(from + FRAMES);
            stretches.push((from, cut));
            from = cut;
        }
        if to > from {
            stretches.push((from, to));
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loudness with voices at these frames over a quiet room.
    fn room(frames: usize, voices: &[(usize, usize)]) -> Vec<f32> {
        let voice = |at: usize| voices.iter().any(|&(from, to)| (from..to).contains(&at));
        (0..frames).map(|at| if voice(at) { -2.0 } else { -5.5 } + (at % 7) as f32 * 0.02).collect()
    }

    #[test]
    fn voices_are_found_with_their_margins_and_short_pauses_belong_to_them() {
        let found = voices(&room(3000, &[(500, 800), (850, 1000), (2000, 2200)]));
        assert_eq!(found.len(), 2);
        let near = |a: usize, b: usize| a.abs_diff(b) <= SMOOTHED;
        assert!(near(found[0].0, 470) && near(found[0].1, 1030) && near(found[1].0, 1970), "{found:?}");
    }

    #[test]
    fn silence_has_no_voice_and_endless_speech_is_one() {
        assert_eq!(voices(&vec![-10.0; 5000]), []);
        assert_eq!(voices(&vec![-1.5; 5000]), [(0, 5000)]);
        assert_eq!(voices(&[]), []);
    }

    #[test]
    fn stretches_fit_a_window_and_are_cut_where_it_is_quiet() {
        let mut loudness = room(9000, &[(0, 7000), (7800, 8000)]);
        loudness[2600..2620].fill(-3.0);
        let found = stretches(&loudness, 9000);
        assert!(found.iter().all(|(from, to)| to - from <= FRAMES), "{found:?}");
        assert!((2600..2620).contains(&found[0].1), "{found:?}");
        assert_eq!(found[1].0, found[0].1);
        assert_eq!(found.last().map(|(_, to)| to.abs_diff(8030) <= SMOOTHED), Some(true));
    }
}
