// The products with eight bits and a scale per row.
#include "products.cuh"

#ifdef PINION_BF16
PRODUCTS(int8, bf16, Int8, Bf16)
PRODUCTS(fp8, bf16, Fp8, Bf16)
#endif
PRODUCTS(int8, f16, Int8, F16)
PRODUCTS(fp8, f16, Fp8, F16)
