//! Which build serves which GPU: compute capabilities, the families that executables are built for, and the driver that
//! a toolkit's code needs. Knows tables; refuses to know what is on this machine.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A GPU's compute capability, e.g. 8.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Capability {
    pub major: u32,
    pub minor: u32,
}

impl Capability {
    /// Below, there are no units for bf16.
    pub const FIRST_BF16: Self = Self::new(8, 0);

    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    pub fn has_bf16(self) -> bool {
        self >= Self::FIRST_BF16
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// GPUs that one executable serves: its machine code runs from `from` to the end of that major version, and the driver
/// compiles the PTX beside it for everything later.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// In the executable's name: `pinion-cuda-80`.
    pub name: &'static str,
    pub from: Capability,
    /// The first capability that another family serves better.
    pub below: Option<Capability>,
}

/// As `cargo xtask cuda` builds them. 7.5 stands alone: without bf16.
pub const FAMILIES: &[Family] = &[
    Family { name: "75", from: Capability::new(7, 5), below: Some(Capability::new(8, 0)) },
    Family { name: "80", from: Capability::new(8, 0), below: None },
];

impl Family {
    pub fn named(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.name == name)
    }

    /// The one for this capability.
    pub fn of(capability: Capability) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.serves(capability))
    }

    pub fn serves(&self, capability: Capability) -> bool {
        capability >= self.from && self.below.is_none_or(|below| capability < below)
    }

    pub fn executable(&self) -> String {
        format!("pinion-cuda-{}", self.name)
    }
}

/// What a family serves, in words: "7.5", "8.0 and later".
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.below {
            Some(_) => write!(f, "{}", self.from),
            None => write!(f, "{} and later", self.from),
        }
    }
}

/// A version of CUDA as the driver counts: 1000 times the major number and 10 times the minor one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CudaVersion(pub u32);

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// The first driver branch on Linux that supports a version (CUDA Toolkit release notes, table of toolkit driver
/// versions).
const DRIVERS: &[(u32, u32)] = &[
    (12_000, 525),
    (12_010, 530),
    (12_020, 535),
    (12_030, 545),
    (12_040, 550),
    (12_050, 555),
    (12_060, 560),
    (12_080, 570),
    (12_090, 575),
    (13_000, 580),
    (13_010, 590),
];

impl CudaVersion {
    /// PTX of this toolkit needs it: a driver compiles only the PTX of its own version and earlier ones.
    pub fn driver(self) -> Option<u32> {
        DRIVERS.iter().find(|(version, _)| *version == self.0).map(|(_, branch)| *branch)
    }
}

/// What an executable says of itself, on one line of JSON, without touching a driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// As in `Hello`.
    pub build: String,
    /// None: it has no CUDA.
    pub cuda: Option<Built>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Built {
    /// One of `FAMILIES`.
    pub family: String,
    pub toolkit: CudaVersion,
}

/// Of this executable. Family and toolkit are the environment of `cargo xtask cuda`, which candle's own build reads too.
pub fn about() -> About {
    let built = || {
        let family = option_env!("CUDA_COMPUTE_CAP")?.to_owned();
        Some(Built { family, toolkit: CudaVersion(option_env!("CUDARC_CUDA_VERSION")?.parse().ok()?) })
    };
    let cuda = cfg!(feature = "cuda").then(built).flatten();
    About { build: prediction::frame::BUILD.to_owned(), cuda }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gpu_from_turing_on_has_one_family() {
        let family = |major, minor| Family::of(Capability::new(major, minor)).map(|family| family.name);
        for (major, minor) in [(3, 7), (6, 1), (7, 0), (7, 2)] {
            assert_eq!(family(major, minor), None, "{major}.{minor}");
        }
        assert_eq!(family(7, 5), Some("75"));
        for (major, minor) in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 1)] {
            assert_eq!(family(major, minor), Some("80"), "{major}.{minor}");
        }
        for family in FAMILIES {
            assert_eq!(Family::named(family.name), Some(family));
        }
    }

    #[test]
    fn versions_are_told_as_people_write_them() {
        assert_eq!(CudaVersion(13_000).to_string(), "13.0");
        assert_eq!(CudaVersion(12_080).to_string(), "12.8");
        assert_eq!(CudaVersion(13_000).driver(), Some(580));
        assert_eq!(CudaVersion(99_000).driver(), None);
        assert_eq!(Family::named("75").unwrap().to_string(), "7.5");
        assert_eq!(Family::named("80").unwrap().to_string(), "8.0 and later");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn the_plain_build_says_that_it_has_no_cuda() {
        assert_eq!(about(), About { build: prediction::frame::BUILD.to_owned(), cuda: None });
    }
}
