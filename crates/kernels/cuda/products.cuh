// The names of the products: OP_FORMAT_TYPE_ROWS. Up to 8 rows come as they are and are normed on the way in (but for `add`, whose
// input is no norm's); up to 32 come normed.
#pragma once

#include "product.cuh"

#define PRODUCTS(format, type, Format, Type)                                                                       \
    KERNEL(qkv_##format##_##type##_8, PRODUCT_THREADS, PRODUCT_BLOCKS, Qkv<Type>::Params, product<Type, Format, Qkv<Type>, 1, true>)      \
    KERNEL(gate_up_##format##_##type##_8, PRODUCT_THREADS, PRODUCT_BLOCKS, GateUp<Type>::Params, product<Type, Format, GateUp<Type>, 1, true>) \
    KERNEL(head_##format##_##type##_8, PRODUCT_THREADS, PRODUCT_BLOCKS, Head<Type>::Params, product<Type, Format, Head<Type>, 1, true>)   \
    KERNEL(add_##format##_##type##_8, PRODUCT_THREADS, PRODUCT_BLOCKS, Add<Type>::Params, product<Type, Format, Add<Type>, 1, false>)     \
    KERNEL(qkv_##format##_##type##_32, PRODUCT_THREADS, PRODUCT_BLOCKS, Qkv<Type>::Params, product<Type, Format, Qkv<Type>, 4, false>)    \
    KERNEL(gate_up_##format##_##type##_32, PRODUCT_THREADS, PRODUCT_BLOCKS, GateUp<Type>::Params, product<Type, Format, GateUp<Type>, 4, false>) \
    KERNEL(head_##format##_##type##_32, PRODUCT_THREADS, PRODUCT_BLOCKS, Head<Type>::Params, product<Type, Format, Head<Type>, 4, false>) \
    KERNEL(add_##format##_##type##_32, PRODUCT_THREADS, PRODUCT_BLOCKS, Add<Type>::Params, product<Type, Format, Add<Type>, 4, false>)
