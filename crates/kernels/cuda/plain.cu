// The products with weights as the file has them.
#include "products.cuh"

#ifdef PINION_BF16
PRODUCTS(plain, bf16, Plain, Bf16)
#endif
PRODUCTS(plain, f16, Plain, F16)
