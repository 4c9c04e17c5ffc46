//! How often a version disagrees with itself, in words.

/// A second answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twin {
    /// The old version's, by its copy.
    Control,
    /// The shadow's.
    Repeat,
}

impl Twin {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Control, Self::Repeat];

    /// The value of the `twin` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Repeat => "repeat",
        }
    }
}

/// How often the versions disagree, how often one with itself, both 0 to 1, in words.
pub fn in_words(twin: Twin, versions: f64, itself: f64) -> String {
    let whose = match twin {
        Twin::Control => "the old version",
        Twin::Repeat => "the new version",
    };
    let [versions, itself] = [versions, itself].map(|share| (share * 1e3).round() / 10.0);
    format!("differs {versions} %, of which {itself} % {whose} differs from itself")
}
