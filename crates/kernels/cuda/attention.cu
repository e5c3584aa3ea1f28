// Attention: one query a row and many over the paged cache, and whole images and texts.
#include "attend.cuh"
#include "decode.cuh"
#include "prefill.cuh"

#define ATTENTION(type, Type, dim)                                                  \
    KERNEL(decode_##type##_##dim, DECODE_THREADS, 1, Decode, decode<Type, dim>)    \
    KERNEL(prefill_##type##_##dim, PREFILL_THREADS, 1, Prefill, prefill<Type, dim>)
#define ATTEND(type, Type) KERNEL(attend_##type##_64, ATTEND_THREADS, 4, Attend, attend<Type, 64>)

#ifdef PINION_BF16
ATTENTION(bf16, Bf16, 64)
ATTENTION(bf16, Bf16, 128)
ATTEND(bf16, Bf16)
#endif
ATTENTION(f16, F16, 64)
ATTENTION(f16, F16, 128)
ATTEND(f16, F16)
