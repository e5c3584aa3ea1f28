//! Which vector instructions to use, picked once at run time. Knows the processor; refuses to know any op.
//!
//! Every op is written so that all paths give the same bits: integers are exact, and floats are added in one order with
//! fused multiply-adds. So a path is a matter of speed only, and the tests may compare paths with `==`.

use std::sync::OnceLock;

/// Names a path (`portable`, `avx2`, `avx512`) to use instead of the best one.
pub const ENV: &str = "PINION_SIMD";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The right to run instructions of one level: only made after the processor said that it has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Simd(Level);

impl Simd {
    /// The best this processor has, or the one `PINION_SIMD` names if it has that.
    pub fn best() -> Simd {
        static BEST: OnceLock<Simd> = OnceLock::new();
        *BEST.get_or_init(|| {
            let named = std::env::var(ENV).ok().and_then(|name| Simd::named(&name));
            named.unwrap_or_else(|| *Simd::available().last().expect("portable is always there"))
        })
    }

    /// Every path this processor can run, the fastest last.
    pub fn available() -> Vec<Simd> {
        #[allow(unused_mut)]
        let mut levels = vec![Simd(Level::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2 && is_x86_feature_detected!("f16c") {
                levels.push(Simd(Level::Avx2));
                let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
                let vnni = is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512vnni");
                if avx512 && vnni && is_x86_feature_detected!("avx512dq") {
                    levels.push(Simd(Level::Avx512));
                }
            }
        }
        levels
    }

    /// The path of that name, if this processor has it.
    pub fn named(name: &str) -> Option<Simd> {
        Simd::available().into_iter().find(|simd| simd.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
        }
    }

    pub(crate) fn level(self) -> Level {
        self.0
    }
}

/// Compiles one plain function once per path, so that the compiler vectorises it for each, and picks by a leading
/// `Simd`. The body must use `mul_add` where it wants one rounding: the compiler never fuses by itself, so the bits are
/// the same on every path.
macro_rules! per_path {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(simd: $crate::simd::Simd, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn portable($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx2($($arg: $ty),*) $(-> $ret)? { portable($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
            #[allow(clippy::too_many_arguments)]
            fn avx512($($arg: $ty),*) $(-> $ret)? { portable($($arg),*) }
            match simd.level() {
                $crate::simd::Level::Portable => portable($($arg),*),
                // SAFETY: a `Simd` of this level exists only if the processor has these features.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use per_path;
