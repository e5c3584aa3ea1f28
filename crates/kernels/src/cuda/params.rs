//! What a kernel is told, laid out as the structs of the same names in `crates/kernels/cuda`. Refuses to know where the
//! addresses point.

/// An address in the device's memory; 0 is none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ptr(pub u64);

impl Ptr {
    pub const NONE: Ptr = Ptr(0);

    /// The address so many bytes on.
    pub fn at(self, bytes: usize) -> Ptr {
        Ptr(self.0 + bytes as u64)
    }
}

/// A struct of addresses, i32, u32 and f32 without gaps: its bytes are what the kernel reads.
///
/// # Safety
/// `repr(C)`, and no padding.
pub unsafe trait Params: Copy {}

macro_rules! params {
    ($($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* pub $field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type),* }
        // SAFETY: repr(C), and the sum below leaves no room for padding.
        unsafe impl Params for $name {}
        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*);
    )*};
}

params! {
    pub struct Weight {
        pub quants: Ptr,
        pub scales: Ptr,
        pub rows: i32,
        /// Of one row, counted in 64 bytes.
        pub groups: i32,
    }

    pub struct Product {
        pub weight: Weight,
        pub x: Ptr,
        pub gamma: Ptr,
        pub eps: f32,
        pub rows: i32,
        pub k: i32,
        pub row_bytes: i32,
    }

    /// `Add`, `Head` and `GateUp`.
    pub struct ProductTo {
        pub product: Product,
        pub to: Ptr,
    }

    pub struct Cache {
        pub keys: Ptr,
        pub values: Ptr,
        pub tables: Ptr,
        pub positions: Ptr,
        pub table_blocks: i32,
        pub heads: i32,
        pub kv_heads: i32,
        pub dim: i32,
    }

    pub struct Qkv {
        pub product: Product,
        pub cache: Cache,
        pub rope: Ptr,
        pub queries: Ptr,
    }

    pub struct Decode {
        pub cache: Cache,
        pub queries: Ptr,
        pub out: Ptr,
        pub partial: Ptr,
        pub done: Ptr,
        pub scale_log2: f32,
        pub rows: i32,
    }

    pub struct Prefill {
        pub cache: Cache,
        pub queries: Ptr,
        pub out: Ptr,
        pub tiles: Ptr,
        pub scale_log2: f32,
        pub rows: i32,
    }

    pub struct Attend {
        pub queries: Ptr,
        pub keys: Ptr,
        pub values: Ptr,
        pub out: Ptr,
        pub query_stride: i32,
        pub key_stride: i32,
        pub value_stride: i32,
        pub rows: i32,
        pub seen: i32,
        pub ahead: i32,
        pub scale_log2: f32,
        pub heads: i32,
    }

    pub struct GroupSums {
        pub x: Ptr,
        pub partial: Ptr,
        pub pixels: i32,
        pub channels: i32,
        pub groups: i32,
        pub run: i32,
    }

    pub struct GroupApply {
        pub x: Ptr,
        pub weight: Ptr,
        pub bias: Ptr,
        pub partial: Ptr,
        pub y: Ptr,
        pub pixels: i32,
        pub channels: i32,
        pub groups: i32,
        pub runs: i32,
        pub run: i32,
        pub share: i32,
        pub silu: i32,
        pub eps: f32,
    }

    pub struct LayerNorm {
        pub x: Ptr,
        pub weight: Ptr,
        pub bias: Ptr,
        pub y: Ptr,
        pub rows: i32,
        pub width: i32,
        pub stride: i32,
        pub eps: f32,
    }

    pub struct Finish {
        pub x: Ptr,
        pub bias: Ptr,
        pub residual: Ptr,
        pub shift: Ptr,
        pub y: Ptr,
        pub rows: i32,
        pub width: i32,
        pub rows_each: i32,
        pub shift_stride: i32,
    }

    pub struct Columns {
        pub x: Ptr,
        pub y: Ptr,
        pub height: i32,
        pub width: i32,
        pub units: i32,
        pub kernel: i32,
        pub stride: i32,
        pub top: i32,
        pub left: i32,
        pub rows: i32,
        pub columns: i32,
        pub doubled: i32,
        pub first: i32,
        pub count: i32,
    }

    pub struct Embed {
        pub table: Weight,
        pub tokens: Ptr,
        pub from: Ptr,
        pub chosen: Ptr,
        pub stream: Ptr,
        pub rows: i32,
        pub k: i32,
    }

    pub struct Unpack {
        pub weight: Weight,
        pub to: Ptr,
        pub first: i32,
        pub k: i32,
    }

    pub struct Norm {
        pub x: Ptr,
        pub gamma: Ptr,
        pub from: Ptr,
        pub y: Ptr,
        pub eps: f32,
        pub k: i32,
    }

    pub struct Place {
        pub cache: Cache,
        pub rope: Ptr,
        pub y: Ptr,
        pub queries: Ptr,
    }

    pub struct Swiglu {
        pub gate_up: Ptr,
        pub hidden: Ptr,
        pub ff: i32,
        pub rows: i32,
    }

    /// What a row asks of the choice of its token; lies on the device, an array with one for each row.
    pub struct Ask {
        pub seed: u64,
        /// How many tokens the prediction has drawn before.
        pub place: u64,
        /// 1 is off.
        pub top_p: f64,
        /// 1 / temperature; 0 is greedy; below 0 the row is not in use.
        pub by: f32,
        pub presence: f32,
        pub frequency: f32,
        /// 1 is off.
        pub repetition: f32,
        /// 0 is off.
        pub top_k: i32,
        /// The row of the counts that is this prediction's; below 0 it has no penalties.
        pub counts: i32,
        pub first_ban: u32,
        pub ban_count: u32,
    }

    pub struct Choose {
        pub logits: Ptr,
        pub asks: Ptr,
        pub counts: Ptr,
        pub bans: Ptr,
        pub chosen: Ptr,
        pub vocabulary: i32,
        pub rows: i32,
    }
}
