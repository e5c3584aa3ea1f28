// Attention, one query a row and many.
#include "decode.cuh"
#include "prefill.cuh"

#define ATTENTION(type, Type, dim)                                                  \
    KERNEL(decode_##type##_##dim, DECODE_THREADS, 1, Decode, decode<Type, dim>)    \
    KERNEL(prefill_##type##_##dim, PREFILL_THREADS, 1, Prefill, prefill<Type, dim>)

#ifdef PINION_BF16
ATTENTION(bf16, Bf16, 64)
ATTENTION(bf16, Bf16, 128)
#endif
ATTENTION(f16, F16, 64)
ATTENTION(f16, F16, 128)
