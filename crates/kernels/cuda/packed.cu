// The products with GGUF's blocks of 32.
#include "products.cuh"

#ifdef PINION_BF16
PRODUCTS(q8_0, bf16, Q8_0, Bf16)
PRODUCTS(q4_0, bf16, Q4_0, Bf16)
PRODUCTS(q4_1, bf16, Q4_1, Bf16)
#endif
PRODUCTS(q8_0, f16, Q8_0, F16)
PRODUCTS(q4_0, f16, Q4_0, F16)
PRODUCTS(q4_1, f16, Q4_1, F16)
