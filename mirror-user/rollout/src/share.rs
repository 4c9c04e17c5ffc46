//! What part of the connections is given to a version.

use std::fmt;

use mirror_common::steer::SHARE_PARTS;
use serde::{Deserialize, Serialize};

/// A share from 0 to 1 in steps of 0.0001.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Share(u32);

impl Share {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Everything.
    pub const ALL: Self = Self(SHARE_PARTS);

    /// So many parts of 10,000; more than all is all.
    pub const fn of_parts(parts: u32) -> Self {
        if parts > SHARE_PARTS {
            Self::ALL
        } else {
            Self(parts)
        }
    }

    /// In parts of 10,000.
    pub const fn parts(self) -> u32 {
        self.0
    }
}

impl TryFrom<f64> for Share {
    type Error = &'static str;

    fn try_from(share: f64) -> Result<Self, Self::Error> {
        let parts = (share * f64::from(SHARE_PARTS)).round();
        if !(0.0..=1.0).contains(&share) {
            return Err("write a share from 0 to 1, such as 0.05 for 5 %");
        }
        if (share * f64::from(SHARE_PARTS) - parts).abs() > 1e-6 {
            return Err("shares go in steps of 0.0001");
        }
        Ok(Self(parts as u32))
    }
}

impl From<Share> for f64 {
    fn from(share: Share) -> Self {
        Self::from(share.0) / Self::from(SHARE_PARTS)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f64::from(*self).fmt(f)
    }
}
