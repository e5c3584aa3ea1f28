//! Where a recording has a voice, from its loudness alone. Refuses to know words.

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
pub fn around(loudness: &[f32], at: usize) -> f32 {
    let end = (at + SMOOTHED / 2).min(loudness.len());
    let part = &loudness[at.saturating_sub(SMOOTHED / 2).min(end)..end];
    part.iter().sum::<f32>() / part.len().max(1) as f32
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
}
