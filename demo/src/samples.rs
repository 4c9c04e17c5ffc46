//! Digits that neither version was trained on: what the demo's clients send.

use serde::Deserialize;

/// One handwritten digit.
#[derive(Clone, Debug, Deserialize)]
pub struct Sample {
    /// 8 rows of 8 pixels, 0..=16.
    pub pixels: Vec<u8>,
    /// The digit that it is.
    pub label: u8,
}

/// All samples.
///
/// # Panics
/// Never: the file is part of the program, and a test reads it.
pub fn all() -> Vec<Sample> {
    serde_json::from_str(include_str!("../samples.json")).expect("samples.json is tested")
}

#[cfg(test)]
mod tests {
    #[test]
    fn samples_are_whole() {
        let samples = super::all();
        assert_eq!(samples.len(), 450);
        for sample in samples {
            assert_eq!(sample.pixels.len(), 64);
            assert!(sample.pixels.iter().all(|&pixel| pixel <= 16));
            assert!(sample.label <= 9);
        }
    }
}
